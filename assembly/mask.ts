// The causal mask: a query sees tokens up to its own.

import { Lanes, VECTOR_BYTES, vadd, vgt, vmax, vselect, vsplat } from "lanes";
import { LANE_ROW } from "./abi";
import { HIDDEN } from "./softmax";

/** Tokens at or beyond a lane's limit get no probability: scores ← HIDDEN. Returns nothing; most is computed again. */
export function hide(scores: usize, tokens: usize, position: f32, limits: usize, most: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const limit = load<Lanes>(limits + lane), hidden = vsplat(HIDDEN), one = vsplat(1);
    let at = vsplat(position), max = load<Lanes>(most + lane);
    for (let p = scores + lane, end = p + (tokens << 4); p < end; p += LANE_ROW) {
      const score = vselect(load<Lanes>(p), hidden, vgt(limit, at));
      max = vmax(max, score);
      store<Lanes>(p, score);
      at = vadd(at, one);
    }
    store<Lanes>(most + lane, max);
  }
}
