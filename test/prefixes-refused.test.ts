// What a prefix store refuses, word for word, and that a storage which fails is one clear error, after which the cache is as before.

import type { KVCache } from 'nsnquant';
import { PrefixStore, StorageError } from 'nsnquant/prefixes';
import { createStorage } from 'unstorage';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses } from './compare.ts';
import { cacheOn, fileOf, idsOf, namedPages, put, see, store, thrown, WIDTH, watched } from './prompts.ts';
import { simd128 } from './verbs.ts';

/** All sequences of a cache, and all of its tokens, are to be had. */
function isEmpty(cache: KVCache): void {
  const { sequences, capacity, layers } = cache.shape;
  const all = Array.from({ length: sequences }, () => cache.sequence());
  const rows = new Float32Array(capacity * WIDTH);
  for (const layer of layers.keys()) all[0]!.append(layer, rows, rows);
  for (const sequence of all) sequence.dispose();
}

group('refusals by a prefix store', test => {
  const ids = idsOf(200, 1);
  const cache = cacheOn(simd128.backend);
  const any = (value: unknown): any => value;

  test('its storage and options', async () => {
    const storage = createStorage();
    const refused = (type: new (...args: any[]) => Error, message: string, ...args: unknown[]) =>
      refuses(() => new (PrefixStore as any)(...args), type, message);
    await refused(TypeError, '"storage" expected object, got undefined');
    await refused(TypeError, '"storage.getItemRaw" expected function (a Storage of unstorage), got undefined', new Map(), store);
    await refused(TypeError, '"options" expected object, got undefined', storage);
    await refused(TypeError, '"options" expected only model and budget, got size', storage, { ...store, size: 1 });
    await refused(TypeError, '"model" expected string, got undefined', storage, { budget: 1 });
    await refused(TypeError, '"budget" expected number, got undefined', storage, { model: 'a' });
    for (const budget of [0, -1, NaN])
      await refused(RangeError, `"budget" expected bytes above 0, got ${budget}`, storage, { ...store, budget });
  });

  test('sequences, caches and ids', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    const sequence = see(cache.sequence(), ids);
    await refuses(() => prefixes.put(any(cache), ids), TypeError, '"sequence" expected Sequence, got KVCache');
    await refuses(() => prefixes.load(any(sequence), ids), TypeError, '"cache" expected KVCache, got Sequence');
    await refuses(() => prefixes.find(any(undefined), ids), TypeError, '"cache" expected KVCache, got undefined');
    await refuses(
      () => prefixes.put(sequence, ids.slice(1)),
      RangeError,
      '"tokens" expected length 200 (one id for each token of the sequence), got 199'
    );
    for (const [tokens, type, message] of [
      ['1 2', TypeError, '"tokens" expected array of integers, got string'],
      [new Set(ids), TypeError, '"tokens" expected array of integers, got Set'],
      [ids.with(7, -1), RangeError, '"tokens[7]" expected integer from 0 to 4294967295, got -1'],
      [ids.with(7, 0.5), RangeError, '"tokens[7]" expected integer from 0 to 4294967295, got 0.5'],
      [ids.map(BigInt).with(7, 2n ** 32n), RangeError, '"tokens[7]" expected integer from 0 to 4294967295, got 4294967296'],
      [any(ids).with(7, '1'), TypeError, '"tokens[7]" expected integer, got string']
    ] as const) {
      await refuses(() => prefixes.put(sequence, any(tokens)), type, message);
      await refuses(() => prefixes.load(cache, any(tokens)), type, message);
    }
    sequence.append(0, new Float32Array(WIDTH), new Float32Array(WIDTH));
    await refuses(() => prefixes.put(sequence, ids), RangeError, 'layer 0 expected 200 tokens, as the shortest has, got 201');
    sequence.dispose();
    await refuses(() => prefixes.put(sequence, []), TypeError, 'sequence expected open, got disposed');
  });

  test('a sequence that has evicted what it would see', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    for (const [layers, evicted, from] of [
      [[{}, {}], { from: 60, to: 140 }, 132],
      [[{}, {}], { from: 60, to: 140, layer: 1 }, 132],
      [[{}, { window: 150 }], { from: 100, to: 270, layer: 1 }, 260]
    ] as const) {
      const sequence = see(cacheOn(simd128.backend, { layers }).sequence(), idsOf(300, 1));
      sequence.evict(evicted);
      await refuses(
        () => prefixes.put(sequence, idsOf(300, 1)),
        RangeError,
        `"sequence" expected all that its next token sees, got layer ${'layer' in evicted ? 1 : 0} without positions before ${from}`
      );
    }
  });

  test('a cache without room, which is as it was then', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    await put(prefixes, cache, ids);
    const small = cacheOn(simd128.backend, { capacity: 128, sequences: 1 });
    const file = await fileOf(cache, ids, 196);
    const said = await thrown(() => small.restore(file));
    assert.match(said.message, 'capacity');
    await refuses(() => prefixes.load(small, ids), RangeError, said.message);
    isEmpty(small);
  });

  test('a storage that fails, whichever call it is', async () => {
    for (const failing of ['getItemRaw', 'setItemRaw', 'removeItem', 'getKeys'] as const) {
      for (let calls = 0, failed = true; failed; calls++) {
        failed = false;
        const storage = createStorage();
        await put(new PrefixStore(storage, store), cache, idsOf(260, 4));
        let left = calls;
        const broken = new PrefixStore(
          watched(storage, method => {
            if (method === failing && left-- === 0) {
              failed = true;
              throw new Error('no connection');
            }
          }),
          { ...store, budget: 5000 }
        );
        const small = cacheOn(simd128.backend, { capacity: 400, sequences: 2 });
        const load = async (): Promise<void> => (await broken.load(small, ids))?.dispose();
        for (const run of [() => put(broken, small, ids), load, () => broken.bytes(), () => broken.clear()]) {
          try {
            await run();
          } catch (error) {
            assert.ok(error instanceof StorageError, `${error}`);
            assert.match(
              error.message,
              /^storage expected to (list its keys|(read|write|remove) nsnquant:[a-z]+(:\S+)?), got no connection$/
            );
            assert.is((error.cause as Error).message, 'no connection');
            isEmpty(small);
          }
        }
        await namedPages(storage);
      }
    }
  });
});
