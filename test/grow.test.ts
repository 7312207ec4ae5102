// Memory that grows: what is taken when, that it is taken again, and what a refusal leaves.

import { BackendError, type CacheOptions, type CacheShape, KVCache, plan, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend } from '../src/backend.ts';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import { backends } from './backends.ts';
import { atMost, sameBits } from './compare.ts';
import { Granted } from './granted.ts';
import { bells, keyLike, ropes } from './inputs.ts';
import { FIRST_BYTES, THOUSAND_TOKENS_BITS } from './tolerance.ts';
import { simd128, type Tested, wasm } from './verbs.ts';

/** Raw slots and sinks of 32 KB each: a few of them make a memory grow. */
const shape = {
  layers: 3,
  kvHeads: 2,
  queryHeads: 4,
  headDim: 64,
  capacity: 3072,
  sequences: 4,
  maxAppend: 300,
  sinks: 64
} satisfies CacheOptions;
/** On a GPU a smaller head, which compiles sooner. */
const shapeOn = ({ gpu }: Pick<Tested, 'gpu'>): CacheOptions => (gpu ? { ...shape, kvHeads: 1, queryHeads: 2, headDim: 32 } : shape);

const rows = ({ kvHeads = 0, headDim = 0 }: CacheOptions, tokens: number, seed: number) => ({
  keys: keyLike(tokens, kvHeads * headDim, seed),
  values: bells(tokens, kvHeads * headDim, seed + 1)
});

/** A cache's calls, each by name, of which every one may grow. */
function calls(options: CacheOptions, cut = 200) {
  const state: { cache?: KVCache; chat?: Sequence; other?: Sequence; fork?: Sequence; file?: Uint8Array; restored?: Sequence } = {};
  const layers = [0, 1, 2];
  const append = (sequences: readonly Sequence[], layer: number, tokens: number, seed: number) => {
    const inputs = sequences.map((_, n) => rows(options, tokens, seed + 10 * n));
    const sides = (['keys', 'values'] as const).map(side => inputs.map(input => input[side]));
    state.cache!.append(sequences, layer, sides[0]!, sides[1]!);
  };
  const queries = (tokens: number) => bells(tokens, (options.queryHeads ?? 0) * (options.headDim ?? 0), 7);
  const steps: (readonly [name: string, run: () => unknown])[] = [];
  const appends = (name: string, of: () => Sequence[], tokens: number, seed: number) => {
    for (const layer of layers) steps.push([`append ${name}`, () => append(of(), layer, tokens, seed + layer)]);
  };
  steps.push(['open', () => (state.chat = state.cache!.sequence())]);
  appends('a question', () => [state.chat!], 100, 80);
  steps.push([
    'attend over the query',
    () => {
      const query = queries(90);
      return state.chat!.attend(1, query, { out: query }).read();
    }
  ]);
  steps.push(['fork at once', () => (state.fork = state.chat!.fork())]);
  steps.push([
    'dispose',
    () => {
      state.fork!.dispose();
      delete state.fork;
    }
  ]);
  appends('a prompt', () => [state.chat!], 280, 1);
  steps.push(['attend', () => state.chat!.attend(0, queries(40)).read()]);
  steps.push(['seal', () => state.chat!.seal()]);
  steps.push(['open another', () => (state.other = state.cache!.sequence())]);
  for (let n = 0; n < 3; n++) appends('a batch', () => [state.chat!, state.other!], 150, 20 + 3 * n);
  steps.push(['attend in a batch', () => state.cache!.attend([state.chat!, state.other!], 1, [queries(1), queries(90)]).read()]);
  steps.push(['fork', () => (state.fork = state.chat!.fork())]);
  appends('to a fork', () => [state.fork!], 200, 40);
  steps.push(['save', async () => (state.file = await state.fork!.save())]);
  steps.push(['seal another', () => state.other!.seal()]);
  steps.push(['crop', () => state.other!.crop(333)]);
  steps.push(['seal before a cut', () => state.chat!.seal()]);
  steps.push(['cut', () => state.chat!.crop(cut)]);
  steps.push(['restore', () => (state.restored = state.cache!.restore(state.file!))]);
  appends('to all', () => [state.chat!, state.other!, state.fork!, state.restored!], 70, 60);
  steps.push(['reorder', () => state.cache!.reorder([state.chat!, state.other!, state.fork!], [1, 1, 2])]);
  steps.push(['evict', () => state.fork!.evict({ from: 128, to: 512, layer: 0 })]);
  return { state, steps };
}

/** Runs with WebAssembly memories that do not grow; how often one was asked to. */
async function refusingToGrow(run: () => unknown): Promise<{ asked: number; error: unknown }> {
  const { grow } = WebAssembly.Memory.prototype;
  let asked = 0;
  let error: unknown;
  WebAssembly.Memory.prototype.grow = () => {
    asked++;
    throw new RangeError('no room');
  };
  try {
    await run();
  } catch (thrown) {
    error = thrown;
  } finally {
    WebAssembly.Memory.prototype.grow = grow;
  }
  return { asked, error };
}

const sequencesOf = ({ state: { chat, other, fork, restored } }: ReturnType<typeof calls>) =>
  [chat, other, fork, restored].filter(sequence => sequence !== undefined);

/** Appends tokens of a layer's own, the same at every call. */
function appender(options: Parameters<typeof rows>[0]) {
  return (to: Sequence, layer: number, tokens: number): void => {
    const { keys, values } = rows(options, tokens, layer + 1);
    to.append(layer, keys, values);
  };
}

for (const tested of backends) {
  group(`growing on ${tested.name}`, test => {
    test('a cache that grows in the middle of everything is what one is that took all at once', async () => {
      const options = shapeOn(tested);
      const [growing, whole] = [calls(options), calls(options)];
      growing.state.cache = new KVCache(tested.backend, options);
      whole.state.cache = new KVCache(tested.backend, { ...options, reserve: true });
      const { bytes } = whole.state.cache;
      for (const [n, [, run]] of growing.steps.entries()) {
        await run();
        await whole.steps[n]![1]();
        assert.ok(growing.state.cache.bytes <= bytes);
      }
      assert.is(whole.state.cache.bytes, bytes);
      const [query, twins] = [bells(5, (options.queryHeads ?? 0) * (options.headDim ?? 0), 9), sequencesOf(whole)];
      for (const [n, sequence] of sequencesOf(growing).entries()) {
        sameBits(`file of ${n}`, await sequence.save(), await twins[n]!.save());
        for (const layer of [0, 1, 2])
          sameAttention(
            tested,
            `attention of ${n}`,
            await sequence.attend(layer, query).read(),
            await twins[n]!.attend(layer, query).read()
          );
      }
      for (const { state } of [growing, whole]) state.cache!.dispose();
      // What lies in the same pages comes to the same bits.
      const [few, all] = [false, true].map(reserve => new KVCache(tested.backend, { ...options, reserve }));
      const [one, other] = [few!, all!].map(cache => cache.restore(growing.state.file!));
      sameBits('attention', await one!.attend(1, query).read(), await other!.attend(1, query).read());
      assert.ok(few!.bytes < all!.bytes);
      for (const cache of [few!, all!]) cache.dispose();
    });

    test('a crop decodes into slots that have room for it, whatever layers before give back', async () => {
      const options = { ...shapeOn(tested), sinks: 0, balance: 'off' } satisfies CacheOptions;
      const query = bells(1, (options.queryHeads ?? 0) * (options.headDim ?? 0), 9);
      const [cropped, whole] = [true, false].map(layersDiffer => {
        const cache = new KVCache(tested.backend, options);
        const [sequence, other] = [cache.sequence(), cache.sequence()];
        const append = appender(options);
        for (const layer of [0, 1, 2]) append(sequence, layer, 64);
        sequence.seal();
        // Others take two of the three slots that are free now, so that of two more windows the second is the first in its slot: of that
        // the crop gives back memory for ten tokens.
        for (const layer of [0, 1]) append(other, layer, 10);
        if (layersDiffer) append(sequence, 0, 74);
        sequence.crop(60);
        return sequence;
      }) as [Sequence, Sequence];
      for (const layer of [0, 1, 2]) {
        const [attended, expected] = await Promise.all([cropped, whole].map(one => one.attend(layer, query).read()));
        sameBits(`attention of layer ${layer}`, attended!, expected!);
      }
    });

    test('what disposed sequences held is taken again', () => {
      const options = shapeOn(tested);
      const cache = new KVCache(tested.backend, options);
      const conversation = () => {
        const sequences = [1, 2].map(seed => {
          const sequence = cache.sequence();
          for (let n = 0; n < 3; n++) {
            for (const layer of [0, 1, 2]) {
              const { keys, values } = rows(options, 190, seed + n);
              sequence.append(layer, keys, values);
            }
          }
          return sequence;
        });
        for (const sequence of sequences) sequence.dispose();
      };
      // What raw windows had becomes room for pages, and the next raw windows want some of their own.
      for (let n = 0; n < 3; n++) conversation();
      const { bytes } = cache;
      for (let n = 0; n < 4; n++) conversation();
      assert.is(cache.bytes, bytes);
      cache.dispose();
    });
  });
}

for (const { name, backend } of wasm) {
  group(`refused memory, ${name}`, test => {
    test('gives back nothing of what is behind a sliding window', async () => {
      const sliding = { ...shape, layers: 1, window: 200, balance: 'off', capacity: 4096, maxAppend: 4096 } satisfies CacheOptions;
      const cache = new KVCache(backend, sliding);
      const chat = cache.sequence();
      const append = (tokens: number) => {
        const { keys, values } = rows(sliding, tokens, tokens);
        chat.append(0, keys, values);
      };
      for (let n = 0; n < 6; n++) append(128);
      const held = chat.ranges(0);
      const query = bells(128, 4 * 64, 1);
      const attended = await chat.attend(0, query).read();
      const { asked, error } = await refusingToGrow(() => append(3000));
      assert.ok(asked > 0);
      assert.instance(error, BackendError);
      assert.equal(chat.ranges(0), held);
      sameBits('attention', await chat.attend(0, query).read(), attended);
      append(3000);
      assert.ok(chat.ranges(0)[1]!.from > held[1]!.from);
      cache.dispose();
    });

    test('leaves everything as it was, whatever asked for it, and the same call does its work once there is some', async () => {
      const [refused, twin] = [calls(shape), calls(shape)];
      for (const { state } of [refused, twin]) state.cache = new KVCache(backend, shape);
      const { cache } = refused.state;
      const names = new Set<string>();
      for (const [n, [what, run]] of refused.steps.entries()) {
        const before = sequencesOf(refused).map(({ length, bytes }) => [length, bytes]);
        const { bytes } = cache!;
        const { asked, error } = await refusingToGrow(run);
        if (asked > 0) {
          assert.instance(error, BackendError, what);
          assert.match((error as Error).message, /^wasm backend expected \d+ bytes more, got: no room$/);
          assert.is(cache!.bytes, bytes, what);
          assert.equal(
            sequencesOf(refused).map(({ length, bytes }) => [length, bytes]),
            before,
            what
          );
          names.add(what);
          await run();
        } else if (error) throw error;
        await twin.steps[n]![1]();
      }
      console.log(`refused: ${[...names].join(', ')}`);
      for (const call of ['open', 'append a prompt', 'append a batch', 'append to all', 'fork at once', 'attend over the query', 'restore'])
        assert.ok(names.has(call), call);
      const twins = sequencesOf(twin);
      for (const [n, sequence] of sequencesOf(refused).entries()) sameBits(`file of ${n}`, await sequence.save(), await twins[n]!.save());
    });
  });
}

/** All that can be seen of a cache and its sequences. */
async function seen(cache: KVCache, sequences: readonly Sequence[]) {
  const parts = sequences.map(async sequence => {
    const { length, bytes, sealed } = sequence;
    const layers = sequence.shape.layers.map(async (_, layer) => ({ ranges: sequence.ranges(layer), ...(await sequence.decode(layer)) }));
    return { length, bytes, sealed, layers: await Promise.all(layers) };
  });
  return { free: cache.free, sequences: await Promise.all(parts) };
}

group('a store that is short of memory', test => {
  const open = (options: CacheOptions) => {
    const inside = simd128.backend as Backend;
    let granted!: Granted;
    const createStore = (shape: CacheShape) => {
      granted = new Granted(shape);
      return granted.watch(inside.createStore(shape));
    };
    return { cache: new KVCache({ ...inside, createStore } as Backend, options), granted };
  };
  /** Refuses a call the memory that it asks for first, then what it asks for next, and so on until it is through: how often. */
  const refusals = async ({ cache, granted }: ReturnType<typeof open>, sequences: () => Sequence[], what: string, run: () => unknown) => {
    for (let left = 0; ; left++) {
      const [before, { bytes }] = [await seen(cache, sequences()), cache];
      granted.left = left;
      try {
        await run();
        return left;
      } catch (error) {
        assert.instance(error, BackendError, what);
      } finally {
        granted.left = Infinity;
      }
      assert.equal(await seen(cache, sequences()), before, what);
      assert.is(cache.bytes, bytes, what);
    }
  };
  const sliding = { ...shape, layers: [{}, { window: 100 }, {}], recent: 1, balance: 'off', sinks: 4 } satisfies CacheOptions;
  for (const [what, options, cut] of [
    ['layers that learn', shape, 200],
    ['a sliding window, recent windows, plain keys', sliding, 620]
  ] as const) {
    test(`is refused it whenever a call asks, and all is as it was: ${what}`, async () => {
      const [short, refused, twin] = [open(options), calls(options, cut), calls(options, cut)];
      refused.state.cache = short.cache;
      twin.state.cache = new KVCache(simd128.backend, options);
      const names = new Set<string>();
      for (const [n, [name, run]] of refused.steps.entries()) {
        if ((await refusals(short, () => sequencesOf(refused), name, run)) > 0) names.add(name);
        await twin.steps[n]![1]();
        assert.equal(await seen(short.cache, sequencesOf(refused)), await seen(twin.state.cache, sequencesOf(twin)), name);
      }
      console.log(`refused: ${[...names].join(', ')}`);
      for (const name of ['open', 'append a prompt', 'attend over the query', 'fork', 'seal', 'evict', 'reorder', 'restore'])
        assert.ok(names.has(name), name);
      const twins = sequencesOf(twin);
      for (const [n, sequence] of sequencesOf(refused).entries()) sameBits(`file of ${n}`, await sequence.save(), await twins[n]!.save());
    });
  }

  test('a crop that needs raw slots in several layers crops none where there is no memory for one', async () => {
    const options = { ...shape, sinks: 0, balance: 'off' } satisfies CacheOptions;
    const short = open(options);
    const [sequence, other] = [short.cache.sequence(), short.cache.sequence()];
    const append = appender(options);
    for (const layer of [0, 1, 2]) append(sequence, layer, 64);
    sequence.seal();
    for (const layer of [0, 1]) append(other, layer, 10);
    append(sequence, 0, 74);
    assert.ok(
      (await refusals(
        short,
        () => [sequence, other],
        'crop',
        () => sequence.crop(60)
      )) > 0
    );
    for (const layer of [0, 1, 2]) assert.equal(sequence.ranges(layer), [{ from: 0, to: 60 }]);
  });
});

group('bytes of a large cache', test => {
  const options = { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, rope: ropes(64)['halves']!, capacity: 131072 };

  test('are few at the start, and at 1,000 tokens what these need', () => {
    const cache = new KVCache(simd128.backend, options);
    atMost('bytes at the start', cache.bytes, FIRST_BYTES);
    const sequence = cache.sequence();
    const { keys, values } = rows(options, 1000, 1);
    const query = bells(1, 576, 3);
    for (let t = 0; t < 1000; t++) {
      for (let layer = 0; layer < 30; layer++) {
        sequence.append(layer, keys.subarray(192 * t, 192 * (t + 1)), values.subarray(192 * t, 192 * (t + 1)));
        if (t % 100 === 0) sequence.attend(layer, query);
      }
    }
    const bits = (8 * cache.bytes) / (1000 * 30 * 2 * 192);
    console.log(`${cache.bytes} bytes, ${bits.toFixed(3)} bits an element; of the sequence ${sequence.bytes}`);
    atMost('bits an element', bits, THOUSAND_TOKENS_BITS);
    assert.ok(plan(options).bytes > 100 * cache.bytes);
    cache.dispose();
  });

  test('go from what a prompt was computed in to the tokens that follow', () => {
    const few = { ...options, layers: 8 };
    const { keys, values } = rows(few, 2000, 1);
    const query = bells(512, 576, 3);
    const bytesAfter = (prompt: number): number => {
      const cache = new KVCache(simd128.backend, few);
      const sequence = cache.sequence();
      for (let t = 0; t < 2000; ) {
        const tokens = t < prompt ? prompt : 1;
        for (let layer = 0; layer < few.layers; layer++) {
          sequence.append(layer, keys.subarray(192 * t, 192 * (t + tokens)), values.subarray(192 * t, 192 * (t + tokens)));
          if (t % 64 === 0) sequence.attend(layer, query.subarray(0, 576 * tokens));
        }
        t += tokens;
      }
      return cache.bytes;
    };
    // A page of memory more or less: what lies between.
    atMost('bytes after a prompt', bytesAfter(512), bytesAfter(0) + 65536);
  });
});
