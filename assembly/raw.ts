// Attention over raw tokens (sinks, tail, a prompt's own tokens): dense, f32 arithmetic on f16 rows. Heads in lanes.

import { Lanes, VECTOR_BYTES, vadd, vhalfBits, vhalfScale, vloadHalf, vmadd, vsplat, vsplatAt, vsplatAt4, vsplatAt8,
  vsplatAt12, vsub, vmax } from "lanes";
import { LANE_ROW } from "./abi";
import { EXP, exp2 } from "./softmax";

/** f32 [count] from f16 [count]; count a multiple of 4. */
export function widen(halves: usize, count: usize, floats: usize): void {
  const bits = vhalfBits(), scale = vhalfScale();
  for (const end = floats + (count << 2); floats < end; floats += VECTOR_BYTES, halves += VECTOR_BYTES >> 1) {
    store<Lanes>(floats, vloadHalf(halves, bits, scale));
  }
}

/**
 * scores[t] = ⟨q, K[t]⟩ and top = their running maximum. Tiles of four tokens; the last may read up to three rows beyond.
 *
 *   q       f32 [headDim, LANES]
 *   keys    f32 [tokens, headDim]
 *   scores  f32 [tokens, LANES]
 */
export function rawScores(q: usize, keys: usize, tokens: usize, headDim: usize, scores: usize, top: usize): void {
  const rowBytes = headDim << 2;
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let max = load<Lanes>(top + lane);
    for (let t: usize = 0; t < tokens; t += 4) {
      let a0 = vsplat(0), a1 = a0, a2 = a0, a3 = a0;
      let k0 = keys + t * rowBytes, k1 = k0 + rowBytes, k2 = k1 + rowBytes, k3 = k2 + rowBytes;
      for (let p = q + lane, end = p + headDim * LANE_ROW; p < end; p += LANE_ROW) {
        const v = load<Lanes>(p);
        a0 = vmadd(v, vsplatAt(k0), a0);
        a1 = vmadd(v, vsplatAt(k1), a1);
        a2 = vmadd(v, vsplatAt(k2), a2);
        a3 = vmadd(v, vsplatAt(k3), a3);
        k0 += 4, k1 += 4, k2 += 4, k3 += 4;
      }
      const to = scores + lane + (t << 4);
      store<Lanes>(to, a0);
      store<Lanes>(to, a1, 16);
      store<Lanes>(to, a2, 32);
      store<Lanes>(to, a3, 48);
      max = vmax(max, a0);
      if (t + 1 < tokens) max = vmax(max, a1);
      if (t + 2 < tokens) max = vmax(max, a2);
      if (t + 3 < tokens) max = vmax(max, a3);
    }
    store<Lanes>(top + lane, max);
  }
}

/** scores[t] ← 2^(scores[t] − m); d += Σ. */
export function rawWeights(scores: usize, tokens: usize, m: usize, d: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const max = load<Lanes>(m + lane);
    const low = vsplatAt(EXP), magic = vsplatAt(EXP + 4), c0 = vsplatAt(EXP + 8), c1 = vsplatAt(EXP + 12);
    const c2 = vsplatAt(EXP + 16), c3 = vsplatAt(EXP + 20), c4 = vsplatAt(EXP + 24), c5 = vsplatAt(EXP + 28);
    let total = load<Lanes>(d + lane);
    for (let p = scores + lane, end = p + tokens * LANE_ROW; p < end; p += LANE_ROW) {
      const e = exp2(vsub(load<Lanes>(p), max), low, magic, c0, c1, c2, c3, c4, c5);
      total = vadd(total, e);
      store<Lanes>(p, e);
    }
    store<Lanes>(d + lane, total);
  }
}

/**
 * out[i] += Σₜ weights[t] · V[t, i]. Tiles of four channels.
 *
 *   weights  f32 [tokens, LANES]
 *   values   f32 [tokens, headDim]
 *   out      f32 [headDim, LANES]
 */
export function rawMix(weights: usize, values: usize, tokens: usize, headDim: usize, out: usize): void {
  const rowBytes = headDim << 2;
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let to = out + lane;
    for (let i = values, end = values + rowBytes; i < end; i += 16, to += 4 * LANE_ROW) {
      let a0 = load<Lanes>(to), a1 = load<Lanes>(to, 16), a2 = load<Lanes>(to, 32), a3 = load<Lanes>(to, 48);
      let v = i;
      for (let p = weights + lane, last = p + tokens * LANE_ROW; p < last; p += LANE_ROW, v += rowBytes) {
        const weight = load<Lanes>(p);
        a0 = vmadd(weight, vsplatAt(v), a0);
        a1 = vmadd(weight, vsplatAt4(v), a1);
        a2 = vmadd(weight, vsplatAt8(v), a2);
        a3 = vmadd(weight, vsplatAt12(v), a3);
      }
      store<Lanes>(to, a0);
      store<Lanes>(to, a1, 16);
      store<Lanes>(to, a2, 32);
      store<Lanes>(to, a3, 48);
    }
  }
}
