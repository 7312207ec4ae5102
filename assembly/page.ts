// Pages, raw and coded: the loops over the heads of one, and where its blocks are.

import { Item, QUARTER, Shape, WINDOW } from "./abi";
import { decode } from "./decode";
import { encode } from "./encode";
import { orderBytes } from "./order";
import { rowsFromTile, tileFromHalves } from "./tile";

/** Address of the keys of one head in page `n` of an item; its values follow. */
@inline export function headBlocks(shape: Shape, item: Item, n: usize, head: usize): usize {
  return <usize>load<u32>(item.pages + (n << 2)) + head * (shape.keys.bytes + shape.values.bytes);
}

/** Position of the first token of page `n` of an item, counted from the item's first query token. */
@inline export function pagePosition(item: Item, n: usize): f32 {
  return <f32>(<i32>load<u32>(item.positions + (n << 2)) - <i32>item.position);
}

/** Address of the keys of one head in the nth piece of raw tokens, of so many tokens; its values follow. */
@inline export function rawKeys(shape: Shape, addresses: usize, n: usize, capacity: usize, head: usize): usize {
  return <usize>load<u32>(addresses + (n << 2)) + head * (capacity * (shape.keys.headDim + shape.values.headDim) << 1);
}

/** A head's keys or values of a raw window to a tile. */
export function tileFromRaw(shape: Shape, raw: usize, head: usize, values: bool, tile: usize): void {
  const headDim = shape.keys.headDim, channels = values ? shape.values.headDim : headDim;
  const offset: usize = values ? QUARTER * headDim << 1 : 0;
  for (let n: usize = 0; n < WINDOW / QUARTER; n++) {
    tileFromHalves(rawKeys(shape, raw, n, QUARTER, head) + offset, QUARTER, channels, tile + n * QUARTER * 4);
  }
}

/** The order of a head's keys, of the orders of a sequence; 0 where keys are not balanced. */
@inline export function orderOf(orders: usize, head: usize, headDim: usize): usize {
  return orders ? orders + head * orderBytes(headDim) : 0;
}

/**
 * A raw window into a page, every head, keys and values; padding of the page is left as it is.
 *
 *   raw  u32 [4]: addresses of its quarters
 */
export function encodePage(shape: Shape, orders: usize, raw: usize, page: usize): void {
  for (let head: usize = 0; head < shape.kvHeads; head++) {
    tileFromRaw(shape, raw, head, false, shape.tile);
    encode(shape, shape.keys, orderOf(orders, head, shape.keys.headDim), shape.tile, page, true);
    page += shape.keys.bytes;
    tileFromRaw(shape, raw, head, true, shape.tile);
    encode(shape, shape.values, 0, shape.tile, page, false);
    page += shape.values.bytes;
  }
}

/** A page's 64 tokens as f32 [64, kvHeads, headDim] of keys and f32 [64, kvHeads, valueDim] of values. */
export function decodePage(shape: Shape, orders: usize, page: usize, keys: usize, values: usize): void {
  const headDim = shape.keys.headDim, valueDim = shape.values.headDim;
  for (let head: usize = 0; head < shape.kvHeads; head++) {
    decode(shape, shape.keys, orderOf(orders, head, headDim), page, shape.tile, true);
    rowsFromTile(shape.tile, WINDOW, shape.kvHeads * headDim << 2, headDim, keys);
    page += shape.keys.bytes;
    decode(shape, shape.values, 0, page, shape.tile, false);
    rowsFromTile(shape.tile, WINDOW, shape.kvHeads * valueDim << 2, valueDim, values);
    page += shape.values.bytes;
    keys += headDim << 2;
    values += valueDim << 2;
  }
}
