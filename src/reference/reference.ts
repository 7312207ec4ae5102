/**
 * The specification: every verb in f64, slow and obvious. Start here. Each kernel is a claim about a function of this file.
 * Imports nothing generated and knows no other backend.
 *
 * NSNQuant (arXiv 2505.18231): Normalize, Shift, Normalize, Hadamard make any token look like a standard normal vector, for
 * which one codebook serves every model, layer and head. Departures from the paper are named where they are made.
 *
 * @module nsnquant/reference
 */

import type { Codec } from '../format/codec.ts';
import { fromHalf, HALF_MAX, toHalf } from '../format/half.ts';
import { hadamardSize, MEAN_GROUP, type Rope, ropePair, WINDOW } from '../format/layout.ts';
import type { CodedWindow, RtnGroup } from './coded.ts';

export type { Codec, CodecName } from '../format/codec.ts';
export type { Rope } from '../format/layout.ts';
export { type CodedWindow, pack, type RtnGroup, unpack } from './coded.ts';

/** Anything a quantizer must be: `codecQuantizer` gives that of a codec, bench/llm has the paper's own 2-bit form. */
export interface Quantizer {
  /** Channels per code. */
  readonly channels: number;
  /** The code of `channels` numbers of y, from `at`. */
  quantize(y: Float64Array, at: number): number;
  /** Writes the codeword of a code to `out`, from `at`. */
  decode(code: number, out: Float64Array, at: number): void;
}

const HALF_TINY = 1e-5;
/** The least share of a token's norm that the norm it is divided by may be: no token is then longer than 1/0.7. */
const LEAST_SHARE = 0.7;

/** A number as f16 keeps it, or the nearest that f16 has; kernels compute in f32, so that rounding comes first. */
export function half(x: number): number {
  return fromHalf(toHalf(Math.min(Math.max(x, -HALF_MAX), HALF_MAX)));
}

/** Asymmetric 4-bit rounding of a group, its scale and minimum held as f16 (and used as such, so that their rounding cancels). */
export function rtn4(x: Float64Array): RtnGroup {
  let low = Infinity;
  let high = -Infinity;
  for (const value of x) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const scale = half(Math.max((high - low) / 15, HALF_TINY));
  const min = half(low);
  return { scale, min, codes: Uint8Array.from(x, value => Math.round(Math.min(Math.max((value - min) / scale, 0), 15))) };
}

/**
 * Normalize: ‖x‖/√d of every token in 4 bits, and x divided by the DEQUANTIZED norm, so that its rounding error cancels.
 * A code worth less than 0.7 of its token's norm gives way to the next: divided by a far smaller number, one token would make
 * up all of the window's mean. A zero token keeps norm 0, any other does not.
 *
 * @param x  f64 [tokens, headDim], divided in place
 * @returns  the group of norms and their dequantized values
 */
export function normalize(
  x: Float64Array,
  headDim: number
): {
  /** f64 [tokens], dequantized. */
  s1: Float64Array;
  /** Its 4-bit codes. */
  group: RtnGroup;
} {
  const exact = norms(x, headDim);
  const group = rtn4(exact);
  const s1 = new Float64Array(exact.length);
  for (let t = 0; t < s1.length; t++) {
    s1[t] = group.codes[t]! * group.scale + group.min;
    if (s1[t]! < LEAST_SHARE * exact[t]!) s1[t] = ++group.codes[t]! * group.scale + group.min;
  }
  divideRows(x, headDim, s1);
  return { s1, group };
}

/**
 * Shift: the channel mean over the window in 4 bits per 32 channels, subtracted DEQUANTIZED. Where RoPE is known the mean is
 * taken before it and kept in the frame of the window's center (the paper's mean, rotated as a whole: a page then knows no
 * absolute position).
 *
 * @param x  f64 [tokens, headDim], shifted in place
 */
export function shift(
  x: Float64Array,
  headDim: number,
  rope?: Rope
): {
  /** f64 [headDim], dequantized. */
  o: Float64Array;
  /** Its 4-bit codes, 32 channels a group. */
  groups: RtnGroup[];
} {
  const tokens = x.length / headDim;
  const mean = new Float64Array(headDim);
  for (let t = 0; t < tokens; t++) {
    const row = x.slice(t * headDim, (t + 1) * headDim);
    if (rope) rotate(row, rope, -centered(t));
    for (let i = 0; i < headDim; i++) mean[i]! += row[i]! / tokens;
  }
  const o = new Float64Array(headDim);
  const groups: RtnGroup[] = [];
  for (let i = 0; i < headDim; i += MEAN_GROUP) {
    const group = rtn4(mean.subarray(i, i + MEAN_GROUP));
    group.codes.forEach((code, k) => {
      o[i + k] = code * group.scale + group.min;
    });
    groups.push(group);
  }
  addMean(x, headDim, o, -1, rope);
  return { o, groups };
}

/** Second Normalize: ‖x‖/√d of every token, x divided in place. Not rounded yet: the adjustment comes first. */
export function normalizeAgain(x: Float64Array, headDim: number): Float64Array {
  const s2 = norms(x, headDim);
  divideRows(x, headDim, s2);
  return s2;
}

/** x ← x · H / √n for every block of n channels of every row, n the largest power of two dividing headDim. Its own inverse. */
export function hadamard(x: Float64Array, headDim: number): void {
  const n = hadamardSize(headDim);
  for (let base = 0; base < x.length; base += n) {
    for (let h = 1; h < n; h *= 2) {
      for (let i = 0; i < n; i++) {
        if (i & h) continue;
        const a = x[base + i]!;
        const b = x[base + i + h]!;
        x[base + i] = a + b;
        x[base + i + h] = a - b;
      }
    }
    for (let i = 0; i < n; i++) x[base + i]! /= Math.sqrt(n);
  }
}

/** Quantize: the code of every group of channels. */
export function quantize(y: Float64Array, quantizer: Quantizer): Uint16Array {
  const codes = new Uint16Array(y.length / quantizer.channels);
  for (let j = 0; j < codes.length; j++) codes[j] = quantizer.quantize(y, j * quantizer.channels);
  return codes;
}

/** The quantizer of a codec of `nsnquant`: the EUCLIDEAN nearest codeword, argmax(y·C − ‖C‖²/2), the lowest code among equals. */
export function codecQuantizer({ channels, codebook }: Codec): Quantizer {
  return {
    channels,
    quantize(y, at) {
      let best = -Infinity;
      let code = 0;
      for (let c = 0; c < 256; c++) {
        let score = 0;
        for (let k = 0; k < channels; k++) {
          const e = codebook[c * channels + k]!;
          score += e * (y[at + k]! - e / 2);
        }
        if (score > best) {
          best = score;
          code = c;
        }
      }
      return code;
    },
    decode(code, out, at) {
      for (let k = 0; k < channels; k++) out[at + k] = codebook[code * channels + k]!;
    }
  };
}

/**
 * Encode one window of one head: Normalize, Shift, Normalize, Hadamard, quantize, adjust s2.
 *
 * @param tokens  [tokens, headDim], keys after RoPE or values; not changed
 * @see NSNQuant (arXiv 2505.18231), section 3
 */
export function encode(tokens: ArrayLike<number>, headDim: number, quantizer: Quantizer, rope?: Rope): CodedWindow {
  const x = Float64Array.from(tokens);
  const { s1, group } = normalize(x, headDim);
  const { o, groups } = shift(x, headDim, rope);
  const s2 = normalizeAgain(x, headDim);
  hadamard(x, headDim);
  const codes = quantize(x, quantizer);
  adjust(s2, x, decodeCodes(codes, quantizer));
  return { tokens: s2.length, headDim, codes, s1, s2: s2.map(half), o, s1Group: group, oGroups: groups };
}

/** s2 ← s2·⟨y, y⟩/⟨y, C⟩ for every token: what the codewords stand for is then as long as the token, along the token. */
function adjust(s2: Float64Array, y: Float64Array, coded: Float64Array): void {
  const headDim = y.length / s2.length;
  for (let t = 0; t < s2.length; t++) {
    let yy = 0;
    let yc = 0;
    for (let i = t * headDim; i < (t + 1) * headDim; i++) {
      yy += y[i]! * y[i]!;
      yc += y[i]! * coded[i]!;
    }
    s2[t]! *= yc > 0 ? yy / yc : 0;
  }
}

/**
 * Decode: k̂ = s1 · (H·(s2·C[c]) + RoPEᵤ(o)).
 *
 * @returns f64 [tokens, headDim]
 */
export function decode(window: CodedWindow, quantizer: Quantizer, rope?: Rope): Float64Array {
  const { headDim, tokens } = window;
  const x = decodeCodes(window.codes, quantizer);
  for (let i = 0; i < x.length; i++) x[i]! *= window.s2[Math.floor(i / headDim)]!;
  hadamard(x, headDim);
  addMean(x, headDim, window.o, 1, rope);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < headDim; i++) x[t * headDim + i]! *= window.s1[t]!;
  }
  return x;
}

/**
 * Scores: logits of one query against a coded window, read without decoding it:
 * logit(t) = s1·(s2·Σⱼ ⟨q'ⱼ, C[cⱼ]⟩ + ⟨q, RoPEᵤ(o)⟩) with q' = H·q.
 *
 * @param query  [headDim], already multiplied by the query scale
 */
export function scores(query: ArrayLike<number>, window: CodedWindow, quantizer: Quantizer, rope?: Rope): Float64Array {
  const { headDim, tokens } = window;
  const q = Float64Array.from(query);
  const rotated = q.slice();
  hadamard(rotated, headDim);
  const coded = decodeCodes(window.codes, quantizer);
  const logits = new Float64Array(tokens);
  for (let t = 0; t < tokens; t++) {
    const mean = window.o.slice();
    if (rope) rotate(mean, rope, centered(t));
    let inCodes = 0;
    let inMean = 0;
    for (let i = 0; i < headDim; i++) {
      inCodes += rotated[i]! * coded[t * headDim + i]!;
      inMean += q[i]! * mean[i]!;
    }
    logits[t] = window.s1[t]! * (window.s2[t]! * inCodes + inMean);
  }
  return logits;
}

/**
 * Mix: the weighted sum of a coded window's tokens, read without decoding them: H once, the mean once.
 *
 * @param weights  [tokens], unnormalized probabilities
 * @returns        f64 [headDim]
 */
export function mix(weights: ArrayLike<number>, window: CodedWindow, quantizer: Quantizer): Float64Array {
  const { headDim, tokens } = window;
  const coded = decodeCodes(window.codes, quantizer);
  const out = new Float64Array(headDim);
  let mean = 0;
  for (let t = 0; t < tokens; t++) {
    const weight = weights[t]! * window.s1[t]!;
    mean += weight;
    for (let i = 0; i < headDim; i++) out[i]! += weight * window.s2[t]! * coded[t * headDim + i]!;
  }
  hadamard(out, headDim);
  for (let i = 0; i < headDim; i++) out[i]! += mean * window.o[i]!;
  return out;
}

/**
 * Attention of one query over plain keys and values, f64: softmax(q·K)·V.
 *
 * @param query   [headDim], already multiplied by the query scale
 * @param keys    [tokens, headDim]
 * @param values  [tokens, headDim]
 */
export function attend(query: ArrayLike<number>, keys: ArrayLike<number>, values: ArrayLike<number>): Float64Array {
  const headDim = query.length;
  const tokens = keys.length / headDim;
  const logits = new Float64Array(tokens);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < headDim; i++) logits[t]! += query[i]! * keys[t * headDim + i]!;
  }
  let max = -Infinity;
  for (const logit of logits) max = Math.max(max, logit);
  const out = new Float64Array(headDim);
  let sum = 0;
  for (let t = 0; t < tokens; t++) {
    const p = Math.exp(logits[t]! - max);
    sum += p;
    for (let i = 0; i < headDim; i++) out[i]! += p * values[t * headDim + i]!;
  }
  return out.map(x => x / sum);
}

/** RoPE by `tokens` positions, in place. */
export function rotate(x: Float64Array, rope: Rope, tokens: number): void {
  for (let pair = 0; pair < rope.invFreq.length; pair++) {
    const [a, b] = ropePair(rope, pair);
    const cos = Math.cos(rope.invFreq[pair]! * tokens);
    const sin = Math.sin(rope.invFreq[pair]! * tokens);
    [x[a], x[b]] = [x[a]! * cos - x[b]! * sin, x[b]! * cos + x[a]! * sin];
  }
}

/** A token's place relative to its window's center. */
function centered(token: number): number {
  return token - (WINDOW - 1) / 2;
}

/** x ← x + sign · RoPEᵤ(o) for every token. */
function addMean(x: Float64Array, headDim: number, o: Float64Array, sign: 1 | -1, rope?: Rope): void {
  for (let t = 0; t < x.length / headDim; t++) {
    const mean = o.slice();
    if (rope) rotate(mean, rope, centered(t));
    for (let i = 0; i < headDim; i++) x[t * headDim + i]! += sign * mean[i]!;
  }
}

function norms(x: Float64Array, headDim: number): Float64Array {
  return Float64Array.from({ length: x.length / headDim }, (_, t) => {
    let sum = 0;
    for (let i = t * headDim; i < (t + 1) * headDim; i++) sum += x[i]! * x[i]!;
    return Math.sqrt(sum / headDim);
  });
}

/** Rows divided by their norms; a row of norm 0 becomes 0. */
function divideRows(x: Float64Array, headDim: number, by: Float64Array): void {
  for (let i = 0; i < x.length; i++) {
    const norm = by[Math.floor(i / headDim)]!;
    x[i] = norm === 0 ? 0 : x[i]! / norm;
  }
}

function decodeCodes(codes: Uint16Array, quantizer: Quantizer): Float64Array {
  const x = new Float64Array(codes.length * quantizer.channels);
  codes.forEach((code, j) => quantizer.decode(code, x, j * quantizer.channels));
  return x;
}
