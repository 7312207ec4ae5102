// Pages, raw and coded: the loops over the heads of one, and where its blocks are.

import { Item, Shape, Side, WINDOW } from "./abi";
import { decode } from "./decode";
import { encode } from "./encode";
import { widen } from "./raw";
import { halvesFromFloats, rowsFromTile, tileFromHalves } from "./tile";

const PAGE_HEADER: usize = 16;

/** Bytes of a codes-to-values block of one head. */
@inline export function blockBytes(side: Side, headDim: usize): usize {
  return side.o + (((headDim >> 1) + 15) & ~15);
}

/** Address of the blocks of page `n` of an item. */
@inline export function pageBlocks(shape: Shape, item: Item, n: usize): usize {
  return shape.pages + <usize>load<u32>(item.pages + (n << 2)) * shape.pageBytes + PAGE_HEADER;
}

/**
 * Tokens into a raw page, keys or values.
 *
 *   rows   f32 or f16 [tokens, kvHeads, headDim]
 *   to     the raw page's f16 [kvHeads, 2, capacity, headDim], moved on to the side (0 keys, 1 values) and first token
 */
export function writeRows(rows: usize, half: bool, tokens: usize, kvHeads: usize, headDim: usize, to: usize, capacity: usize): void {
  const headBytes = capacity * headDim << 2;
  for (let t: usize = 0; t < tokens; t++) {
    for (let head: usize = 0; head < kvHeads; head++) {
      const p = to + head * headBytes + (t * headDim << 1);
      if (half) {
        memory.copy(p, rows, headDim << 1);
        rows += headDim << 1;
      } else {
        halvesFromFloats(rows, headDim, p);
        rows += headDim << 2;
      }
    }
  }
}

/** Tokens of a raw page, keys or values, as f32 [tokens, kvHeads, headDim]; `from` as `to` of writeRows. */
export function readRows(from: usize, capacity: usize, tokens: usize, kvHeads: usize, headDim: usize, rows: usize): void {
  const headBytes = capacity * headDim << 2;
  for (let t: usize = 0; t < tokens; t++) {
    for (let head: usize = 0; head < kvHeads; head++, rows += headDim << 2) {
      widen(from + head * headBytes + (t * headDim << 1), headDim, rows);
    }
  }
}

/** A raw page's 64 tokens into a page whose header stands: every head, keys and values. */
export function encodePage(shape: Shape, raw: usize, page: usize): void {
  const headDim = shape.headDim, sideBytes = WINDOW * headDim << 1;
  page += PAGE_HEADER;
  for (let head: usize = 0; head < shape.kvHeads; head++) {
    tileFromHalves(raw, headDim, shape.tile);
    encode(shape, shape.keys, shape.tile, page, true);
    page += blockBytes(shape.keys, headDim);
    tileFromHalves(raw + sideBytes, headDim, shape.tile);
    encode(shape, shape.values, shape.tile, page, false);
    page += blockBytes(shape.values, headDim);
    raw += sideBytes << 1;
  }
}

/** A page's 64 tokens as f32 [64, kvHeads, headDim] of keys and of values. */
export function decodePage(shape: Shape, page: usize, keys: usize, values: usize): void {
  const headDim = shape.headDim, rowBytes = shape.kvHeads * headDim << 2;
  page += PAGE_HEADER;
  for (let head: usize = 0; head < shape.kvHeads; head++) {
    decode(shape, shape.keys, page, shape.tile, true);
    rowsFromTile(shape.tile, WINDOW, rowBytes, headDim, keys);
    page += blockBytes(shape.keys, headDim);
    decode(shape, shape.values, page, shape.tile, false);
    rowsFromTile(shape.tile, WINDOW, rowBytes, headDim, values);
    page += blockBytes(shape.values, headDim);
    keys += headDim << 2;
    values += headDim << 2;
  }
}
