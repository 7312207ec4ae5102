// Candidate lists for exact nearest-codeword search in 2 and 4 dimensions (assembly/quantize.ts reads them).
// Space is cut into cells; a cell lists each codeword that no other codeword beats everywhere in the cell.

import type { Codec } from '../format/codec.ts';

export interface Grid {
  /** Cells along one channel. */
  readonly cells: number;
  /** Cells per unit; the grid is centered on 0. */
  readonly scale: number;
  /** u32 [cells^D]: offset of the list << 8 | its groups; then the groups. */
  readonly bytes: Uint8Array;
}

// One group at D = 2 and 1.9 at D = 4 on Gaussian input: 75 KB and 184 KB. At D = 4, 8 cells take 62 KB and 30 % more time to
// search, 16 take 402 KB and 10 % less.
const CELLS = { 2: { cells: 64, reach: 3.52 }, 4: { cells: 12, reach: 2.4 } } as const;
/** Beyond any channel: |y| ≤ √512 = 22.6. */
const LIMIT = 23;
/** Covers f32 rounding of a position, and of the difference of two scores: 8 · 2⁻²⁴ · ‖C‖ · ‖y − C/2‖, 6e-5 at most. */
const POSITION_SLACK = 1e-5;
const SCORE_SLACK = 1e-4;
/** Codewords, nearest to a box's center, that others are compared with. */
const RIVALS = 8;
/** Candidates that are scored at once. */
const LANES = 4;
/** Bytes of a group: codes alone (D = 4), or f32 [2, 4] codewords, then the codes (D = 2). */
const GROUP_BYTES = { 2: 48, 4: 4 } as const;

const built = new Map<string, Grid>();

/** The grid of a codec of 2 or 4 channels, built once. */
export function gridOf(codec: Codec): Grid {
  let grid = built.get(codec.name);
  if (!grid) built.set(codec.name, (grid = build(codec)));
  return grid;
}

function build({ channels, codebook }: Codec): Grid {
  const { cells, reach } = CELLS[channels as 2 | 4];
  const step = (2 * reach) / cells;
  const count = cells ** channels;
  const halfNorms = Float64Array.from({ length: 256 }, (_, c) => {
    let sum = 0;
    for (let k = 0; k < channels; k++) sum += codebook[c * channels + k]! ** 2;
    return sum / 2;
  });
  const low = new Float64Array(channels);
  const high = new Float64Array(channels);
  const every = Uint8Array.from({ length: 256 }, (_, c) => c);
  const scores = new Float64Array(256);
  const rivals = new Uint8Array(RIVALS);
  const left = new Uint8Array(256);

  // The codebook is symmetric: the mirrored cell lists the negated codewords. Blocks of 2^D cells come first: what is nearest
  // nowhere in the block is so in none of its cells.
  const blocks = new Map<number, Uint8Array>();
  const lists: Uint8Array[] = new Array(count);
  for (let cell = 0; cell < count / 2; cell++) {
    const block = setBox(cell, 2);
    let list = blocks.get(block);
    if (!list) blocks.set(block, (list = nearestSomewhere(every)));
    setBox(cell, 1);
    lists[cell] = nearestSomewhere(list);
    lists[count - 1 - cell] = lists[cell]!.map(c => c ^ 128).sort();
  }
  return { cells, scale: cells / (2 * reach), bytes: pack(lists, channels as 2 | 4, codebook) };

  /** The box of a cell, or of the block of `width` cells a side that it is in; the number of that block. */
  function setBox(cell: number, width: number): number {
    let block = 0;
    for (let k = 0, place = 1; k < channels; k++, place *= cells) {
      const digit = Math.floor(cell / place) % cells;
      const from = digit - (digit % width);
      low[k] = from === 0 ? -LIMIT : from * step - reach - POSITION_SLACK;
      high[k] = from + width === cells ? LIMIT : (from + width) * step - reach + POSITION_SLACK;
      block += from * place;
    }
    return block;
  }

  /** The candidates that no rival beats everywhere in the box. */
  function nearestSomewhere(candidates: Uint8Array): Uint8Array {
    for (const c of candidates) scores[c] = -halfNorms[c]!;
    for (let k = 0; k < channels; k++) {
      const center = (Math.max(low[k]!, -reach) + Math.min(high[k]!, reach)) / 2;
      for (const c of candidates) scores[c]! += codebook[c * channels + k]! * center;
    }
    const rivalCount = Math.min(RIVALS, candidates.length);
    for (let n = 0; n < rivalCount; n++) {
      let best = candidates[0]!;
      for (const c of candidates) if (scores[c]! > scores[best]!) best = c;
      rivals[n] = best;
      scores[best] = -Infinity;
    }
    let length = 0;
    for (const c of candidates) {
      let beaten = false;
      for (let n = 0; n < rivalCount && !beaten; n++) beaten = rivals[n] !== c && beatsEverywhere(rivals[n]!, c);
      if (!beaten) left[length++] = c;
    }
    return left.slice(0, length);
  }

  /** Whether the smallest difference of scores over the box is clearly above zero. */
  function beatsEverywhere(rival: number, c: number): boolean {
    let least = halfNorms[c]! - halfNorms[rival]!;
    for (let k = 0; k < channels; k++) {
      const slope = codebook[rival * channels + k]! - codebook[c * channels + k]!;
      least += slope * (slope > 0 ? low[k]! : high[k]!);
    }
    return least > SCORE_SLACK;
  }
}

/** Lists in groups of four, the last codeword repeated to fill them; equal lists once. */
function pack(lists: readonly Uint8Array[], channels: 2 | 4, codebook: Float32Array): Uint8Array {
  const heads = new Uint32Array(lists.length);
  const groups: number[] = [];
  const seen = new Map<string, number>();
  lists.forEach((list, cell) => {
    const count = Math.ceil(list.length / LANES);
    const key = list.join();
    let first = seen.get(key);
    if (first === undefined) {
      seen.set(key, (first = groups.length / LANES));
      for (let i = 0; i < count * LANES; i++) groups.push(list[Math.min(i, list.length - 1)]!);
    }
    heads[cell] = ((heads.byteLength + first * GROUP_BYTES[channels]) << 8) | count;
  });

  const bytes = new Uint8Array(heads.byteLength + (groups.length / LANES) * GROUP_BYTES[channels]);
  bytes.set(new Uint8Array(heads.buffer));
  if (channels === 4) {
    bytes.set(groups, heads.byteLength);
  } else {
    for (let i = 0; i < groups.length; i += LANES) {
      const at = heads.byteLength + (i / LANES) * GROUP_BYTES[channels];
      const codes = groups.slice(i, i + LANES);
      new Float32Array(bytes.buffer, at, 2 * LANES).set([0, 1].flatMap(k => codes.map(c => codebook[c * 2 + k]!)));
      bytes.set(codes, at + 8 * LANES);
    }
  }
  return bytes;
}
