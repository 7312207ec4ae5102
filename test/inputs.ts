// Seeded inputs, all within f16's range. Where bytes are compared between engines only `bell` and what is made of it, or of
// integers, will do: engines differ in the last bit of log and exp.

import type { CacheShape, Rope } from 'nsnquant';
import { type Random, random } from '../tools/numbers.ts';

export { type Random, random };

/** An integer from 0 to count − 1. */
export const below = (next: Random, count: number) => Math.floor(next() * count);

/** Standard normal, by Marsaglia's polar method. */
export function gaussian(next: Random): number {
  for (;;) {
    const a = 2 * next() - 1;
    const square = a * a + (2 * next() - 1) ** 2;
    if (square > 0 && square < 1) return a * Math.sqrt((-2 * Math.log(square)) / square);
  }
}

/** Nearly normal: twelve uniform numbers less 6. Additions only, so the same bits in every engine. */
export function bell(next: Random): number {
  let sum = -6;
  for (let n = 0; n < 12; n++) sum += next();
  return sum;
}

const clip = (x: number) => Math.min(Math.max(x, -65504), 65504);

/** f32 [length] of independent numbers. */
function each(length: number, seed: number, draw: (next: Random, i: number) => number): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length }, (_, i) => clip(draw(next, i)));
}

/** f32 [tokens, headDim] */
export type Input = (tokens: number, headDim: number, seed: number) => Float32Array;

export const normal: Input = (tokens, headDim, seed) => each(tokens * headDim, seed, gaussian);

export const bells: Input = (tokens, headDim, seed) => each(tokens * headDim, seed, bell);

/** What real keys are like: a strong mean in some channels, and tokens of different lengths. Made of `bell`. */
export const keyLike: Input = (tokens, headDim, seed) => {
  const next = random(seed);
  const mean = Float64Array.from({ length: headDim }, () => 2 * bell(next));
  const x = new Float32Array(tokens * headDim);
  for (let t = 0; t < tokens; t++) {
    const norm = 0.5 + next();
    for (let i = 0; i < headDim; i++) x[t * headDim + i] = norm * (mean[i]! + bell(next));
  }
  return x;
};

/**
 * Tokens of one magnitude but for a few that are far smaller or larger, down to f16's smallest number and up to its largest, some of
 * them zero; about a mean or not. Made of `bell`.
 */
export const uneven: Input = (tokens, headDim, seed) => {
  const next = random(seed);
  const size = () => 2 ** (-26 + below(next, 42));
  const usual = size();
  const mean = Float64Array.from({ length: headDim }, () => (seed % 3) * bell(next));
  const x = new Float32Array(tokens * headDim);
  for (let t = 0; t < tokens; t++) {
    const by = next() < 0.9 ? usual : next() < 0.1 ? 0 : size();
    for (let i = 0; i < headDim; i++) x[t * headDim + i] = clip(by * (mean[i]! + bell(next)));
  }
  return x;
};

/** Distributions and troublesome windows, by name. */
export const inputs: Readonly<Record<string, Input>> = {
  normal: normal,
  uniform: (tokens, headDim, seed) => each(tokens * headDim, seed, next => 2 * next() - 1),
  'log-normal': (tokens, headDim, seed) => each(tokens * headDim, seed, next => Math.exp(gaussian(next))),
  Cauchy: (tokens, headDim, seed) => each(tokens * headDim, seed, next => gaussian(next) / gaussian(next)),
  'key-like': keyLike,
  'zero tokens': (tokens, headDim, seed) => {
    const x = normal(tokens, headDim, seed);
    for (const t of [0, tokens >> 1, tokens - 1]) x.fill(0, t * headDim, (t + 1) * headDim);
    return x;
  },
  'nothing but zeros': (tokens, headDim) => new Float32Array(tokens * headDim),
  'equal tokens': (tokens, headDim, seed) => {
    const token = normal(1, headDim, seed);
    return Float32Array.from({ length: tokens * headDim }, (_, i) => token[i % headDim]!);
  },
  'one hot': (tokens, headDim) => {
    const x = new Float32Array(tokens * headDim);
    for (let t = 0; t < tokens; t++) x[t * headDim + ((t * 7) % headDim)] = 1;
    return x;
  },
  'outlier channel': (tokens, headDim, seed) => each(tokens * headDim, seed, (next, i) => gaussian(next) * (i % headDim === 5 ? 50 : 1)),
  'alternating signs': (tokens, headDim) =>
    Float32Array.from({ length: tokens * headDim }, (_, i) => ((i + Math.floor(i / headDim)) % 2 ? -1 : 1)),
  'negative zeros': (tokens, headDim, seed) => each(tokens * headDim, seed, (next, i) => (i % 3 ? gaussian(next) : -0)),
  'f32 subnormals': (tokens, headDim, seed) => each(tokens * headDim, seed, next => (next() - 0.5) * 2 ** -126),
  'f16 subnormals': (tokens, headDim, seed) => each(tokens * headDim, seed, next => (below(next, 2047) - 1023) * 2 ** -24),
  'tokens of any magnitude': uneven,
  'largest finite': (tokens, headDim, seed) => each(tokens * headDim, seed, next => (next() < 0.5 ? -65504 : 65504)),
  // 251 is prime: no two rows of a window are alike, so that swapping rows shows.
  ramp: (tokens, headDim) => Float32Array.from({ length: tokens * headDim }, (_, i) => ((i % 251) - 125) / 16)
};

/** RoPE as models have it, and as they might: by name. Angles fall from 1 to 1e-4 radians per token. */
export function ropes(headDim: number): Readonly<Record<string, Rope>> {
  const falling = (pairs: number) => Float64Array.from({ length: pairs }, (_, i) => 10000 ** (-i / pairs));
  return {
    halves: { invFreq: falling(headDim / 2), interleaved: false },
    interleaved: { invFreq: falling(headDim / 2), interleaved: true },
    'partial halves': { invFreq: falling(headDim / 8), interleaved: false },
    'partial interleaved': { invFreq: falling(headDim / 4), interleaved: true },
    // Every pair needs a basis function of its own, and no order may be relied on.
    'fast, rising': {
      invFreq: Float64Array.from({ length: headDim / 2 }, (_, i) => (0.1 + (3 * i) / headDim) * (i % 2 ? -1 : 1)),
      interleaved: false
    },
    'standing still': { invFreq: [0, 0, 0, 1e-6], interleaved: true }
  };
}

/** Angles made by division alone: the same in every engine. */
export const exactRope = (headDim: number): Rope => ({
  invFreq: Float64Array.from({ length: headDim / 2 }, (_, i) => 1 / (1 + i * i)),
  interleaved: false
});

/** Turns rows of x [tokens, headDim] as an engine would before caching: token t by `from` + t positions, in f64, rounded to f32. */
export function turned(x: Float32Array, headDim: number, { invFreq, interleaved }: Rope, from = 0): Float32Array {
  const out = x.slice();
  for (let at = 0, t = from; at < x.length; at += headDim, t++) {
    for (let pair = 0; pair < invFreq.length; pair++) {
      const [a, b] = interleaved ? [at + 2 * pair, at + 2 * pair + 1] : [at + pair, at + pair + invFreq.length];
      const cos = Math.cos(invFreq[pair]! * t);
      const sin = Math.sin(invFreq[pair]! * t);
      out[a] = x[a]! * cos - x[b]! * sin;
      out[b] = x[b]! * cos + x[a]! * sin;
    }
  }
  return out;
}

/** A head's balance, u8 [headDim / 2]: levels of keys and queries that have nothing to do with each other. */
export function anyBalance(headDim: number, seed: number): Uint8Array {
  const next = random(seed);
  return Uint8Array.from({ length: headDim / 2 }, () => below(next, 256));
}

/** Elements of a token's queries, of a cache whose layers are alike. */
export function queryWidth({ layers }: CacheShape): number {
  return layers[0]!.queryHeads * layers[0]!.headDim;
}
