// Every verb of `nsnquant/kernels` on every backend: the scalar binary against the reference, verb by verb from the same f32
// input, and the other binaries against the scalar one.

import { type CodecName, codecs, type Rope } from 'nsnquant';
import type { Verbs } from 'nsnquant/kernels';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { allFinite, sameBits, sameCodes, sameRounding, withinFloatRule } from './compare.ts';
import { encodedFrom, type Ties } from './encoded.ts';
import { anyBalance, inputs, normal, ropes } from './inputs.ts';
import { type Block, groupValues, meanOf, normsOf, readBlock, type Side, sectionsOf } from './pages.ts';
import { ADDED_UP, BALANCED_ADDED_UP, meanTermShare, NEAR_TIES } from './tolerance.ts';
import { reference as referenceBackend, relaxed, scalar, simd128 } from './verbs.ts';

const [names, all] = [Object.keys(codecs) as CodecName[], Object.keys(inputs)];
const few = ['key-like', 'outlier channel', 'ramp', 'zero tokens'];
const two = ['key-like', 'ramp']; // where layouts differ, and arithmetic does not
const books = [8, 4, 2] as const; // channels of the codebooks

interface Case {
  readonly codec: CodecName;
  readonly headDim: number;
  readonly side: Side;
  readonly balanced: boolean;
  readonly rope?: string;
  readonly inputs: readonly string[];
}

const KINDS = {
  'plain keys': { side: 'keys', balanced: false },
  'balanced keys': { side: 'keys', balanced: true },
  values: { side: 'values', balanced: false }
} as const;

function casesOf(kind: keyof typeof KINDS, headDims: readonly number[], chosen: readonly string[]): Case[] {
  return names.flatMap(codec => headDims.map(headDim => ({ codec, headDim, ...KINDS[kind], inputs: chosen })));
}

/**
 * 40 and 72 have rows of codes that end in padding, groups of 8 channels, and segments whose transforms are of several sizes. Segments
 * meet within eight columns in every way: most differ at 32 to 128, others at 144 and 184, of which Node alone takes all:
 * a case has a memory for each binary, of which Chromium holds some hundred.
 */
const inNode = globalThis.process?.execArgv?.every(flag => !/relaxed/.test(flag)) && !('Bun' in globalThis) && !('Deno' in globalThis);
const cases: readonly Case[] = [
  ...casesOf('plain keys', [40, 64], all),
  ...casesOf('plain keys', inNode ? [32, 72, 80, 96, 128] : [], two),
  ...casesOf('balanced keys', [40, 64], all),
  ...casesOf('balanced keys', inNode ? [32, 48, 56, 72, 80, 88, 96, 104, 112, 120, 128, 144, 184] : [], two),
  ...casesOf('values', inNode ? [40, 64, 128] : [64], few),
  ...Object.keys(ropes(64)).flatMap((rope, n) => [
    ...(inNode || n % 2 === 0 ? [{ codec: 'nsn2', headDim: 64, ...KINDS['plain keys'], rope, inputs: all } as const] : []),
    ...(inNode || n % 2 === 1 ? [{ codec: 'nsn1', headDim: 64, ...KINDS['balanced keys'], rope, inputs: few } as const] : [])
  ]),
  // Of many channels one codec each: nothing of a codec begins there.
  ...[32, 80, 96, 128, 576, 256].map(
    (headDim, n) =>
      ({ codec: names[n % 4]!, headDim, ...KINDS[n % 2 ? 'plain keys' : 'balanced keys'], rope: 'halves', inputs: few }) as const
  ),
  { codec: 'nsn4', headDim: 576, ...KINDS['plain keys'], rope: 'fast, rising', inputs: few }
];
/** What verbs make of what others made. */
interface Stages extends Readonly<Record<'x' | 's1' | 'normalized' | 'o' | 'shifted' | 's2' | 'again' | 'y' | 'decoded', Float32Array>> {
  /** By the codebooks of 8, 4 and 2 channels, one after another. */
  readonly codes: Uint8Array;
  readonly bytes: Uint8Array;
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
  const codes = Uint8Array.from(books.flatMap(channels => [...verbs.quantize(y, channels)]));
  const bytes = verbs.encode(x);
  return { x, s1, normalized, o, shifted, s2, again, y, codes, bytes, decoded: verbs.decode(bytes) };
}

/** Those of one codebook among all three's. */
function codesBy(channels: 8 | 4 | 2, codes: Uint8Array, headDim: number): Uint8Array {
  const before = { 8: 0, 4: 8, 2: 24 }[channels] * headDim;
  return codes.subarray(before, before + (64 * headDim) / channels);
}

const nearTies: Record<string, Ties> = {};

for (const { codec: name, headDim, side, balanced, rope: ropeName, inputs: chosen } of cases) {
  const rope: Rope | undefined = ropeName === undefined ? undefined : ropes(headDim)[ropeName];
  const balance = balanced ? anyBalance(headDim, 9) : undefined;
  const options = { codec: name, headDim, side, ...(rope && { rope }), ...(balance && { balance }) };
  const at = sectionsOf(codecs[name], headDim, side, balanced);
  const order = balance && brute.orderOf(balance, headDim, rope);
  const layout = reference.blockLayout(codecs[name], headDim, side, balanced);
  const coding = reference.codingOf(layout, rope, balance && reference.channelOrder(balance, headDim, rope));
  const verbs = await scalar.kernels(options);
  const simdVerbs = await simd128.kernels(options);
  const relaxedVerbs = await relaxed?.kernels(options);
  const queries = normal(4, headDim, 1).map(value => value / Math.sqrt(headDim));
  const weights = inputs['uniform']!(4, 64, 2).map(Math.abs);

  group(`${name} ${balanced ? 'balanced ' : ''}${side}, headDim ${headDim}, ${ropeName ? `RoPE ${ropeName}` : 'no RoPE'}`, test => {
    const made = new Map<string, { stages: Stages; block: Block; naive: Float64Array }>();
    /** Runs a check over all inputs. Stages, and the tokens that a naive f32 decoder makes of the block, are made once. */
    const over = (check: (what: string, stages: Stages, block: Block, naive: Float64Array) => void) => () => {
      for (const input of chosen) {
        let entry = made.get(input);
        if (!entry) {
          const stages = stagesOf(verbs, inputs[input]!(64, headDim, 3));
          const block = readBlock(stages.bytes, at);
          made.set(input, (entry = { stages, block, naive: brute.decode(block, rope, brute.f32, order) }));
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
      `shift() subtracts the channel mean in ${side === 'keys' ? 8 : 4} bits, taken before RoPE`,
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
        for (const channels of books) {
          const ties = (nearTies[`quantize ${channels}`] ??= { near: 0, codes: 0 });
          const chosen = codesBy(channels, codes, headDim);
          ties.near += sameCodes(`${what}, ${channels}`, chosen, y, reference.codebooks[channels]);
          ties.codes += chosen.length;
        }
      })
    );

    test(
      'encode() is what f64 makes of the tokens, stage by stage, near ties apart',
      over((what, { x, bytes }) => {
        encodedFrom(what, bytes, x, at, rope, (nearTies[`encode ${name}`] ??= { near: 0, codes: 0 }), order);
      })
    );

    if (!balanced) {
      test(
        'encode() is these verbs in order, bit for bit',
        over((what, { codes }, block) => {
          const { channels, columns } = at.segments[0]!.stages[0]!;
          const first = block.codes.filter((_, i) => i % at.perRow < columns);
          sameBits(`${what}: codes of the first stage`, first, codesBy(channels, codes, headDim));
        })
      );
    }

    test(
      'decode() is what the reference decodes',
      over((what, { bytes, decoded }, _block, naive) => {
        withinFloatRule(what, decoded, reference.decode(reference.unpack(bytes, layout, headDim), coding), naive, headDim);
        allFinite(what, decoded);
      })
    );

    test(
      "scores() are the reference's logits",
      over((what, { bytes }, block, naiveTokens) => {
        const { exact, extra } = exactScores(bytes, block, naiveTokens);
        const naive = brute.scores(queries, naiveTokens, headDim, brute.f32);
        withinFloatRule(what, verbs.scores(queries, bytes), exact, naive, 64, extra);
        if (relaxedVerbs) withinFloatRule(`relaxed, ${what}`, relaxedVerbs.scores(queries, bytes), exact, naive, 64, extra);
      })
    );

    test(
      "mix() is the reference's weighted sum",
      over((what, { bytes }, block, naiveTokens) => {
        const window = reference.unpack(bytes, layout, headDim);
        const exact = heads(head => reference.mix(weights.subarray(head * 64, head * 64 + 64), window, coding));
        // Means are not turned where tokens are mixed: values carry no RoPE.
        const plain = rope ? brute.decode(block, undefined, brute.f32, order) : naiveTokens;
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

    function exactScores(bytes: Uint8Array, block: Block, tokens: Float64Array) {
      const window = reference.unpack(bytes, layout, headDim);
      const exact = heads(head => reference.scores(queries.subarray(head * headDim, (head + 1) * headDim), window, coding));
      const [s1, o] = [normsOf(block), meanOf(block)];
      const extra = heads(head =>
        s1.map(norm => meanTermShare(headDim) * norm * brute.meanTerm(queries, head * headDim, o, headDim, rope))
      );
      const added = brute.scores(queries.map(Math.abs), tokens.map(Math.abs), headDim, brute.f64);
      return { exact, extra: balanced ? extra.map((most, i) => most + BALANCED_ADDED_UP * added[i]!) : extra };
    }
  });
}

// Heads share a pass: none may lean on another, and one head must not wait for three more.
const shared = await Promise.all(
  [scalar, simd128, ...(relaxed ? [relaxed] : [])].flatMap(tested =>
    [undefined, anyBalance(64, 9)].map(
      async balance =>
        [
          `${tested.name}, ${balance ? 'balanced' : 'plain'}`,
          await tested.kernels({ codec: 'nsn2', headDim: 64, rope: ropes(64)['halves']!, ...(balance && { balance }) })
        ] as const
    )
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

    test(`the verbs leave their inputs and nothing of an earlier call behind: ${name}`, () => {
      const x = inputs['key-like']!(64, 64, 8);
      const first = verbs.encode(x);
      sameBits('tokens', x, inputs['key-like']!(64, 64, 8));
      const queries = normal(2, 64, 9);
      const logits = verbs.scores(queries, first);
      const weights = inputs['uniform']!(2, 64, 9);
      const sums = verbs.mix(weights, first);
      verbs.encode(inputs['largest finite']!(64, 64, 9));
      const other = verbs.encode(inputs['ramp']!(64, 64, 9));
      verbs.scores(normal(4, 64, 10), other);
      verbs.mix(normal(4, 64, 10), other);
      sameBits('block', verbs.encode(x), first);
      sameBits('logits', verbs.scores(queries, first), logits);
      sameBits('sums', verbs.mix(weights, first), sums);
      sameBits('queries', queries, normal(2, 64, 9));
      sameBits('weights', weights, inputs['uniform']!(2, 64, 9));
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

  for (const tested of [scalar, simd128, ...(relaxed ? [relaxed] : [])]) {
    test(`mix() with one weight of 1 is decode: ${tested.name}`, async () => {
      for (const balance of [undefined, anyBalance(64, 9)]) {
        const verbs = await tested.kernels({ codec: 'nsn2', headDim: 64, ...(balance && { balance }) });
        const bytes = verbs.encode(inputs['key-like']!(64, 64, 7));
        const exact = verbs.decode(bytes);
        const weights = new Float32Array(64);
        for (const t of [0, 1, 62, 63]) {
          weights.fill(0)[t] = 1;
          const token = exact.subarray(t * 64, t * 64 + 64);
          withinFloatRule(`token ${t}`, verbs.mix(weights, bytes), token, token);
        }
      }
    });
  }

  for (const balance of [undefined, anyBalance(64, 9)]) {
    test(`the reference backend's verbs are the functions of nsnquant/reference: ${balance ? 'balanced' : 'plain'}`, async () => {
      const rope = ropes(64)['halves']!;
      const verbs = await referenceBackend.kernels({ codec: 'nsn2', headDim: 64, rope, ...(balance && { balance }) });
      const layout = reference.blockLayout(codecs.nsn2, 64, 'keys', balance !== undefined);
      const coding = reference.codingOf(layout, rope, balance && reference.channelOrder(balance, 64, rope));
      const x = inputs['key-like']!(64, 64, 12);
      const rows = Float64Array.from(x);
      const inPlace = x.slice();
      sameBits('s1', verbs.normalize(inPlace), Float32Array.from(reference.normalize(rows, 64).s1));
      sameBits('normalized', inPlace, Float32Array.from(rows));
      const normalized = Float64Array.from(inPlace);
      sameBits('o', verbs.shift(inPlace), Float32Array.from(reference.shift(normalized, 64, 8, rope).o));
      sameBits('shifted', inPlace, Float32Array.from(normalized));
      const shifted = Float64Array.from(inPlace);
      sameBits('s2', verbs.normalizeAgain(inPlace), Float32Array.from(reference.normalizeAgain(shifted, 64)));
      const again = Float64Array.from(inPlace);
      reference.hadamard(again, 64);
      verbs.hadamard(inPlace);
      sameBits('y', inPlace, Float32Array.from(again));
      for (const channels of books) {
        const quantizer = reference.codebookQuantizer(reference.codebooks[channels]);
        const codes = Uint8Array.from(reference.quantize(Float64Array.from(inPlace), quantizer));
        sameBits(`codes of ${channels}`, verbs.quantize(inPlace, channels), codes);
      }
      const window = reference.encode(x, 64, coding);
      const bytes = verbs.encode(x);
      sameBits('block', bytes, reference.pack(window, layout));
      sameBits('decoded', verbs.decode(bytes), Float32Array.from(reference.decode(window, coding)));
      const queries = normal(2, 64, 13);
      const logits = Float32Array.from(reference.scores(queries.subarray(64), window, coding));
      sameBits('scores', verbs.scores(queries, bytes).subarray(64), logits);
      const weights = inputs['uniform']!(2, 64, 14);
      const sums = Float32Array.from(reference.mix(weights.subarray(64), window, coding));
      sameBits('mix', verbs.mix(weights, bytes).subarray(64), sums);
    });
  }

  test('near ties are rare', () => {
    for (const [name, { near, codes }] of Object.entries(nearTies)) {
      console.log(`${name}: ${near} near ties in ${codes} codes`);
      assert.ok(near <= NEAR_TIES * codes);
    }
  });
});
