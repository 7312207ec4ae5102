// The comparers must bite: what every other test relies on is given right results and wrong ones here, and may pass only the
// right. Wrong ones are the mistakes that kernels are made of: truncation, a swapped row, a sign, nothing written, NaN.

import { type CodecName, codecs, KVCache } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { expectedAttention } from './attention.ts';
import * as brute from './brute.ts';
import { atMost, sameCodes, sameRounding, withinFloatRule } from './compare.ts';
import { floatValue, nearestFloat, nearestHalf } from './half.ts';
import { anyBalance, bells, exactRope, keyLike } from './inputs.ts';
import { type Block, blockOf, type Group, meanOf, normsOf, readBlock, readSaved, sectionsOf, sidesOf } from './pages.ts';
import { ATOL, meanTermShare, NAIVE_ERRORS, NEAR_TIE, NEAR_TIES } from './tolerance.ts';
import { simd128 } from './verbs.ts';
import { bites, changed, swapped } from './wrong.ts';

const names = Object.keys(codecs) as CodecName[];
const headDim = 64;
const rope = exactRope(headDim);
const tokens = keyLike(64, headDim, 1);
const queries = bells(4, headDim, 2).map(value => value / Math.sqrt(headDim));
const weights = bells(4, 64, 3).map(Math.abs);

/** What a kernel that is wrong in one way gives for x [rows, width]; `at` is an element that is far from 0. */
function mistakes(x: Float32Array, width: number): Record<string, Float32Array> {
  const at = x.reduce((largest, value, i) => (Math.abs(value) > Math.abs(x[largest]!) ? i : largest), 0);
  const last = x.length / width - 1;
  return {
    'nothing written': new Float32Array(x.length),
    'one row not written': x.slice().fill(0, last * width),
    'neighboring rows swapped': swapped(x, width, 0, 1),
    'the last two rows swapped': swapped(x, width, last - 1, last),
    'every sign wrong': x.map(value => -value),
    'one sign wrong': changed(x, at, value => -value),
    'rows moved by an element': Float32Array.from(x, (_, i) => x[(i + 1) % x.length]!),
    'rounded to f16': x.map(nearestHalf),
    'truncated to 16 bits': new Float32Array(new Uint32Array(x.slice().buffer).map(bits => bits & 0xffff0000).buffer),
    'one number off by 1e-4 of itself': changed(x, at, value => value * 1.0001),
    'a scale off by 1e-4': x.map(value => value * 1.0001),
    'one NaN': changed(x, at, () => NaN),
    'one infinity': changed(x, at, () => Infinity),
    'NaN for everything': x.slice().fill(NaN),
    'too short': x.slice(0, -1),
    'too long': Float32Array.from([...x, 0]),
    empty: new Float32Array()
  };
}

const kinds = [
  { kind: 'plain keys', side: 'keys', balance: undefined },
  { kind: 'balanced keys', side: 'keys', balance: anyBalance(headDim, 5) },
  { kind: 'values', side: 'values', balance: undefined }
] as const;

const made = await Promise.all(
  names.flatMap(name =>
    kinds.map(async ({ kind, side, balance }) => {
      const turning = side === 'keys' ? rope : undefined;
      const verbs = await simd128.kernels({ codec: name, headDim, side, ...(turning && { rope: turning }), ...(balance && { balance }) });
      const layout = reference.blockLayout(codecs[name], headDim, side, balance !== undefined);
      const bytes = verbs.encode(tokens);
      return {
        title: `${name}, ${kind}`,
        turning,
        verbs,
        bytes,
        block: readBlock(bytes, sectionsOf(codecs[name], headDim, side, balance !== undefined)),
        window: reference.unpack(bytes, layout, headDim),
        coding: reference.codingOf(layout, turning, balance && reference.channelOrder(balance, headDim, rope)),
        order: balance && brute.orderOf(balance, headDim, rope)
      };
    })
  )
);

const { verbs: plainVerbs, block: plainBlock } = made[0]!;
const y = tokens.slice();
plainVerbs.normalize(y);
plainVerbs.shift(y);
plainVerbs.normalizeAgain(y);
plainVerbs.hadamard(y);

group('comparers', test => {
  for (const codebook of Object.values(reference.codebooks)) {
    const { channels, codewords } = codebook;
    const quantizer = reference.codebookQuantizer(codebook);
    const codes = plainVerbs.quantize(y, channels);
    const name = `${channels} channels`;

    test(`sameCodes() accepts the kernel's codes and the reference's: ${name}`, () => {
      atMost('near ties', sameCodes('kernel', codes, y, codebook), NEAR_TIES * codes.length);
      assert.is(sameCodes('reference', reference.quantize(Float64Array.from(y), quantizer), y, codebook), 0);
    });

    test(`sameCodes() refuses a truncating quantizer: ${name}`, () => {
      for (const steps of [1, 4, 16]) {
        const coarse = Float64Array.from(y, value => Math.trunc(value * steps) / steps);
        bites(() => sameCodes('truncated', reference.quantize(coarse, quantizer), y, codebook), /expected code/);
      }
      const mask = Float64Array.from(codes, code => code & 0xfe);
      bites(() => sameCodes('last bit lost', mask, y, codebook), /expected code/);
    });

    test(`sameCodes() refuses a search by product alone, without the codeword's length: ${name}`, () => {
      const product = Uint8Array.from(codes, (_, j) => {
        const scores = Array.from({ length: 256 }, (_, c) => {
          let sum = 0;
          for (let k = 0; k < channels; k++) sum += y[j * channels + k]! * codewords[c * channels + k]!;
          return sum;
        });
        return scores.indexOf(Math.max(...scores));
      });
      bites(() => sameCodes('product', product, y, codebook), /expected code/);
    });

    test(`sameCodes() refuses swapped rows, a wrong sign, zeros, a moved code and a wrong count: ${name}`, () => {
      const perRow = headDim / channels;
      const wrong: Record<string, Uint8Array> = {
        'neighboring rows swapped': swapped(codes, perRow, 0, 1),
        'the last two rows swapped': swapped(codes, perRow, 62, 63),
        'groups swapped': swapped(codes, 1, 10, 11),
        'every sign wrong': codes.map(code => code ^ 128),
        'one sign wrong': changed(codes, 5, code => code ^ 128),
        'nothing written': new Uint8Array(codes.length),
        'a row not written': codes.slice().fill(0, -perRow)
      };
      for (const [what, codes] of Object.entries(wrong)) bites(() => sameCodes(what, codes, y, codebook), /expected code/);
      bites(() => sameCodes('short', codes.subarray(1), y, codebook), /codes, got/);
      bites(() => sameCodes('no code', Float64Array.from(codes).fill(NaN), y, codebook), /expected code/);
      bites(() => sameCodes('no codeword', Float64Array.from(codes).fill(256), y, codebook), /expected code/);
    });

    test(`sameCodes() refuses the second nearest codeword, however little farther it is: ${name}`, () => {
      // The group whose second nearest codeword is least farther, but not by so little that f32 could confuse them.
      let closest = Infinity;
      let wrong = codes;
      for (let j = 0; j < codes.length; j++) {
        const distances = Array.from({ length: 256 }, (_, c) => Math.sqrt(brute.distance(y, j * channels, codebook, c)));
        const least = Math.min(...distances);
        const next = Math.min(...distances.filter(distance => distance > least * (1 + 2 * NEAR_TIE)));
        if (next / least >= closest) continue;
        closest = next / least;
        wrong = changed(codes, j, () => distances.indexOf(next));
      }
      atMost('how much farther', closest, 1.01);
      bites(() => sameCodes('second nearest', wrong, y, codebook), /expected code/);
    });
  }

  for (const { title, turning, verbs, bytes, block, window, coding, order } of made) {
    test(`withinFloatRule() accepts decode(), and scores() of keys and mix() of values: ${title}`, () => {
      const decoded = decodedOf();
      withinFloatRule('decode', decoded.actual, decoded.exact, decoded.naive, headDim);
      const read = turning ? scoresOf() : mixOf();
      withinFloatRule('read', read.actual, read.exact, read.naive, turning ? 64 : headDim, read.extra);
    });

    test(`withinFloatRule() refuses every mistake in them: ${title}`, () => {
      for (const { actual, exact, naive } of [decodedOf(), ...(turning ? [] : [mixOf()])]) {
        for (const [what, wrong] of Object.entries(mistakes(actual, headDim)))
          bites(() => withinFloatRule(what, wrong, exact, naive, headDim));
      }
    });

    if (turning)
      test(`withinFloatRule() refuses a wrong logit although the mean's part is forgiven some: ${title}`, () => {
        const { actual, exact, naive, extra } = scoresOf();
        // Roundings of a few 1e-4 are what is forgiven there.
        const {
          'rounded to f16': _half,
          'one number off by 1e-4 of itself': _one,
          'a scale off by 1e-4': _all,
          ...gross
        } = mistakes(actual, 64);
        for (const [what, wrong] of Object.entries(gross)) bites(() => withinFloatRule(what, wrong, exact, naive, 64, extra));
        const o: Group[] = block.o.map(group => ({ ...group, scale: -group.scale, min: -group.min }));
        const none: Group[] = block.o.map(group => ({ ...group, scale: 0, min: 0 }));
        const of = (other: Block, turn: typeof rope | undefined, by = order) =>
          brute.scores(queries, brute.decode(other, turn, brute.f64, by), headDim, brute.f64);
        withinFloatRule('right', of(block, rope), exact, naive, 64, extra);
        bites(() => withinFloatRule('mean subtracted', of({ ...block, o }, rope), exact, naive, 64, extra));
        bites(() => withinFloatRule('mean left out', of({ ...block, o: none }, rope), exact, naive, 64, extra));
        bites(() => withinFloatRule('mean not turned', of(block, undefined), exact, naive, 64, extra));
        bites(() => withinFloatRule('other pairs', of(block, { ...rope, interleaved: true }), exact, naive, 64, extra));
        const backwards = { ...rope, invFreq: Float64Array.from(rope.invFreq, angle => -angle) };
        bites(() => withinFloatRule('turned backwards', of(block, backwards), exact, naive, 64, extra));
        const another = order
          ? { ...order, scales: order.scales.map(scale => 1 / scale) }
          : brute.orderOf(anyBalance(headDim, 6), headDim, rope);
        bites(() => withinFloatRule('another balance', of(block, rope, another), exact, naive, 64, extra));
      });

    test(`withinFloatRule() refuses a block read with a scale, norm or code of another token: ${title}`, () => {
      const { exact, naive } = decodedOf();
      const of = (other: Partial<Block>) => brute.decode({ ...block, ...other }, turning, brute.f64, order);
      withinFloatRule('right', of({}), exact, naive, headDim);
      const different = (x: ArrayLike<number>) => Array.from(x).findIndex((value, i) => value !== x[i + 1]);
      const [norm, second, code] = [different(block.s1.codes), different(block.s2), different(block.codes)];
      const wrong: Record<string, Partial<Block>> = {
        's2 swapped': { s2: swapped(block.s2, 1, second, second + 1) },
        's2 of the next float': { s2: changed(block.s2, 63, value => floatValue(nearestFloat(value) + 1)) },
        's1 swapped': { s1: { ...block.s1, codes: swapped(block.s1.codes, 1, norm, norm + 1) } },
        'a code of another group': { codes: swapped(block.codes, 1, code, code + 1) },
        'means of other channels': { o: [...block.o].reverse() }
      };
      for (const [what, other] of Object.entries(wrong)) bites(() => withinFloatRule(what, of(other), exact, naive, headDim));
    });

    function decodedOf() {
      return {
        actual: verbs.decode(bytes),
        exact: reference.decode(window, coding),
        naive: brute.decode(block, turning, brute.f32, order)
      };
    }

    function scoresOf() {
      const [s1, o] = [normsOf(block), meanOf(block)];
      const heads = [0, 1, 2, 3].map(head => queries.subarray(head * headDim, (head + 1) * headDim));
      return {
        actual: verbs.scores(queries, bytes),
        exact: Float64Array.from(heads.flatMap(query => Array.from(reference.scores(query, window, coding)))),
        naive: brute.scores(queries, decodedOf().naive, headDim, brute.f32),
        extra: Float64Array.from(
          heads.flatMap(query => Array.from(s1, norm => meanTermShare(headDim) * norm * brute.meanTerm(query, 0, o, headDim, rope)))
        )
      };
    }

    function mixOf() {
      const heads = [0, 1, 2, 3].map(head => weights.subarray(head * 64, (head + 1) * 64));
      return {
        actual: verbs.mix(weights, bytes),
        exact: Float64Array.from(heads.flatMap(row => Array.from(reference.mix(row, window, coding)))),
        naive: brute.mix(weights, decodedOf().naive, headDim, brute.f32),
        extra: undefined
      };
    }
  }

  test('withinFloatRule() refuses attention over values whose mean is off by 1e-5, although their sums are forgiven some', async () => {
    // Queries of 0 forgive no logit: every token has the same weight.
    const [query, count] = [new Float32Array(headDim), 128];
    const cache = new KVCache(simd128.backend, {
      layers: 1,
      kvHeads: 1,
      queryHeads: 1,
      headDim,
      capacity: count,
      keys: 'nsn4',
      values: 'nsn4',
      sinks: 0,
      sequences: 1
    });
    const sequence = cache.sequence();
    const x = keyLike(count, headDim, 4);
    sequence.append(0, x, x);
    sequence.seal();
    const actual = await sequence.attend(0, query).read();
    const { exact, naive, extra } = await expectedAttention(sequence, 0, query, count / 64);
    withinFloatRule('attention', actual, exact, naive, headDim, extra);

    const { keys, values } = await sequence.decode(0);
    const { pages } = readSaved(await sequence.save()).layers[0]!;
    const sides = sidesOf(cache, 0);
    const means = pages.map(page => {
      const block = readBlock(blockOf(page, 0, 1, sides), sides[1]);
      return { s1: normsOf(block), o: meanOf(block) };
    });
    const off = Float64Array.from(values, (value, i) => {
      const { s1, o } = means[Math.floor(i / (64 * headDim))]!;
      return value + 1e-5 * s1[Math.floor(i / headDim) % 64]! * o[i % headDim]!;
    });
    const wrong = brute.attention(query, keys, off, cache.shape.layers[0]!, 1, brute.f64).out;
    bites(() => withinFloatRule('a mean off', wrong, exact, naive, headDim, extra));
    cache.dispose();
  });

  test('withinFloatRule() forgives twice the naive error and 16 ulps, in its own row alone, and `extra` in its own element alone', () => {
    const exact = Float64Array.of(1, -0.5, 0.25, 1, 0.5, 0);
    const naive = changed(exact, 1, value => value + 1e-4);
    const allowed = NAIVE_ERRORS * 1e-4 + ATOL;
    const extra = Float64Array.of(0, 0, 0, 0, 1e-3, 0);
    const off = (at: number, by: number) => changed(exact, at, value => value + by);
    for (const sign of [1, -1]) {
      for (const at of [0, 1, 2]) {
        withinFloatRule('first row', off(at, sign * 0.99 * allowed), exact, naive, 3, extra);
        bites(() => withinFloatRule('first row', off(at, sign * 1.01 * allowed), exact, naive, 3, extra));
      }
      for (const at of [3, 4, 5]) {
        const most = ATOL + extra[at]!;
        withinFloatRule('second row', off(at, sign * 0.99 * most), exact, naive, 3, extra);
        bites(() => withinFloatRule('second row', off(at, sign * 1.01 * most), exact, naive, 3, extra));
      }
    }
    bites(() => withinFloatRule('naive too short', exact, exact, naive.subarray(1)));
    bites(() =>
      withinFloatRule(
        'naive NaN',
        off(0, 1),
        exact,
        changed(naive, 2, () => NaN)
      )
    );
    bites(() =>
      withinFloatRule(
        'exact NaN',
        exact,
        changed(exact, 2, () => NaN),
        naive
      )
    );
  });

  const norms = brute.norms(tokens, headDim, brute.f64);
  const most = Math.max(...norms);

  test("sameRounding() accepts the kernel's norms and the reference's", () => {
    sameRounding('kernel', plainBlock.s1, norms, most, true);
    for (const [bits, largest] of [
      [4, 15],
      [8, 255]
    ] as const) {
      sameRounding('reference', { ...reference.roundToNearest(norms, bits), most: largest }, norms, most);
      const { scale, min, values } = brute.roundToNearest(norms, bits, nearestHalf);
      const codes = Uint8Array.from(values, value => Math.round((value - min) / scale));
      sameRounding('brute', { scale, min, codes, most: largest }, norms, most);
    }
  });

  test('sameRounding() refuses codes truncated or rounded up, swapped, moved and all zero', () => {
    const { scale, min, codes } = plainBlock.s1;
    const place = (round: (x: number) => number) => Uint8Array.from(norms, norm => round(Math.min(Math.max((norm - min) / scale, 0), 15)));
    sameRounding('rounded', { scale, min, codes: place(Math.round), most: 15 }, norms, most, true);
    const first = codes.findIndex((code, t) => code !== codes[t + 1]);
    const wrong: Record<string, Uint8Array> = {
      truncated: place(Math.floor),
      'rounded up': place(Math.ceil),
      swapped: swapped(codes, 1, first, first + 1),
      'nibbles swapped': codes.map((_, t) => codes[t ^ 1]!),
      'one off by 1': changed(codes, 7, code => (code < 15 ? code + 1 : code - 1)),
      'nothing written': new Uint8Array(64),
      'upside down': codes.map(code => 15 - code)
    };
    for (const [what, codes] of Object.entries(wrong))
      bites(() => sameRounding(what, { scale, min, codes, most: 15 }, norms, most, true), /expected code/);
    bites(() => sameRounding('short', { scale, min, codes: codes.subarray(1), most: 15 }, norms, most, true));
  });

  test('sameRounding() refuses a scale or minimum that is the next f16 number, of the wrong sign, 0 or NaN', () => {
    const { scale, min, codes } = plainBlock.s1;
    for (const wrong of [scale * (1 + 2 ** -9), scale * (1 - 2 ** -9), -scale, 0, NaN]) {
      bites(() => sameRounding('scale', { scale: wrong, min, codes, most: 15 }, norms, most, true), /expected scale/);
    }
    for (const wrong of [min * (1 + 2 ** -9), min * (1 - 2 ** -9), -min, 0, NaN]) {
      bites(() => sameRounding('minimum', { scale, min: wrong, codes, most: 15 }, norms, most, true), /expected minimum/);
    }
  });

  test('sameRounding() refuses a norm whose code is worth less than 0.7 of it, and a next code where that is not so', () => {
    const group = (...codes: number[]): Group => ({ scale: 2, min: 0, codes: Uint8Array.from(codes), most: 15 });
    // 2.8 and 3 are nearest to 2, which is 0.71 and 0.67 of them; 0.4 is nearest to 0.
    const few = Float64Array.of(0, 0.4, 2.8, 2.999, 30);
    sameRounding('norms', group(0, 1, 1, 2, 15), few, 30, true);
    bites(() => sameRounding('tiny norm', group(0, 0, 1, 2, 15), few, 30, true), /code worth 0.2/);
    bites(() => sameRounding('norm', group(0, 1, 1, 1, 15), few, 30, true), /code worth 2.0/);
    bites(() => sameRounding('zero', group(1, 1, 1, 2, 15), few, 30, true), /expected code at 0/);
    bites(() => sameRounding('tiny norm', group(0, 2, 1, 2, 15), few, 30, true), /expected code at 1/);
    bites(() => sameRounding('norm', group(0, 1, 2, 2, 15), few, 30, true), /expected code at 2/);
    bites(() => sameRounding('norm', group(0, 1, 1, 3, 15), few, 30, true), /expected code at 3/);
    sameRounding('a mean', group(0, 0, 1, 1, 15), few, 30);
    bites(() => sameRounding('a mean', group(0, 1, 1, 1, 15), few, 30), /expected code at 1/);
  });
});
