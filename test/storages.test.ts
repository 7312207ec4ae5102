// What a storage may come to under a prefix store: damaged, too large, left half-written, changed by others. Nothing wrong is ever found.

import { PrefixStore } from 'nsnquant/prefixes';
import { createStorage, type Storage } from 'unstorage';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { below, random } from './inputs.ts';
import { bytesIn, cacheOn, found, idsOf, keysOf, namedPages, put, store, watched } from './prompts.ts';
import { simd128 } from './verbs.ts';

const cache = cacheOn(simd128.backend, { balance: new Uint8Array(2 * 16).fill(0x21) });
const ids = idsOf(300, 1);
/** All that is stored of it. */
const STORED = 260;
/** Two prompts that begin as `ids` does. */
const others = [2, 3].map(seed => [...ids.slice(0, 140), ...idsOf(160, seed)]);

async function bytesOf(storage: Storage, key: string): Promise<Uint8Array> {
  return new Uint8Array((await storage.getItemRaw(key)) as Uint8Array);
}

async function copyOf(storage: Storage): Promise<Storage> {
  const copy = createStorage();
  for (const key of await storage.getKeys()) await copy.setItemRaw(key, await bytesOf(storage, key));
  return copy;
}

/** What may become of an item's bytes. */
const damages: Readonly<Record<string, (bytes: Uint8Array, next: () => number) => unknown>> = {
  'a flipped bit': (bytes, next) => {
    const bit = below(next, 8 * bytes.length);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    return bytes;
  },
  'its end cut off': (bytes, next) => bytes.slice(0, below(next, bytes.length)),
  'more bytes': bytes => Uint8Array.from([...bytes, 0]),
  zeros: bytes => new Uint8Array(bytes.length),
  text: () => 'text',
  'an object': () => ({ bytes: 1 }),
  'an ArrayBuffer, which it may be': bytes => bytes.buffer
};

group('damaged storages', test => {
  for (const [how, damage] of Object.entries(damages)) {
    test(`an item with ${how}: what it is of is absent until it is put again`, async () => {
      const next = random(1);
      const whole = createStorage();
      for (const prompt of [ids, ...others]) await put(new PrefixStore(whole, store), cache, prompt);
      for (const key of await whole.getKeys()) {
        const storage = await copyOf(whole);
        const prefixes = new PrefixStore(storage, store);
        await storage.setItemRaw(key, damage(await bytesOf(storage, key), next) as Uint8Array);
        const lengths = [];
        for (const prompt of [ids, ...others]) lengths.push(await found(prefixes, cache, prompt));
        if (/:used:/.test(key) || how.startsWith('an ArrayBuffer')) assert.equal(lengths, [STORED, STORED, STORED], key);
        else assert.ok(Math.min(...lengths) < STORED, key);
        for (const prompt of [ids, ...others]) assert.is(await put(prefixes, cache, prompt), STORED);
        for (const prompt of [ids, ...others]) assert.is(await found(prefixes, cache, prompt), STORED, key);
        await namedPages(storage);
      }
    });
  }

  test('an item that is missing, or any two that are swapped', async () => {
    const whole = createStorage();
    for (const prompt of [ids, ...others]) await put(new PrefixStore(whole, store), cache, prompt);
    for (const kind of ['pages', 'manifests'] as const) {
      const keys = await keysOf(whole, kind);
      for (const [n, a] of keys.entries()) {
        for (const b of keys.slice(n)) {
          const storage = await copyOf(whole);
          if (a === b) await storage.removeItem(a);
          else {
            await storage.setItemRaw(a, await bytesOf(whole, b));
            await storage.setItemRaw(b, await bytesOf(whole, a));
          }
          const prefixes = new PrefixStore(storage, store);
          const lengths = [];
          for (const prompt of [ids, ...others]) lengths.push(await found(prefixes, cache, prompt));
          assert.ok(Math.min(...lengths) < STORED, `${a} ${b}`);
        }
      }
    }
  });

  test('any number of items at once', async () => {
    const next = random(2);
    const whole = createStorage();
    for (const prompt of [ids, ...others]) await put(new PrefixStore(whole, store), cache, prompt);
    const ways = Object.values(damages);
    for (let round = 0; round < 15; round++) {
      const storage = await copyOf(whole);
      const prefixes = new PrefixStore(storage, store);
      for (const key of await whole.getKeys()) {
        if (next() < 0.7) continue;
        if (next() < 0.3) await storage.removeItem(key);
        else await storage.setItemRaw(key, ways[below(next, ways.length)]!(await bytesOf(whole, key), next) as Uint8Array);
      }
      // Pages behind others that are damaged are looked at once those are right again: a round mends one piece at least.
      for (let piece = 0; piece < 4; piece++) {
        for (const prompt of [ids, ...others]) await found(prefixes, cache, prompt);
        for (const prompt of [ids, ...others]) await put(prefixes, cache, prompt);
      }
      for (const prompt of [ids, ...others]) assert.is(await found(prefixes, cache, prompt), STORED, `round ${round}`);
    }
  });
});

group('the budget of a storage', test => {
  /** Bytes of a prompt's first piece, and of any other, with their manifests. */
  const sizes = async (): Promise<readonly [number, number]> => {
    const [one, two] = [createStorage(), createStorage()];
    await put(new PrefixStore(one, store), cache, ids.slice(0, 68));
    await put(new PrefixStore(two, store), cache, ids.slice(0, 132));
    return [await bytesIn(one), (await bytesIn(two)) - (await bytesIn(one))];
  };

  test('is kept by whoever puts, and every prefix that is left is whole', async () => {
    const [first, more] = await sizes();
    for (const budget of [1, first, first + 2 * more, 3 * (first + 3 * more), 1e6]) {
      const storage = createStorage();
      const prefixes = new PrefixStore(storage, { ...store, budget });
      for (let seed = 1; seed <= 12; seed++) {
        const prompt = seed % 3 === 0 ? [...ids.slice(0, 140), ...idsOf(160, seed)] : idsOf(100 + 20 * seed, seed);
        const stored = await put(prefixes, cache, prompt);
        assert.is(await found(prefixes, cache, [...prompt, 0]), stored, `prompt ${seed}, ${budget} bytes`);
        const bytes = await bytesIn(storage);
        assert.ok(bytes <= budget, `${bytes} bytes of ${budget}`);
        assert.is(await prefixes.bytes(), bytes);
        assert.is(new Set(await namedPages(storage)).size, (await keysOf(storage, 'pages')).length);
      }
    }
  });

  test('what was used last is forgotten last, its end before its beginning', async () => {
    const [first, more] = await sizes();
    const prompts = [1, 2, 3, 4].map(seed => idsOf(270, seed));
    const storage = createStorage();
    // All four have room, and nothing else.
    const prefixes = new PrefixStore(storage, { ...store, budget: 4 * (first + 3 * more) + 100 });
    for (const prompt of prompts) assert.is(await put(prefixes, cache, prompt), STORED);
    await found(prefixes, cache, prompts[0]!);
    await found(prefixes, cache, prompts[2]!.slice(0, 200)); // of the third the first three pieces
    await put(prefixes, cache, idsOf(100, 5));
    // A tenth of the budget is made free: most of what was not used again first.
    const left = [];
    for (const prompt of prompts) left.push(await prefixes.find(cache, prompt));
    assert.is(left[0], STORED);
    assert.is(left[2], STORED);
    assert.ok(left[1]! < STORED, `${left}`);
    assert.is(left[3], STORED);
    for (let seed = 6; seed < 9; seed++) await put(prefixes, cache, idsOf(270, seed));
    assert.ok((await prefixes.find(cache, prompts[1]!)) + (await prefixes.find(cache, prompts[3]!)) === 0);
    await namedPages(storage);
  });

  test('what was used in times to come, or at none, is forgotten first', async () => {
    const [first, more] = await sizes();
    for (const time of [4e12, Infinity, NaN, -1]) {
      const storage = createStorage();
      const prefixes = new PrefixStore(storage, { ...store, budget: 2 * (first + 3 * more) + 100 });
      await put(prefixes, cache, ids);
      await storage.setItemRaw((await keysOf(storage, 'used'))[0]!, new Uint8Array(new Float64Array([time]).buffer));
      const other = idsOf(270, 2);
      await put(prefixes, cache, other);
      await put(prefixes, cache, idsOf(100, 3));
      assert.is(await prefixes.find(cache, other), STORED, `${time}`);
      assert.ok((await prefixes.find(cache, ids)) < STORED, `${time}`);
    }
  });

  test('a prefix that others continue is as recent as they are', async () => {
    const [first, more] = await sizes();
    const prefixes = new PrefixStore(createStorage(), { ...store, budget: 2 * first + 8 * more });
    await put(prefixes, cache, ids.slice(0, 140));
    for (let round = 0; round < 6; round++) {
      await put(prefixes, cache, idsOf(100, 10 + round));
      assert.ok((await put(prefixes, cache, [...ids.slice(0, 140), ...idsOf(140, 20 + round)])) > 132);
      assert.ok((await found(prefixes, cache, ids)) >= 132);
    }
  });

  test('pages that two models have in common are there once, as long as either is', async () => {
    const [first, more] = await sizes();
    const storage = createStorage();
    const budget = 2 * (first + 4 * more);
    const [one, two] = ['one', 'two'].map(model => new PrefixStore(storage, { model, budget }));
    for (const prefixes of [one!, two!]) assert.is(await put(prefixes, cache, ids), STORED);
    assert.is((await keysOf(storage, 'pages')).length, 4);
    assert.is((await keysOf(storage, 'manifests')).length, 8);
    for (let seed = 1; (await one!.find(cache, ids)) > 0; seed++) {
      assert.is(await found(two!, cache, ids), STORED);
      await put(two!, cache, idsOf(140, seed));
    }
    assert.is(await found(two!, cache, ids), STORED);
  });

  test('what a writer left behind counts, and is removed once no one can be writing it', async () => {
    const storage = createStorage();
    const killed = new PrefixStore(
      watched(storage, (method, key) => {
        if (method === 'setItemRaw' && key.includes(':manifests:')) throw new Error('killed');
      }),
      store
    );
    await put(killed, cache, ids).catch(() => {});
    const left = await keysOf(storage, 'pages');
    assert.is(left.length, 4);
    const budget = (await bytesIn(storage)) + 300;
    const now = Date.now;
    try {
      for (const [minutes, expected] of [
        [0, 4],
        [9, 4],
        [11, 0]
      ] as const) {
        Date.now = () => now() + minutes * 60_000;
        await put(new PrefixStore(storage, { ...store, budget }), cache, idsOf(100, 90 + minutes));
        const pages = await keysOf(storage, 'pages');
        assert.is(left.filter(key => pages.includes(key)).length, expected, `${minutes} minutes later`);
        assert.ok((await bytesIn(storage)) <= budget);
      }
    } finally {
      Date.now = now;
    }
  });
});

group('others at the same storage', test => {
  for (const kind of ['pages', 'manifests'] as const) {
    test(`${kind} that are gone between two reads are as if they had never been`, async () => {
      for (let after = 0; after < 8; after++) {
        const storage = createStorage();
        await put(new PrefixStore(storage, store), cache, ids);
        let reads = 0;
        const prefixes = new PrefixStore(
          watched(storage, async method => {
            if (method !== 'getItemRaw' || reads++ !== after) return;
            for (const key of await keysOf(storage, kind)) await storage.removeItem(key);
          }),
          store
        );
        const length = await found(prefixes, cache, ids);
        // Two reads at least are of the manifests that say how much there is.
        if (after < 2) assert.ok(length < STORED, `${length} tokens after ${after} reads`);
      }
    });
  }

  test('many put, load and evict at once', async () => {
    const storage = createStorage();
    /** Each waits for a random while before every call. */
    const slow = (seed: number) => {
      const next = random(seed);
      return watched(storage, () => new Promise(resolve => setTimeout(resolve, 3 * next())));
    };
    const prompts = [ids, ...others, ...[4, 5].map(seed => idsOf(200, seed))];
    const budget = 40_000;
    await Promise.all(
      Array.from({ length: 6 }, async (_, n) => {
        const own = cacheOn(simd128.backend, { balance: cache.shape.balance });
        const prefixes = new PrefixStore(slow(n), { ...store, budget });
        const next = random(100 + n);
        for (let call = 0; call < 8; call++) {
          const prompt = prompts[below(next, prompts.length)]!;
          if (next() < 0.5) await put(prefixes, own, prompt);
          else await found(prefixes, own, prompt);
        }
      })
    );
    const prefixes = new PrefixStore(storage, { ...store, budget: Infinity });
    for (const prompt of prompts) await found(prefixes, cache, prompt);
    for (const prompt of prompts) await put(prefixes, cache, prompt);
    for (const prompt of prompts) assert.is(await found(prefixes, cache, prompt), 4 + 64 * Math.floor((prompt.length - 5) / 64));
  });
});
