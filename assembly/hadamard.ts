// Hadamard transform of the rows of a matrix whose lanes are independent: tokens of a tile, or heads of a query.

import { Lanes, VECTOR_BYTES, vadd, vmul, vsplat, vsub } from "lanes";

/**
 * x ← H·x in place, lane by lane: H_n / √n for every block of n rows, n the powers of two that `rows` is the sum of, largest first.
 * H is symmetric: the transform is its own inverse.
 *
 *   x     f32 [rows, rowBytes / 4]
 *
 * Butterfly, stride h = 1, 2, 4 … n/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
 * Specification: `hadamard` in src/reference/reference.ts.
 */
export function hadamard(x: usize, rows: usize, rowBytes: usize): void {
  while (rows > 0) {
    const n: usize = 1 << (31 - clz<u32>(<u32>rows));
    block(x, n, rowBytes);
    x += n * rowBytes;
    rows -= n;
  }
}

function block(x: usize, n: usize, rowBytes: usize): void {
  const end = x + n * rowBytes;
  for (let h = rowBytes; h < n * rowBytes; h <<= 1) {
    for (let half = x; half < end; half += h << 1) {
      for (let p = half; p < half + h; p += VECTOR_BYTES) {
        const a = load<Lanes>(p), b = load<Lanes>(p + h);
        store<Lanes>(p, vadd(a, b));
        store<Lanes>(p + h, vsub(a, b));
      }
    }
  }
  const scale = vsplat(<f32>(1 / sqrt<f64>(<f64>n)));
  for (let p = x; p < end; p += VECTOR_BYTES) store<Lanes>(p, vmul(load<Lanes>(p), scale));
}
