// Attention over a cache, on every backend: against f64 attention over the tokens that the cache says it holds, and against
// exact attention over the tokens that went in. Head dimensions, codecs and RoPE are shapes.test.ts's.

import { KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule, expectedAttention, sameAttention } from './attention.ts';
import { backends } from './backends.ts';
import * as brute from './brute.ts';
import { atMost, relativeL2, sameBits, withinFloatRule } from './compare.ts';
import { halfBits, rounded } from './half.ts';
import { type Input, inputs, keyLike, normal, queryWidth, ropes } from './inputs.ts';
import { DECODED_ROWS, LOWERED } from './tolerance.ts';
import { fewShapes } from './variables.ts';
import { comparesBinaries, reference, scalar, simd128, type Tested } from './verbs.ts';

type Options = ConstructorParameters<typeof KVCache>[1];

const base = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 320, sequences: 2 } satisfies Options;

/** A sequence of `counts` tokens, appended one count after another; keys of seed, values of seed + 1. */
function filled(cache: KVCache, counts: readonly number[], seed: number, keys: Input = keyLike, values: Input = normal): Sequence {
  const { layers } = cache.shape;
  const { kvHeads, headDim } = layers[0]!;
  const width = kvHeads * headDim;
  const tokens = counts.reduce((sum, count) => sum + count, 0);
  const sequence = cache.sequence();
  for (let layer = 0; layer < layers.length; layer++) {
    const k = keys(tokens, width, seed + 2 * layer);
    const v = values(tokens, width, seed + 2 * layer + 1);
    let from = 0;
    for (const count of counts) {
      sequence.append(layer, k.subarray(from * width, (from + count) * width), v.subarray(from * width, (from + count) * width));
      from += count;
    }
  }
  return sequence;
}

interface Case {
  readonly title: string;
  readonly options: Partial<Options>;
  readonly counts: readonly number[];
  readonly queries?: number;
  readonly keys?: Input;
  readonly values?: Input;
  /** Whether complete windows are coded before the attention, though no append follows. */
  readonly seal?: boolean;
  /** Where its shape is not worth seconds of compiling: on any GPU, or on one whose lane takes few shapes. Others have its shaders' branches. */
  readonly gpu?: 'none' | 'whole';
}

const cases: Case[] = [];

for (const tokens of [1, 63, 64, 65, 129]) {
  for (const sinks of [0, 4, 64]) {
    for (const recent of [0, 2]) {
      cases.push({ title: `${tokens} tokens, sinks ${sinks}, recent ${recent}`, options: { sinks, recent }, counts: [tokens], seal: true });
    }
  }
}
for (const groups of [1, 3, 4, 5, 8, 64]) {
  for (const queries of [1, 3]) {
    cases.push({
      title: `${groups} query heads per KV head, ${queries === 1 ? '1 query' : `${queries} queries`}`,
      options: { kvHeads: 2, queryHeads: 2 * groups, headDim: 32 },
      counts: [130, 9],
      queries,
      // shapes.test.ts has 1, 3 and 4, of 8 no more is to be seen than of 64, and below are a hundred queries of 3.
      ...([1, 3, 4, 8].includes(groups) && { gpu: 'none' as const })
    });
  }
}
for (const [title, input] of Object.entries(inputs)) {
  // Queries of ordinary size against keys of any: logits of ±65,504 have f32 steps of 0.004, as the naive ones do.
  cases.push({ title: `keys: ${title}`, options: {}, counts: [70, 70], keys: input });
  cases.push({ title: `values: ${title}`, options: {}, counts: [70, 70], values: input });
}
cases.push(
  { title: 'sinks 3, of which one is there yet', options: { sinks: 3 }, counts: [1] },
  { title: 'queries that lie in sealed windows', options: {}, counts: [200], queries: 150, seal: true },
  { title: 'queries from the first token on, sinks sealed over', options: { sinks: 4 }, counts: [140], queries: 140, seal: true },
  { title: 'queries from the first token on, without sinks', options: { sinks: 0, headDim: 32 }, counts: [140], queries: 140, seal: true },
  { title: '40 queries of 8 heads: more than one call holds', options: { queryHeads: 8 }, counts: [100, 40], queries: 40, gpu: 'none' },
  { title: '100 queries of 3 heads: two calls', options: { queryHeads: 3, capacity: 448, sequences: 1 }, counts: [346, 100], queries: 100 },
  { title: '2 KV heads of 5 query heads, 7 queries', options: { kvHeads: 2, queryHeads: 10 }, counts: [90, 7], queries: 7, gpu: 'none' }
);

// Queries in the middle of a window that is coded already see small tokens alone; those after are hidden from them, and large.
for (const times of [1e4, 1e6]) {
  const rising: Input = (tokens, width, seed) =>
    normal(tokens, width, seed).map((value, i) => value * (Math.floor(i / width) % 64 < 40 ? 100 / times : 100));
  for (const side of ['keys', 'values'] as const) {
    cases.push({
      title: `queries from the first token on, hidden ${side} ${times} times as large as those they see`,
      // At this head dimension values' codes and mean cancel so far that it shows on a GPU.
      options: { sinks: 0, keys: 'nsn4', values: 'nsn4', ...(side === 'values' && times === 1e6 && { headDim: 64 }) },
      counts: [140],
      queries: 140,
      [side]: rising,
      seal: true,
      ...(side === 'values' && { gpu: times === 1e6 ? ('whole' as const) : ('none' as const) })
    });
  }
}

const outputs = new Map<string, Float32Array>();

for (const tested of backends) {
  group(`attend on ${tested.name}`, test => {
    for (const { title, options, counts, queries = 1, keys, values, seal, gpu } of cases) {
      if (tested.gpu && (gpu === 'none' || (fewShapes && gpu === 'whole'))) continue;
      test(`attend() is attention over decode(): ${title}`, async () => {
        const cache = new KVCache(tested.backend, { ...base, ...options });
        const sequence = filled(cache, counts, 1, keys, values);
        if (seal) sequence.seal();
        const { queryHeads, headDim } = cache.shape.layers[0]!;
        const out = await attendWithinRule(title, sequence, normal(queries, queryHeads * headDim, 99));
        outputs.set(`${tested.name} ${title}`, out);
        cache.dispose();
      });
    }
  });
}

group('attend', test => {
  // The scalar binary looks codes up where the others decode pages.
  for (const { title } of cases.filter(
    ({ options, queries = 1 }) =>
      comparesBinaries && (queries * (options.queryHeads ?? base.queryHeads)) / (options.kvHeads ?? base.kvHeads) < DECODED_ROWS
  )) {
    test(`attend() on simd128 gives the bits of scalar: ${title}`, () => {
      const [a, b] = [outputs.get(`${simd128.name} ${title}`), outputs.get(`${scalar.name} ${title}`)];
      assert.ok(a && b);
      sameBits(title, a, b);
    });
  }

  test(`the SIMD binaries decode pages from ${DECODED_ROWS} rows on, which shows in last bits, and for no fewer`, async () => {
    const answered = async ({ backend }: Tested, queries: number, options: Partial<Options>) => {
      const cache = new KVCache(backend, { ...base, queryHeads: 1, ...options });
      const sequence = filled(cache, [200], 26);
      sequence.seal(); // most of the queries lie in coded windows
      const out = await sequence.attend(0, normal(queries, 32, 28)).read();
      cache.dispose();
      return out;
    };
    for (const [codec, most] of [
      ['nsn4', DECODED_ROWS],
      ['nsn2', DECODED_ROWS],
      ['nsn1', Infinity] // never on both sides
    ] as const) {
      for (const queries of [DECODED_ROWS - 1, DECODED_ROWS]) {
        const [a, b] = await Promise.all([simd128, scalar].map(tested => answered(tested, queries, { keys: codec, values: codec })));
        if (queries < most) sameBits(`${codec}, ${queries} rows`, a!, b!);
        else assert.throws(() => sameBits('out', a!, b!), /the same bits/, `${codec}, ${queries} rows`);
      }
    }
  });
});

for (const tested of backends) {
  const open = (options: Partial<Options> = {}) => new KVCache(tested.backend, { ...base, ...options });
  const query = (cache: KVCache, tokens: number, seed: number) => normal(tokens, queryWidth(cache.shape), seed);

  group(`attention on ${tested.name}`, test => {
    test('a prompt attends to its own tokens exactly: they are raw f16 until the next call', async () => {
      const cache = open({ kvHeads: 2, queryHeads: 4, headDim: 32 });
      const sequence = cache.sequence();
      const [keys, values] = [keyLike(150, 64, 2), normal(150, 64, 3)];
      sequence.append(0, keys, values);
      assert.is(sequence.sealed.tokens, 0);
      const q = query(cache, 150, 4);
      const out = await sequence.attend(0, q).read();
      const by = (round: brute.Round) =>
        brute.attention(q, rounded(keys), rounded(values), cache.shape.layers[0]!, 1 / Math.sqrt(32), round).out;
      withinFloatRule('out', out, by(brute.f64), by(brute.f32), 32);
      cache.dispose();
    });

    test('queries are causal: what comes later changes nothing', async () => {
      const cache = open();
      const [a, b] = [cache.sequence(), cache.sequence()];
      const [keys, values] = [keyLike(139, 32, 5), normal(139, 32, 6)];
      a.append(0, keys, values);
      keys.fill(60000, 100 * 32);
      values.fill(-60000, 100 * 32);
      b.append(0, keys, values);
      const q = query(cache, 139, 7);
      const [outA, outB] = [await a.attend(0, q).read(), await b.attend(0, q).read()];
      sameAttention(tested, 'the first 100 tokens', outA.subarray(0, 100 * 64), outB.subarray(0, 100 * 64));
      assert.ok(outA[100 * 64] !== outB[100 * 64]);
      cache.dispose();
    });

    test('queries asked together are answered as one by one, in sealed windows too', async () => {
      const cache = open({ headDim: 32 });
      const sequence = filled(cache, [150], 8);
      sequence.seal();
      const q = query(cache, 150, 9);
      const out = await sequence.attend(0, q).read();
      const { exact, naive, extra } = await expectedAttention(sequence, 0, q, 2);
      withinFloatRule('together', out, exact, naive, 32, extra);
      for (const newest of [1, 2, 5, 33]) {
        const part = await sequence.attend(0, q.subarray((150 - newest) * 64)).read();
        const from = (150 - newest) * 64;
        withinFloatRule(`the newest ${newest}`, part, exact.subarray(from), naive.subarray(from), 32, extra.subarray(from));
      }
      cache.dispose();
    });

    test('a batch of sequences of different lengths gives what single calls give', async () => {
      // On a GPU the heads of the others: these are three row tiles to compile, and three shaders.
      const heads = tested.gpu ? { queryHeads: 4 } : { queryHeads: 6, rope: ropes(32)['halves']! };
      const cache = open({ capacity: 640, sequences: 4, kvHeads: 2, headDim: 32, ...heads });
      const sequences = [[1], [64, 5], [200], [130, 40]].map((counts, n) => filled(cache, counts, 10 + n));
      const queries = [1, 3, 40, 1].map((tokens, n) => query(cache, tokens, 20 + n));
      const out = await cache.attend(sequences, 0, queries).read();
      let at = 0;
      for (const [n, sequence] of sequences.entries()) {
        const single = await sequence.attend(0, queries[n]!).read();
        sameAttention(tested, `sequence ${n}`, out.subarray(at, (at += single.length)), single);
      }
      assert.is(at, out.length);
      cache.dispose();
    });

    test('more sequences than one launch holds give what single calls give', async () => {
      const cache = open({ capacity: 300, sequences: 40, headDim: 32, maxAppend: 10 });
      const sequences = Array.from({ length: 40 }, (_, n) => filled(cache, [1 + (n % 10)], 100 + n));
      const queries = sequences.map((_, n) => query(cache, 1, 200 + n));
      const out = await cache.attend(sequences, 0, queries).read();
      for (const [n, sequence] of sequences.entries()) {
        sameAttention(tested, `sequence ${n}`, out.subarray(n * 64, n * 64 + 64), await sequence.attend(0, queries[n]!).read());
      }
      cache.dispose();
    });

    test('an empty batch gives nothing', async () => {
      const cache = open();
      assert.is((await cache.attend([], 0, []).read()).length, 0);
      cache.dispose();
    });

    test('scale multiplies logits: twice the scale is twice the query', async () => {
      const cache = open();
      const sequence = filled(cache, [140, 3], 11);
      const q = query(cache, 3, 12);
      const scale = 1 / 8;
      const out = await sequence.attend(0, q, { scale: 2 * scale }).read();
      sameAttention(
        tested,
        'scale',
        out,
        await sequence
          .attend(
            0,
            q.map(value => 2 * value),
            { scale }
          )
          .read()
      );
      sameAttention(
        tested,
        'the default is 1/√headDim',
        await sequence.attend(0, q).read(),
        await sequence.attend(0, q, { scale: 1 / Math.sqrt(32) }).read()
      );
      await attendWithinRule('scale 0.4', sequence, q, { scale: 0.4 });
      cache.dispose();
    });

    test('`out` receives the result, and read() returns it', async () => {
      const cache = open();
      const sequence = filled(cache, [140, 3], 13);
      const q = query(cache, 3, 14);
      const out = new Float32Array(q.length).fill(NaN);
      const read = await sequence.attend(0, q, { out }).read();
      assert.is(read, out);
      sameAttention(tested, 'out', out, await sequence.attend(0, q).read());
      cache.dispose();
    });

    test('attend() changes neither the query nor the cache', async () => {
      const cache = open();
      const sequence = filled(cache, [140, 70], 15);
      const q = query(cache, 70, 16);
      const copy = q.slice();
      const out = await sequence.attend(0, q).read();
      sameBits('query', q, copy);
      sameAttention(tested, 'the same again', await sequence.attend(0, q).read(), out);
      assert.is(sequence.length, 210);
      assert.is(sequence.sealed.tokens, 128); // 70 tokens of the last call are still raw, a complete window among them
      cache.dispose();
    });

    // On a GPU histories.test.ts has such layers, and holds every result to what went in.
    if (!tested.gpu) {
      test('what was attended to before leaves no trace: layers of other codecs, zeros, the largest numbers', async () => {
        // headDim 80: rows of nsn1 end in two bytes of padding, at which nsn2 has codes.
        const cache = open({
          headDim: 80,
          capacity: 256,
          keys: 'nsn2',
          values: 'nsn2',
          layers: [{ keys: 'nsn1', values: 'nsn1' }, { keys: 'nsn4', values: 'nsn4' }, {}]
        });
        const sequence = filled(cache, [140, 1], 17);
        sequence.seal();
        const q = query(cache, 1, 18);
        const first = await sequence.attend(2, q).read();
        for (const other of [0, 1, 0, 2, 1]) {
          await sequence
            .attend(
              other,
              q.map(value => value * 40)
            )
            .read();
          sameAttention(tested, `layer 2 after layer ${other}`, await sequence.attend(2, q).read(), first);
        }
        const { exact, naive, extra } = await expectedAttention(sequence, 2, q, 2);
        withinFloatRule('layer 2', first, exact, naive, 80, extra);
        cache.dispose();
      });

      test('a list gives layers codecs of their own', async () => {
        const cache = open({
          keys: 'nsn1',
          values: 'nsn1',
          layers: [{ keys: 'nsn4', values: 'nsn4' }, {}, { values: 'nsn2' }]
        });
        const sequence = cache.sequence();
        const [keys, values] = [keyLike(130, 64, 19), normal(130, 64, 20)];
        for (let layer = 0; layer < 3; layer++) sequence.append(layer, keys, values);
        sequence.seal();
        const errors = await Promise.all(
          [0, 1, 2].map(async layer => {
            const held = await sequence.decode(layer);
            return [relativeL2(held.keys, keys), relativeL2(held.values, values)] as const;
          })
        );
        atMost('nsn4 keys', errors[0]![0] / errors[1]![0], LOWERED.keys4);
        atMost('nsn4 values', errors[0]![1] / errors[1]![1], LOWERED.values4);
        assert.is(errors[2]![0], errors[1]![0]);
        atMost('nsn2 values', errors[2]![1] / errors[1]![1], LOWERED.values2);
        cache.dispose();
      });
    }

    test('f16 keys and values, as bits or as Float16Array, are the same as f32 of the same numbers', async () => {
      const Float16Array = (globalThis as { Float16Array?: new (x: ArrayLike<number>) => any }).Float16Array;
      const cache = open({ sequences: 3 });
      const [keys, values] = [rounded(keyLike(100, 64, 21)), rounded(inputs['f16 subnormals']!(100, 64, 22))];
      const forms: [string, unknown, unknown][] = [
        ['f32', keys, values],
        ['bits', halfBits(keys), halfBits(values)]
      ];
      if (Float16Array) forms.push(['Float16Array', new Float16Array(keys), new Float16Array(values)]);
      const files: Uint8Array[] = [];
      for (const [, k, v] of forms) {
        const sequence = cache.sequence();
        sequence.append(0, k as Float32Array, v as Float32Array);
        files.push(await sequence.save());
        sequence.dispose();
      }
      forms.forEach(([form], n) => sameBits(form, files[n]!, files[0]!));
      // Views that begin in the middle of their buffer.
      const wide = new Float32Array(2 * keys.length);
      wide.set(keys, 64);
      const sequence = cache.sequence();
      sequence.append(0, wide.subarray(64, 64 + keys.length), halfBits(values));
      sameBits('mixed, from the middle of a buffer', await sequence.save(), files[0]!);
      cache.dispose();
    });

    // A matter of the kernels' loop: the reference decodes every page for every call.
    if (tested !== reference)
      test('a logit that towers over those of 2,048 tokens before it takes over', async () => {
        // Windows are taken in chunks of 32; the running maximum moves between chunks, once far and once a little.
        const cache = open({ capacity: 4416, sequences: 1, sinks: 0 });
        const sequence = cache.sequence();
        const tokens = 4400;
        const [keys, values] = [normal(tokens, 32, 23), normal(tokens, 32, 24)];
        const q = normal(1, 64, 25);
        for (const [t, towering] of [
          [100, 1],
          [3000, 16],
          [4200, 17]
        ] as const) {
          for (let i = 0; i < 32; i++) keys[t * 32 + i] = towering * q[i]!;
        }
        sequence.append(0, keys, values);
        sequence.seal();
        await attendWithinRule('far and near', sequence, q);
        cache.dispose();
      });
  });
}
