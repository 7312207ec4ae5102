// The grids by which the nearest codeword is found in 2 and 4 dimensions (assembly/cells.ts builds them, assembly/quantize.ts reads
// them). Kept for the next cache, and out of a cache's memory but while tokens are coded.

import type { Codebook } from '../format/codec.ts';
import { align } from '../format/layout.ts';
import { kernelsOf } from './instance.ts';

export interface Grid {
  /** Cells along one channel. */
  readonly cells: number;
  /** Cells per unit; the grid is centered on 0. */
  readonly scale: number;
  /** u32 [cells^D / 2]: offset of the list << 8 | its groups; then the groups. */
  readonly bytes: Uint8Array;
}

// One group at D = 2 and 1.9 at D = 4 on Gaussian input: 38 KB and 89 KB. At D = 4, 8 cells take 31 KB and 30 % more time to
// search, 16 take 201 KB and 10 % less.
const CELLS = { 2: { cells: 64, reach: 3.52 }, 4: { cells: 12, reach: 2.4 } } as const;

// The builder's memory: the codebook, its scratch, then the grid, 108 KiB at most.
const PAGES = 4;
const BOOK = 0x10000;
const BUILD = 0x11000;
const GRID = 0x25000;

const built = new Map<number, Grid>();

/**
 * The grid of a codebook of 2 or 4 channels. Building takes 1.4 ms at D = 2 and 11 at D = 4 (140 for both in JavaScript, whose code is
 * new to its engine); any of the binaries makes the same bytes.
 */
export function gridOf({ channels, codewords }: Codebook, module: WebAssembly.Module): Grid {
  const kept = built.get(channels);
  if (kept) return kept;
  const { cells, reach } = CELLS[channels as 2 | 4];
  const memory = new WebAssembly.Memory({ initial: PAGES });
  const { buildGrid } = kernelsOf(module, memory);
  new Float32Array(memory.buffer, BOOK).set(codewords);
  const bytes = buildGrid(BOOK, channels, cells, reach, GRID, BUILD);
  const grid = { cells, scale: cells / (2 * reach), bytes: new Uint8Array(memory.buffer).slice(GRID, GRID + bytes) };
  built.set(channels, grid);
  return grid;
}

/** Where grids lie in a memory while tokens are coded: one behind the other. */
export class PlacedGrids {
  readonly #placed = new Map<Codebook, { readonly grid: Grid; readonly at: number }>();
  readonly end: number;

  constructor(books: Iterable<Codebook>, module: WebAssembly.Module, begin: number) {
    let at = begin;
    for (const book of books) {
      if (book.channels === 8) continue;
      const grid = gridOf(book, module);
      this.#placed.set(book, { grid, at });
      at += align(grid.bytes.length, 16);
    }
    this.end = at;
  }

  /** A codebook's grid, and its address; undefined where it needs none. */
  of(book: Codebook): { readonly grid: Grid; readonly at: number } | undefined {
    return this.#placed.get(book);
  }

  bring(memory: Uint8Array): void {
    for (const { grid, at } of this.#placed.values()) memory.set(grid.bytes, at);
  }
}
