// Products of up to four heads' queries with keys, and weighted sums of values; both stored as int8 with one f32 scale per token (q8_0's
// arithmetic, a longer block), the other factor as i16.
//
//   A       how to look ahead: Plain, Lines or Pages
//   k       i8 [tokens, HEAD_DIM]
//   v       i8 [tokens / 2, HEAD_DIM, 2]: two tokens side by side, as dot_i16x8 adds them
//   q       i16 [heads, HEAD_DIM]
//   out     f32 [heads, HEAD_DIM]
//   scores  f32 [tokens, slot], see float.ts
//
// A product is below 2²²: an i32 holds the sum of 512 of them, of HEAD_DIM channels or of a block of tokens.

import { N1, N2, N4, maxAcross, sumLanesInt, touch } from "./vectors";

const ROW: usize = HEAD_DIM;
const QUERY: usize = HEAD_DIM * 2;
const OUT: usize = HEAD_DIM * 4;

@inline function addDot(sum: v128, a: v128, b: v128): v128 { return i32x4.add(sum, i32x4.dot_i16x8_s(a, b)); }

/** q f32 [heads, HEAD_DIM] becomes i16 in place, each head's greatest 32767. scales[h] ← scale · what a unit is worth. */
export function quantizeQueries(q: usize, heads: usize, scale: f32, scales: usize): void {
  let to = q;
  for (let h: usize = 0; h < heads; h++, q += HEAD_DIM * 4, scales += 4) {
    let max = f32x4.splat(1e-30);
    for (let p = q, end = q + HEAD_DIM * 4; p < end; p += 16) max = f32x4.pmax(max, f32x4.abs(v128.load(p)));
    max = maxAcross(max, 1);
    store<f32>(scales, f32x4.extract_lane(max, 0) * (scale / 32767));
    const factor = f32x4.div(f32x4.splat(32767), max);
    for (let p = q, end = q + HEAD_DIM * 4; p < end; p += 32, to += 16) {
      v128.store(to, i16x8.narrow_i32x4_s(
        i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(factor, v128.load(p)))),
        i32x4.trunc_sat_f32x4_s(f32x4.nearest(f32x4.mul(factor, v128.load(p, 16))))
      ));
    }
  }
}

@inline function rescale(products: v128, queryScale: v128, keyScale: v128): v128 {
  return f32x4.mul(f32x4.convert_i32x4_s(products), f32x4.mul(queryScale, keyScale));
}

function keys4<A>(q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, tokens: usize): void {
  const queryScale = v128.load(queryScales);
  for (const end = k + tokens * ROW; k < end; k += 2 * ROW, scales += 8, scores += 32) {
    touch<A>(k, 2 * ROW);
    let a0 = i32x4.splat(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    let p = k;
    for (let x = q, xEnd = q + QUERY; x < xEnd; x += 16, p += 8) {
      const a = v128.load8x8_s(p), b = v128.load8x8_s(p, ROW);
      const x0 = v128.load(x);
      a0 = addDot(a0, a, x0);
      b0 = addDot(b0, b, x0);
      const x1 = v128.load(x, QUERY);
      a1 = addDot(a1, a, x1);
      b1 = addDot(b1, b, x1);
      const x2 = v128.load(x, 2 * QUERY);
      a2 = addDot(a2, a, x2);
      b2 = addDot(b2, b, x2);
      const x3 = v128.load(x, 3 * QUERY);
      a3 = addDot(a3, a, x3);
      b3 = addDot(b3, b, x3);
    }
    v128.store(scores, rescale(sumLanesInt(a0, a1, a2, a3), queryScale, v128.load32_splat(scales)));
    v128.store(scores, rescale(sumLanesInt(b0, b1, b2, b3), queryScale, v128.load32_splat(scales, 4)), 16);
  }
}

function keys3<A>(q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, tokens: usize): void {
  const queryScale = v128.load(queryScales);
  for (const end = k + tokens * ROW; k < end; k += 3 * ROW, scales += 12, scores += 48) {
    touch<A>(k, 3 * ROW);
    let a0 = i32x4.splat(0), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0, c0 = a0, c1 = a0, c2 = a0;
    let p = k;
    for (let x = q, xEnd = q + QUERY; x < xEnd; x += 16, p += 8) {
      const a = v128.load8x8_s(p), b = v128.load8x8_s(p, ROW), c = v128.load8x8_s(p, 2 * ROW);
      const x0 = v128.load(x);
      a0 = addDot(a0, a, x0);
      b0 = addDot(b0, b, x0);
      c0 = addDot(c0, c, x0);
      const x1 = v128.load(x, QUERY);
      a1 = addDot(a1, a, x1);
      b1 = addDot(b1, b, x1);
      c1 = addDot(c1, c, x1);
      const x2 = v128.load(x, 2 * QUERY);
      a2 = addDot(a2, a, x2);
      b2 = addDot(b2, b, x2);
      c2 = addDot(c2, c, x2);
    }
    v128.store(scores, rescale(sumLanesInt(a0, a1, a2, a2), queryScale, v128.load32_splat(scales)));
    v128.store(scores, rescale(sumLanesInt(b0, b1, b2, b2), queryScale, v128.load32_splat(scales, 4)), 16);
    v128.store(scores, rescale(sumLanesInt(c0, c1, c2, c2), queryScale, v128.load32_splat(scales, 8)), 32);
  }
}

function keys2<A>(q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, tokens: usize): void {
  const pair = v128.load64_splat(queryScales);
  for (const end = k + tokens * ROW; k < end; k += 4 * ROW, scales += 16, scores += 32) {
    touch<A>(k, 4 * ROW);
    let a0 = i32x4.splat(0), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
    let p = k;
    for (let x = q, xEnd = q + QUERY; x < xEnd; x += 16, p += 8) {
      const x0 = v128.load(x), x1 = v128.load(x, QUERY);
      const a = v128.load8x8_s(p);
      a0 = addDot(a0, a, x0);
      a1 = addDot(a1, a, x1);
      const b = v128.load8x8_s(p, ROW);
      b0 = addDot(b0, b, x0);
      b1 = addDot(b1, b, x1);
      const c = v128.load8x8_s(p, 2 * ROW);
      c0 = addDot(c0, c, x0);
      c1 = addDot(c1, c, x1);
      const d = v128.load8x8_s(p, 3 * ROW);
      d0 = addDot(d0, d, x0);
      d1 = addDot(d1, d, x1);
    }
    const four = v128.load(scales);
    v128.store(scores, rescale(sumLanesInt(a0, a1, b0, b1), pair, v128.shuffle<f32>(four, four, 0, 0, 1, 1)));
    v128.store(scores, rescale(sumLanesInt(c0, c1, d0, d1), pair, v128.shuffle<f32>(four, four, 2, 2, 3, 3)), 16);
  }
}

function keys1<A>(q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, tokens: usize): void {
  const queryScale = v128.load32_splat(queryScales);
  for (const end = k + tokens * ROW; k < end; k += 4 * ROW, scales += 16, scores += 16) {
    touch<A>(k, 4 * ROW);
    let a = i32x4.splat(0), b = a, c = a, d = a;
    let p = k;
    for (let x = q, xEnd = q + QUERY; x < xEnd; x += 16, p += 8) {
      const x0 = v128.load(x);
      a = addDot(a, v128.load8x8_s(p), x0);
      b = addDot(b, v128.load8x8_s(p, ROW), x0);
      c = addDot(c, v128.load8x8_s(p, 2 * ROW), x0);
      d = addDot(d, v128.load8x8_s(p, 3 * ROW), x0);
    }
    v128.store(scores, rescale(sumLanesInt(a, b, c, d), queryScale, v128.load(scales)));
  }
}

/** scores[t, h] ← queryScales[h] · scales[t] · (k[t] · q[h]). Writes whole tiles: up to three tokens past `tokens`. */
@inline export function keys<A>(heads: usize, q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, tokens: usize): void {
  if (heads == 4) keys4<A>(q, queryScales, k, scales, scores, tokens);
  else if (heads == 3) keys3<A>(q, queryScales, k, scales, scores, tokens);
  else if (heads == 2) keys2<A>(q, queryScales, k, scales, scores, tokens);
  else keys1<A>(q, queryScales, k, scales, scores, tokens);
}

/** 1.5 · 2²³: added to a number, leaves its integer in the low bits; and the mask of a low half. In memory: see EXP2 in softmax.ts. */
const ROUND = memory.data<u32>([0x4b400000, 0x0000ffff], 16);

/**
 * Weights w f32 [tokens, SLOT], times their tokens' scales, become i16 pairs [tokens / 2, SLOT, 2] in place; each head's greatest is 32767.
 * Returns what a unit of each is worth. Whole vectors: the weights and scales that follow shall be next to nothing.
 */
function quantizeWeights<SLOT>(w: usize, scales: usize, tokens: usize): v128 {
  const end = w + tokens * offsetof<SLOT>() * 4;
  let max = f32x4.splat(1e-30);
  for (let p = w; p < end; p += 16, scales += 16 / offsetof<SLOT>()) {
    let scale: v128;
    if (offsetof<SLOT>() == 4) scale = v128.load32_splat(scales);
    else scale = v128.load(scales);
    if (offsetof<SLOT>() == 2) scale = v128.shuffle<f32>(scale, scale, 0, 0, 1, 1);
    const x = f32x4.mul(scale, v128.load(p));
    max = f32x4.pmax(max, x);
    v128.store(p, x);
  }
  max = maxAcross(max, offsetof<SLOT>());
  const factor = f32x4.div(f32x4.splat(32767), max), round = v128.load32_splat(ROUND), low = v128.load32_splat(ROUND, 4);
  for (let p = w, to = w; p < end; p += 32, to += 16) {
    const x = f32x4.add(f32x4.mul(factor, v128.load(p)), round), y = f32x4.add(f32x4.mul(factor, v128.load(p, 16)), round);
    let even = x, odd = y;
    if (offsetof<SLOT>() == 2) {
      even = v128.shuffle<i32>(x, y, 0, 1, 4, 5);
      odd = v128.shuffle<i32>(x, y, 2, 3, 6, 7);
    } else if (offsetof<SLOT>() == 1) {
      even = v128.shuffle<i32>(x, y, 0, 2, 4, 6);
      odd = v128.shuffle<i32>(x, y, 1, 3, 5, 7);
    }
    v128.store(to, v128.or(v128.and(even, low), i32x4.shl(odd, 16)));
  }
  return f32x4.mul(max, f32x4.splat(1.0 / 32767));
}

@inline function accumulate(out: usize, sum: v128, unit: v128): void {
  v128.store(out, f32x4.add(v128.load(out), f32x4.mul(unit, f32x4.convert_i32x4_s(sum))));
}

function values4<A>(w: usize, unit: v128, v: usize, out: usize, tokens: usize): void {
  let reached = v;
  for (const stripEnd = v + 2 * ROW; v < stripEnd; v += 16, out += 32) {
    touch<A>(reached, tokens * 8);
    reached += tokens * 8;
    let a0 = i32x4.splat(0), b0 = a0, a1 = a0, b1 = a0, a2 = a0, b2 = a0, a3 = a0, b3 = a0;
    let p = v;
    for (let t = w, end = w + (tokens << 3); t < end; t += 16, p += 2 * ROW) {
      const a = v128.load8x8_s(p), b = v128.load8x8_s(p, 8);
      const w0 = v128.load32_splat(t);
      a0 = addDot(a0, a, w0);
      b0 = addDot(b0, b, w0);
      const w1 = v128.load32_splat(t, 4);
      a1 = addDot(a1, a, w1);
      b1 = addDot(b1, b, w1);
      const w2 = v128.load32_splat(t, 8);
      a2 = addDot(a2, a, w2);
      b2 = addDot(b2, b, w2);
      const w3 = v128.load32_splat(t, 12);
      a3 = addDot(a3, a, w3);
      b3 = addDot(b3, b, w3);
    }
    const unit0 = v128.shuffle<f32>(unit, unit, 0, 0, 0, 0);
    accumulate(out, a0, unit0);
    accumulate(out + 16, b0, unit0);
    const unit1 = v128.shuffle<f32>(unit, unit, 1, 1, 1, 1);
    accumulate(out + OUT, a1, unit1);
    accumulate(out + OUT + 16, b1, unit1);
    const unit2 = v128.shuffle<f32>(unit, unit, 2, 2, 2, 2);
    accumulate(out + 2 * OUT, a2, unit2);
    accumulate(out + 2 * OUT + 16, b2, unit2);
    const unit3 = v128.shuffle<f32>(unit, unit, 3, 3, 3, 3);
    accumulate(out + 3 * OUT, a3, unit3);
    accumulate(out + 3 * OUT + 16, b3, unit3);
  }
}

function values3<A>(w: usize, unit: v128, v: usize, out: usize, tokens: usize): void {
  let reached = v;
  for (const stripEnd = v + 2 * ROW; v < stripEnd; v += 16, out += 32) {
    touch<A>(reached, tokens * 8);
    reached += tokens * 8;
    let a0 = i32x4.splat(0), b0 = a0, a1 = a0, b1 = a0, a2 = a0, b2 = a0;
    let p = v;
    for (let t = w, end = w + (tokens << 3); t < end; t += 16, p += 2 * ROW) {
      const a = v128.load8x8_s(p), b = v128.load8x8_s(p, 8);
      const w0 = v128.load32_splat(t);
      a0 = addDot(a0, a, w0);
      b0 = addDot(b0, b, w0);
      const w1 = v128.load32_splat(t, 4);
      a1 = addDot(a1, a, w1);
      b1 = addDot(b1, b, w1);
      const w2 = v128.load32_splat(t, 8);
      a2 = addDot(a2, a, w2);
      b2 = addDot(b2, b, w2);
    }
    const unit0 = v128.shuffle<f32>(unit, unit, 0, 0, 0, 0);
    accumulate(out, a0, unit0);
    accumulate(out + 16, b0, unit0);
    const unit1 = v128.shuffle<f32>(unit, unit, 1, 1, 1, 1);
    accumulate(out + OUT, a1, unit1);
    accumulate(out + OUT + 16, b1, unit1);
    const unit2 = v128.shuffle<f32>(unit, unit, 2, 2, 2, 2);
    accumulate(out + 2 * OUT, a2, unit2);
    accumulate(out + 2 * OUT + 16, b2, unit2);
  }
}

function values2<A>(w: usize, unit: v128, v: usize, out: usize, tokens: usize): void {
  let reached = v;
  for (const stripEnd = v + 2 * ROW; v < stripEnd; v += 32, out += 64) {
    touch<A>(reached, tokens * 16);
    reached += tokens * 16;
    let a0 = i32x4.splat(0), b0 = a0, c0 = a0, d0 = a0, a1 = a0, b1 = a0, c1 = a0, d1 = a0;
    let p = v;
    for (let t = w, end = w + (tokens << 2); t < end; t += 8, p += 2 * ROW) {
      const w0 = v128.load32_splat(t), w1 = v128.load32_splat(t, 4);
      const a = v128.load8x8_s(p);
      a0 = addDot(a0, a, w0);
      a1 = addDot(a1, a, w1);
      const b = v128.load8x8_s(p, 8);
      b0 = addDot(b0, b, w0);
      b1 = addDot(b1, b, w1);
      const c = v128.load8x8_s(p, 16);
      c0 = addDot(c0, c, w0);
      c1 = addDot(c1, c, w1);
      const d = v128.load8x8_s(p, 24);
      d0 = addDot(d0, d, w0);
      d1 = addDot(d1, d, w1);
    }
    const unit0 = v128.shuffle<f32>(unit, unit, 0, 0, 0, 0);
    accumulate(out, a0, unit0);
    accumulate(out + 16, b0, unit0);
    accumulate(out + 32, c0, unit0);
    accumulate(out + 48, d0, unit0);
    const unit1 = v128.shuffle<f32>(unit, unit, 1, 1, 1, 1);
    accumulate(out + OUT, a1, unit1);
    accumulate(out + OUT + 16, b1, unit1);
    accumulate(out + OUT + 32, c1, unit1);
    accumulate(out + OUT + 48, d1, unit1);
  }
}

function values1<A>(w: usize, unit: v128, v: usize, out: usize, tokens: usize): void {
  let reached = v;
  for (const stripEnd = v + 2 * ROW; v < stripEnd; v += 64, out += 128) {
    touch<A>(reached, tokens * 32);
    reached += tokens * 32;
    let a = i32x4.splat(0), b = a, c = a, d = a, e = a, f = a, g = a, h = a;
    let p = v;
    for (let t = w, end = w + (tokens << 1); t < end; t += 4, p += 2 * ROW) {
      const w0 = v128.load32_splat(t);
      a = addDot(a, v128.load8x8_s(p), w0);
      b = addDot(b, v128.load8x8_s(p, 8), w0);
      c = addDot(c, v128.load8x8_s(p, 16), w0);
      d = addDot(d, v128.load8x8_s(p, 24), w0);
      e = addDot(e, v128.load8x8_s(p, 32), w0);
      f = addDot(f, v128.load8x8_s(p, 40), w0);
      g = addDot(g, v128.load8x8_s(p, 48), w0);
      h = addDot(h, v128.load8x8_s(p, 56), w0);
    }
    const unit0 = v128.shuffle<f32>(unit, unit, 0, 0, 0, 0);
    accumulate(out, a, unit0);
    accumulate(out + 16, b, unit0);
    accumulate(out + 32, c, unit0);
    accumulate(out + 48, d, unit0);
    accumulate(out + 64, e, unit0);
    accumulate(out + 80, f, unit0);
    accumulate(out + 96, g, unit0);
    accumulate(out + 112, h, unit0);
  }
}

/** out[h] ← out[h] + Σ w[t, h] · scales[t] · v[t]. Spoils w. HEAD_DIM is a multiple of 32. */
@inline export function values<A>(heads: usize, w: usize, v: usize, scales: usize, out: usize, tokens: usize): void {
  if (heads == 4) values4<A>(w, quantizeWeights<N4>(w, scales, tokens), v, out, tokens);
  else if (heads == 3) values3<A>(w, quantizeWeights<N4>(w, scales, tokens), v, out, tokens);
  else if (heads == 2) values2<A>(w, quantizeWeights<N2>(w, scales, tokens), v, out, tokens);
  else values1<A>(w, quantizeWeights<N1>(w, scales, tokens), v, out, tokens);
}
