// Normalize: norms of tokens, and division by them. Tokens in lanes.

import { Lanes, VECTOR_BYTES, vadd, vdiv, vgt, vmul, vselect, vsplat, vsqrt } from "lanes";
import { TILE_ROW } from "./abi";

/**
 * norms[t] = √(Σ x[i, t]² / headDim)
 *
 *   x      f32 [headDim, 64]
 *   norms  f32 [64]
 *
 * Sums run over channels in order, in every build. Specification: `normalize` in src/reference/reference.ts.
 */
export function norms(x: usize, headDim: usize, norms: usize): void {
  const end = headDim * TILE_ROW;
  const channels = vsplat(<f32>headDim);
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    let sum = vsplat(0);
    for (let i: usize = 0; i < end; i += TILE_ROW) {
      const v = load<Lanes>(x + t + i);
      sum = vadd(sum, vmul(v, v));
    }
    store<Lanes>(norms + t, vsqrt(vdiv(sum, channels)));
  }
}

/** x[i, t] ← x[i, t] / norms[t], by the reciprocal; a token of norm 0 becomes 0. */
export function divide(x: usize, headDim: usize, norms: usize): void {
  const end = headDim * TILE_ROW;
  const one = vsplat(1), zero = vsplat(0);
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    const norm = load<Lanes>(norms + t);
    const inverse = vselect(vdiv(one, norm), zero, vgt(norm, zero));
    for (let i: usize = 0; i < end; i += TILE_ROW) {
      store<Lanes>(x + t + i, vmul(load<Lanes>(x + t + i), inverse));
    }
  }
}
