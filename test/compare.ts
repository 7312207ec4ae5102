// The comparers. Each throws with the first place that differs, and none may take NaN for agreement (bite.test.ts proves it).

import type { Codebook } from 'nsnquant/reference';
import { distance, nearest } from './brute.ts';
import { nearestHalf } from './half.ts';
import type { Group } from './pages.ts';
import { ATOL, F64, LEAST_SHARE, NAIVE_ERRORS, NEAR_TIE, RTN_TIE, UNDERFLOW } from './tolerance.ts';

export { relativeL2 } from '../tools/numbers.ts';

type Numbers = ArrayLike<number>;

const bytesOf = (x: ArrayBufferView) => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

/** Equal byte for byte: −0 is not 0, and NaNs of equal bits are equal. For integers, and for floats where both sides add in the same order. */
export function sameBits(what: string, actual: ArrayBufferView, expected: ArrayBufferView): void {
  const [a, b] = [bytesOf(actual), bytesOf(expected)];
  if (a.length !== b.length) throw new Error(`${what} expected ${b.length} bytes, got ${a.length}`);
  let at = 0; // a loop: histories compare gigabytes
  while (at < a.length && a[at] === b[at]) at++;
  if (at === a.length) return;
  const size = (expected as Uint8Array).BYTES_PER_ELEMENT ?? 1;
  const element = Math.floor(at / size);
  throw new Error(
    `${what} expected the same bits, got ${(actual as Uint8Array)[element]} for ${(expected as Uint8Array)[element]} at ${element} of ${b.length / size}`
  );
}

/**
 * The float rule, row by row: largest error ≤ 2 × that of the naive f32 implementation + ATOL × the row's largest magnitude,
 * and what `extra` allows an element besides.
 *
 * @param rowLength  0 for one row of everything
 */
export function withinFloatRule(what: string, actual: Numbers, exact: Numbers, naive: Numbers, rowLength = 0, extra?: Numbers): void {
  if (actual.length !== exact.length || naive.length !== exact.length) {
    throw new Error(`${what} expected ${exact.length} numbers, got ${actual.length} (naive ${naive.length})`);
  }
  const width = rowLength || exact.length;
  for (let row = 0; row < exact.length; row += width) {
    let naiveError = 0;
    let largest = 0;
    for (let i = row; i < row + width; i++) {
      naiveError = Math.max(naiveError, Math.abs(naive[i]! - exact[i]!));
      largest = Math.max(largest, Math.abs(exact[i]!));
    }
    const allowed = NAIVE_ERRORS * naiveError + ATOL * largest;
    for (let i = row; i < row + width; i++) {
      const error = Math.abs(actual[i]! - exact[i]!);
      if (error <= allowed + (extra?.[i] ?? 0)) continue;
      throw new Error(
        `${what} expected ${exact[i]} ± ${allowed + (extra?.[i] ?? 0)} (naive f32 errs by ${naiveError}), got ${actual[i]} at ${i}`
      );
    }
  }
}

/**
 * Codes of y [groups of channels]: the nearest codeword, or one as near within NEAR_TIE. Returns how many were near ties.
 *
 * @param yError  how far y may be from what the codes were made of, per channel: 0 where it is the very same
 */
export function sameCodes(what: string, codes: Numbers, y: Numbers, codebook: Codebook, yError = 0): number {
  const { channels } = codebook;
  if (codes.length !== y.length / channels) throw new Error(`${what} expected ${y.length / channels} codes, got ${codes.length}`);
  let ties = 0;
  for (let j = 0; j < codes.length; j++) {
    const best = nearest(y, j * channels, codebook);
    if (codes[j] === best) continue;
    const least = Math.sqrt(distance(y, j * channels, codebook, best));
    const got = Math.sqrt(distance(y, j * channels, codebook, codes[j]!));
    // Moving y by yError in every channel moves a distance by √channels · yError at most.
    if (!(got <= least * (1 + NEAR_TIE) + 2 * yError * Math.sqrt(channels))) {
      throw new Error(`${what} expected code ${best} at distance ${least}, got ${codes[j]} at ${got}, group ${j}`);
    }
    ties++;
  }
  return ties;
}

/**
 * Rounding of a group: its minimum, its scale and every code are what f64 gives, or what it would give were the numbers
 * off by RTN_TIE.
 *
 * @param magnitude  the largest number that went into x, whose f32 roundings x carries
 * @param norms      whether x is norms: each carries its own token's roundings alone, and a code worth less than LEAST_SHARE of it
 *                   gives way to the next
 */
export function sameRounding(what: string, { scale, min, codes, most }: Group, x: Numbers, magnitude: number, norms = false): void {
  const off = RTN_TIE * magnitude;
  const low = Math.min(...Array.from(x));
  const lowOff = norms ? RTN_TIE * low : off;
  const step = (Math.max(...Array.from(x)) - low) / most;
  const between = (name: string, value: number, from: number, to: number): void => {
    if (!(value >= from && value <= to)) throw new Error(`${what} expected ${name} from ${from} to ${to}, got ${value}`);
  };
  between('minimum', min, nearestHalf(low - lowOff), nearestHalf(low + lowOff));
  between('scale', scale, nearestHalf(Math.max(step - off, 1e-5)), nearestHalf(Math.max(step + off, 1e-5)));
  for (let i = 0; i < x.length; i++) {
    const place = Math.min(Math.max((x[i]! - min) / scale, 0), most);
    const code = codes[i]!;
    const least = norms ? LEAST_SHARE * (x[i]! > UNDERFLOW ? x[i]! : 0) : -Infinity;
    const worth = (code: number) => code * scale + min;
    if (worth(code) < least * (1 - RTN_TIE))
      throw new Error(`${what} expected code worth ${least} or more of ${x[i]}, got ${code}, worth ${worth(code)}, at ${i}`);
    const gaveWay = worth(code - 1) < least * (1 + RTN_TIE) && code - 1 >= place - 0.5 - off / scale;
    between(`code at ${i}`, gaveWay ? code - 1 : code, place - 0.5 - off / scale, place + 0.5 + off / scale);
  }
}

/** Equal but for the roundings of f64. */
export function equals(what: string, actual: Numbers, expected: Numbers): void {
  if (actual.length !== expected.length) throw new Error(`${what} expected ${expected.length} numbers, got ${actual.length}`);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]!));
  for (let i = 0; i < expected.length; i++) {
    if (!(Math.abs(actual[i]! - expected[i]!) <= F64 * largest))
      throw new Error(`${what} expected ${expected[i]}, got ${actual[i]} at ${i}`);
  }
}

/** `value` ≤ `most`; NaN is not. */
export function atMost(what: string, value: number, most: number): void {
  if (!(value <= most)) throw new Error(`${what} expected at most ${most}, got ${value}`);
}

/** No NaN, no infinity. */
export function allFinite(what: string, x: Numbers): void {
  for (let i = 0; i < x.length; i++) {
    if (!Number.isFinite(x[i])) throw new Error(`${what} expected finite numbers, got ${x[i]} at ${i}`);
  }
}

/** Refuses unless `run` throws or rejects with this class and message. */
export async function refuses(run: () => unknown, type: new (...args: any[]) => Error, message: string): Promise<Error> {
  let thrown: unknown;
  try {
    await run();
  } catch (error) {
    thrown = error;
  }
  if (thrown === undefined) throw new Error(`expected ${type.name} "${message}", got nothing thrown`);
  const error = thrown as Error;
  if (error.constructor === type && error.message === message) return error;
  throw new Error(`expected ${type.name} "${message}", got ${error.constructor.name} "${error.message}"`);
}
