// Every type and layout of keys, values, queries and results, on every backend: the bits that f32 with tokens first has, rounded where
// they are f16, permuted where heads are first.

import { type Data, KVCache, type Layout, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend, Store } from '../src/backend.ts';
import { cacheShape } from '../src/shape.ts';
import { Staging } from '../src/webgpu/staging.ts';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import { backends, scatteredWebgpu } from './backends.ts';
import { sameBits } from './compare.ts';
import { altered } from './gpu.ts';
import { halfBits, halfValue, rounded } from './half.ts';
import { keyLike, normal } from './inputs.ts';
import { fewShapes } from './variables.ts';
import { reference } from './verbs.ts';

type Options = ConstructorParameters<typeof KVCache>[1];
type Make = (x: Float32Array) => Data;

const LAYOUTS: readonly Layout[] = ['tokens-first', 'heads-first'];
const Half = (globalThis as { Float16Array?: new (x: ArrayLike<number>) => Data }).Float16Array;

/** Arrays of each type, of numbers that f16 holds exactly. */
const types: readonly (readonly [name: string, make: Make])[] = [
  ['Float32Array', x => x],
  ['Uint16Array', halfBits],
  ...(Half ? [['Float16Array', (x: Float32Array) => new Half(x)] as const] : [])
];

const forms = types.flatMap(([name, make]) => LAYOUTS.map(layout => ({ name: `${name}, ${layout}`, make, layout })));

/** [tokens, heads, channels] as [heads, tokens, channels]. */
function headsFirst(x: Float32Array, heads: number, channels: number): Float32Array {
  const tokens = x.length / (heads * channels);
  return x.map((_, i) => {
    const [head, token] = [Math.floor(i / (tokens * channels)), Math.floor(i / channels) % tokens];
    return x[(token * heads + head) * channels + (i % channels)]!;
  });
}

const laid = (x: Float32Array, layout: Layout, heads: number, channels: number) =>
  layout === 'tokens-first' ? x : headsFirst(x, heads, channels);

/** The numbers in an array of any type. */
const numbers = (x: Data): Float32Array =>
  x instanceof Uint16Array ? Float32Array.from(x, halfValue) : Float32Array.from(x as ArrayLike<number>);

const exact = (tokens: number, width: number, seed: number) => rounded(normal(tokens, width, seed));

const shapes: readonly Options[] = [
  { layers: 1, kvHeads: 2, queryHeads: 6, headDim: 40, capacity: 576, sequences: 3 },
  { layers: 1, kvHeads: 3, queryHeads: 3, headDim: 64, valueDim: 32, capacity: 576, sequences: 3, keys: 'nsn4', values: 'nsn2' },
  { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, valueDim: 48, capacity: 576, sequences: 3, sinks: 0, balance: 'off' }
];

/** Another shape is seconds of compiling: the third is the first's, where nothing lies between heads. */
const onGpu: readonly Options[] = [shapes[0]!, shapes[1]!, { ...shapes[0]!, kvHeads: 1, queryHeads: 3, sinks: 0 }];

/** Appends tokens, all of them in one form. */
function append(sequence: Sequence, tokens: number, seed: number, make: Make, layout: Layout, size = 1): void {
  const { kvHeads, headDim, valueDim } = sequence.shape.layers[0]!;
  const keys = rounded(keyLike(tokens, kvHeads * headDim, seed));
  const values = rounded(normal(tokens, kvHeads * valueDim, seed + 1).map(x => x * size));
  sequence.append(0, make(laid(keys, layout, kvHeads, headDim)), make(laid(values, layout, kvHeads, valueDim)), { layout });
}

for (const tested of backends) {
  group(`types and layouts on ${tested.name}`, test => {
    const own = tested.gpu ? onGpu.slice(0, tested === scatteredWebgpu || fewShapes ? 1 : 3) : shapes;
    for (const options of own) {
      const { queryHeads, headDim, valueDim = headDim } = options as { queryHeads: number; headDim: number; valueDim?: number };
      const what = `${options.queryHeads}/${options.kvHeads} heads of ${headDim}/${valueDim}`;

      test(`append() keeps the same of every type and layout, however a prompt lies in windows: ${what}`, async () => {
        const cache = new KVCache(tested.backend, options);
        let plain: Uint8Array | undefined;
        for (const { name, make, layout } of forms) {
          const sequence = cache.sequence();
          [3, 140, 1, 70].forEach((tokens, n) => append(sequence, tokens, 10 * n, make, layout));
          const file = await sequence.save();
          sequence.dispose();
          sameBits(name, file, (plain ??= file));
        }
        cache.dispose();
      });

      test(`attend() reads and writes every type and layout, single tokens and prompts of several calls: ${what}`, async () => {
        const cache = new KVCache(tested.backend, options);
        const sequence = cache.sequence();
        for (const [n, tokens] of [140, 1].entries()) {
          append(sequence, tokens, 10 * n, halfBits, 'tokens-first');
          const query = exact(tokens, queryHeads * headDim, 7 + n);
          const lse = new Float32Array(tokens * queryHeads);
          const out = await sequence.attend(0, query, { lse }).read();
          for (const { name, make, layout } of forms) {
            const expected = laid(out, layout, queryHeads, valueDim);
            const given = make(laid(query, layout, queryHeads, headDim));
            const lseOfForm = new Float32Array(lse.length);
            sameBits(`${tokens} queries as ${name}`, await sequence.attend(0, given, { layout, lse: lseOfForm }).read(), expected);
            sameBits(`lse of ${tokens} queries as ${name}`, lseOfForm, laid(lse, layout, queryHeads, 1));
            const into = make(new Float32Array(out.length));
            const inLayout = laid(query, layout, queryHeads, headDim);
            assert.is(await sequence.attend(0, inLayout, { layout, out: into }).read(), into);
            sameBits(`${tokens} results as ${name}`, numbers(into), into instanceof Float32Array ? expected : rounded(expected));
          }
        }
        cache.dispose();
      });

      test(`queries of every type and layout teach the same: ${what}`, async () => {
        const cache = new KVCache(tested.backend, options);
        let plain: Uint8Array | undefined;
        for (const { name, make, layout } of forms) {
          const sequence = cache.sequence();
          append(sequence, 130, 40, make, layout);
          const query = exact(129, queryHeads * headDim, 42);
          await sequence.attend(0, make(laid(query, layout, queryHeads, headDim)), { layout }).read();
          append(sequence, 20, 44, make, layout);
          const file = await sequence.save();
          sequence.dispose();
          sameBits(name, file, (plain ??= file));
        }
        cache.dispose();
      });
    }

    for (const options of own) {
      const { kvHeads, headDim, valueDim = headDim } = options as { kvHeads: number; headDim: number; valueDim?: number };
      test(`decode() gives any positions in every type and layout: ${kvHeads} heads of ${headDim}/${valueDim}`, async () => {
        const cache = new KVCache(tested.backend, options);
        const sequence = cache.sequence();
        for (const [n, tokens] of [3, 297, 60].entries()) append(sequence, tokens, 10 * n, halfBits, 'tokens-first');
        sequence.seal();
        const all = await sequence.decode(0);
        sequence.evict({ from: 64, to: 64 * 3 + 10 });
        const held = sequence.ranges(0);
        assert.ok(held.length > 1, 'positions are gone');
        const [one, other] = [kvHeads * headDim, kvHeads * valueDim];
        const ranges = [
          [0, 360],
          [0, 1],
          [2, 68],
          [67, 69],
          [120, 200],
          [190, 359],
          [330, 360],
          [360, 360]
        ] as const;
        for (const [from, to] of ranges) {
          const parts = held.flatMap(range => {
            const [begin, end] = [Math.max(from, range.from), Math.min(to, range.to)];
            return begin < end ? [[begin, end] as const] : [];
          });
          const cut = (x: Float32Array, width: number) =>
            Float32Array.from(parts.flatMap(([begin, end]) => [...x.subarray(begin * width, end * width)]));
          const [keys, values] = [cut(all.keys, one), cut(all.values, other)];
          for (const { name, make, layout } of forms) {
            const out = { keys: make(new Float32Array(keys.length)), values: make(new Float32Array(values.length)) };
            const decoded = await sequence.decode(0, { from, to, out, layout });
            const what = `${from} to ${to} as ${name}`;
            assert.is(decoded.keys, out.keys);
            assert.is(decoded.values, out.values);
            const form = (x: Float32Array) => (out.keys instanceof Float32Array ? x : rounded(x));
            sameBits(`keys ${what}`, numbers(out.keys), form(laid(keys, layout, kvHeads, headDim)));
            sameBits(`values ${what}`, numbers(out.values), form(laid(values, layout, kvHeads, valueDim)));
          }
          const fresh = await sequence.decode(0, { from, to });
          sameBits(`keys ${from} to ${to}`, fresh.keys, keys);
          sameBits(`values ${from} to ${to}`, fresh.values, values);
        }
        cache.dispose();
      });
    }

    test('a batch takes each sequence in its own type, and its own number of tokens, in one layout', async () => {
      const options = shapes[0]!;
      const { kvHeads, queryHeads, headDim } = options as Required<Options>;
      const cache = new KVCache(tested.backend, options);
      const sequences = [cache.sequence(), cache.sequence(), cache.sequence()];
      const counts = [1, 90, 5]; // a GPU's smallest row tile, and its largest
      const makes: readonly Make[] = [x => x, halfBits, halfBits];
      for (const [n, sequence] of sequences.entries()) append(sequence, 100, 60 + n, halfBits, 'tokens-first');
      const rows = (heads: number, seed: number) => counts.map((count, n) => exact(count, heads * headDim, seed + n));
      const [keys, values, queries] = [rows(kvHeads, 70), rows(kvHeads, 80), rows(queryHeads, 90)];
      const plain = await Promise.all(
        sequences.map(async (sequence, n) => {
          const fork = new KVCache(tested.backend, options).restore(await sequence.save());
          fork.append(0, keys[n]!, values[n]!);
          return fork.attend(0, queries[n]!).read();
        })
      );
      for (const sequence of sequences) sequence.seal();
      const given = (list: readonly Float32Array[], heads: number) => list.map((x, n) => makes[n]!(laid(x, 'heads-first', heads, headDim)));
      const layout = 'heads-first';
      cache.append(sequences, 0, given(keys, kvHeads), given(values, kvHeads), { layout });
      const out = await cache.attend(sequences, 0, given(queries, queryHeads), { layout }).read();
      let at = 0;
      for (const [n, expected] of plain.entries()) {
        const own = out.slice(at, (at += expected.length));
        sameAttention(tested, `sequence ${n}`, own, headsFirst(expected, queryHeads, headDim));
      }
      const halves = new Uint16Array(out.length);
      await cache.attend(sequences, 0, given(queries, queryHeads), { layout, out: halves }).read();
      sameBits('in f16', numbers(halves), rounded(out));
      cache.dispose();
    });

    for (const [title, size] of [
      ['subnormal', 2 ** -17],
      ['beyond its range', 2 ** 15]
    ] as const) {
      test(`results in f16 are the nearest, ${title}`, async () => {
        const cache = new KVCache(tested.backend, shapes[0]!);
        const sequence = cache.sequence();
        const values = normal(140, 80, 3).map(x => Math.max(-65504, Math.min(x * size, 65504)));
        sequence.append(0, normal(140, 80, 2), values);
        sequence.seal();
        const query = normal(20, 240, 4).map(x => 30 * x);
        const out = await sequence.attend(0, query).read();
        const halves = await sequence.attend(0, query, { out: new Uint16Array(out.length) }).read();
        sameBits('in f16', numbers(halves), rounded(out));
        cache.dispose();
      });
    }
  });
}

group('types and layouts', test => {
  // Sevenths and the like are not whole numbers times what they were divided by: (61 / 7) · 7 · 32 is below 61 · 32.
  for (const kvHeads of [3, 7, 11, 49]) {
    test(`runs of a prompt, heads first, are staged where their channels begin: ${kvHeads} KV heads`, () => {
      const [headDim, valueDim, tokens] = [40, 32, 511];
      const room = { buffer: {} as GPUBuffer, label: '', most: 0, asked: 0 };
      const memory = { staged: [room, room], stage: () => tokens } as const;
      const queue = { writeBuffer: () => {} } as unknown as GPUQueue;
      const staging = new Staging(queue, cacheShape({ layers: 1, kvHeads, queryHeads: kvHeads, headDim, capacity: tokens }), memory);
      const of = (channels: number) => new Uint16Array(tokens * kvHeads * channels);
      const runs = Array.from({ length: tokens }, (_, from) => ({ slot: 0, at: 0, from, tokens: 1 }));
      const write = { keys: new Float32Array(of(headDim)), values: of(valueDim), layout: 'heads-first', runs } as const;
      let staged = 0;
      staging.write([write], kvHeads, [kvHeads * headDim, kvHeads * valueDim], jobs => {
        staged += jobs.length;
        assert.equal(
          jobs.map(({ job }) => [job.keys, job.values]),
          jobs.map((_, n) => [n * headDim, (n * valueDim) / 2]) // every list of jobs begins anew
        );
      });
      assert.is(staged, tokens);
    });
  }
});

group('decode()', test => {
  test('reads the pages and slots that hold its positions, and no others', async () => {
    const backend = reference.backend as Backend;
    const seen: (readonly [coded: boolean, at: number, tokens: number])[] = [];
    const watched: Backend = {
      ...backend,
      createStore: shape => {
        const store = backend.createStore(shape);
        const read: Store['read'] = (layer, sequence, pieces, out, layout) => {
          seen.push(...pieces.map(({ coded, at, tokens }) => [coded, at, tokens] as const));
          return store.read(layer, sequence, pieces, out, layout);
        };
        return altered(store, { read });
      }
    };
    const sequence = new KVCache(watched, { ...shapes[0]!, balance: 'off' }).sequence();
    append(sequence, 4 + 3 * 64 + 10, 1, halfBits, 'tokens-first');
    sequence.seal();
    await sequence.decode(0, { from: 1, to: 5 });
    await sequence.decode(0, { from: 100, to: 101 });
    await sequence.decode(0, { from: 195, to: 200 });
    assert.equal(seen, [
      [false, 1, 3],
      [true, 0, 1],
      [true, 32, 1],
      [true, 63, 1],
      [false, 0, 4]
    ]);
  });
});
