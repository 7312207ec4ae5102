// Holds a coded block to the tokens it was made of: every number and every code is what f64 gives, or the other side of a tie
// that f32 cannot tell. Each stage is judged by what those before it wrote, so that one tie never excuses another.

import type { Codec, Rope } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as brute from './brute.ts';
import { sameBits, sameCodes, sameRounding } from './compare.ts';
import { nearestHalf } from './half.ts';
import { meanOf, normsOf, readBlock } from './pages.ts';
import { ATOL, NAIVE_ERRORS, scaleTie } from './tolerance.ts';

export interface Ties {
  /** Codes that another codeword serves as well, and all codes. */
  near: number;
  codes: number;
}

/**
 * Refuses a block that is not what `x` codes to, and counts near ties.
 *
 * @param x     [64, headDim] of numbers that f16 holds
 * @param rope  of keys, where it is known
 */
export function encodedFrom(
  what: string,
  bytes: Uint8Array,
  x: Float32Array,
  codec: Codec,
  headDim: number,
  rope: Rope | undefined,
  ties: Ties
): void {
  const block = readBlock(bytes, codec, headDim);
  // Padding is 0 and no bit has another place: what unpacks packs to the same bytes.
  sameBits(`${what}: layout`, reference.pack(reference.unpack(bytes, codec, headDim), codec), bytes);

  const norms = brute.norms(x, headDim, brute.f64);
  sameRounding(`${what}: norms`, block.s1, norms, Math.max(...norms), true);
  const normalized = (round: brute.Round) => brute.divided(x, headDim, normsOf(block), round);

  const exact = normalized(brute.f64);
  const mean = brute.mean(exact, headDim, rope, brute.f64);
  const magnitude = exact.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  block.o.forEach((group, n) => sameRounding(`${what}: mean`, group, mean.subarray(32 * n, 32 * n + 32), magnitude));

  const stages = (round: brute.Round) => {
    const shifted = brute.withMean(normalized(round), headDim, meanOf(block), -1, rope, round);
    const s2 = brute.norms(shifted, headDim, round);
    return { s2, y: brute.hadamard(brute.divided(shifted, headDim, s2, round), headDim, round) };
  };
  const { s2, y } = stages(brute.f64);
  const naive = stages(brute.f32).y;
  const perRow = headDim / codec.channels;
  for (let t = 0; t < 64; t++) {
    const row = y.subarray(t * headDim, (t + 1) * headDim);
    // The float rule, for what the codes were chosen by.
    let [error, largest] = [0, 0];
    row.forEach((value, i) => {
      error = Math.max(error, Math.abs(naive[t * headDim + i]! - value));
      largest = Math.max(largest, Math.abs(value));
    });
    const off = NAIVE_ERRORS * error + ATOL * largest;
    const codes = block.codes.subarray(t * perRow, (t + 1) * perRow);
    ties.near += sameCodes(`${what}: token ${t}`, codes, row, codec, off);
    ties.codes += codes.length;

    let [yy, yc] = [0, 0];
    row.forEach((value, i) => {
      yy += value * value;
      yc += value * codec.codebook[codes[Math.floor(i / codec.channels)]! * codec.channels + (i % codec.channels)]!;
    });
    const adjusted = yc > 0 ? (s2[t]! * yy) / yc : 0;
    // The norm, ⟨y, y⟩ and ⟨y, C⟩ each move with y, whose mean square is 1.
    const share = scaleTie(headDim) + 4 * off;
    const [low, high] = [nearestHalf(adjusted * (1 - share)), nearestHalf(adjusted * (1 + share))];
    if (!(block.s2[t]! >= low && block.s2[t]! <= high))
      throw new Error(`${what} expected s2 of token ${t} from ${low} to ${high}, got ${block.s2[t]}`);
  }
}
