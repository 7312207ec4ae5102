// Holds coded blocks, and what a sequence has learned, to the tokens they were made of: every number and every code is what f64 gives,
// or the other side of a tie that f32 cannot tell. Each step is judged by what those before it wrote, so that one tie never excuses
// another.

import type { Rope } from 'nsnquant';
import { codebooks } from 'nsnquant/reference';
import * as brute from './brute.ts';
import { sameCodes, sameRounding } from './compare.ts';
import { nearestFloat } from './half.ts';
import { meanOf, normsOf, paddingOf, readBlock, type Sections, type Segment } from './pages.ts';
import { ATOL, LEVEL_TIE, NAIVE_ERRORS, scaleTie } from './tolerance.ts';

export interface Ties {
  /** Codes, or levels of energies, that another serves as well, and all of them. */
  near: number;
  codes: number;
}

/**
 * Refuses a block that is not what `x` codes to, and counts near ties.
 *
 * @param x      [64, headDim] of numbers that f16 holds
 * @param rope   of keys, where it is known
 * @param order  of keys that are balanced
 */
export function encodedFrom(
  what: string,
  bytes: Uint8Array,
  x: Float32Array,
  at: Sections,
  rope: Rope | undefined,
  ties: Ties,
  order?: brute.Order
): void {
  const { headDim, segments } = at;
  if (bytes.length !== at.bytes) throw new Error(`${what} expected ${at.bytes} bytes, got ${bytes.length}`);
  for (const byte of paddingOf(at)) {
    if (bytes[byte] !== 0) throw new Error(`${what} expected 0 as padding, got ${bytes[byte]} at ${byte}`);
  }
  const block = readBlock(bytes, at);

  const norms = brute.norms(x, headDim, brute.f64);
  sameRounding(`${what}: norms`, block.s1, norms, Math.max(...norms), true);
  const normalized = (round: brute.Round) => brute.divided(x, headDim, normsOf(block), round);

  const exact = normalized(brute.f64);
  const mean = brute.mean(exact, headDim, rope, brute.f64);
  const magnitude = exact.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  block.o.forEach((group, n) => sameRounding(`${what}: mean`, group, mean.subarray(32 * n, 32 * n + 32), magnitude));

  const shifted = (round: brute.Round) => {
    const z = brute.withMean(normalized(round), headDim, meanOf(block), -1, rope, round);
    return order ? brute.ordered(z, headDim, order, round) : z;
  };
  const [z, naiveZ] = [shifted(brute.f64), shifted(brute.f32)];
  segments.forEach((segment, n) => {
    const { channels } = segment;
    const rotated = (z: Float64Array, round: brute.Round) => {
      const rows = brute.segmentOf(z, headDim, segment);
      const s2 = brute.norms(rows, channels, round);
      return { s2, y: brute.hadamard(brute.divided(rows, channels, s2, round), channels, round) };
    };
    const { s2, y } = rotated(z, brute.f64);
    const naive = rotated(naiveZ, brute.f32).y;
    const coded = brute.codewordsOf(block.codes, segment, brute.f64);
    /** [64]: which of the small floats a second norm may be rounded to. */
    const [lowest, highest]: [number[], number[]] = [[], []];
    for (let t = 0; t < 64; t++) {
      const row = y.subarray(t * channels, (t + 1) * channels);
      // The float rule, for what the codes were chosen by.
      let [error, largest] = [0, 0];
      row.forEach((value, i) => {
        error = Math.max(error, Math.abs(naive[t * channels + i]! - value));
        largest = Math.max(largest, Math.abs(value));
      });
      const off = NAIVE_ERRORS * error + ATOL * largest;
      codesFrom(`${what}: token ${t}`, block.codes.subarray(t * at.perRow, (t + 1) * at.perRow), row, segment, off, ties);

      let [yy, yc] = [0, 0];
      row.forEach((value, i) => {
        yy += value * value;
        yc += value * coded[t * channels + i]!;
      });
      const adjusted = yc > 0 ? (s2[t]! * yy) / yc : 0;
      // The norm, ⟨y, y⟩ and ⟨y, C⟩ each move with y, whose mean square is 1.
      const share = scaleTie(channels) + 4 * off;
      lowest.push(nearestFloat(adjusted * Math.max(0, 1 - share)));
      highest.push(nearestFloat(adjusted * (1 + share)));
    }
    floatsFrom(`${what}: segment ${n}`, bytes, at, n, lowest, highest);
  });
}

/** The codes of one token's segment: every stage's are those of what the written codes of earlier stages leave. */
function codesFrom(what: string, codes: Uint8Array, row: Float64Array, { stages }: Segment, off: number, ties: Ties): void {
  const rest = row.slice();
  for (const { channels, scale, column, columns } of stages) {
    const chosen = codes.subarray(column, column + columns);
    const residual = rest.map(value => value / scale);
    ties.near += sameCodes(what, chosen, residual, codebooks[channels], off / scale);
    ties.codes += columns;
    rest.forEach((value, i) => {
      const codeword = chosen[Math.floor(i / channels)]! * channels + (i % channels);
      rest[i] = value - scale * codebooks[channels].codewords[codeword]!;
    });
  }
}

/** A segment's second norms: the exponent is as low as the largest allows, and each code is one of those that may be under it. */
function floatsFrom(what: string, bytes: Uint8Array, at: Sections, n: number, lowest: number[], highest: number[]): void {
  const exponent = bytes[at.exponents[0] + n]!;
  const exponentOf = (floats: number[]) => Math.max(1, Math.ceil((Math.max(...floats) - 255) / 32));
  const [least, most] = [exponentOf(lowest), exponentOf(highest)];
  if (!(exponent >= least && exponent <= most)) throw new Error(`${what} expected exponent from ${least} to ${most}, got ${exponent}`);
  const codeOf = (float: number) => Math.min(Math.max(float - 32 * exponent, 0), 255);
  for (let t = 0; t < 64; t++) {
    const code = bytes[at.s2[0] + 64 * n + t]!;
    const [low, high] = [codeOf(lowest[t]!), codeOf(highest[t]!)];
    if (!(code >= low && code <= high)) throw new Error(`${what} expected s2 of token ${t} from ${low} to ${high}, got ${code}`);
  }
}

/**
 * Refuses a balance that is not what two windows of keys and the energies of queries teach, and counts levels near the edge of another.
 *
 * @param balance  u8 [headDim / 2]
 * @param windows  [64, headDim] each, of numbers that f16 holds
 * @param queries  [headDim / 2]: Σ q² of pairs
 */
export function learnedFrom(
  what: string,
  balance: Uint8Array,
  windows: readonly Float32Array[],
  queries: ArrayLike<number>,
  headDim: number,
  rope: Rope | undefined,
  ties: Ties
): void {
  if (balance.length !== headDim / 2) throw new Error(`${what} expected ${headDim / 2} bytes, got ${balance.length}`);
  const sides = { keys: brute.keyEnergies(windows, headDim, rope), queries: Float64Array.from(queries) };
  for (const [side, energies] of Object.entries(sides)) {
    const most = Math.max(...energies);
    energies.forEach((energy, pair) => {
      const level = side === 'keys' ? balance[pair]! % 16 : Math.floor(balance[pair]! / 16);
      const exact = brute.levelOf(energy, most);
      const [low, high] = [brute.levelOf(energy * (1 + LEVEL_TIE), most), brute.levelOf(energy * (1 - LEVEL_TIE), most)];
      if (!(level >= low && level <= high))
        throw new Error(`${what} expected level ${exact} of ${side} of pair ${pair}, got ${level} (energy ${energy} of ${most})`);
      ties.near += Number(level !== exact);
      ties.codes++;
    });
  }
}
