// What one call of `attend` works on: an item of the batch, and a record for every four of its rows.

import { Shape } from "./shape";

/** One sequence of a batch: its queries and where its tokens lie. */
@unmanaged
export class Item {
  queries: usize;       // f32 [tokens, queryHeads, headDim]
  out: usize;           // the same shape
  tokens: usize;        // query tokens: the newest of the sequence, or a run of them
  position: usize;      // of the first query token
  pages: usize;         // u32 [pageCount]: page numbers, oldest first
  pageCount: usize;
  pagePosition: usize;  // of the first page's first token
  raws: usize;          // Raw [rawCount]
  rawCount: usize;
  decoded: usize;       // 1: its rows are so many that pages are decoded for them (prompt.ts); 0: they look codes up
}

/** A run of raw tokens. */
@unmanaged
export class Raw {
  address: usize;       // f16 [kvHeads, 2, capacity, headDim]
  capacity: usize;
  tokens: usize;
  position: usize;
}

const PAGE_HEADER: usize = 16;

/** Address of the blocks of page `n` of an item. */
@inline export function pageBlocks(shape: Shape, item: Item, n: usize): usize {
  return shape.pages + <usize>load<u32>(item.pages + (n << 2)) * shape.pageBytes + PAGE_HEADER;
}

/** One lane group's record in Shape.states: f32 [GROUP] each, then out and q, f32 [headDim, GROUP], and q in integers (prompt.ts). */
export const MOST: usize = 0;
export const SUM: usize = 16;
export const LIMITS: usize = 32;
export const QUERY_SCALE: usize = 48;
export const OUT: usize = 64;

@inline export function stateBytes(headDim: usize): usize {
  return OUT + 40 * headDim;
}
