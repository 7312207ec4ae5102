// Hadamard transform of the rows of a matrix whose lanes are independent: tokens of a tile, or heads of a query.

import { Lanes, VECTOR_BYTES, vadd, vmul, vsplat, vsub } from "lanes";

/**
 * x ← H_n / √n · x for every n rows, in place, lane by lane. H is symmetric: the transform is its own inverse.
 *
 *   x         f32 [rows, rowBytes / 4]
 *   rows      a multiple of n
 *   n         power of two
 *   scale     1/√n, rounded to f32 once by the host so that every backend uses the same bits
 *
 * Butterfly, stride h = 1, 2, 4 … n/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
 * Specification: `hadamard` in src/reference/reference.ts.
 */
export function hadamard(x: usize, rows: usize, rowBytes: usize, n: usize, scale: f32): void {
  const end = x + rows * rowBytes;
  const bytes = n * rowBytes;
  for (let first = x; first < end; first += bytes) {
    for (let h = rowBytes; h < bytes; h <<= 1) {
      for (let half = first; half < first + bytes; half += h << 1) {
        for (let p = half; p < half + h; p += VECTOR_BYTES) {
          const a = load<Lanes>(p), b = load<Lanes>(p + h);
          store<Lanes>(p, vadd(a, b));
          store<Lanes>(p + h, vsub(a, b));
        }
      }
    }
  }
  const scales = vsplat(scale);
  for (let p = x; p < end; p += VECTOR_BYTES) store<Lanes>(p, vmul(load<Lanes>(p), scales));
}
