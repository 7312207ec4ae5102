// The causal mask: a query sees tokens up to its own.

import { Lanes, VECTOR_BYTES, vadd, vgt, vmax, vselect, vsplat } from "lanes";
import { LANE_ROW } from "./abi";
import { MASKED } from "./softmax";

/**
 * Tokens at or beyond a row's limit get no probability: scores ← MASKED. The largest of what is left raises `top`.
 *
 *   scores    f32 [tokens, LANES]
 *   position  of the first token
 *   limits    f32 [LANES]
 *   top       f32 [LANES]
 */
export function causalMask(scores: usize, tokens: usize, position: f32, limits: usize, top: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const limit = load<Lanes>(limits + lane), masked = vsplat(MASKED), one = vsplat(1);
    let at = vsplat(position), max = load<Lanes>(top + lane);
    for (let p = scores + lane, end = p + (tokens << 4); p < end; p += LANE_ROW) {
      const score = vselect(load<Lanes>(p), masked, vgt(limit, at));
      max = vmax(max, score);
      store<Lanes>(p, score);
      at = vadd(at, one);
    }
    store<Lanes>(top + lane, max);
  }
}
