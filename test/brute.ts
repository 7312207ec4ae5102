// Every verb by its definition: dense matrices, exhaustive search, decoded tokens. With the rounding `f64` it checks the
// reference; with `f32`, every operation rounded, it is the naive implementation that a kernel's error is measured against.

import type { Codec, Rope } from 'nsnquant';
import { type Block, groupValues, meanOf, normsOf } from './pages.ts';

/** Applied after every operation. */
export type Round = (x: number) => number;
export const f64: Round = x => x;
export const f32: Round = Math.fround;

type Numbers = ArrayLike<number>;

/** Rounded to f32 or not, as the operations are. */
const array = (length: number) => new Float64Array(length);

/** The largest power of two dividing headDim: the size of a Hadamard block. */
export function blockSize(headDim: number): number {
  let n = 1;
  while (headDim % (2 * n) === 0) n *= 2;
  return n;
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

/** H·x for every row, H block-diagonal and dense. */
export function hadamard(x: Numbers, headDim: number, round: Round): Float64Array {
  const n = blockSize(headDim);
  const signs = matrix(n);
  const scale = round(1 / Math.sqrt(n));
  const out = array(x.length);
  for (let base = 0; base < x.length; base += n) {
    for (let i = 0; i < n; i++) {
      let sum = 0;
      for (let j = 0; j < n; j++) sum = round(sum + signs[i * n + j]! * x[base + j]!);
      out[base + i] = round(sum * scale);
    }
  }
  return out;
}

/** ‖x‖/√headDim of every row. */
export function norms(x: Numbers, headDim: number, round: Round): Float64Array {
  const out = array(x.length / headDim);
  for (let t = 0; t < out.length; t++) {
    let sum = 0;
    for (let i = t * headDim; i < (t + 1) * headDim; i++) sum = round(sum + round(x[i]! * x[i]!));
    out[t] = round(Math.sqrt(round(sum / headDim)));
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
export function distance(y: Numbers, at: number, { channels, codebook }: Codec, code: number): number {
  let sum = 0;
  for (let k = 0; k < channels; k++) sum += (y[at + k]! - codebook[code * channels + k]!) ** 2;
  return sum;
}

/** Exhaustive search: the first of the nearest codewords. */
export function nearest(y: Numbers, at: number, codec: Codec): number {
  let code = 0;
  let least = Infinity;
  for (let c = 0; c < 256; c++) {
    const d = distance(y, at, codec, c);
    if (d < least) [least, code] = [d, c];
  }
  return code;
}

/** What a block stands for: s1 · (H·(s2·C[c]) + RoPEᵤ(o)), f64 or f32 [64, headDim]. */
export function decode(block: Block, codec: Codec, headDim: number, rope: Rope | undefined, round: Round): Float64Array {
  const { channels, codebook } = codec;
  const perRow = headDim / channels;
  const coded = array(64 * headDim);
  for (let i = 0; i < coded.length; i++) {
    const t = Math.floor(i / headDim);
    const code = block.codes[t * perRow + Math.floor((i % headDim) / channels)]!;
    coded[i] = round(codebook[code * channels + (i % channels)]! * block.s2[t]!);
  }
  const o = Float64Array.from(meanOf(block), round);
  const x = withMean(hadamard(coded, headDim, round), headDim, o, 1, rope, round);
  const s1 = Float64Array.from(normsOf(block), round);
  return x.map((value, i) => round(value * s1[Math.floor(i / headDim)]!));
}

function dot(x: Numbers, xAt: number, y: Numbers, yAt: number, length: number, round: Round): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum = round(sum + round(x[xAt + i]! * y[yAt + i]!));
  return sum;
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
    const base = Math.floor(at / count) * headDim;
    for (let i = 0; i < headDim; i++) {
      out[base + i] = round(out[base + i]! + round(weights[at]! * tokens[(at % count) * headDim + i]!));
    }
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

export interface AttentionShape {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
}

/** What a kernel's rounding may be off by, besides that of f32. */
export interface Slack {
  /** Of the logit of query row r (token · queryHeads + head) and token t. */
  logit(row: number, token: number): number;
  /** Of weights and values that are rounded to integers, in windows that a row sees all of. */
  readonly windows?: { readonly first: number; readonly count: number; readonly share: number };
  /** Of the sums that values are mixed from: the first coded token, the norms and the mean of every window and KV head, a share. */
  readonly means?: {
    readonly first: number;
    readonly windows: readonly (readonly { readonly s1: Numbers; readonly o: Numbers }[])[];
    readonly share: number;
  };
}

/**
 * Causal attention of the newest queries [n, queryHeads, headDim] over keys and values [tokens, kvHeads, headDim].
 *
 * @returns  the output and, to first order, how far `slack` can move it: Σ p·logit·|v − out|, and for every window
 *           share · √(Σp · max p) · ‖V‖₂ of the channel's tokens, and share · (Σ p·s1) · |o|
 */
export function attention(
  queries: Numbers,
  keys: Numbers,
  values: Numbers,
  { kvHeads, queryHeads, headDim }: AttentionShape,
  scale: number,
  round: Round,
  slack?: Slack
): { out: Float64Array; moved: Float64Array } {
  const tokens = keys.length / (kvHeads * headDim);
  const rows = queries.length / headDim;
  const out = array(queries.length);
  const moved = array(queries.length);
  const p = array(tokens);
  for (let row = 0; row < rows; row++) {
    const visible = tokens - rows / queryHeads + Math.floor(row / queryHeads) + 1;
    const head = Math.floor((row % queryHeads) / (queryHeads / kvHeads));
    const rowAt = (t: number) => (t * kvHeads + head) * headDim;
    const query = Float64Array.from({ length: headDim }, (_, i) => round(queries[row * headDim + i]! * scale));
    let most = -Infinity;
    for (let t = 0; t < visible; t++) {
      p[t] = dot(query, 0, keys, rowAt(t), headDim, round);
      most = Math.max(most, p[t]!);
    }
    let sum = 0;
    for (let t = 0; t < visible; t++) {
      p[t] = round(Math.exp(round(p[t]! - most)));
      sum = round(sum + p[t]!);
    }
    const to = row * headDim;
    for (let t = 0; t < visible; t++) {
      for (let i = 0; i < headDim; i++) out[to + i] = round(out[to + i]! + round(p[t]! * values[rowAt(t) + i]!));
    }
    for (let i = 0; i < headDim; i++) out[to + i] = round(out[to + i]! / sum);
    if (!slack) continue;
    for (let t = 0; t < visible; t++) {
      const by = (p[t]! / sum) * slack.logit(row, t);
      if (by === 0) continue;
      for (let i = 0; i < headDim; i++) moved[to + i]! += by * Math.abs(values[rowAt(t) + i]! - out[to + i]!);
    }
    for (let window = 0; window < (slack.windows?.count ?? 0); window++) {
      const begin = slack.windows!.first + 64 * window;
      if (visible < begin + 64) break;
      const weights = p.subarray(begin, begin + 64);
      const by = (slack.windows!.share * Math.sqrt(weights.reduce((a, b) => a + b) * Math.max(...weights))) / sum;
      for (let i = 0; i < headDim; i++) {
        let squares = 0;
        for (let t = begin; t < begin + 64; t++) squares += values[rowAt(t) + i]! ** 2;
        moved[to + i]! += by * Math.sqrt(squares);
      }
    }
    slack.means?.windows.forEach((heads, window) => {
      const begin = slack.means!.first + 64 * window;
      const { s1, o } = heads[head]!;
      let weight = 0;
      for (let t = begin; t < Math.min(begin + 64, visible); t++) weight += (p[t]! / sum) * s1[t - begin]!;
      for (let i = 0; i < headDim; i++) moved[to + i]! += slack.means!.share * weight * Math.abs(o[i]!);
    });
  }
  return { out, moved };
}

/** 4-bit rounding of a group by its definition, in f64; `half` rounds to f16. */
export function rtn4(x: Numbers, half: Round): { scale: number; min: number; values: Float64Array } {
  const sorted = Float64Array.from(x).sort();
  const scale = half(Math.max((sorted.at(-1)! - sorted[0]!) / 15, 1e-5));
  const min = half(sorted[0]!);
  // The nearest of the sixteen values, found by trying them all.
  const grid = groupValues({ scale, min, codes: Uint8Array.from({ length: 16 }, (_, code) => code) });
  const values = Float64Array.from(x, value =>
    grid.reduce((best, candidate) => (Math.abs(candidate - value) < Math.abs(best - value) ? candidate : best))
  );
  return { scale, min, values };
}
