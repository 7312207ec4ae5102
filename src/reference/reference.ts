/**
 * The specification: every verb in f64, slow and obvious. Start here. Each kernel is a claim about a function of this file.
 * Imports nothing generated and knows no other backend.
 *
 * NSNQuant (arXiv 2505.18231): Normalize, Shift, Normalize, Hadamard make any token look like a standard normal vector, for
 * which one codebook serves every model, layer and head. Departures from the paper are named where they are made.
 *
 * @module nsnquant/reference
 */

import { balanceOf } from '../format/balance.ts';
import { fromHalf, HALF_MAX, toHalf } from '../format/half.ts';
import { channelPairs, hadamardSizes, MEAN_GROUP, type Rope, ropePair, WINDOW } from '../format/layout.ts';
import { type CodedWindow, type FloatGroup, floatsOf, type RtnGroup, valuesOf } from './coded.ts';
import {
  addCodewords,
  type Coding,
  codewords,
  columnsOf,
  eachSegment,
  inOrder,
  outOfOrder,
  type QuantizedSegment,
  type Quantizer
} from './coding.ts';

export { balanceOf, type ChannelOrder, channelOrder } from '../format/balance.ts';
export { type Codebook, type Codec, type CodecName, codebooks, codecs, type Segment, type Stage } from '../format/codec.ts';
export { type BlockLayout, blockLayout, type Rope, type SegmentLayout, type StageLayout } from '../format/layout.ts';
export { type Attended, attend, type LogitOptions } from './attention.ts';
export { type CodedWindow, type FloatGroup, pack, type RtnGroup, unpack } from './coded.ts';
export { type Coding, codebookQuantizer, codingOf, type QuantizedSegment, type Quantizer } from './coding.ts';

const HALF_TINY = 1e-5;
/** The least share of a token's norm that the norm it is divided by may be: no token is then longer than 1/0.7. */
const LEAST_SHARE = 0.7;

/** A number as f16 keeps it, or the nearest that f16 has; kernels compute in f32, so that rounding comes first. */
export function half(x: number): number {
  return fromHalf(toHalf(Math.min(Math.max(x, -HALF_MAX), HALF_MAX)));
}

/** Asymmetric rounding of a group, its scale and minimum held as f16 (and used as such, so that their rounding cancels). */
export function roundToNearest(x: Float64Array, bits: 4 | 8): RtnGroup {
  let low = Infinity;
  let high = -Infinity;
  for (const value of x) {
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  const most = 2 ** bits - 1;
  const scale = half(Math.max((high - low) / most, HALF_TINY));
  const min = half(low);
  return { scale, min, codes: Uint8Array.from(x, value => Math.round(Math.min(Math.max((value - min) / scale, 0), most))) };
}

/** Small floats under a common exponent, which is as low as the largest number allows; what is too small beside it becomes 0. */
export function roundToFloats(x: Float64Array): FloatGroup {
  const bits = new Uint32Array(Float32Array.from(x).buffer);
  const rounded = Array.from(bits, word => (word + 2 ** 17) >>> 18); // to nearest: 8 bits of exponent, 5 of mantissa
  const exponent = Math.max(1, Math.ceil((Math.max(...rounded) - 255) / 32));
  return { exponent, codes: Uint8Array.from(rounded, number => Math.max(0, number - 32 * exponent)) };
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
  const group = roundToNearest(exact, 4);
  const s1 = new Float64Array(exact.length);
  for (let t = 0; t < s1.length; t++) {
    s1[t] = group.codes[t]! * group.scale + group.min;
    if (s1[t]! < LEAST_SHARE * exact[t]!) s1[t] = ++group.codes[t]! * group.scale + group.min;
  }
  divideRows(x, headDim, s1);
  return { s1, group };
}

/**
 * Shift: the channel mean over the window, rounded 32 channels at a time, subtracted DEQUANTIZED. Where RoPE is known the mean is
 * taken before it and kept in the frame of the window's center (the paper's mean, rotated as a whole: a page then knows no
 * absolute position). The mean of keys has 8 bits: models whose keys carry a bias (Qwen2: of norm 300 to 900) would lose in its
 * rounding what differs between tokens.
 *
 * @param x         f64 [tokens, headDim], shifted in place
 * @param meanBits  8 for keys, 4 for values
 */
export function shift(
  x: Float64Array,
  headDim: number,
  meanBits: 4 | 8,
  rope?: Rope
): {
  /** f64 [headDim], dequantized. */
  o: Float64Array;
  /** Its codes, 32 channels a group. */
  groups: RtnGroup[];
} {
  const tokens = x.length / headDim;
  const mean = new Float64Array(headDim);
  for (let t = 0; t < tokens; t++) {
    const row = x.slice(t * headDim, (t + 1) * headDim);
    if (rope) rotate(row, rope, -centered(t));
    for (let i = 0; i < headDim; i++) mean[i]! += row[i]! / tokens;
  }
  const groups: RtnGroup[] = [];
  for (let i = 0; i < headDim; i += MEAN_GROUP) groups.push(roundToNearest(mean.subarray(i, i + MEAN_GROUP), meanBits));
  const o = valuesOf(groups);
  addMean(x, headDim, o, -1, rope);
  return { o, groups };
}

/** Second Normalize: ‖x‖/√n of every row of n channels, x divided in place. Not rounded yet: the adjustment comes first. */
export function normalizeAgain(x: Float64Array, channels: number): Float64Array {
  const s2 = norms(x, channels);
  divideRows(x, channels, s2);
  return s2;
}

/** Hadamard: x ← x · H / √n for every block of every row; blocks are as hadamardSizes cuts the channels. Its own inverse. */
export function hadamard(x: Float64Array, channels: number): void {
  for (let row = 0; row < x.length; row += channels) {
    let base = row;
    for (const n of hadamardSizes(channels)) {
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
      base += n;
    }
  }
}

/** Quantize: the code of every group of channels. */
export function quantize(y: Float64Array, quantizer: Quantizer): Uint16Array {
  const codes = new Uint16Array(y.length / quantizer.channels);
  for (let j = 0; j < codes.length; j++) codes[j] = quantizer.quantize(y, j * quantizer.channels);
  return codes;
}

/**
 * Encode one window of one head: Normalize, Shift; the channels in their order and scaled; then segment by segment Normalize,
 * Hadamard, quantize, adjust s2.
 *
 * @param tokens  [tokens, headDim], keys after RoPE or values; not changed
 * @see NSNQuant (arXiv 2505.18231), section 3
 */
export function encode(tokens: ArrayLike<number>, headDim: number, coding: Coding): CodedWindow {
  const x = Float64Array.from(tokens);
  const { s1, group } = normalize(x, headDim);
  const { o, groups } = shift(x, headDim, coding.meanBits, coding.rope);
  const y = inOrder(x, headDim, coding, scale => scale);
  const perToken: number[][] = Array.from(s1, () => []);
  const s2Groups = eachSegment(coding, (segment, from) => {
    const rows = columnsOf(y, headDim, from, segment.channels);
    const s2 = normalizeAgain(rows, segment.channels);
    hadamard(rows, segment.channels);
    const { codes, coded } = refine(rows, segment);
    codes.forEach(stage => {
      const perRow = stage.length / s1.length;
      stage.forEach((code, j) => {
        perToken[Math.floor(j / perRow)]!.push(code);
      });
    });
    adjust(s2, rows, coded);
    return roundToFloats(s2);
  });
  const s2 = Float64Array.from(s2Groups.flatMap(floats => [...floatsOf(floats)]));
  return { tokens: s1.length, headDim, codes: Uint16Array.from(perToken.flat()), s1, s2, o, s1Group: group, s2Groups, oGroups: groups };
}

/** The codes of a segment's rows, [stages][codes], each of what earlier stages left; and what all say together. */
function refine(y: Float64Array, { stages }: QuantizedSegment): { codes: Uint16Array[]; coded: Float64Array } {
  const coded = new Float64Array(y.length);
  const codes = stages.map(({ quantizer, scale }) => {
    const residual = y.map((value, i) => (value - coded[i]!) / scale);
    const chosen = quantize(residual, quantizer);
    addCodewords(chosen, quantizer, scale, coded);
    return chosen;
  });
  return { codes, coded };
}

/** s2 ← s2·⟨y, y⟩/⟨y, C⟩ for every token: what the codewords stand for is then as long as the token, along the token. */
function adjust(s2: Float64Array, y: Float64Array, coded: Float64Array): void {
  const channels = y.length / s2.length;
  for (let t = 0; t < s2.length; t++) {
    let yy = 0;
    let yc = 0;
    for (let i = t * channels; i < (t + 1) * channels; i++) {
      yy += y[i]! * y[i]!;
      yc += y[i]! * coded[i]!;
    }
    s2[t]! *= yc > 0 ? yy / yc : 0;
  }
}

/**
 * Decode: k̂ = s1 · (A⁻¹·H·(s2·C[c]) + RoPEᵤ(o)), A the order and scales of channels, H and s2 by segment.
 *
 * @returns f64 [tokens, headDim]
 */
export function decode(window: CodedWindow, coding: Coding): Float64Array {
  const { headDim, tokens, s1, o } = window;
  const y = new Float64Array(tokens * headDim);
  eachSegment(coding, (segment, from, n) => {
    const rows = codewords(window, coding, n);
    for (let i = 0; i < rows.length; i++) rows[i]! *= window.s2[n * tokens + Math.floor(i / segment.channels)]!;
    hadamard(rows, segment.channels);
    rows.forEach((value, i) => {
      y[Math.floor(i / segment.channels) * headDim + from + (i % segment.channels)] = value;
    });
  });
  const x = outOfOrder(y, headDim, coding);
  addMean(x, headDim, o, 1, coding.rope);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < headDim; i++) x[t * headDim + i]! *= s1[t]!;
  }
  return x;
}

/**
 * Scores: logits of one query against a coded window, read without decoding it:
 * logit(t) = s1·(Σ over segments s2·Σⱼ ⟨q'ⱼ, C[cⱼ]⟩ + ⟨q, RoPEᵤ(o)⟩) with q' = H·A⁻¹·q.
 * Not worth it: logits less ½·s1²·Σ ‖q'‖²·s2²·(1/c² − 1), the mean that errors add to exp. It takes 17 and 3 % off the KL divergence of
 * attention at plain 1 and 2 bits, but 0.3, 1.4, 0.6 and 0 % with keys balanced at 1 to 4 (recorded keys of SmolLM2-135M).
 *
 * @param query  [headDim], already multiplied by the query scale
 */
export function scores(query: ArrayLike<number>, window: CodedWindow, coding: Coding): Float64Array {
  const { headDim, tokens } = window;
  const q = Float64Array.from(query);
  const ordered = inOrder(q, headDim, coding, scale => 1 / scale);
  const logits = new Float64Array(tokens);
  eachSegment(coding, ({ channels }, from, n) => {
    const rotated = columnsOf(ordered, headDim, from, channels);
    hadamard(rotated, channels);
    codewords(window, coding, n).forEach((value, i) => {
      const t = Math.floor(i / channels);
      logits[t]! += window.s2[n * tokens + t]! * value * rotated[i % channels]!;
    });
  });
  for (let t = 0; t < tokens; t++) {
    const mean = window.o.slice();
    if (coding.rope) rotate(mean, coding.rope, centered(t));
    for (let i = 0; i < headDim; i++) logits[t]! += q[i]! * mean[i]!;
    logits[t]! *= window.s1[t]!;
  }
  return logits;
}

/**
 * Mix: the weighted sum of a coded window's tokens, read without decoding them: H once, the mean once.
 *
 * @param weights  [tokens], unnormalized probabilities
 * @returns        f64 [headDim]
 */
export function mix(weights: ArrayLike<number>, window: CodedWindow, coding: Coding): Float64Array {
  const { headDim, tokens, s1, s2, o } = window;
  const y = new Float64Array(headDim);
  eachSegment(coding, ({ channels }, from, n) => {
    const sums = new Float64Array(channels);
    codewords(window, coding, n).forEach((value, i) => {
      const t = Math.floor(i / channels);
      sums[i % channels]! += weights[t]! * s1[t]! * s2[n * tokens + t]! * value;
    });
    hadamard(sums, channels);
    y.set(sums, from);
  });
  const out = outOfOrder(y, headDim, coding);
  let mean = 0;
  for (let t = 0; t < tokens; t++) mean += weights[t]! * s1[t]!;
  for (let i = 0; i < headDim; i++) out[i]! += mean * o[i]!;
  return out;
}

/**
 * Learn: how much of a query's logits every pair of a head's channels carries, from the first windows of keys and what was asked of
 * them.
 *
 * @param windows  keys after RoPE, f64 [64, headDim] each
 * @param queries  [queries, headDim]; none, and keys alone decide
 * @returns        the head's balance, u8 [headDim / 2] (src/format/balance.ts)
 */
export function learn(windows: readonly ArrayLike<number>[], queries: ArrayLike<number>, headDim: number, rope?: Rope): Uint8Array {
  return balanceOf(keyEnergies(windows, headDim, rope), pairEnergies(queries, headDim, rope));
}

/** Σ z² of every pair of channels over the tokens of some windows, which are normalized, shifted and normalized again. */
export function keyEnergies(windows: readonly ArrayLike<number>[], headDim: number, rope?: Rope): Float64Array {
  const normal = windows.map(window => {
    const x = Float64Array.from(window);
    normalize(x, headDim);
    shift(x, headDim, 8, rope);
    normalizeAgain(x, headDim);
    return x;
  });
  return pairEnergies(
    normal.flatMap(x => [...x]),
    headDim,
    rope
  );
}

/** Σ x² of every pair of channels, f64 [headDim / 2], of x [rows, headDim]. */
function pairEnergies(x: ArrayLike<number>, headDim: number, rope: Rope | undefined): Float64Array {
  const sums = new Float64Array(headDim);
  for (let i = 0; i < x.length; i++) sums[i % headDim]! += x[i]! ** 2;
  return Float64Array.from(channelPairs(headDim, rope), ([a, b]) => sums[a]! + sums[b]!);
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
