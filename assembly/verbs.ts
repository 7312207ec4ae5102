// Scores and mix over a single block, for callers with a cache of their own. `attend` runs the same kernels over pages.

import { Lanes, VECTOR_BYTES, vadd, vmul, vsplat, vsplatAt } from "lanes";
import { LANE_ROW, segmentOf, Shape, Side, TILE_ROW } from "./abi";
import { scoreWindow } from "./attend";
import { unpackMean, unpackS1, unpackS2 } from "./decode";
import { hadamard } from "./hadamard";
import { clearBuckets, scatterAdd, reduceBuckets, mixMean } from "./mix";
import { outOfOrder } from "./order";
import { buildTable, gather, gatherScaled } from "./scores";
import { hqOf, O, S1, S2, WINDOW_SCORES } from "./scratch";

/**
 * Logits of up to four queries against one block.
 *
 *   order  of balanced keys (order.ts), or 0
 *   q      f32 [headDim, LANES]
 *   out    f32 [64, LANES]
 *
 * Specification: `scores` in src/reference/reference.ts.
 */
export function scores(shape: Shape, side: Side, order: usize, q: usize, block: usize, out: usize): void {
  const s2 = shape.scratch + S2, apart = side.segmentCount > 1;
  buildTable(side, order, q, side.headDim, hqOf(shape));
  if (apart) unpackS2(side, block, s2);
  for (let column: usize = 0; column < side.rowBytes; column += 8) {
    if (apart) gatherScaled(block, side.rowBytes, column, side.pairNorms + (column << 1), s2, out);
    else gather(block, side.rowBytes, column, out);
  }
  scoreWindow(shape, side, q, block, out, shape.states);
}

/**
 * Weighted sums of one block's tokens. Of several segments, each fills all buckets with weights of its own and reads those of its
 * columns.
 *
 *   order    of balanced keys (order.ts), or 0
 *   weights  f32 [64, LANES]
 *   out      f32 [headDim, LANES]
 *
 * Specification: `mix` in src/reference/reference.ts.
 */
export function mix(shape: Shape, side: Side, order: usize, weights: usize, block: usize, out: usize): void {
  const headDim = side.headDim, scratch = shape.scratch, s1 = scratch + S1, s2 = scratch + S2, o = scratch + O;
  const share = shape.states, y = order ? hqOf(shape) : out;
  unpackS1(side, block, s1);
  unpackS2(side, block, s2);
  unpackMean(side, block, headDim, o);
  memory.fill(y, 0, headDim * LANE_ROW);
  for (let n: usize = 0; n < side.segmentCount; n++) {
    const segment = segmentOf(side, n), rows = y + segment.channel * LANE_ROW;
    scaleWeights(weights, s1, s2 + n * TILE_ROW, scratch + WINDOW_SCORES, share);
    for (let column: usize = 0; column < side.rowBytes; column += 8) scatterAdd(block, side.rowBytes, column, scratch + WINDOW_SCORES);
    reduceBuckets(segment, rows);
    clearBuckets(side, 0);
    hadamard(rows, segment.channels, LANE_ROW);
  }
  if (order) outOfOrder(y, order, headDim, LANE_ROW, out);
  mixMean(share, o, headDim, out);
}

/** out[t] = weights[t]·s1·s2; share = Σ weights·s1: `softmaxWeights` without its exponential. */
function scaleWeights(weights: usize, s1: usize, s2: usize, out: usize, share: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let shares = vsplat(0), p = weights + lane, to = out + lane;
    for (let t: usize = 0; t < TILE_ROW; t += 4, p += LANE_ROW, to += LANE_ROW) {
      const weight = vmul(load<Lanes>(p), vsplatAt(s1 + t));
      shares = vadd(shares, weight);
      store<Lanes>(to, vmul(weight, vsplatAt(s2 + t)));
    }
    store<Lanes>(share + lane, shares);
  }
}
