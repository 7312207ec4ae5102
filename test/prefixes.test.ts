// The prefix store: what was put is found by its tokens, to the byte, and what prompts share is stored once.

import { type CacheOptions, KVCache, Sequence } from 'nsnquant';
import { type PrefixStorage, PrefixStore } from 'nsnquant/prefixes';
import { createStorage, prefixStorage } from 'unstorage';
import indexedDbDriver from 'unstorage/drivers/indexedb';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { webgpu } from './backends.ts';
import { sameBits } from './compare.ts';
import { bells, exactRope } from './inputs.ts';
import {
  base,
  bytesIn,
  cacheOn,
  fileOf,
  found,
  idsOf,
  keysOf,
  namedPages,
  put,
  SINKS,
  see,
  store,
  thrown,
  WIDTH,
  watched
} from './prompts.ts';
import { reference, simd128, withVerbs } from './verbs.ts';

/** Storages of this runtime. */
const storages: Readonly<Record<string, () => PrefixStorage>> = {
  memory: () => createStorage(),
  ...(typeof document !== 'undefined' && {
    IndexedDB: () => createStorage({ driver: indexedDbDriver({ dbName: `prefixes-${crypto.randomUUID()}`, storeName: 'items' }) })
  })
};

/** A profile, as it might have been learned. */
const profile = Uint8Array.from({ length: base.layers * (WIDTH / 2) }, (_, i) => (7 * i) % 11);
const balances = { learned: {}, 'of a profile': { balance: profile }, off: { balance: 'off' } } satisfies Record<
  string,
  Partial<CacheOptions>
>;

for (const [name, open] of Object.entries(storages)) {
  for (const [what, options] of Object.entries(balances)) {
    group(`prefixes in ${name}, balance ${what}`, test => {
      const cache = cacheOn(simd128.backend, options);
      const ids = idsOf(400, 1);
      /** Tokens of the first piece. */
      const first = SINKS + (what === 'learned' ? 128 : 64);

      test('of a prompt as many windows are found as leave a token to ask with', async () => {
        const prefixes = new PrefixStore(open(), store);
        assert.is(await put(prefixes, cache, ids), 388);
        for (const length of [0, 1, 68, 69, 132, 133, 196, 197, 260, 387, 388, 389, 400]) {
          const windows = Math.floor((length - 1 - SINKS) / 64);
          const expected = SINKS + 64 * windows;
          const prompt = ids.slice(0, length);
          assert.is(await found(prefixes, cache, prompt), expected >= first ? expected : 0, `${length} tokens`);
          assert.is(await prefixes.find(cache, prompt), expected >= first ? expected : 0);
        }
      });

      test('a longer or another prompt is found as far as it is the same', async () => {
        const prefixes = new PrefixStore(open(), store);
        await put(prefixes, cache, ids);
        assert.is(await found(prefixes, cache, [...ids, ...idsOf(300, 2)]), 388);
        for (const [differs, expected] of [
          [399, 388],
          [388, 388],
          [387, 324],
          [196, 196],
          [195, 132],
          [131, what === 'learned' ? 0 : 68],
          [67, 0],
          [0, 0]
        ] as const) {
          const other = ids.with(differs, ids[differs]! + 1);
          assert.is(await found(prefixes, cache, other), expected, `token ${differs} is another`);
        }
      });

      test('what prompts share is stored once, and written once', async () => {
        const storage = open();
        let written = 0;
        const prefixes = new PrefixStore(
          watched(storage, (method, key) => {
            if (method === 'setItemRaw' && /:(pages|manifests):/.test(key)) written++;
          }),
          store
        );
        await put(prefixes, cache, ids);
        const pieces = (388 - first) / 64 + 1;
        assert.is(written, 2 * pieces);
        await put(prefixes, cache, ids);
        assert.is(written, 2 * pieces, 'nothing is new');
        const others = [2, 3, 4].map(seed => [...ids.slice(0, 200), ...idsOf(200, seed)]);
        for (const other of others) await put(prefixes, cache, other);
        assert.is(written, 2 * (pieces + 3 * 3), '196 tokens are stored: 192 more of each');
        assert.is((await keysOf(storage, 'pages')).length, pieces + 9);
        for (const prompt of [ids, ...others]) assert.is(await found(prefixes, cache, prompt), 388);
        assert.is((await namedPages(storage)).length, pieces + 9);
        assert.is(await prefixes.bytes(), await bytesIn(storage));
      });

      test('a prefix goes on as the sequence did that it is of', async () => {
        const prefixes = new PrefixStore(open(), store);
        await put(prefixes, cache, ids);
        const longer = [...ids, ...idsOf(250, 5)];
        const sequence = (await prefixes.load(cache, longer))!;
        see(sequence, longer);
        assert.is(await prefixes.put(sequence, longer), 644);
        sequence.dispose();
        assert.is(await found(prefixes, cache, [...longer, 1]), 644);
      });

      test('clear() leaves what is not the store’s own', async () => {
        const storage = open();
        await storage.setItemRaw('mine', Uint8Array.of(1));
        await storage.setItemRaw('nsnquantum:mine', Uint8Array.of(1));
        const prefixes = new PrefixStore(storage, store);
        await put(prefixes, cache, ids);
        await prefixes.clear();
        assert.equal([...(await storage.getKeys(''))].sort(), ['mine', 'nsnquantum:mine']);
        assert.is(await prefixes.bytes(), 0);
        assert.is(await found(prefixes, cache, ids), 0);
      });
    });
  }
}

group('prefixes of caches', test => {
  const ids = idsOf(200, 1);
  const cache = cacheOn(simd128.backend);

  for (const { name, backend, gpu } of [...withVerbs, ...(webgpu ? [webgpu] : [])]) {
    test(`what WebAssembly stored is found on ${name}, and the other way`, async () => {
      const other = cacheOn(backend);
      for (const [from, to] of [
        [cache, other],
        [other, cache]
      ] as const) {
        const prefixes = new PrefixStore(createStorage(), store);
        assert.is(await put(prefixes, from, ids), 196);
        const sequence = (await prefixes.load(to, ids))!;
        assert.is(sequence.length, 196);
        const file = await sequence.save();
        sequence.dispose();
        sameBits('file', file, await fileOf(from, ids, 196));
      }
      if (gpu) other.dispose();
    });
  }

  test('other capacity, sequences, recent and query heads find it', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    await put(prefixes, cache, ids);
    for (const more of [{ capacity: 200, sequences: 1 }, { recent: 3 }, { queryHeads: 4 }]) {
      assert.is(await prefixes.find(cacheOn(simd128.backend, more), ids), 196);
    }
  });

  test('another model, shape, codec, balance or RoPE does not', async () => {
    const storage = createStorage();
    await put(new PrefixStore(storage, store), cache, ids);
    assert.is(await found(new PrefixStore(storage, { ...store, model: 'another' }), cache, ids), 0);
    for (const more of [
      { layers: 1 },
      { kvHeads: 2, queryHeads: 2 },
      { headDim: 64 },
      { sinks: 5 },
      { sinks: 0 },
      { keys: 'nsn4' },
      { layers: [{}, { values: 'nsn1' }] },
      { layers: [{}, { rope: exactRope(WIDTH) }] },
      { window: 100 },
      { softcap: 50 },
      { balance: 'off' },
      { balance: profile },
      { rope: exactRope(WIDTH) }
    ] satisfies Partial<CacheOptions>[]) {
      const other = cacheOn(reference.backend, more);
      assert.is(await new PrefixStore(storage, store).load(other, ids), undefined, JSON.stringify(more));
    }
  });

  test('frequencies that differ as engines do are the same, and others are not', async () => {
    const { invFreq, interleaved } = exactRope(WIDTH);
    const turned = (by: number): KVCache =>
      cacheOn(simd128.backend, { rope: { invFreq: Array.from(invFreq, angle => angle * by), interleaved } });
    const prefixes = new PrefixStore(createStorage(), store);
    await put(prefixes, turned(1), ids);
    assert.is(await found(prefixes, turned(1 - 2 ** -53), ids), 196);
    assert.is(await found(prefixes, turned(1.01), ids), 0);
  });

  test('of two balances under the same tokens the longer prefix stays', async () => {
    const storage = createStorage();
    const prefixes = new PrefixStore(storage, store);
    const long = idsOf(400, 1);
    await put(prefixes, cache, ids);
    /** Another who asked otherwise, and so learned otherwise. */
    const other = (tokens: number) => {
      const sequence = cache.sequence();
      const rows = (seed: number, heads = 1): Float32Array => bells(tokens, heads * WIDTH, seed).map((x, i) => x * (1 + (i % 7)));
      for (const layer of [0, 1]) {
        sequence.append(layer, rows(1), rows(2));
        sequence.attend(layer, rows(3, base.queryHeads));
      }
      return sequence;
    };
    const shorter = other(150);
    assert.is(await prefixes.put(shorter, long.slice(0, 150)), 132);
    assert.is(await found(prefixes, cache, ids), 196, 'as it was');
    const longer = other(390);
    // One who is killed with the first manifest of the longer one before the second of the shorter. A store of the first alone says
    // which that is: manifests are written some at once, in no order.
    const alone = createStorage();
    await new PrefixStore(alone, store).put(shorter, long.slice(0, 150));
    const [first] = await alone.getKeys('nsnquant:manifests');
    const killed = watched(storage, (method, key) => {
      if (method === 'setItemRaw' && key.includes(':manifests:') && key !== first) throw new Error('killed');
    });
    await thrown(() => new PrefixStore(killed, store).put(longer, long.slice(0, 390)));
    const mixed = (await prefixes.load(cache, ids))!;
    const beginning = longer.fork();
    beginning.crop(132);
    sameBits('mixed', await mixed.save(), await beginning.save());
    assert.is(await prefixes.put(longer, long.slice(0, 390)), 388);
    const loaded = (await prefixes.load(cache, long))!;
    longer.crop(388);
    sameBits('file', await loaded.save(), await longer.save());
    for (const sequence of [shorter, longer, mixed, beginning, loaded]) sequence.dispose();
  });

  test('behind a sliding window is nothing to store: a prompt that is put as it grows is found all the same', async () => {
    const sliding = cacheOn(simd128.backend, { layers: [{}, { window: 100 }] });
    const long = idsOf(460, 1);
    const prefixes = new PrefixStore(createStorage(), store);
    assert.is(await put(prefixes, sliding, long), 0, 'its first windows are gone');
    const sequence = sliding.sequence();
    for (let length = 60; length <= 460; length += 80) {
      see(sequence, long.slice(0, length));
      const expected = SINKS + 64 * Math.floor((length - SINKS) / 64);
      assert.is(await prefixes.put(sequence, long.slice(0, length)), expected < 132 ? 0 : expected);
    }
    sequence.dispose();
    for (const length of [133, 197, 300, 453]) {
      const loaded = (await prefixes.load(sliding, long.slice(0, length)))!;
      assert.is(loaded.length, SINKS + 64 * Math.floor((length - 1 - SINKS) / 64));
      // Further on, both have let go of the same windows.
      const whole = see(sliding.sequence(), long);
      see(loaded, long);
      sameBits(`from ${length} on`, await loaded.save(), await whole.save());
      for (const one of [loaded, whole]) one.dispose();
    }
    // Who comes late may continue it, and stores what is still there.
    const longer = see(sliding.sequence(), [...long, ...idsOf(60, 3)]);
    assert.is(await prefixes.put(longer, [...long, ...idsOf(60, 3)]), 516);
    const late = see(longer, [...long, ...idsOf(60, 3), ...idsOf(300, 4)]);
    assert.is(await prefixes.put(late, [...long, ...idsOf(60, 3), ...idsOf(300, 4)]), 516);
  });

  test('no file is made, whose checksum would say what digests say', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    const sequence = see(cache.sequence(), ids);
    const [{ prototype: sequences }, { prototype: caches }] = [Sequence, KVCache];
    const [{ save }, { restore }] = [sequences, caches];
    const refuse = () => {
      throw new Error('a file');
    };
    sequences.save = refuse;
    caches.restore = refuse;
    try {
      assert.is(await prefixes.put(sequence, ids), 196);
      (await prefixes.load(cache, ids))!.dispose();
    } finally {
      sequences.save = save;
      caches.restore = restore;
    }
    sequence.dispose();
    assert.is(await found(prefixes, cache, ids), 196);
  });

  test('a sequence may go on while it is stored', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    const sequence = see(cache.sequence(), ids);
    const tokens = Uint32Array.from(ids);
    const pending = prefixes.put(sequence, tokens);
    tokens.fill(7);
    sequence.crop(30);
    see(sequence, idsOf(300, 8).fill(3, 0, 30));
    sequence.dispose();
    assert.is(await pending, 196);
    assert.is(await found(prefixes, cache, ids), 196);
  });

  test('ids come as any array of integers', async () => {
    const prefixes = new PrefixStore(createStorage(), store);
    await put(prefixes, cache, ids);
    for (const tokens of [Int32Array.from(ids), Float64Array.from(ids), BigInt64Array.from(ids, BigInt), ids.map(BigInt)]) {
      assert.is(await prefixes.find(cache, tokens), 196);
    }
  });

  test('a storage may be a part of another', async () => {
    const storage = createStorage();
    const prefixes = new PrefixStore(prefixStorage(storage, 'models'), store);
    await put(prefixes, cache, ids);
    assert.ok((await storage.getKeys()).every(key => key.startsWith('models:nsnquant:')));
    assert.is(await found(prefixes, cache, ids), 196);
    assert.is(await new PrefixStore(storage, store).bytes(), 0);
  });

  test('too few tokens to code are not stored', async () => {
    const storage = createStorage();
    const prefixes = new PrefixStore(storage, store);
    for (const tokens of [0, 3, 131]) assert.is(await put(prefixes, cache, ids.slice(0, tokens)), 0);
    assert.equal(await storage.getKeys(), []);
  });
});
