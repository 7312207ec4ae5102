// Memory that kernels scribble in, drawn once: who has which bytes, and in which sizes the host sets them aside.
//
//   tables         LUT and BUCKETS in turn, row by row: f32 [256, LANES] each, a row of either for every column of codes.
//                  Between calls buckets are zero, and the look-up table is nobody's: `quantize` has it while tokens are coded, and
//                  grids lie in the rest (src/wasm/cells.ts)
//   Shape.tile     a window's tokens twice:   encode, decode    f32 [headDim, 64], then as much for channels in another order, what
//                                                               stages leave, and the block of a window that is learned from
//                                             raw windows       f32 [64, headDim] keys, then f32 [64, valueDim] values
//                                             prompts           decode's, then i16 [headDim, 64] keys and i16 [valueDim, 64] values
//                                             headDim of whichever side has more channels
//                  or a chunk of windows:     looking codes up  f32 [CHUNK · 64, LANES]: logits, then weights
//   Shape.scratch  a window's small things: below
//   Shape.states   records of state.ts
//
// Elsewhere: MEAN_STRANDS, 32 bytes of shift.ts's own.

import { LANES, LANE_ROW, Item, Raw, Shape, TILE_ROW, WINDOW } from "./abi";
import { stateBytes } from "./state";

const MAX_HEAD_DIM: usize = 576;
const MAX_SEGMENTS: usize = 3;

/** States whose rows share one widening of a raw window, or one decoding of a page: an even number, for twins (prompt.ts). */
const STATES: usize = 64;
/** Windows whose scores are held at once: 2,048 tokens, 32 KB. */
export const CHUNK: usize = 32;
/** Bytes of a window's scores, f32 [64, LANES]. */
export const SCORES_BYTES: usize = WINDOW * LANE_ROW;

/**
 * Look-up table and buckets, row j of each: LUT + j·TABLE_ROW and BUCKETS + j·TABLE_ROW, f32 [256, LANES]. Their addresses are
 * constants so that they fold into the immediate offset of a load (3.3 against 4.1 ns a token on Zen 5).
 */
export const LUT: usize = 0x10000;
export const BUCKETS: usize = 0x11000;
export const TABLE_ROW: usize = 0x2000;
/** From a codeword's entry of either to that of its negation, codeword c + 128. */
export const NEGATED: usize = 128 * LANE_ROW;

/**
 * Bytes from a table's first row to those of a pass over eight columns of codes, as a compile-time number: a type's size is
 * the one such number that a generic function takes. A and B are u8, u16, u32, u64 for digits 0 to 3, A the lower.
 */
@inline export function pass<A, B>(): usize {
  return (ctz<usize>(sizeof<A>()) + 4 * ctz<usize>(sizeof<B>())) << 16;
}

// `quantize`, in the look-up table.
/** u32 [64]: the cell list of every token, codebooks of 2 and 4 channels. */
export const CELL_LISTS: usize = LUT;
/** f32 [64]: 2, or −2 where the list is that of the token's mirror image. */
export const CELL_FACTORS: usize = CELL_LISTS + TILE_ROW;
/** i16 [4, 64, 2]: y · 2¹² of eight channels, by pairs. */
export const CODED_PAIRS: usize = LUT;
/** f32 [64] */
export const CODED_BOUNDS: usize = CODED_PAIRS + 4 * TILE_ROW;
/** i32 [128] */
export const CODED_SCORES: usize = CODED_BOUNDS + TILE_ROW;

// Offsets in Shape.scratch. The norms of a block's tokens, f32 [64] and [segments, 64], come first for everyone.
export const S1: usize = 0;
export const S2: usize = S1 + TILE_ROW;
const AFTER_NORMS: usize = S2 + MAX_SEGMENTS * TILE_ROW;

// `encode`:
/** f32 [64] each: ⟨y, y⟩, ⟨y, C[c]⟩ of a segment. */
export const YY: usize = AFTER_NORMS;
export const YC: usize = YY + TILE_ROW;
/** f32 [headDim] */
export const CODED_O: usize = YC + TILE_ROW;
const CODED_END: usize = CODED_O + 4 * MAX_HEAD_DIM;

// `decode`, and all that read a page:
/** f32 [headDim] */
export const O: usize = AFTER_NORMS;
const AFTER_MEAN: usize = O + 4 * MAX_HEAD_DIM;

/** f32 [2, 64, LANES]: logits, then weights of a raw window, or of a decoded page for two states. */
export const WINDOW_SCORES: usize = AFTER_MEAN;
const AFTER_SCORES: usize = WINDOW_SCORES + 2 * SCORES_BYTES;

// Attention by looking codes up, and over raw windows:
/** f32 [LANES] each */
export const SHARE: usize = AFTER_SCORES;
export const SCALE: usize = SHARE + LANE_ROW;
export const TOP: usize = SCALE + LANE_ROW;
export const FACTOR: usize = TOP + LANE_ROW;
/** f32 [LANES]: the largest logit before `maskScores`, which may hide it. Written, never read. */
export const UNMASKED_TOP: usize = FACTOR + LANE_ROW;
/** u32: sum of words that are read only so that their cache lines come; were there none, compilers would drop the reads. Never read. */
export const TOUCH_SUM: usize = UNMASKED_TOP + LANE_ROW;
/** f32 [valueDim, LANES]: what means add to the output. The rest follows it, as large as a layer needs. */
export const MEAN_OUT: usize = TOUCH_SUM + LANE_ROW;

/** f32 [headDim, LANES]: H·A⁻¹·q. Four more are read where the last column of codes is odd (scores.ts). */
@inline export function hqOf(shape: Shape): usize {
  return shape.scratch + MEAN_OUT + shape.values.headDim * LANE_ROW;
}

/** f32 [2 (even, odd), 2 · basisPairs, LANES] */
@inline export function coefsOf(shape: Shape): usize {
  return hqOf(shape) + shape.keys.headDim * LANE_ROW;
}

/** i16 [2, basisPairs, LANES, 2] */
@inline export function coefPairsOf(shape: Shape): usize {
  return coefsOf(shape) + 4 * shape.basisPairs * LANE_ROW;
}

/** f32 [CHUNK, segments, 64]: second norms of keys of several segments. */
@inline export function keyS2Of(shape: Shape): usize {
  return coefPairsOf(shape) + 2 * shape.basisPairs * LANE_ROW;
}

// Attention over decoded pages (prompt.ts):
/** f32 [64] */
export const KEY_SCALES: usize = AFTER_SCORES;
/** f32 [valueDim] */
export const VALUE_SCALES: usize = KEY_SCALES + TILE_ROW;
/** f32 [LANES] */
export const STRANDS: usize = VALUE_SCALES + 4 * MAX_HEAD_DIM;
/** f32 [2, LANES]: largest logits of the window. */
export const TOPS: usize = STRANDS + LANE_ROW;
/** f32 [2, LANES]: what earlier output is worth under the new maximum. */
export const KEEPS: usize = TOPS + 2 * LANE_ROW;
/** f32 [2, LANES]: what a weight of 1 is worth. */
export const UNITS: usize = KEEPS + 2 * LANE_ROW;
/** i16 [2, 32, LANES, 2]: of tokens t and t + 32. */
export const WEIGHTS: usize = UNITS + 2 * LANE_ROW;
const PROMPT_END: usize = WEIGHTS + WINDOW * LANE_ROW;

/** Where the binaries' own data end; from there to the tables nothing is. */
export function staticEnd(): usize {
  return __heap_base;
}

/** Where tables begin, and where they and buckets end for codes in rows of `rowBytes`. */
export function tablesBegin(): usize {
  return LUT;
}

/** Where the first look-up table ends, and what must be zero between calls begins. */
export function bucketsBegin(): usize {
  return BUCKETS;
}

export function tablesEnd(rowBytes: usize): usize {
  return LUT + rowBytes * TABLE_ROW;
}

/** Of Shape.tile, headDim the larger of keys' and values'. */
export function tileBytes(headDim: usize): usize {
  return max<usize>(2 * headDim * TILE_ROW, CHUNK * SCORES_BYTES);
}

/** Of Shape.scratch, for layers of these sizes. */
export function scratchBytes(headDim: usize, valueDim: usize, basisPairs: usize, keySegments: usize): usize {
  const rows = headDim + valueDim + 6 * basisPairs;
  const keyS2 = keySegments > 1 ? CHUNK * keySegments * TILE_ROW : 0;
  return max<usize>(MEAN_OUT + rows * LANE_ROW + keyS2, max<usize>(CODED_END, PROMPT_END));
}

/** Of Shape.states. */
export function statesBytes(headDim: usize, valueDim: usize): usize {
  return STATES * stateBytes(headDim, valueDim);
}

export function shapeBytes(): usize {
  return offsetof<Shape>();
}

export function itemBytes(): usize {
  return offsetof<Item>();
}

export function rawBytes(): usize {
  return offsetof<Raw>();
}

/** Query rows that pass over pages together. */
@inline export function callRows(): usize {
  return STATES * LANES;
}
