// Scores and mix over a single block, for callers with a cache of their own. `attend` runs the same kernels over pages.

import { Lanes, VECTOR_BYTES, vadd, vmul, vsplat, vsplatAt } from "lanes";
import { LANE_ROW, Shape, TILE_ROW } from "./abi";
import { scoreWindow } from "./attend";
import { unpackMean, unpackNorms } from "./decode";
import { hadamard } from "./hadamard";
import { scatterAdd, reduceBuckets, mixMean } from "./mix";
import { buildTable, gather } from "./scores";
import { O, S1, S2 } from "./scratch";

/**
 * Logits of up to four queries against one block.
 *
 *   q    f32 [headDim, LANES]
 *   out  f32 [64, LANES]
 *
 * Specification: `scores` in src/reference/reference.ts.
 */
export function scores(shape: Shape, q: usize, block: usize, out: usize): void {
  const keys = shape.keys, headDim = shape.headDim, rotated = shape.states;
  memory.copy(rotated, q, headDim * LANE_ROW);
  hadamard(rotated, headDim, LANE_ROW, shape.hadamardSize, shape.hadamardScale);
  buildTable(keys, rotated, headDim);
  for (let column: usize = 0; column < keys.rowBytes; column += 8) gather(block, keys.rowBytes, column, out);
  scoreWindow(shape, q, block, out, shape.states);
}

/**
 * Weighted sums of one block's tokens.
 *
 *   weights  f32 [64, LANES]       destroyed
 *   out      f32 [headDim, LANES]
 *
 * Specification: `mix` in src/reference/reference.ts.
 */
export function mix(shape: Shape, weights: usize, block: usize, out: usize): void {
  const values = shape.values, headDim = shape.headDim;
  const scratch = shape.scratch, s1 = scratch + S1, s2 = scratch + S2, o = scratch + O, share = shape.states;
  unpackNorms(values, block, s1, s2);
  unpackMean(values, block, headDim, o);
  scaleWeights(weights, s1, s2, share);
  for (let column: usize = 0; column < values.rowBytes; column += 8) scatterAdd(block, values.rowBytes, column, weights);
  reduceBuckets(values, headDim, out);
  hadamard(out, headDim, LANE_ROW, shape.hadamardSize, shape.hadamardScale);
  mixMean(share, o, headDim, out);
}

/** weights[t] ← weights[t]·s1·s2; share = Σ weights·s1: `softmaxWeights` without its exponential. */
function scaleWeights(weights: usize, s1: usize, s2: usize, share: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let shares = vsplat(0), p = weights + lane;
    for (let t: usize = 0; t < TILE_ROW; t += 4, p += LANE_ROW) {
      const weight = vmul(load<Lanes>(p), vsplatAt(s1 + t));
      shares = vadd(shares, weight);
      store<Lanes>(p, vmul(weight, vsplatAt(s2 + t)));
    }
    store<Lanes>(share + lane, shares);
  }
}
