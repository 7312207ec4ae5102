// Candidate lists for exact nearest-codeword search in 2 and 4 dimensions (assembly/quantize.ts reads them).
// Space is cut into cells; a cell lists each codeword that no other codeword beats everywhere in the cell.

import type { Codec } from './codec.ts';

export interface Grid {
  /** Cells along one channel. */
  readonly cells: number;
  /** Cells per unit; the grid is centered on 0. */
  readonly scale: number;
  /** u32 [cells^D]: offset of the list << 8 | its length; then the u8 lists. */
  readonly bytes: Uint8Array;
}

// Lists of 2.4 (D = 2) and 9 (D = 4) codewords on Gaussian input. Finer grids search faster and build slower: 12 cells at
// D = 4 save 10 % of the search and take 5 times the 61 KB and 30 ms.
const CELLS = { 2: { cells: 64, reach: 3.52 }, 4: { cells: 8, reach: 2.4 } } as const;
/** Beyond any channel: |y| ≤ √512 = 22.6. */
const LIMIT = 23;
/** Covers f32 rounding of a position, and of the difference of two scores. */
const POSITION_SLACK = 1e-5;
const SCORE_SLACK = 5e-5;
/** Codewords, nearest to the cell's center, that others are compared with. */
const RIVALS = 8;

const built = new Map<string, Grid>();

/** The grid of a codec of 2 or 4 channels, built once. */
export function gridOf(codec: Codec): Grid {
  let grid = built.get(codec.name);
  if (!grid) built.set(codec.name, grid = build(codec));
  return grid;
}

function build({ channels, codebook }: Codec): Grid {
  const { cells, reach } = CELLS[channels as 2 | 4];
  const step = (2 * reach) / cells;
  const count = cells ** channels;
  const low = Float64Array.from({ length: cells }, (_, i) => (i === 0 ? -LIMIT : i * step - reach - POSITION_SLACK));
  const high = Float64Array.from({ length: cells }, (_, i) => (i === cells - 1 ? LIMIT : (i + 1) * step - reach + POSITION_SLACK));
  const halfNorms = Float64Array.from({ length: 256 }, (_, c) => {
    let sum = 0;
    for (let k = 0; k < channels; k++) sum += codebook[c * channels + k]! ** 2;
    return sum / 2;
  });

  const lists: Uint8Array[] = new Array(count);
  const boxLow = new Float64Array(channels);
  const boxHigh = new Float64Array(channels);
  const center = new Float64Array(channels);
  const scores = new Float64Array(256);
  // The codebook is symmetric: the mirrored cell lists the negated codewords.
  for (let cell = 0; cell < count / 2; cell++) {
    for (let k = 0, rest = cell; k < channels; k++, rest = Math.floor(rest / cells)) {
      const digit = rest % cells;
      boxLow[k] = low[digit]!;
      boxHigh[k] = high[digit]!;
      center[k] = (digit + 0.5) * step - reach;
    }
    for (let c = 0; c < 256; c++) {
      scores[c] = -halfNorms[c]!;
      for (let k = 0; k < channels; k++) scores[c]! += codebook[c * channels + k]! * center[k]!;
    }
    const rivals = largest(scores, RIVALS);
    const list: number[] = [];
    for (let c = 0; c < 256; c++) {
      if (!rivals.some(rival => rival !== c && beatsEverywhere(rival, c))) list.push(c);
    }
    lists[cell] = Uint8Array.from(list);
    lists[count - 1 - cell] = Uint8Array.from(list, c => c ^ 128).sort();
  }

  const headBytes = count * 4;
  const bytes = new Uint8Array(lists.reduce((sum, list) => sum + list.length, headBytes));
  const heads = new Uint32Array(bytes.buffer, 0, count);
  let offset = headBytes;
  lists.forEach((list, cell) => {
    heads[cell] = (offset << 8) | list.length;
    bytes.set(list, offset);
    offset += list.length;
  });
  return { cells, scale: cells / (2 * reach), bytes };

  /** Whether the smallest difference of scores over the box is clearly above zero. */
  function beatsEverywhere(rival: number, c: number): boolean {
    let least = halfNorms[c]! - halfNorms[rival]!;
    for (let k = 0; k < channels; k++) {
      const slope = codebook[rival * channels + k]! - codebook[c * channels + k]!;
      least += slope * (slope > 0 ? boxLow[k]! : boxHigh[k]!);
    }
    return least > SCORE_SLACK;
  }
}

function largest(scores: Float64Array, count: number): number[] {
  const found: number[] = [];
  for (let n = 0; n < count; n++) {
    let best = -1;
    for (let c = 0; c < scores.length; c++) {
      if ((best < 0 || scores[c]! > scores[best]!) && !found.includes(c)) best = c;
    }
    found.push(best);
  }
  return found;
}
