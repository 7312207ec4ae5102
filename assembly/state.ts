// The online softmax of four query rows, while attend passes over pages and raw windows: a record in Shape.states.
//
//   m         f32 [LANES]            running maximum of the logits, in base 2
//   d         f32 [LANES]            Σ 2^(logit − m)
//   position  f32 [LANES]            of a row's token, from that of the call's first on; ascending
//   slope     f32 [LANES]            slope · log2 e of a row's query head
//   scale     f32 [LANES]            of q in integers (prompt.ts)
//   o         f32 [valueDim, LANES]  Σ 2^(logit − m) · V
//   q         f32 [headDim, LANES]   query · query scale · log2 e
//   q         i16 [headDim / 2, LANES, 2]   in integers (prompt.ts)

import { Lanes, VECTOR_BYTES, vmul, vsplat, vsplatAt, vsub } from "lanes";
import { LANE_ROW } from "./abi";
import { EXP, exp2, MASKED } from "./softmax";

const O_OFFSET: usize = 5 * LANE_ROW;
@inline function integersOffset(headDim: usize, valueDim: usize): usize { return O_OFFSET + (valueDim + headDim) * LANE_ROW; }
@inline export function stateBytes(headDim: usize, valueDim: usize): usize {
  return integersOffset(headDim, valueDim) + headDim * LANE_ROW / 2;
}

@inline export function mOf(state: usize): usize { return state; }
@inline export function dOf(state: usize): usize { return state + LANE_ROW; }
@inline export function positionOf(state: usize): usize { return state + 2 * LANE_ROW; }
@inline export function slopeOf(state: usize): usize { return state + 3 * LANE_ROW; }
@inline export function scaleOf(state: usize): usize { return state + 4 * LANE_ROW; }
@inline export function oOf(state: usize): usize { return state + O_OFFSET; }
@inline export function qOf(state: usize, valueDim: usize): usize { return state + O_OFFSET + valueDim * LANE_ROW; }
@inline export function integersOf(state: usize, headDim: usize, valueDim: usize): usize { return state + integersOffset(headDim, valueDim); }

/** The state before the first token, and q = 0. */
export function init(state: usize, headDim: usize, valueDim: usize): void {
  memory.fill(state, 0, integersOffset(headDim, valueDim));
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) store<Lanes>(mOf(state) + lane, vsplat(MASKED));
}

/** Whether a row of the states from `first` to `last` sees a token of those from `begin` to before `end`. */
export function seesSome(first: usize, last: usize, begin: f32, end: f32, window: f32): bool {
  return begin <= load<f32>(positionOf(last), LANE_ROW - 4) && end > load<f32>(positionOf(first)) + 1 - window;
}

/** Whether every row of the states from `first` to `last` sees all tokens from `begin` to before `end`. */
export function seesAll(first: usize, last: usize, begin: f32, end: f32, window: f32): bool {
  return end <= load<f32>(positionOf(first)) + 1 && begin > load<f32>(positionOf(last), LANE_ROW - 4) - window;
}

/**
 * The running maximum becomes `top`, which is no less: m ← top, and d and o are multiplied by factor = 2^(m − top).
 *
 *   top, factor  f32 [LANES]
 *   o            f32 [valueDim, LANES]   the state's, or where it is gathered
 */
export function raise(state: usize, top: usize, factor: usize, o: usize, valueDim: usize): void {
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
    for (let p = o + lane, end = p + valueDim * LANE_ROW; p < end; p += LANE_ROW) store<Lanes>(p, vmul(load<Lanes>(p), by));
  }
}

/**
 * to[i] = o[i] / d of one row, the lane at that offset in bytes; and its m and d. A row that saw nothing, though masked tokens were
 * weighed, has o = 0 and d = 0.
 */
export function normalize(state: usize, lane: usize, valueDim: usize, to: usize, denominators: usize): void {
  const m = load<f32>(mOf(state) + lane), d: f32 = m == MASKED ? 0 : load<f32>(dOf(state) + lane);
  const inverse: f32 = d > 0 ? 1 / d : 0;
  store<f32>(denominators, m);
  store<f32>(denominators, d, 4);
  for (let p = oOf(state) + lane, end = p + valueDim * LANE_ROW; p < end; p += LANE_ROW, to += 4) {
    store<f32>(to, load<f32>(p) * inverse);
  }
}
