// Every verb of `nsnquant/kernels` on every backend: the scalar binary against the reference, verb by verb from the same f32
// input, and the other binaries against the scalar one.

import { type CodecName, codecs, type Rope } from 'nsnquant';
import type { Verbs } from 'nsnquant/kernels';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { allFinite, sameBits, sameCodes, sameRounding, withinFloatRule } from './compare.ts';
import { nearestHalf } from './half.ts';
import { inputs, normal, ropes } from './inputs.ts';
import { type Block, groupValues, meanOf, normsOf, readBlock } from './pages.ts';
import { ADDED_UP, meanTermShare, NEAR_TIES, scaleTie } from './tolerance.ts';
import { reference as referenceBackend, relaxed, scalar, simd128 } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];
const all = Object.keys(inputs);
const few = ['key-like', 'outlier channel', 'ramp'];

interface Case {
  readonly codec: CodecName;
  readonly headDim: number;
  readonly rope?: string;
  readonly inputs: readonly string[];
}

/** 40 and 72 have rows of codes that end in padding, groups of 8 channels, and Hadamard blocks of 8. */
const cases: readonly Case[] = [
  ...names.flatMap(codec => [32, 40, 64, 72, 80, 96, 128].map(headDim => ({ codec, headDim, inputs: all }))),
  ...names.flatMap(codec => [256, 512].map(headDim => ({ codec, headDim, inputs: few }))),
  ...Object.keys(ropes(64)).map(rope => ({ codec: 'nsn2', headDim: 64, rope, inputs: all }) as const),
  ...[32, 80, 96, 128, 512].map((headDim, n) => ({ codec: names[n % 3]!, headDim, rope: 'halves', inputs: few })),
  { codec: 'nsn4', headDim: 512, rope: 'fast, rising', inputs: few }
];

/** What each verb made of what the one before it made. */
interface Stages {
  readonly x: Float32Array;
  readonly s1: Float32Array;
  readonly normalized: Float32Array;
  readonly o: Float32Array;
  readonly shifted: Float32Array;
  readonly s2: Float32Array;
  readonly again: Float32Array;
  readonly y: Float32Array;
  readonly codes: Uint8Array;
  readonly bytes: Uint8Array;
  readonly decoded: Float32Array;
}

function stagesOf(verbs: Verbs, x: Float32Array): Stages {
  const normalized = x.slice();
  const s1 = verbs.normalize(normalized);
  const shifted = normalized.slice();
  const o = verbs.shift(shifted);
  const again = shifted.slice();
  const s2 = verbs.normalizeAgain(again);
  const y = again.slice();
  verbs.hadamard(y);
  const bytes = verbs.encode(x);
  return { x, s1, normalized, o, shifted, s2, again, y, codes: verbs.quantize(y), bytes, decoded: verbs.decode(bytes) };
}

const nearTies: Record<string, [ties: number, codes: number]> = {};

for (const { codec: name, headDim, rope: ropeName, inputs: chosen } of cases) {
  const codec = codecs[name];
  const rope: Rope | undefined = ropeName === undefined ? undefined : ropes(headDim)[ropeName];
  const options = { codec: name, headDim, ...(rope && { rope }) };
  const verbs = await scalar.kernels(options);
  const simdVerbs = await simd128.kernels(options);
  const relaxedVerbs = await relaxed?.kernels(options);
  const queries = normal(4, headDim, 1).map(value => value / Math.sqrt(headDim));
  const weights = inputs['uniform']!(4, 64, 2).map(Math.abs);

  group(`${name}, headDim ${headDim}, ${ropeName ? `RoPE ${ropeName}` : 'no RoPE'}`, test => {
    const made = new Map<string, { stages: Stages; block: Block; naive: Float64Array }>();
    /** Runs a check over all inputs. Stages, and the tokens that a naive f32 decoder makes of the block, are made once. */
    const over = (check: (what: string, stages: Stages, block: Block, naive: Float64Array) => void) => () => {
      for (const input of chosen) {
        let entry = made.get(input);
        if (!entry) {
          const stages = stagesOf(verbs, inputs[input]!(64, headDim, 3));
          const block = readBlock(stages.bytes, codec, headDim);
          made.set(input, (entry = { stages, block, naive: brute.decode(block, codec, headDim, rope, brute.f32) }));
        }
        check(input, entry.stages, entry.block, entry.naive);
      }
    };

    test(
      'normalize() divides every token by its norm in 4 bits',
      over((what, { x, s1, normalized }, block) => {
        const exact = brute.norms(x, headDim, brute.f64);
        sameRounding(`${what}: norms`, block.s1, exact, Math.max(...exact), true);
        sameBits(`${what}: s1`, s1, Float32Array.from(groupValues(block.s1)));
        const by = (round: brute.Round) => brute.divided(x, headDim, s1, round);
        withinFloatRule(`${what}: x`, normalized, by(brute.f64), by(brute.f32), headDim);
      })
    );

    test(
      'shift() subtracts the channel mean in 4 bits, taken before RoPE',
      over((what, { normalized, o, shifted }, block) => {
        const mean = brute.mean(normalized, headDim, rope, brute.f64);
        const magnitude = normalized.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
        block.o.forEach((group, n) => sameRounding(`${what}: mean`, group, mean.subarray(32 * n, 32 * n + 32), magnitude));
        sameBits(`${what}: o`, o, Float32Array.from(meanOf(block)));
        const by = (round: brute.Round) => brute.withMean(normalized, headDim, o, -1, rope, round);
        withinFloatRule(`${what}: x`, shifted, by(brute.f64), by(brute.f32), headDim);
      })
    );

    test(
      'normalizeAgain() divides every token by its norm',
      over((what, { shifted, s2, again }) => {
        const exact = brute.norms(shifted, headDim, brute.f64);
        const naive = brute.norms(shifted, headDim, brute.f32);
        withinFloatRule(`${what}: s2`, s2, exact, naive, 1);
        withinFloatRule(
          `${what}: x`,
          again,
          brute.divided(shifted, headDim, exact, brute.f64),
          brute.divided(shifted, headDim, naive, brute.f32),
          headDim
        );
      })
    );

    test(
      'hadamard() is H·x for every token',
      over((what, { again, y }) => {
        const exact = Float64Array.from(again);
        reference.hadamard(exact, headDim);
        withinFloatRule(what, y, exact, brute.hadamard(again, headDim, brute.f32), headDim);
      })
    );

    test(
      'quantize() finds the nearest of all codewords, near ties apart',
      over((what, { y, codes }) => {
        const count = (nearTies[name] ??= [0, 0]);
        count[0] += sameCodes(what, codes, y, codec);
        count[1] += codes.length;
      })
    );

    test(
      'encode() is these verbs in order, bit for bit, with s2 adjusted to the codewords',
      over((what, { y, s2, codes }, block) => {
        sameBits(`${what}: codes`, block.codes, codes);
        for (let t = 0; t < 64; t++) {
          let [yy, yc] = [0, 0];
          for (let i = 0; i < headDim; i++) {
            const value = y[t * headDim + i]!;
            yy += value * value;
            yc +=
              value *
              codec.codebook[codes[(t * headDim + i - (i % codec.channels)) / codec.channels]! * codec.channels + (i % codec.channels)]!;
          }
          const adjusted = yc > 0 ? (s2[t]! * yy) / yc : 0;
          const [low, high] = [1 - scaleTie(headDim), 1 + scaleTie(headDim)].map(by => nearestHalf(adjusted * by));
          assert.ok(block.s2[t]! >= low! && block.s2[t]! <= high!, `${what}: s2 of token ${t}: ${block.s2[t]} for ${adjusted}`);
        }
      })
    );

    test(
      'decode() is what the reference decodes',
      over((what, { bytes, decoded }, _block, naive) => {
        const exact = reference.decode(reference.unpack(bytes, codec, headDim), reference.codecQuantizer(codec), rope);
        withinFloatRule(what, decoded, exact, naive, headDim);
        allFinite(what, decoded);
      })
    );

    test(
      "scores() are the reference's logits",
      over((what, { bytes }, block, naiveTokens) => {
        const { exact, extra } = exactScores(bytes, block);
        const naive = brute.scores(queries, naiveTokens, headDim, brute.f32);
        withinFloatRule(what, verbs.scores(queries, bytes), exact, naive, 64, extra);
        if (relaxedVerbs) withinFloatRule(`relaxed, ${what}`, relaxedVerbs.scores(queries, bytes), exact, naive, 64, extra);
      })
    );

    test(
      "mix() is the reference's weighted sum",
      over((what, { bytes }, block, naiveTokens) => {
        const window = reference.unpack(bytes, codec, headDim);
        const quantizer = reference.codecQuantizer(codec);
        const exact = heads(head => reference.mix(weights.subarray(head * 64, head * 64 + 64), window, quantizer));
        // Values carry no RoPE: what mix sums is decoded without.
        const plain = rope ? brute.decode(block, codec, headDim, undefined, brute.f32) : naiveTokens;
        const naive = brute.mix(weights, plain, headDim, brute.f32);
        const extra = cancellation(plain);
        withinFloatRule(what, verbs.mix(weights, bytes), exact, naive, headDim, extra);
        if (relaxedVerbs) withinFloatRule(`relaxed, ${what}`, relaxedVerbs.mix(weights, bytes), exact, naive, headDim, extra);
      })
    );

    test(
      'simd128 gives the bits of scalar in every verb',
      over((what, stages) => {
        const other = stagesOf(simdVerbs, stages.x);
        for (const field of Object.keys(stages) as (keyof Stages)[]) sameBits(`${what}: ${field}`, other[field], stages[field]);
        for (const count of [1, 2, 3, 4]) {
          const [q, w] = [queries.subarray(0, count * headDim), weights.subarray(0, count * 64)];
          sameBits(`${what}: scores of ${count}`, simdVerbs.scores(q, stages.bytes), verbs.scores(q, stages.bytes));
          sameBits(`${what}: mix of ${count}`, simdVerbs.mix(w, stages.bytes), verbs.mix(w, stages.bytes));
        }
      })
    );

    // Only scores and mix have fused multiplications there: bytes, and what they decode to, may not depend on the binary.
    const relaxedTitle = 'relaxed gives the bits of scalar in every verb but scores and mix';
    if (!relaxedVerbs) test.skip(relaxedTitle, 'this engine does not validate relaxed SIMD');
    else {
      test(
        relaxedTitle,
        over((what, stages) => {
          const other = stagesOf(relaxedVerbs, stages.x);
          for (const field of Object.keys(stages) as (keyof Stages)[]) sameBits(`${what}: ${field}`, other[field], stages[field]);
        })
      );
    }

    function heads(of: (head: number) => Float64Array): Float64Array {
      return Float64Array.from([0, 1, 2, 3].flatMap(head => Array.from(of(head))));
    }

    /** How far mix may be off besides where an outlier cancels. */
    function cancellation(tokens: Float64Array): Float64Array {
      const sums = brute.mix(weights, tokens.map(Math.abs), headDim, brute.f64);
      return heads(head => {
        const row = sums.subarray(head * headDim, (head + 1) * headDim);
        return new Float64Array(headDim).fill(ADDED_UP * Math.max(...row));
      });
    }

    function exactScores(bytes: Uint8Array, block: Block) {
      const window = reference.unpack(bytes, codec, headDim);
      const quantizer = reference.codecQuantizer(codec);
      const exact = heads(head => reference.scores(queries.subarray(head * headDim, (head + 1) * headDim), window, quantizer, rope));
      const [s1, o] = [normsOf(block), meanOf(block)];
      const extra = heads(head =>
        s1.map(norm => meanTermShare(headDim) * norm * brute.meanTerm(queries, head * headDim, o, headDim, rope))
      );
      return { exact, extra };
    }
  });
}

// Heads share a pass: none may lean on another, and one head must not wait for three more.
const shared = await Promise.all(
  [scalar, simd128, ...(relaxed ? [relaxed] : [])].map(
    async tested => [tested.name, await tested.kernels({ codec: 'nsn2', headDim: 64, rope: ropes(64)['halves']! })] as const
  )
);
group('kernels', test => {
  for (const [name, verbs] of shared) {
    test(`scores() and mix() of one head do not depend on the others: ${name}`, () => {
      const bytes = verbs.encode(inputs['key-like']!(64, 64, 4));
      const queries = normal(4, 64, 5);
      const weights = inputs['uniform']!(4, 64, 6);
      const logits = verbs.scores(queries, bytes);
      const sums = verbs.mix(weights, bytes);
      for (let head = 0; head < 4; head++) {
        const row = (x: Float32Array) => x.subarray(head * 64, head * 64 + 64);
        sameBits(`scores of head ${head}`, verbs.scores(row(queries), bytes), row(logits));
        sameBits(`mix of head ${head}`, verbs.mix(row(weights), bytes), row(sums));
      }
    });

    test(`mix() with one weight of 1 is decode: ${name}`, async () => {
      const bytes = verbs.encode(inputs['key-like']!(64, 64, 7));
      const plain = await scalar.kernels({ codec: 'nsn2', headDim: 64 });
      const exact = plain.decode(bytes);
      const weights = new Float32Array(64);
      for (const t of [0, 1, 62, 63]) {
        weights.fill(0)[t] = 1;
        const token = exact.subarray(t * 64, t * 64 + 64);
        withinFloatRule(`token ${t}`, verbs.mix(weights, bytes), token, token);
      }
    });

    test(`the verbs leave their inputs and nothing of an earlier call behind: ${name}`, () => {
      const x = inputs['key-like']!(64, 64, 8);
      const first = verbs.encode(x);
      sameBits('tokens', x, inputs['key-like']!(64, 64, 8));
      const queries = normal(2, 64, 9);
      const logits = verbs.scores(queries, first);
      verbs.encode(inputs['largest finite']!(64, 64, 9));
      verbs.scores(normal(4, 64, 10), verbs.encode(inputs['ramp']!(64, 64, 9)));
      sameBits('block', verbs.encode(x), first);
      sameBits('logits', verbs.scores(queries, first), logits);
      sameBits('queries', queries, normal(2, 64, 9));
    });

    test(`encode() keeps a zero token zero: ${name}`, () => {
      const decoded = verbs.decode(verbs.encode(inputs['zero tokens']!(64, 64, 11)));
      for (const t of [0, 32, 63])
        assert.ok(
          decoded.subarray(t * 64, t * 64 + 64).every(value => value === 0),
          `token ${t}`
        );
    });
  }

  test("the reference backend's verbs are the functions of nsnquant/reference", async () => {
    const rope = ropes(64)['halves']!;
    const verbs = await referenceBackend.kernels({ codec: 'nsn2', headDim: 64, rope });
    const quantizer = reference.codecQuantizer(codecs.nsn2);
    const x = inputs['key-like']!(64, 64, 12);
    const rows = Float64Array.from(x);
    const inPlace = x.slice();
    sameBits('s1', verbs.normalize(inPlace), Float32Array.from(reference.normalize(rows, 64).s1));
    sameBits('normalized', inPlace, Float32Array.from(rows));
    const normalized = Float64Array.from(inPlace);
    sameBits('o', verbs.shift(inPlace), Float32Array.from(reference.shift(normalized, 64, rope).o));
    sameBits('shifted', inPlace, Float32Array.from(normalized));
    const shifted = Float64Array.from(inPlace);
    sameBits('s2', verbs.normalizeAgain(inPlace), Float32Array.from(reference.normalizeAgain(shifted, 64)));
    const again = Float64Array.from(inPlace);
    reference.hadamard(again, 64);
    verbs.hadamard(inPlace);
    sameBits('y', inPlace, Float32Array.from(again));
    sameBits('codes', verbs.quantize(inPlace), Uint8Array.from(reference.quantize(Float64Array.from(inPlace), quantizer)));
    const window = reference.encode(x, 64, quantizer, rope);
    const bytes = verbs.encode(x);
    sameBits('block', bytes, reference.pack(window, codecs.nsn2));
    sameBits('decoded', verbs.decode(bytes), Float32Array.from(reference.decode(window, quantizer, rope)));
    const queries = normal(2, 64, 13);
    sameBits(
      'scores',
      verbs.scores(queries, bytes).subarray(64),
      Float32Array.from(reference.scores(queries.subarray(64), window, quantizer, rope))
    );
    const weights = inputs['uniform']!(2, 64, 14);
    sameBits('mix', verbs.mix(weights, bytes).subarray(64), Float32Array.from(reference.mix(weights.subarray(64), window, quantizer)));
  });

  test('near ties are rare', () => {
    for (const [name, [ties, codes]] of Object.entries(nearTies)) {
      console.log(`${name}: ${ties} near ties in ${codes} codes`);
      assert.ok(ties <= NEAR_TIES * codes);
    }
  });
});
