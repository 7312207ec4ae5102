// Between rows of tokens, as callers and raw pages have them, and tiles with tokens in lanes.

import { Lanes, VECTOR_BYTES, vhalfBits, vhalfScale, vloadHalf } from "lanes";
import { TILE_ROW, WINDOW } from "./abi";
import { clampHalf, toHalf } from "./half";

/** tile[i, t] = rows[t, i] for `tokens` rows of f16, a multiple of 4. */
export function tileFromHalves(rows: usize, tokens: usize, headDim: usize, tile: usize): void {
  const rowBytes = headDim << 1, bits = vhalfBits(), scale = vhalfScale();
  for (let t: usize = 0; t < tokens; t += VECTOR_BYTES >> 2) {
    const row = rows + t * rowBytes;
    for (let i: usize = 0; i < headDim; i += VECTOR_BYTES >> 2) {
      const p = row + (i << 1), to = tile + i * TILE_ROW + (t << 2);
      if (VECTOR_BYTES == 16) {
        transpose(
          vloadHalf(p, bits, scale), vloadHalf(p + rowBytes, bits, scale), vloadHalf(p + 2 * rowBytes, bits, scale),
          vloadHalf(p + 3 * rowBytes, bits, scale), to, TILE_ROW
        );
      } else {
        store<Lanes>(to, vloadHalf(p, bits, scale));
      }
    }
  }
}

/** tile[i, t] = rows[t, i] for `tokens` rows of f32, rowBytes apart; other tokens become 0. */
export function tileFromRows(rows: usize, tokens: usize, rowBytes: usize, headDim: usize, tile: usize): void {
  for (let i: usize = 0; i < headDim; i++) {
    for (let t: usize = 0; t < WINDOW; t++) {
      store<f32>(tile + i * TILE_ROW + (t << 2), t < tokens ? load<f32>(rows + t * rowBytes + (i << 2)) : 0);
    }
  }
}

/** rows[t, i] = tile[i, t] for `tokens` rows of f32, rowBytes apart. */
export function rowsFromTile(tile: usize, tokens: usize, rowBytes: usize, headDim: usize, rows: usize): void {
  for (let t: usize = 0; t < tokens; t++) {
    for (let i: usize = 0; i < headDim; i++) store<f32>(rows + t * rowBytes + (i << 2), load<f32>(tile + i * TILE_ROW + (t << 2)));
  }
}

/** f32 → f16, to nearest even. What f16 cannot hold (decoded tokens; the host refuses it in others) becomes its largest. */
export function halvesFromFloats(x: usize, count: usize, halves: usize): void {
  for (let i: usize = 0; i < count; i++) {
    store<u16>(halves + (i << 1), toHalf(clampHalf(load<f32>(x + (i << 2)))));
  }
}

@inline function transpose(a: v128, b: v128, c: v128, d: v128, to: usize, stride: usize): void {
  const ab0 = i32x4.shuffle(a, b, 0, 4, 1, 5), ab1 = i32x4.shuffle(a, b, 2, 6, 3, 7);
  const cd0 = i32x4.shuffle(c, d, 0, 4, 1, 5), cd1 = i32x4.shuffle(c, d, 2, 6, 3, 7);
  v128.store(to, i32x4.shuffle(ab0, cd0, 0, 1, 4, 5));
  v128.store(to + stride, i32x4.shuffle(ab0, cd0, 2, 3, 6, 7));
  v128.store(to + 2 * stride, i32x4.shuffle(ab1, cd1, 0, 1, 4, 5));
  v128.store(to + 3 * stride, i32x4.shuffle(ab1, cd1, 2, 3, 6, 7));
}
