// The structs by which kernels know codebooks, and how a side of a page is coded, with the tables that they point at.

import { type Codebook, halfNormsOf } from '../format/codec.ts';
import { type BlockLayout, WINDOW } from '../format/layout.ts';
import { CODEBOOK, SEGMENT, SIDE, STAGE, struct } from './abi.ts';
import type { PlacedGrids } from './cells.ts';
import { marginOf, roundedOf } from './tables.ts';

/** Sets aside memory that will hold this data; its address. */
export type Constant = (data: ArrayBufferView) => number;

/** A codebook in memory. */
export interface PlacedCodebook {
  /** Its `Codebook`. */
  readonly at: number;
  /** f32 [256, channels] */
  readonly words: number;
}

export function placeCodebook(book: Codebook, grids: PlacedGrids, constant: Constant): PlacedCodebook {
  const { grid, at: gridAt = 0 } = grids.of(book) ?? {};
  const words = constant(book.codewords);
  const at = constant(
    struct(CODEBOOK, {
      channels: book.channels,
      words,
      halfNorms: constant(halfNormsOf(book)),
      rounded: grid ? 0 : constant(roundedOf(book)),
      margin: grid ? 0 : marginOf(book),
      grid: gridAt,
      gridCells: grid?.cells ?? 0,
      gridScale: grid?.scale ?? 0
    })
  );
  return { at, words };
}

/** The address of a side's struct. */
export function placeSide(layout: BlockLayout, headDim: number, books: ReadonlyMap<Codebook, PlacedCodebook>, constant: Constant): number {
  const { segments, meanBits, rowBytes, s2, s1, o, scales, exponents, bytes } = layout;
  const segmentStructs = segments.map(({ channel, channels, stages }) => {
    const stageStructs = stages.map(({ codebook, scale, column, columns }) => {
      const { at, words } = books.get(codebook)!;
      const scaled = scale === 1 ? words : constant(codebook.codewords.map(x => x * scale));
      return struct(STAGE, { book: at, scale, words: scaled, column, columns });
    });
    return struct(SEGMENT, { channel, channels, stages: constant(joined(stageStructs)), stageCount: stages.length });
  });
  return constant(
    struct(SIDE, {
      headDim,
      segments: constant(joined(segmentStructs)),
      segmentCount: segments.length,
      pairNorms: constant(pairNormsOf(layout)),
      meanBits,
      rowBytes,
      s2,
      s1,
      o,
      scales,
      exponents,
      bytes
    })
  );
}

/** u32 [rowBytes / 2]: where the second norms of every two columns of codes are in f32 [segments, 64], in bytes. */
function pairNormsOf({ segments, rowBytes }: BlockLayout): Uint32Array {
  return Uint32Array.from({ length: rowBytes / 2 }, (_, pair) => {
    const segment = segments.findLastIndex(({ stages }) => stages[0]!.column <= 2 * pair);
    return segment * 4 * WINDOW;
  });
}

function joined(structs: readonly Uint32Array[]): Uint32Array {
  return Uint32Array.from(structs.flatMap(words => [...words]));
}
