// Shift: the channel mean over a window, before RoPE where there is one, and its subtraction. Tokens in lanes.

import { Lanes, VECTOR_BYTES, vadd, vmul, vsplat, vsub } from "lanes";
import { MEAN_GROUP, Shape, TILE_ROW } from "./abi";
import { rtn } from "./rtn";

/**
 * o = RTN(mean over t of RoPE⁻¹ᵤ(x)), u = t − 31.5; groups of 32 channels.
 *
 *   x       f32 [headDim, 64]
 *   o       f32 [headDim]             dequantized
 *   codes   u4 or u8 [headDim]
 *   scales  f16 [groups, 2]
 *   bits    4 or 8
 *   rotate  whether x carries RoPE
 *
 * Specification: `shift` in src/reference/reference.ts.
 */
export function mean(
  shape: Shape, x: usize, headDim: usize, o: usize, codes: usize, scales: usize, bits: usize, rotate: bool
): void {
  const pairs = rotate ? shape.pairs : 0;
  for (let pair: usize = 0; pair < pairs; pair++) {
    const a = pair * shape.pairStep, b = a + shape.pairOffset;   // bytes in o; × 64 in the tile
    pairMean(x + a * 64, x + b * 64, shape.cos + pair * TILE_ROW, shape.sin + pair * TILE_ROW, o + a, o + b);
  }
  for (let i = pairs << 1; i < headDim; i++) store<f32>(o + (i << 2), rowSum(x + i * TILE_ROW) / 64);
  for (let i: usize = 0; i < headDim; i += MEAN_GROUP) {
    rtn(o + (i << 2), min<usize>(MEAN_GROUP, headDim - i), codes + (i * bits >> 3), scales + (i >> 3), bits, false);
  }
}

/** x[i, t] ← x[i, t] + sign · RoPEᵤ(o)[i]. Used by encode (−1) and decode (+1). */
export function addMean(shape: Shape, x: usize, headDim: usize, o: usize, sign: f32, rotate: bool): void {
  const pairs = rotate ? shape.pairs : 0;
  for (let pair: usize = 0; pair < pairs; pair++) {
    const a = pair * shape.pairStep, b = a + shape.pairOffset;
    const oa = vsplat(sign * load<f32>(o + a)), ob = vsplat(sign * load<f32>(o + b));
    const xa = x + a * 64, xb = x + b * 64;
    const cos = shape.cos + pair * TILE_ROW, sin = shape.sin + pair * TILE_ROW;
    for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
      const c = load<Lanes>(cos + t), s = load<Lanes>(sin + t);
      store<Lanes>(xa + t, vadd(load<Lanes>(xa + t), vsub(vmul(oa, c), vmul(ob, s))));
      store<Lanes>(xb + t, vadd(load<Lanes>(xb + t), vadd(vmul(ob, c), vmul(oa, s))));
    }
  }
  for (let i = pairs << 1; i < headDim; i++) {
    const oi = vsplat(sign * load<f32>(o + (i << 2)));
    for (let p = x + i * TILE_ROW, end = p + TILE_ROW; p < end; p += VECTOR_BYTES) {
      store<Lanes>(p, vadd(load<Lanes>(p), oi));
    }
  }
}

/** Means of one pair turned back by its angles. Sums run in four strands, tokens t mod 4, in every build. */
function pairMean(xa: usize, xb: usize, cos: usize, sin: usize, a: usize, b: usize): void {
  for (let lane: usize = 0; lane < 16; lane += VECTOR_BYTES) {
    let sumA = vsplat(0), sumB = vsplat(0);
    for (let t = lane; t < TILE_ROW; t += 16) {
      const va = load<Lanes>(xa + t), vb = load<Lanes>(xb + t);
      const c = load<Lanes>(cos + t), s = load<Lanes>(sin + t);
      sumA = vadd(sumA, vadd(vmul(va, c), vmul(vb, s)));
      sumB = vadd(sumB, vsub(vmul(vb, c), vmul(va, s)));
    }
    store<Lanes>(MEAN_STRANDS + lane, sumA);
    store<Lanes>(MEAN_STRANDS + lane, sumB, 16);
  }
  store<f32>(a, strandSum(MEAN_STRANDS) / 64);
  store<f32>(b, strandSum(MEAN_STRANDS + 16) / 64);
}

function rowSum(x: usize): f32 {
  for (let lane: usize = 0; lane < 16; lane += VECTOR_BYTES) {
    let sum = vsplat(0);
    for (let t = lane; t < TILE_ROW; t += 16) sum = vadd(sum, load<Lanes>(x + t));
    store<Lanes>(MEAN_STRANDS + lane, sum);
  }
  return strandSum(MEAN_STRANDS);
}

@inline function strandSum(p: usize): f32 {
  return load<f32>(p) + load<f32>(p, 4) + (load<f32>(p, 8) + load<f32>(p, 12));
}

/** f32 [2, 4]: partial sums on their way from lanes to one number. */
const MEAN_STRANDS: usize = memory.data(32, 16);
