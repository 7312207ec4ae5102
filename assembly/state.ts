// The online softmax of four query rows, while attend passes over pages and raw windows: a record in Shape.states.
//
//   m       f32 [LANES]            running maximum of the logits, in base 2
//   d       f32 [LANES]            Σ 2^(logit − m)
//   limit   f32 [LANES]            position of the first token that a row does not see; ascending
//   scale   f32 [LANES]            of q in integers (prompt.ts)
//   o       f32 [headDim, LANES]   Σ 2^(logit − m) · V
//   q       f32 [headDim, LANES]   query · query scale · log2 e
//   q       i16 [headDim / 2, LANES, 2]   in integers (prompt.ts)

import { Lanes, VECTOR_BYTES, vmul, vsplat, vsplatAt, vsub } from "lanes";
import { LANE_ROW } from "./abi";
import { EXP, exp2, MASKED } from "./softmax";

// Offsets of o and what follows it, for kernels that run through several of them at once.
export const O_OFFSET: usize = 4 * LANE_ROW;
@inline export function qOffset(headDim: usize): usize { return O_OFFSET + headDim * LANE_ROW; }
@inline export function integersOffset(headDim: usize): usize { return O_OFFSET + 2 * headDim * LANE_ROW; }
@inline export function stateBytes(headDim: usize): usize { return integersOffset(headDim) + headDim * LANE_ROW / 2; }

@inline export function mOf(state: usize): usize { return state; }
@inline export function dOf(state: usize): usize { return state + LANE_ROW; }
@inline export function limitOf(state: usize): usize { return state + 2 * LANE_ROW; }
@inline export function scaleOf(state: usize): usize { return state + 3 * LANE_ROW; }
@inline export function oOf(state: usize): usize { return state + O_OFFSET; }
@inline export function qOf(state: usize, headDim: usize): usize { return state + qOffset(headDim); }
@inline export function integersOf(state: usize, headDim: usize): usize { return state + integersOffset(headDim); }

/** The state before the first token, and q = 0. */
export function init(state: usize, headDim: usize): void {
  memory.fill(state, 0, integersOffset(headDim));
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) store<Lanes>(mOf(state) + lane, vsplat(MASKED));
}

/** Whether any row of the state sees a token at this position: the last of them does, as limits ascend. */
@inline export function sees(state: usize, position: f32): bool {
  return position < load<f32>(limitOf(state), LANE_ROW - 4);
}

/** Whether every row of the state sees all tokens before this position: the first of them does. */
@inline export function seesAllBefore(state: usize, position: f32): bool {
  return position <= load<f32>(limitOf(state));
}

/**
 * The running maximum becomes `top`, which is no less: m ← top, and d and o are multiplied by factor = 2^(m − top).
 *
 *   top, factor  f32 [LANES]
 *   o            f32 [headDim, LANES]   the state's, or where it is gathered
 */
export function raise(state: usize, top: usize, factor: usize, o: usize, headDim: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const m = mOf(state) + lane, d = dOf(state) + lane;
    const by = exp2(
      vsub(load<Lanes>(m), load<Lanes>(top + lane)),
      vsplatAt(EXP), vsplatAt(EXP + 4), vsplatAt(EXP + 8), vsplatAt(EXP + 12),
      vsplatAt(EXP + 16), vsplatAt(EXP + 20), vsplatAt(EXP + 24), vsplatAt(EXP + 28)
    );
    store<Lanes>(factor + lane, by);
    store<Lanes>(m, load<Lanes>(top + lane));
    store<Lanes>(d, vmul(load<Lanes>(d), by));
    for (let p = o + lane, end = p + headDim * LANE_ROW; p < end; p += LANE_ROW) store<Lanes>(p, vmul(load<Lanes>(p), by));
  }
}

/** to[i] = o[i] / d of one row, the lane at that offset in bytes. */
export function normalize(state: usize, lane: usize, headDim: usize, to: usize): void {
  const inverse = <f32>1 / load<f32>(dOf(state) + lane);
  for (let p = oOf(state) + lane, end = p + headDim * LANE_ROW; p < end; p += LANE_ROW, to += 4) {
    store<f32>(to, load<f32>(p) * inverse);
  }
}
