// Every verb by its definition: dense matrices, exhaustive search, decoded tokens. With the rounding `f64` it checks the
// reference; with `f32`, every operation rounded, it is the naive implementation that a kernel's error is measured against.

import type { Rope } from 'nsnquant';
import { type Codebook, codebooks } from 'nsnquant/reference';
import { add, array, dot, f64, type Numbers, type Round } from './brute-attention.ts';
import { nearestHalf } from './half.ts';
import { type Block, groupValues, meanOf, normsOf, type Segment } from './pages.ts';
import { LEAST_SHARE } from './tolerance.ts';

export { type AttentionShape, attention, f32, f64, type Round, type Slack, sees } from './brute-attention.ts';

/** The sizes of Hadamard blocks: the binary digits of a number of channels, the highest first. */
export function blockSizes(channels: number): number[] {
  const digits = channels.toString(2);
  return Array.from(digits, (digit, n) => Number(digit) * 2 ** (digits.length - 1 - n)).filter(size => size > 0);
}

/** Entry of Sylvester's matrix, without 1/√n: −1 to the number of ones that i and j share. */
export function sylvester(i: number, j: number): 1 | -1 {
  let sign: 1 | -1 = 1;
  for (let both = i & j; both > 0; both &= both - 1) sign = sign === 1 ? -1 : 1;
  return sign;
}

const matrices = new Map<number, Int8Array>();

function matrix(n: number): Int8Array {
  let signs = matrices.get(n);
  if (!signs) matrices.set(n, (signs = Int8Array.from({ length: n * n }, (_, at) => sylvester(Math.floor(at / n), at % n))));
  return signs;
}

/** H·x for every row, H block-diagonal, dense and symmetric. */
export function hadamard(x: Numbers, channels: number, round: Round): Float64Array {
  const sizes = blockSizes(channels);
  // A sum is rounded as it is stored: by a call of `round` for each it takes V8 four times as long.
  const out = round === f64 ? array(x.length) : new Float32Array(x.length);
  for (let base = 0, block = 0; base < x.length; base += sizes[block]!, block = (block + 1) % sizes.length) {
    const n = sizes[block]!;
    const signs = matrix(n);
    const scale = round(1 / Math.sqrt(n));
    const sums = out.subarray(base, base + n);
    for (let j = 0; j < n; j++) {
      for (let i = 0; i < n; i++) sums[i]! += signs[j * n + i]! * x[base + j]!;
    }
    for (let i = 0; i < n; i++) sums[i]! *= scale;
  }
  return Float64Array.from(out);
}

/** ‖x‖/√headDim of every row. */
export function norms(x: Numbers, headDim: number, round: Round): Float64Array {
  const out = array(x.length / headDim);
  for (let t = 0; t < out.length; t++) {
    out[t] = round(Math.sqrt(round(dot(x, t * headDim, x, t * headDim, headDim, round) / headDim)));
  }
  return out;
}

/** Rows divided by their norms; by 0 gives 0. */
export function divided(x: Numbers, headDim: number, by: Numbers, round: Round): Float64Array {
  return Float64Array.from(x, (value, i) => {
    const norm = by[Math.floor(i / headDim)]!;
    return norm === 0 ? 0 : round(value / norm);
  });
}

/** Channels of a pair. */
function channelsOf({ invFreq, interleaved }: Rope, pair: number): [a: number, b: number] {
  return interleaved ? [2 * pair, 2 * pair + 1] : [pair, pair + invFreq.length];
}

/** x turned by `u` positions: R·x, with R the rotation matrix of every pair. */
export function rotated(x: Numbers, rope: Rope | undefined, u: number, round: Round): Float64Array {
  const out = Float64Array.from(x);
  for (let pair = 0; pair < (rope?.invFreq.length ?? 0); pair++) {
    const [a, b] = channelsOf(rope!, pair);
    const cos = round(Math.cos(rope!.invFreq[pair]! * u));
    const sin = round(Math.sin(rope!.invFreq[pair]! * u));
    out[a] = round(round(x[a]! * cos) - round(x[b]! * sin));
    out[b] = round(round(x[b]! * cos) + round(x[a]! * sin));
  }
  return out;
}

/** In which order keys' channels are coded, and what they are multiplied by: by place in that order. */
export interface Order {
  readonly channels: readonly number[];
  readonly scales: readonly number[];
}

/** Channels that share an energy: those that turn together, and neighbors of those that do not. */
export function pairsOf(headDim: number, rope: Rope | undefined): [a: number, b: number][] {
  const turning = rope?.invFreq.length ?? 0;
  return Array.from({ length: headDim / 2 }, (_, pair) => (pair < turning ? channelsOf(rope!, pair) : [2 * pair, 2 * pair + 1]));
}

/** Pairs by the product of both energies, the largest first; a key's channel grows by the fourth root of their quotient. */
export function orderOf(balance: Uint8Array, headDim: number, rope: Rope | undefined): Order {
  const energyOf = (level: number) => 2 ** (-level / 2);
  const weighed = pairsOf(headDim, rope).map((channels, pair) => {
    const [keys, queries] = [balance[pair]! % 16, Math.floor(balance[pair]! / 16)];
    return { channels, levels: keys + queries, scale: Math.fround((energyOf(queries) / energyOf(keys)) ** 0.25) };
  });
  const sorted = weighed.toSorted((a, b) => a.levels - b.levels);
  return { channels: sorted.flatMap(({ channels }) => channels), scales: sorted.flatMap(({ scale }) => [scale, scale]) };
}

/** Rows in an order and with its scales. */
export function ordered(x: Numbers, headDim: number, { channels, scales }: Order, round: Round): Float64Array {
  return array(x.length).map((_, i) => round(x[i - (i % headDim) + channels[i % headDim]!]! * scales[i % headDim]!));
}

/** The inverse. */
export function unordered(y: Numbers, headDim: number, { channels, scales }: Order, round: Round): Float64Array {
  const x = array(y.length);
  for (let i = 0; i < y.length; i++) x[i - (i % headDim) + channels[i % headDim]!] = round(y[i]! / scales[i % headDim]!);
  return x;
}

/** The channel mean over a window of 64, in the frame of its center. */
export function mean(x: Numbers, headDim: number, rope: Rope | undefined, round: Round): Float64Array {
  const out = array(headDim);
  for (let t = 0; t < 64; t++) {
    const row = rotated(Array.prototype.slice.call(x, t * headDim, (t + 1) * headDim), rope, 31.5 - t, round);
    for (let i = 0; i < headDim; i++) out[i] = round(out[i]! + row[i]!);
  }
  return out.map(sum => round(sum / 64));
}

/** x + sign · RoPEᵤ(o) for every token of a window. */
export function withMean(x: Numbers, headDim: number, o: Numbers, sign: 1 | -1, rope: Rope | undefined, round: Round): Float64Array {
  const out = array(x.length);
  for (let t = 0; t < 64; t++) {
    const turned = rotated(o, rope, t - 31.5, round);
    for (let i = 0; i < headDim; i++) out[t * headDim + i] = round(x[t * headDim + i]! + sign * turned[i]!);
  }
  return out;
}

/** ‖y − C[code]‖² of the group of channels from `at`. */
export function distance(y: Numbers, at: number, { channels, codewords }: Codebook, code: number): number {
  let sum = 0;
  for (let k = 0; k < channels; k++) sum += (y[at + k]! - codewords[code * channels + k]!) ** 2;
  return sum;
}

/** Exhaustive search: the first of the nearest codewords. */
export function nearest(y: Numbers, at: number, codebook: Codebook): number {
  let code = 0;
  let least = Infinity;
  for (let c = 0; c < 256; c++) {
    const d = distance(y, at, codebook, c);
    if (d < least) {
      least = d; // as [least, code] = [d, c] the search takes V8 1.7 times as long
      code = c;
    }
  }
  return code;
}

/** A segment's channels of every row [headDim]. */
export function segmentOf(x: Numbers, headDim: number, { channel, channels }: Segment): Float64Array {
  return array((x.length / headDim) * channels).map((_, i) => x[Math.floor(i / channels) * headDim + channel + (i % channels)]!);
}

/** The sum of a segment's codewords: [64, channels] of `codes` [64, perRow]. */
export function codewordsOf(codes: Numbers, { channels, stages }: Segment, round: Round): Float64Array {
  const perRow = codes.length / 64;
  return array(64 * channels).map((_, i) => {
    let sum = 0;
    for (const stage of stages) {
      const code = codes[Math.floor(i / channels) * perRow + stage.column + Math.floor((i % channels) / stage.channels)]!;
      sum = round(sum + round(stage.scale * codebooks[stage.channels].codewords[code * stage.channels + (i % stage.channels)]!));
    }
    return sum;
  });
}

/** How many half octaves an energy lies below the largest: 15 at most. */
export function levelOf(energy: number, most: number): number {
  return most === 0 ? 0 : Math.min(Math.round(2 * Math.log2(most / energy)), 15);
}

/** Σ q² of every pair of channels over queries [n, headDim]. */
export function queryEnergies(queries: Numbers, headDim: number, rope: Rope | undefined): number[] {
  return pairsOf(headDim, rope).map(([a, b]) => {
    let sum = 0;
    for (let at = 0; at < queries.length; at += headDim) sum += queries[at + a]! ** 2 + queries[at + b]! ** 2;
    return sum;
  });
}

/** Σ z² of every pair of channels over windows of keys [64, headDim]: what a sequence learns of them. */
export function keyEnergies(windows: readonly Numbers[], headDim: number, rope: Rope | undefined): Float64Array {
  const pairs = pairsOf(headDim, rope);
  const energies = array(pairs.length);
  for (const window of windows) {
    const exact = norms(window, headDim, f64);
    const { scale, values } = roundToNearest(exact, 4, nearestHalf);
    const x = divided(
      window,
      headDim,
      values.map((value, t) => (value < LEAST_SHARE * exact[t]! ? value + scale : value)),
      f64
    );
    const o = mean(x, headDim, rope, f64);
    const rounded = Array.from({ length: Math.ceil(headDim / 32) }, (_, n) =>
      Array.from(roundToNearest(o.subarray(32 * n, 32 * n + 32), 8, nearestHalf).values)
    );
    const shifted = withMean(x, headDim, rounded.flat(), -1, rope, f64);
    const z = divided(shifted, headDim, norms(shifted, headDim, f64), f64);
    pairs.forEach(([a, b], pair) => {
      for (let t = 0; t < 64; t++) energies[pair]! += z[t * headDim + a]! ** 2 + z[t * headDim + b]! ** 2;
    });
  }
  return energies;
}

/** What a block stands for: s1 · (A⁻¹·H·(s2·C) + RoPEᵤ(o)), C the sum of its codewords, f64 or f32 [64, headDim]. */
export function decode({ at, codes, s2, ...block }: Block, rope: Rope | undefined, round: Round, order?: Order): Float64Array {
  const { headDim, segments } = at;
  const y = array(64 * headDim); // channels that no segment has are 0
  segments.forEach((segment, n) => {
    const { channel, channels } = segment;
    const coded = codewordsOf(codes, segment, round).map((value, i) => round(value * s2[64 * n + Math.floor(i / channels)]!));
    hadamard(coded, channels, round).forEach((value, i) => {
      y[Math.floor(i / channels) * headDim + channel + (i % channels)] = value;
    });
  });
  const o = Float64Array.from(meanOf(block), round);
  const x = withMean(order ? unordered(y, headDim, order, round) : y, headDim, o, 1, rope, round);
  const s1 = Float64Array.from(normsOf(block), round);
  return x.map((value, i) => round(value * s1[Math.floor(i / headDim)]!));
}

/** Logits of queries [heads, headDim] against tokens [n, headDim]: [heads, n]. */
export function scores(queries: Numbers, tokens: Numbers, headDim: number, round: Round): Float64Array {
  const count = tokens.length / headDim;
  return array((queries.length / headDim) * count).map((_, at) =>
    dot(queries, Math.floor(at / count) * headDim, tokens, (at % count) * headDim, headDim, round)
  );
}

/** Sums of tokens [n, headDim] under weights [heads, n]: [heads, headDim]. */
export function mix(weights: Numbers, tokens: Numbers, headDim: number, round: Round): Float64Array {
  const count = tokens.length / headDim;
  const out = array((weights.length / count) * headDim);
  for (let at = 0; at < weights.length; at++) {
    add(out, Math.floor(at / count) * headDim, weights[at]!, tokens, (at % count) * headDim, headDim, round);
  }
  return out;
}

/** Σ |A| + |B| over pairs, and |⟨q, o⟩| of the channels that do not turn: the most that ⟨q, RoPEᵤ(o)⟩ can be at any u. */
export function meanTerm(query: Numbers, at: number, o: Numbers, headDim: number, rope: Rope | undefined): number {
  let most = 0;
  let rest = 0;
  const pairs = rope?.invFreq.length ?? 0;
  for (let pair = 0; pair < pairs; pair++) {
    const [a, b] = channelsOf(rope!, pair);
    most += Math.abs(query[at + a]! * o[a]! + query[at + b]! * o[b]!) + Math.abs(query[at + b]! * o[a]! - query[at + a]! * o[b]!);
  }
  for (let i = 2 * pairs; i < headDim; i++) rest += query[at + i]! * o[i]!;
  return most + Math.abs(rest);
}

/** Rounding of a group to 4 or 8 bits by its definition, in f64; `half` rounds to f16. */
export function roundToNearest(x: Numbers, bits: 4 | 8, half: Round): { scale: number; min: number; values: Float64Array } {
  const sorted = Float64Array.from(x).sort();
  const scale = half(Math.max((sorted.at(-1)! - sorted[0]!) / (2 ** bits - 1), 1e-5));
  const min = half(sorted[0]!);
  // The nearest of all values that there are codes for, found by trying them all.
  const grid = groupValues({ scale, min, codes: Uint8Array.from({ length: 2 ** bits }, (_, code) => code) });
  const values = Float64Array.from(x, value =>
    grid.reduce((best, candidate) => (Math.abs(candidate - value) < Math.abs(best - value) ? candidate : best))
  );
  return { scale, min, values };
}
