// Sliding windows as a cache holds them: which positions are there after every call, that every query that may still come sees all that it
// should, and that what none will see is given back, for as long as a conversation goes on. Arithmetic of masks is masks.test.ts's.

import { type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/backend.ts';
import { group } from '../tools/group.ts';
import { attendBesidePlain } from './attention.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { altered } from './gpu.ts';
import { below, keyLike, normal, queryWidth, random } from './inputs.ts';
import { reference, simd128, wasm } from './verbs.ts';

const WIDTH = 32;
const base = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: WIDTH, capacity: 1200, sequences: 3 } satisfies CacheOptions;
const STREAM = 1200;
const [keys, values] = [keyLike(STREAM, WIDTH, 1), normal(STREAM, WIDTH, 2)];

/** The stream's `count` tokens from `from` on, over and over, to every layer. */
function extend(sequence: Sequence, count: number, from = sequence.length): Sequence {
  const rows = (x: Float32Array) => Float32Array.from({ length: count * WIDTH }, (_, i) => x[(from * WIDTH + i) % x.length]!);
  for (const layer of sequence.shape.layers.keys()) sequence.append(layer, rows(keys), rows(values));
  return sequence;
}

/** Tokens of appends, up to and beyond every window here: a prompt, single tokens, a few, windows, and another prompt. */
const COUNTS = [3, 1, 60, 1, 1, 63, 64, 1, 5, 130, 64, 2, 128, 1, 1, 300, 1, 70, 1];

/**
 * The first position that a layer holds but for sinks, by what was promised: of a sequence of `length` tokens the query at `oldest` may
 * still come, and whole windows that it does not see are gone, save `recent`; none before what is learned from was complete.
 */
function firstHeld({ shape }: Sequence, layer: number, oldest: number, learned: boolean): number {
  const { sinks, recent, layers } = shape;
  let first = sinks;
  while (learned && first + 64 * (recent + 1) <= oldest + 1 - layers[layer]!.window) first += 64;
  return first;
}

/** The sinks, and what is from `first` on. */
const rangesFrom = (first: number, sinks: number, length: number) => {
  if (first <= sinks) return [{ from: 0, to: length }];
  return [...(sinks > 0 ? [{ from: 0, to: sinks }] : []), { from: first, to: length }];
};

for (const tested of backends) {
  const open = (options: Partial<CacheOptions> = {}) => new KVCache(tested.backend, { ...base, ...options });
  /** A plain layer, and one with a window. */
  const beside = (window: number, options: Partial<CacheOptions> = {}) => open({ balance: 'off', layers: [{}, { window }], ...options });
  const query = (cache: KVCache, tokens: number) => normal(tokens, queryWidth(cache.shape), 3);

  group(`sliding windows on ${tested.name}`, test => {
    for (const window of tested.gpu ? [100] : [1, 64, 100, 500]) {
      test(`a window of ${window}: after every append exactly what its queries may see is held`, () => {
        const cases = [0, 4, 64].flatMap(sinks =>
          [0, 1, 2].flatMap(recent => (['off', 'learn'] as const).map(balance => ({ sinks, recent, balance, keepSinks: sinks === 4 })))
        );
        // All that codes differently is slow: one case of each kind.
        for (const options of tested.backend === reference.backend || tested.gpu ? cases.slice(8, 12) : cases) {
          const cache = open({ ...options, window });
          const { sinks } = options;
          const sequence = cache.sequence();
          for (const count of COUNTS) {
            const oldest = sequence.length;
            extend(sequence, count);
            const { length } = sequence;
            const first = firstHeld(sequence, 0, oldest, options.balance === 'off' || oldest >= sinks + 128);
            assert.equal(sequence.ranges(0), rangesFrom(first, sinks, length), `${JSON.stringify(options)}, ${length} tokens`);
            assert.ok(first <= sinks || first <= oldest + 1 - window);
            const held = length - Math.max(0, first - sinks);
            assert.is(sequence.tokens(0), held);
            assert.is(cache.free, base.capacity - held);
          }
          cache.dispose();
        }
      });
    }

    for (const [window, options] of [
      [1, {}],
      [64, { recent: 1 }],
      [100, { sinks: 64 }],
      [100, { layers: [{}, { window: 100, keepSinks: true }] }],
      [500, { sinks: 0 }]
    ] as const) {
      if (tested.gpu && !('layers' in options)) continue;
      test(`attention sees all that it should: a window of ${window}, ${JSON.stringify(options)}`, async () => {
        const cache = beside(window, options);
        const sequence = cache.sequence();
        for (const count of [140, 1, 200, 1, 64, 8, 130, 1]) {
          extend(sequence, count);
          if (count !== 64) await attendBesidePlain(`${sequence.length} tokens`, sequence, query(cache, count));
        }
        cache.dispose();
      });
    }

    test('of a prompt longer than its window what is behind is never coded', () => {
      for (const balance of ['off', 'learn'] as const) {
        const coded: number[] = [];
        const inside = tested.backend as Backend;
        const watched: Backend = {
          ...inside,
          createStore(shape) {
            const store = inside.createStore(shape);
            const encode: typeof store.encode = (layer, slots, ...rest) => {
              coded.push(slots.length);
              store.encode(layer, slots, ...rest);
            };
            return altered(store, { encode });
          }
        };
        const cache = new KVCache(watched, { ...base, window: 64, balance });
        const sequence = extend(cache.sequence(), 500); // sinks, seven windows, 48 tokens
        assert.is(sequence.tokens(0), 500);
        extend(sequence, 1); // sees from 437 on, of windows that end at 452 and 500
        assert.equal(coded, [1]);
        assert.equal(sequence.ranges(0), rangesFrom(388, 4, 501));
        cache.dispose();
      }
    });

    test('a layer learns from its first 128 tokens, however short its window', async () => {
      for (const window of tested.gpu ? [1] : [1, 64, 100]) {
        const cache = open({ layers: [{}, { window }] });
        for (const counts of [
          [300, 1],
          [100, 1, 1, 40, 60]
        ]) {
          const sequence = cache.sequence();
          for (const count of counts) {
            extend(sequence, count);
            const uneven = query(cache, count).map((x, i) => x * 2 ** ((i % 7) - 3));
            for (const layer of [0, 1]) sequence.attend(layer, uneven);
          }
          sequence.seal();
          const profile = await sequence.balance();
          sameBits('balance', profile.subarray(WIDTH / 2), profile.subarray(0, WIDTH / 2));
          assert.ok(profile.some(byte => byte >= 16)); // by queries, too
          await attendBesidePlain(`window ${window}`, sequence, query(cache, 1));
          sequence.dispose();
        }
        cache.dispose();
      }
    });

    test('forks keep the pages that one of them gives back, until none needs them', async () => {
      const cache = beside(100);
      const chat = extend(extend(cache.sequence(), 300), 1); // the windowed layer holds windows 132 and 196, and from 260 raw
      const fork = chat.fork();
      assert.equal(fork.ranges(1), chat.ranges(1));
      extend(chat, 200);
      extend(chat, 1);
      assert.equal(chat.ranges(1), rangesFrom(388, 4, 502));
      assert.equal(fork.ranges(1), rangesFrom(196, 4, 301));
      await attendBesidePlain('chat', chat, query(cache, 1));
      extend(fork, 8, 700);
      await attendBesidePlain('fork', fork, query(cache, 8));
      chat.dispose();
      await attendBesidePlain('fork alone', fork, query(cache, 8));
      fork.dispose();
      assert.is(cache.free, base.capacity);
      cache.dispose();
    });

    test('a batch whose sequences let go of the same page has its room', () => {
      const capacity = 4 + 128 + 2 * 64 + 1;
      const cache = open({ window: 66, capacity, balance: 'off', sequences: 2 });
      const chat = extend(cache.sequence(), 4 + 128);
      const fork = chat.fork();
      const tokens = (count: number) => [0, 1].map(() => new Float32Array(count * WIDTH));
      cache.append([chat, fork], 0, tokens(60), tokens(60));
      assert.is(cache.free, capacity - 128 - 2 * 64);
      // Position 132 saw 67, the last of the first window; 192 sees none of it.
      cache.append([chat, fork], 0, tokens(4), tokens(4));
      assert.is(cache.free, capacity - 64 - 2 * 68);
      cache.dispose();
    });

    test('crop() goes back as far as what the next token sees is held', async () => {
      const cache = beside(100);
      const sequence = extend(extend(cache.sequence(), 300), 40); // layer 1 has given back windows up to 196
      assert.equal(sequence.ranges(1), rangesFrom(196, 4, 340));
      const least = 196 + 100 - 1;
      const message = (got: number) =>
        `"length" expected at least ${least} or at most 4 (layer 1 has given back what is behind its window), got ${got}`;
      const file = await sequence.save();
      for (const length of [5, 196, least - 1]) {
        await refuses(() => sequence.crop(length), RangeError, message(length));
        sameBits('file', await sequence.save(), file);
      }
      sequence.crop(least);
      extend(sequence, 7, 500);
      await attendBesidePlain('after a crop', sequence, query(cache, 7));
      await refuses(
        () => sequence.attend(1, query(cache, 8)),
        RangeError,
        '"query" expected at most 7 tokens (what older ones see layer 1 holds no longer), got 8'
      );
      sequence.crop(4);
      assert.equal(sequence.ranges(1), [{ from: 0, to: 4 }]);
      extend(extend(sequence, 200), 30);
      await attendBesidePlain('anew', sequence, query(cache, 30));
      cache.dispose();
    });

    test('with `recent` windows as many tokens may be cropped at any time', async () => {
      for (const recent of [1, 2]) {
        const cache = beside(64, { recent });
        const next = random(9);
        const sequence = extend(cache.sequence(), 300);
        for (let round = 0; round < (tested.gpu ? 3 : 12); round++) {
          const before = sequence.length;
          extend(sequence, 1 + below(next, 90));
          sequence.crop(before - below(next, 64 * recent + 1));
          extend(sequence, 64 * recent + 3);
          if (round % 3 === 2) await attendBesidePlain(`round ${round}`, sequence, query(cache, 8));
        }
        cache.dispose();
      }
    });

    test('files hold what queries will see, for caches that keep as much or more', async () => {
      const cache = beside(100);
      const sequence = extend(extend(cache.sequence(), 300), 80); // holds from 196 on, its next token sees from 281 on
      const file = await sequence.save();
      for (const recent of [0, 1, 3]) {
        const other = beside(100, { recent });
        const restored = other.restore(file);
        assert.equal(restored.ranges(1), rangesFrom(260, 4, 380));
        sameBits('file', await restored.save(), file);
        await refuses(
          () => restored.crop(358),
          RangeError,
          '"length" expected at least 359 or at most 4 (layer 1 has given back what is behind its window), got 358'
        );
        for (const count of [1, 130, 20]) {
          extend(restored, count);
          await attendBesidePlain(`recent ${recent}`, restored, query(cache, count));
        }
        assert.equal(restored.ranges(1), rangesFrom(388 - 64 * Math.min(recent, 2), 4, 531));
        other.dispose();
      }
      for (const [layers, got] of [
        [[{}, { window: 64 }], 'all 64, got all 100'],
        [[{}, {}], 'all all, got all 100'],
        [[{ window: 100 }, { window: 100 }], '100 100, got all 100']
      ] as const) {
        const other = open({ balance: 'off', layers });
        await refuses(() => other.restore(file), RangeError, `file expected window ${got}`);
        assert.is(other.free, base.capacity);
        other.dispose();
      }
      cache.dispose();
    });

    test('a file has windows that its cache keeps for crops, which another that keeps fewer leaves out', async () => {
      const [less, cache] = [beside(100), beside(100, { recent: 1 })];
      const sequence = extend(extend(cache.sequence(), 300), 108);
      sequence.seal();
      sequence.crop(340); // no complete window is raw
      const file = await sequence.save();
      for (const [other, first] of [
        [cache, 132],
        [less, 196]
      ] as const) {
        const restored = other.restore(file);
        assert.equal(restored.ranges(1), rangesFrom(first, 4, 340));
        extend(restored, 8);
        await attendBesidePlain('after', restored, query(cache, 8));
        other.dispose();
      }
    });

    test('layers of one cache have windows of their own', async () => {
      const cache = open({ layers: [{ window: 64 }, { window: 500 }, {}, { window: 1 }], balance: 'off' });
      const sequence = cache.sequence();
      for (const count of [300, 64, 200, 1]) {
        const oldest = sequence.length;
        extend(sequence, count);
        for (const layer of [0, 1, 2, 3]) {
          assert.equal(sequence.ranges(layer), rangesFrom(firstHeld(sequence, layer, oldest, true), 4, sequence.length));
        }
      }
      assert.equal(sequence.ranges(3), rangesFrom(516, 4, 565)); // the last that is complete holds the newest 48 before
      assert.is(cache.free, base.capacity - 565);
      const refusal = (layer: number, least: number) =>
        `"length" expected at least ${least} or at most 4 (layer ${layer} has given back what is behind its window), got ${least - 1}`;
      await refuses(() => sequence.crop(514), RangeError, refusal(0, 452 + 63));
      await refuses(() => sequence.crop(515), RangeError, refusal(3, 516));
      sequence.crop(516);
      cache.dispose();
    });
  });
}

group('sliding windows', test => {
  for (const { name, backend } of wasm) {
    test(`a small cache takes tokens without end, and memory does not grow: ${name}`, () => {
      const cache = new KVCache(backend, { ...base, window: 100, capacity: 256, maxAppend: 64, sequences: 1 });
      const sequence = cache.sequence();
      const [x, q, out] = [normal(1, WIDTH, 5), normal(1, 2 * WIDTH, 6), new Float32Array(2 * WIDTH)];
      let [bytes, most] = [0, 0];
      for (let step = 0; step < 20_000; step++) {
        sequence.append(0, x, x);
        sequence.attend(0, q, { out });
        if (step === 1000) [bytes, most] = [cache.bytes, sequence.bytes];
        if (step % 97 === 0 && step > 1000) assert.is(cache.bytes, bytes);
        if (step > 1000) assert.ok(sequence.tokens(0) <= 4 + 100 + 2 * 64 && Math.abs(sequence.bytes - most) < 3 * 64 * 4 * WIDTH);
      }
      assert.is(sequence.length, 20_000);
      cache.dispose();
    });
  }

  test('what fits is taken, and nothing else', () => {
    for (let seed = 1; seed <= 20; seed++) {
      const next = random(seed);
      const [window, capacity] = [1 + below(next, 200), 150 + below(next, 300)];
      const cache = new KVCache(simd128.backend, { ...base, window, capacity, balance: 'off', sequences: 1 });
      const sequence = cache.sequence();
      for (let step = 0; step < 100; step++) {
        const count = 1 + below(next, 150);
        const { length } = sequence;
        // What is left when queries before the next token need nothing any more.
        const left = length - Math.max(0, firstHeld(sequence, 0, length, true) - 4);
        const before = sequence.tokens(0);
        if (left + count <= capacity) {
          extend(sequence, count);
          assert.is(sequence.tokens(0), left + count);
        } else {
          assert.throws(
            () => extend(sequence, count),
            (error: Error) =>
              error.message ===
              `"capacity" expected at most ${capacity} tokens, got ${left + count} (${before} held + ${left + count - before} more)`
          );
          assert.is(sequence.tokens(0), before);
        }
      }
      cache.dispose();
    }
  });

  test('pages and raw slots never run out, whatever the shape and the calls', async () => {
    for (let seed = 1; seed <= 60; seed++) {
      const next = random(seed);
      const pick = <T>(list: readonly T[]): T => list[below(next, list.length)]!;
      const capacity = 100 + below(next, 600);
      const options: CacheOptions = {
        ...base,
        layers: Array.from({ length: 1 + below(next, 3) }, () => (next() < 0.3 ? {} : { window: 1 + below(next, 300) })),
        sinks: pick([0, 4, 64]),
        recent: below(next, 3),
        balance: pick(['off', 'learn']),
        sequences: 1 + below(next, 4),
        capacity,
        maxAppend: 1 + below(next, capacity)
      };
      const cache = new KVCache(simd128.backend, options);
      const open: Sequence[] = [];
      const files: Uint8Array[] = [];
      for (let step = 0; step < 150; step++) {
        const chosen = pick(open);
        const calls: readonly (() => unknown)[] = [
          () => open.push(cache.sequence()),
          () => chosen && open.push(chosen.fork()),
          () => files.length > 0 && open.push(cache.restore(pick(files))),
          () => chosen?.crop(below(next, chosen.length + 1)),
          () => chosen?.crop(Math.max(0, chosen.length - below(next, 20))),
          () => chosen?.evict({ from: 0, to: chosen.length }),
          () => chosen?.seal(),
          async () => chosen && files.unshift(await chosen.save()),
          () => next() < 0.3 && open.splice(below(next, open.length), 1)[0]?.dispose(),
          () =>
            cache.reorder(
              open,
              open.map(() => below(next, open.length))
            ),
          ...Array.from({ length: 10 }, () => () => {
            const batch = open.filter(() => next() < 0.7);
            const tokens = batch.map(() => new Float32Array((1 + below(next, next() < 0.5 ? 5 : cache.shape.maxAppend)) * WIDTH));
            for (const layer of cache.shape.layers.keys()) cache.append(batch, layer, tokens, tokens);
          })
        ];
        try {
          await pick(calls)();
        } catch (error) {
          // Refusals are well; an Error says that reservations are wrong.
          if (!(error instanceof RangeError)) throw new Error(`seed ${seed}, step ${step}: ${error}`, { cause: error });
        }
      }
      for (const sequence of open) sequence.dispose();
      assert.is(cache.free, capacity);
      cache.dispose();
    }
  });
});
