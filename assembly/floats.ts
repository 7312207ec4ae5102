// Small floats: second norms in a byte each, 3 bits of exponent and 5 of mantissa over the exponent of their group. Integers alone: every
// backend makes the same bytes.

import { VECTOR_BYTES } from "lanes";
import { TILE_ROW } from "./abi";

/** The number nearest to x in units of 2¹⁸ of an f32's bits: 8 bits of exponent, 5 of mantissa. */
@inline function rounded(x: f32): i32 {
  return (reinterpret<i32>(x) + 0x20000) >>> 18;
}

/**
 * The smallest exponent under which all of x are at most 255 units beyond it; what is too small beside the largest becomes 0.
 *
 *   x         f32 [64], none negative
 *   codes     u8  [64]
 *   exponent  u8
 *
 * Specification: `roundToFloats` in src/reference/reference.ts.
 */
export function packFloats(x: usize, codes: usize, exponent: usize): void {
  let most = 0;
  for (let p = x, end = x + TILE_ROW; p < end; p += 4) most = max<i32>(most, rounded(load<f32>(p)));
  const least = max<i32>(1, (most - 224) >> 5);
  store<u8>(exponent, least);
  for (const end = x + TILE_ROW; x < end; x += 4, codes++) store<u8>(codes, max<i32>(0, rounded(load<f32>(x)) - (least << 5)));
}

/** Their inverse: (32 · exponent + code) << 18 as the bits of an f32, 0 for code 0. */
export function unpackFloats(codes: usize, exponent: usize, x: usize): void {
  const base = <i32>load<u8>(exponent) << 5;
  if (VECTOR_BYTES == 16) {
    // The upper halves of numbers; the lower are 0.
    const base_i16x8 = i16x8.splat(<i16>base), zero = i16x8.splat(0);
    for (const end = x + TILE_ROW; x < end; x += 64, codes += 16) {
      const row = v128.load(codes);
      const low = v128Upper(i16x8.extend_low_i8x16_u(row), base_i16x8, zero);
      const high = v128Upper(i16x8.extend_high_i8x16_u(row), base_i16x8, zero);
      v128.store(x, i16x8.shuffle(zero, low, 0, 8, 1, 9, 2, 10, 3, 11));
      v128.store(x, i16x8.shuffle(zero, low, 4, 12, 5, 13, 6, 14, 7, 15), 16);
      v128.store(x, i16x8.shuffle(zero, high, 0, 8, 1, 9, 2, 10, 3, 11), 32);
      v128.store(x, i16x8.shuffle(zero, high, 4, 12, 5, 13, 6, 14, 7, 15), 48);
    }
  } else {
    for (const end = x + TILE_ROW; x < end; x += 4, codes++) {
      const code = <i32>load<u8>(codes);
      store<i32>(x, code == 0 ? 0 : (base + code) << 18);
    }
  }
}

@inline function v128Upper(codes: v128, base: v128, zero: v128): v128 {
  return v128.and(i16x8.shl(i16x8.add(codes, base), 2), i16x8.ne(codes, zero));
}
