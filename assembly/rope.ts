// The mean's term of a logit, ⟨q, RoPEᵤ(o)⟩: the query's part once a window, then a sum of integers a token. Heads in lanes.

import { IntLanes, Lanes, VECTOR_BYTES, vabs, vadd, vdiv, vfromInt, vbits, vdotPairs, vintAdd, vintSplat, vintSub, vmadd, vmax,
  vmul, vpair, vpairSplatAt, vpairSplatAt4, vpairSplatAt8, vpairSplatAt12, vsplat, vsplatAt, vsplatAt4, vsplatAt8, vsplatAt12,
  vsub } from "lanes";
import { LANE_ROW, Shape } from "./abi";

/**
 * ⟨q, RoPEᵤ(o)⟩ = Σ over pairs of A·cos ωu + B·sin ωu, A = qₐoₐ + q_b·o_b, B = q_b·oₐ − qₐ·o_b: never rotate a key.
 * Coefficients of the basis functions for one window: fast pairs have their own cosine and sine; slow ones (ω·32 ≤ 2) share
 * four even and four odd powers of u, of which slower ones need fewer.
 *
 *   q      f32 [headDim, LANES]
 *   o      f32 [headDim]
 *   coefs  f32 [2 (even, odd), 2 · basisPairs, LANES]
 *   pairs  i16 [2, basisPairs, LANES, 2]: the same in integers
 *   scale  f32 [LANES]: of products of pairs and the basis
 *
 * i16 costs 5e-4 of the term at most and saves 1.4 ns a token (Zen 5).
 */
export function meanCoefficients(shape: Shape, q: usize, o: usize, coefs: usize, pairs: usize, scale: usize): void {
  const trigPairs = shape.trigPairs, count = shape.pairs;
  const half = shape.basisPairs << 5;      // bytes of the even coefficients
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const zero = vsplat(0);
    const odd = coefs + half;
    let l1 = zero;
    let a = o, b = o + shape.pairOffset, qa = q + lane, qb = qa + (shape.pairOffset << 2);
    const step = shape.pairStep, queryStep = step << 2;
    let p = coefs + lane;
    for (let i: usize = 0; i < trigPairs; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      const even = vmadd(vb, ob, vmul(va, oa)), sine = vsub(vmul(vb, oa), vmul(va, ob));
      store<Lanes>(p, even);
      store<Lanes>(p + half, sine);
      l1 = vadd(l1, vadd(vabs(even), vabs(sine)));
      a += step, b += step, qa += queryStep, qb += queryStep, p += LANE_ROW;
    }
    let e0 = zero, e1 = zero, e2 = zero, e3 = zero, d0 = zero, d1 = zero, d2 = zero, d3 = zero;
    let power = shape.powers + (trigPairs << 5), odds = power + 16;
    let i = trigPairs;
    for (; i < shape.tier2; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      const even = vmadd(vb, ob, vmul(va, oa)), sine = vsub(vmul(vb, oa), vmul(va, ob));
      e0 = vmadd(even, vsplatAt(power), e0);
      e1 = vmadd(even, vsplatAt4(power), e1);
      e2 = vmadd(even, vsplatAt8(power), e2);
      e3 = vmadd(even, vsplatAt12(power), e3);
      d0 = vmadd(sine, vsplatAt(odds), d0);
      d1 = vmadd(sine, vsplatAt4(odds), d1);
      d2 = vmadd(sine, vsplatAt8(odds), d2);
      d3 = vmadd(sine, vsplatAt12(odds), d3);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32, odds += 32;
    }
    for (; i < shape.tier3; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      const even = vmadd(vb, ob, vmul(va, oa)), sine = vsub(vmul(vb, oa), vmul(va, ob));
      e0 = vmadd(even, vsplatAt(power), e0);
      e1 = vmadd(even, vsplatAt4(power), e1);
      d0 = vmadd(sine, vsplatAt(odds), d0);
      d1 = vmadd(sine, vsplatAt4(odds), d1);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32, odds += 32;
    }
    for (; i < count; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      e0 = vmadd(vmadd(vb, ob, vmul(va, oa)), vsplatAt(power), e0);
      d0 = vmadd(vsub(vmul(vb, oa), vmul(va, ob)), vsplatAt(odds), d0);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32, odds += 32;
    }
    for (let c = count << 1; c < shape.keys.headDim; c++) {
      e0 = vmadd(load<Lanes>(q + lane + (c << 4)), vsplatAt(o + (c << 2)), e0);
    }
    store<Lanes>(p, e0);
    store<Lanes>(p, e1, 16);
    store<Lanes>(p, e2, 32);
    store<Lanes>(p, e3, 48);
    store<Lanes>(p + half, d0);
    store<Lanes>(p + half, d1, 16);
    store<Lanes>(p + half, d2, 32);
    store<Lanes>(p + half, d3, 48);
    if (trigPairs & 1) {
      store<Lanes>(p, zero, 64);
      store<Lanes>(p + half, zero, 64);
    }
    l1 = vadd(l1, vadd(vadd(vadd(vabs(e0), vabs(e1)), vadd(vabs(e2), vabs(e3))), vadd(vadd(vabs(d0), vabs(d1)), vadd(vabs(d2), vabs(d3)))));

    // With |coefficients| summing to 32766 at most, and |basis| ≤ 32767, no i32 sum overflows.
    l1 = vmax(l1, vsplat(1e-20));
    const unit = vdiv(vsplat(32766), l1), magic = vsplat(12582912);
    let to = pairs + lane;
    for (let from = coefs + lane, end = odd + half; from < end; from += 2 * LANE_ROW, to += LANE_ROW) {
      const low = vadd(vmul(load<Lanes>(from), unit), magic), high = vadd(vmul(load<Lanes>(from, 16), unit), magic);
      store<IntLanes>(to, vpair(vbits(low), vbits(high)));
    }
    store<Lanes>(scale + lane, vmul(l1, vsplat(9.313794e-10)));   // 1 / (32766 · 32767)
  }
}

/**
 * scores[t] ← s1 · (s2 · scores[t] + mean(t)), and the running maximum of them. Even and odd halves of the basis are summed
 * for u > 0 only: token 32 + i has E + O, token 31 − i has E − O. Exact, and half the work.
 *
 *   scores  f32 [64, LANES]   in: Σ s2·LUT, or Σ LUT where there is an s2; out: logits
 *   s1, s2  f32 [64]          s2 or 0
 *   top     f32 [LANES]       running maximum
 */
export function combine(shape: Shape, pairs: usize, scale: usize, s1: usize, s2: usize, scores: usize, top: usize): void {
  if (s2) combineLanes(true, shape, pairs, scale, s1, s2, scores, top);
  else combineLanes(false, shape, pairs, scale, s1, s2, scores, top);
}

@inline function combineLanes(
  scaled: bool, shape: Shape, pairs: usize, scale: usize, s1: usize, s2: usize, scores: usize, top: usize
): void {
  const half = shape.basisPairs << 4;      // bytes of the even pairs
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let basis = shape.basis;
    const unit = load<Lanes>(scale + lane), even = pairs + lane, odd = even + half;
    let max = load<Lanes>(top + lane);
    // Four tokens a time: of eight sums V8 spills one.
    for (let u: usize = 0; u < 32; u += 4) {
      let e0 = vintSplat(0), e1 = e0, e2 = e0, e3 = e0, d0 = e0, d1 = e0, d2 = e0, d3 = e0;
      for (let p = even; p < odd; p += LANE_ROW, basis += 16) {
        const c = load<IntLanes>(p);
        e0 = vintAdd(e0, vdotPairs(c, vpairSplatAt(basis)));
        e1 = vintAdd(e1, vdotPairs(c, vpairSplatAt4(basis)));
        e2 = vintAdd(e2, vdotPairs(c, vpairSplatAt8(basis)));
        e3 = vintAdd(e3, vdotPairs(c, vpairSplatAt12(basis)));
      }
      for (let p = odd; p < odd + half; p += LANE_ROW, basis += 16) {
        const c = load<IntLanes>(p);
        d0 = vintAdd(d0, vdotPairs(c, vpairSplatAt(basis)));
        d1 = vintAdd(d1, vdotPairs(c, vpairSplatAt4(basis)));
        d2 = vintAdd(d2, vdotPairs(c, vpairSplatAt8(basis)));
        d3 = vintAdd(d3, vdotPairs(c, vpairSplatAt12(basis)));
      }
      const after = scores + lane + ((32 + u) << 4), before = scores + lane + ((31 - u) << 4);
      const s1After = s1 + ((32 + u) << 2), s2After = s2 + ((32 + u) << 2);
      const s1Before = s1 + ((31 - u) << 2), s2Before = s2 + ((31 - u) << 2);
      max = fold(scaled, max, e0, d0, unit, after, s1After, s2After, before, s1Before, s2Before);
      max = fold(scaled, max, e1, d1, unit, after + 16, s1After + 4, s2After + 4, before - 16, s1Before - 4, s2Before - 4);
      max = fold(scaled, max, e2, d2, unit, after + 32, s1After + 8, s2After + 8, before - 32, s1Before - 8, s2Before - 8);
      max = fold(scaled, max, e3, d3, unit, after + 48, s1After + 12, s2After + 12, before - 48, s1Before - 12, s2Before - 12);
    }
    store<Lanes>(top + lane, max);
  }
}

@inline function fold(
  scaled: bool, max: Lanes, even: IntLanes, odd: IntLanes, unit: Lanes,
  after: usize, s1After: usize, s2After: usize, before: usize, s1Before: usize, s2Before: usize
): Lanes {
  let x = load<Lanes>(after), y = load<Lanes>(before);
  if (scaled) {
    x = vmul(x, vsplatAt(s2After));
    y = vmul(y, vsplatAt(s2Before));
  }
  x = vmul(vsplatAt(s1After), vmadd(vfromInt(vintAdd(even, odd)), unit, x));
  y = vmul(vsplatAt(s1Before), vmadd(vfromInt(vintSub(even, odd)), unit, y));
  store<Lanes>(after, x);
  store<Lanes>(before, y);
  return vmax(max, vmax(x, y));
}
