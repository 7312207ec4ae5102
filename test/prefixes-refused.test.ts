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

  test('a sequence that has evicted what its tokens would have seen, wherever that is by now, and from a file too', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    for (const [layers, evicted, lengths] of [
      [[{}, {}], { from: 60, to: 140 }, [300, 400]],
      [[{}, {}], { from: 60, to: 140, layer: 1 }, [300, 400]],
      [[{}, { window: 150 }], { from: 100, to: 270, layer: 1 }, [300, 400, 900]], // at last far behind the window
      [[{ window: 100 }, {}], { from: 60, to: 270, layer: 0 }, [300, 900]]
    ] as const) {
      const cache = cacheOn(simd128.backend, { layers });
      const ids = idsOf(900, 1);
      const sequence = see(cache.sequence(), ids.slice(0, 300));
      sequence.evict(evicted);
      const layer = 'layer' in evicted ? evicted.layer : 0;
      const message = `"sequence" expected tokens that saw all they should, got layer ${layer} with something evicted from position 300 on`;
      for (const length of lengths) {
        const prompt = ids.slice(0, length);
        see(sequence, prompt);
        const { bytes } = sequence;
        await refuses(() => prefixes.put(sequence, prompt), RangeError, message);
        assert.is(sequence.bytes, bytes, 'nothing is coded for it');
        const fork = sequence.fork();
        const restored = cache.restore(await fork.save());
        for (const one of [fork, restored]) {
          await refuses(() => prefixes.put(one, prompt), RangeError, message);
          one.dispose();
        }
      }
      // Once it is gone that was made without, and what was evicted with it, all is as if nothing had been.
      sequence.crop(4);
      see(sequence, ids.slice(0, 300));
      const isBehind = layers.some(layer => 'window' in layer); // where the first windows are gone by now
      assert.is(await prefixes.put(sequence, ids.slice(0, 300)), isBehind ? 0 : 260);
    }
  });

  test('but not one that has evicted what no token would have seen', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    const cache = cacheOn(simd128.backend, { layers: [{}, { window: 50 }], recent: 2, balance: 'off' });
    const ids = idsOf(420, 1);
    const sequence = cache.sequence();
    for (const [length, stored] of [
      [200, 68],
      [300, 132],
      [420, 132]
    ] as const) {
      see(sequence, ids.slice(0, length));
      assert.is(await prefixes.put(sequence, ids.slice(0, length)), stored);
      // Kept for crops alone.
      if (length === 300) sequence.evict({ from: 68, to: 132, layer: 1 });
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
