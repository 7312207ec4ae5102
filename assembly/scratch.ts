// Memory that kernels scribble in, set aside by the host in the sizes given here.

import { GROUP, GROUP_BYTES, Item, Raw, Shape, TILE_ROW, WINDOW } from "./abi";
import { stateBytes } from "./state";

/**
 * Look-up table and buckets, row j of each: LUT + j·8192 and BUCKETS + j·8192, f32 [256, GROUP]. Their addresses are
 * constants so that they fold into the immediate offset of a load (3.3 against 4.1 ns a token on Zen 5).
 */
export const LUT: usize = 0x10000;
export const BUCKETS: usize = 0x11000;
export const TABLE_ROW: usize = 0x2000;

/**
 * Bytes from a table's first row to those of a pass over eight columns of codes, as a compile-time number: a type's size is
 * the one such number that a generic function takes. A and B are u8, u16, u32, u64 for digits 0 to 3, A the lower.
 */
@inline export function pass<A, B>(): usize {
  return (ctz<usize>(sizeof<A>()) + 4 * ctz<usize>(sizeof<B>())) << 16;
}

/** Lane groups that share one widening of a raw window, or one decoding of a page. */
export const BLOCK_GROUPS: usize = 64;
/** Windows whose scores are held at once: 2,048 tokens, 32 KB. */
export const CHUNK: usize = 32;

/** Where tables and buckets end for codes in rows of `rowBytes`. */
export function tablesEnd(rowBytes: usize): usize {
  return LUT + rowBytes * TABLE_ROW;
}

/** Of Shape.tile: f32 [2, headDim, WINDOW]. */
export function tileBytes(headDim: usize): usize {
  return 2 * headDim * TILE_ROW;
}

/** Of Shape.row. */
export function scratchBytes(): usize {
  return 32256;
}

/** Of Shape.scores: f32 [CHUNK · WINDOW, GROUP]. */
export function scoresBytes(): usize {
  return CHUNK * WINDOW * GROUP_BYTES;
}

/** Of Shape.states: those of BLOCK_GROUPS lane groups, and one for a twin (prompt.ts). */
export function statesBytes(headDim: usize): usize {
  return (BLOCK_GROUPS + 1) * stateBytes(headDim);
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
export function callRows(): usize {
  return BLOCK_GROUPS * GROUP;
}
