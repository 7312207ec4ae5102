// Scores: logits of up to four query heads against coded keys, by table look-up. Heads in lanes.
//
//   logit(t) = s1 · (s2 · Σⱼ LUT[j][c(t, j)] + ⟨q, RoPEᵤ(o)⟩)         Specification: `scores` in src/reference/reference.ts

import { IntLanes, Lanes, LANE_BYTES, vabs, vadd, vdiv, vfromInt, vbits, vdotPairs, vgt, vintAdd, vintSplat, vintSub,
  vmadd, vmax, vmul, vneg, vpair, vpairSplatAt, vselect, vsplat, vsplatAt, vsub } from "lanes";
import { GROUP_BYTES, Shape, Side } from "./abi";
import { LUT, NEGATED, pass, SCORES_BYTES, TABLE_ROW } from "./scratch";
import { HIDDEN } from "./softmax";

/**
 * LUT[j][c] = ⟨q'ⱼ, C[c]⟩ for every codeword; rows beyond headDim / D, where codes are padding, are zero.
 *
 *   q  f32 [headDim, GROUP]   H·q
 *
 * The codebook is symmetric, LUT[j][c + 128] = −LUT[j][c]: half the products (2.5 of 12 µs fixed cost at headDim 128).
 */
export function buildTable(side: Side, q: usize, headDim: usize): void {
  const channels = side.channels, rows = headDim / channels;
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
    let p = q + lane, table = LUT + lane;
    for (const end = table + rows * TABLE_ROW; table < end;) {
      if (channels == 8) {
        table8(side.book, p, table);
        table += TABLE_ROW;
      } else if (channels == 4) {
        table4(side.book, p, table);
        table += 2 * TABLE_ROW;
      } else {
        table2(side.book, p, table);
        table += 4 * TABLE_ROW;
      }
      p += 8 * GROUP_BYTES;
    }
  }
  for (let j = rows; j < side.rowBytes; j++) memory.fill(LUT + j * TABLE_ROW, 0, 256 * GROUP_BYTES);
}

function table8(book: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = book + 128 * 32; book < end; book += 32, table += GROUP_BYTES) {
    let a = vmul(vsplatAt(book), q0), b = vmul(vsplatAt(book + 4), q1);
    a = vmadd(vsplatAt(book + 8), q2, a);
    b = vmadd(vsplatAt(book + 12), q3, b);
    a = vmadd(vsplatAt(book + 16), q4, a);
    b = vmadd(vsplatAt(book + 20), q5, b);
    a = vadd(vmadd(vsplatAt(book + 24), q6, a), vmadd(vsplatAt(book + 28), q7, b));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
  }
}

/** Two rows at once share the loads of codewords. */
function table4(book: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = book + 128 * 16; book < end; book += 16, table += GROUP_BYTES) {
    const e0 = vsplatAt(book), e1 = vsplatAt(book + 4), e2 = vsplatAt(book + 8), e3 = vsplatAt(book + 12);
    const a = vmadd(e3, q3, vmadd(e2, q2, vmadd(e1, q1, vmul(e0, q0))));
    const b = vmadd(e3, q7, vmadd(e2, q6, vmadd(e1, q5, vmul(e0, q4))));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
    store<Lanes>(table, b, TABLE_ROW);
    store<Lanes>(table, vneg(b), TABLE_ROW + NEGATED);
  }
}

/** Four rows at once. */
function table2(book: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = book + 128 * 8; book < end; book += 8, table += GROUP_BYTES) {
    const e0 = vsplatAt(book), e1 = vsplatAt(book + 4);
    const a = vmadd(e1, q1, vmul(e0, q0)), b = vmadd(e1, q3, vmul(e0, q2));
    const c = vmadd(e1, q5, vmul(e0, q4)), d = vmadd(e1, q7, vmul(e0, q6));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
    store<Lanes>(table, b, TABLE_ROW);
    store<Lanes>(table, vneg(b), TABLE_ROW + NEGATED);
    store<Lanes>(table, c, 2 * TABLE_ROW);
    store<Lanes>(table, vneg(c), 2 * TABLE_ROW + NEGATED);
    store<Lanes>(table, d, 3 * TABLE_ROW);
    store<Lanes>(table, vneg(d), 3 * TABLE_ROW + NEGATED);
  }
}

/**
 * out[t] (+)= Σⱼ LUT[j][c(t, j)] over eight columns of codes: 64 KB of table rows, so that L1 holds what is read.
 * A window's whole row at once is slower from 32 codes on (8.5 against 7.0 ns a token and four heads, Zen 5).
 *
 *   column  the first of the eight, or of the last four
 *   out     f32 [64, GROUP]
 */
export function scan(codes: usize, rowBytes: usize, column: usize, out: usize): void {
  codes += column;
  if (rowBytes - column < 8) {
    scan4(codes, rowBytes, out, column * TABLE_ROW, column == 0);
    return;
  }
  switch (<i32>(column >> 3)) {
    case 0: scan8<u8, u8>(codes, rowBytes, out); break;
    case 1: scan8<u16, u8>(codes, rowBytes, out); break;
    case 2: scan8<u32, u8>(codes, rowBytes, out); break;
    case 3: scan8<u64, u8>(codes, rowBytes, out); break;
    case 4: scan8<u8, u16>(codes, rowBytes, out); break;
    case 5: scan8<u16, u16>(codes, rowBytes, out); break;
    case 6: scan8<u32, u16>(codes, rowBytes, out); break;
    case 7: scan8<u64, u16>(codes, rowBytes, out); break;
    default: scanFar(codes, rowBytes, out, column * TABLE_ROW);
  }
}

function scan8<A, B>(codes: usize, rowBytes: usize, out: usize): void {
  if (LANE_BYTES == GROUP_BYTES) {
    scanLanes<A, B>(codes, rowBytes, out, 0, 0);
  } else {
    for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) scanLanes<A, B>(codes, rowBytes, out + lane, lane, 0);
  }
}

/** Columns from 64 on: the table's address is no constant. Shares the body of pass 1, which adds to `out`. */
function scanFar(codes: usize, rowBytes: usize, out: usize, table: usize): void {
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
    scanLanes<u16, u8>(codes, rowBytes, out + lane, lane, table - 8 * TABLE_ROW);
  }
}

@inline function scanLanes<A, B>(codes: usize, rowBytes: usize, out: usize, lane: usize, table: usize): void {
  const base = lane + table;
  for (const end = out + SCORES_BYTES; out < end; out += GROUP_BYTES, codes += rowBytes) {
    const w = <usize>load<u32>(codes), v = <usize>load<u32>(codes, 4);
    let a = load<Lanes>(((w & 0xff) << 4) + base, LUT + pass<A, B>());
    let b = load<Lanes>(((w >> 4) & 0xff0) + base, LUT + pass<A, B>() + TABLE_ROW);
    a = vadd(a, load<Lanes>(((w >> 12) & 0xff0) + base, LUT + pass<A, B>() + 2 * TABLE_ROW));
    b = vadd(b, load<Lanes>(((w >> 20) & 0xff0) + base, LUT + pass<A, B>() + 3 * TABLE_ROW));
    a = vadd(a, load<Lanes>(((v & 0xff) << 4) + base, LUT + pass<A, B>() + 4 * TABLE_ROW));
    b = vadd(b, load<Lanes>(((v >> 4) & 0xff0) + base, LUT + pass<A, B>() + 5 * TABLE_ROW));
    a = vadd(a, load<Lanes>(((v >> 12) & 0xff0) + base, LUT + pass<A, B>() + 6 * TABLE_ROW));
    b = vadd(b, load<Lanes>(((v >> 20) & 0xff0) + base, LUT + pass<A, B>() + 7 * TABLE_ROW));
    const sum = vadd(a, b);
    store<Lanes>(out, sizeof<A>() == 1 && sizeof<B>() == 1 ? sum : vadd(sum, load<Lanes>(out)));
  }
}

/** The last four columns of a row that is no multiple of eight. */
function scan4(codes: usize, rowBytes: usize, out: usize, table: usize, first: bool): void {
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
    const base = lane + table;
    let p = codes;
    for (let to = out + lane, end = to + SCORES_BYTES; to < end; to += GROUP_BYTES, p += rowBytes) {
      const w = <usize>load<u32>(p);
      const a = vadd(load<Lanes>(((w & 0xff) << 4) + base, LUT), load<Lanes>(((w >> 12) & 0xff0) + base, LUT + 2 * TABLE_ROW));
      const b = vadd(load<Lanes>(((w >> 4) & 0xff0) + base, LUT + TABLE_ROW), load<Lanes>(((w >> 20) & 0xff0) + base, LUT + 3 * TABLE_ROW));
      const sum = vadd(a, b);
      store<Lanes>(to, first ? sum : vadd(sum, load<Lanes>(to)));
    }
  }
}

/**
 * ⟨q, RoPEᵤ(o)⟩ = Σ over pairs of A·cos ωu + B·sin ωu, A = qₐoₐ + q_b·o_b, B = q_b·oₐ − qₐ·o_b: never rotate a key.
 * Coefficients of the basis functions for one window: fast pairs have their own cosine and sine; slow ones (ω·32 ≤ 2) share
 * four even and four odd powers of u, of which slower ones need fewer.
 *
 *   q      f32 [headDim, GROUP]
 *   o      f32 [headDim]
 *   coefs  f32 [2 (even, odd), 2 · basisPairs, GROUP]
 *   pairs  i16 [2, basisPairs, GROUP, 2]: the same, in units of the returned scale
 *
 * Returns nothing; writes the scale, f32 [GROUP]. i16 costs 5e-4 of the term at most and saves 1.4 ns a token (Zen 5).
 */
export function meanCoefficients(shape: Shape, q: usize, o: usize, coefs: usize, pairs: usize, scale: usize): void {
  const trigPairs = shape.trigPairs, count = shape.pairs;
  const half = shape.basisPairs << 5;      // bytes of the even coefficients
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
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
      a += step, b += step, qa += queryStep, qb += queryStep, p += GROUP_BYTES;
    }
    let e0 = zero, e1 = zero, e2 = zero, e3 = zero, d0 = zero, d1 = zero, d2 = zero, d3 = zero;
    let power = shape.powers + (trigPairs << 5);
    let i = trigPairs;
    for (; i < shape.tier2; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      const even = vmadd(vb, ob, vmul(va, oa)), sine = vsub(vmul(vb, oa), vmul(va, ob));
      e0 = vmadd(even, vsplatAt(power), e0);
      e1 = vmadd(even, vsplatAt(power + 4), e1);
      e2 = vmadd(even, vsplatAt(power + 8), e2);
      e3 = vmadd(even, vsplatAt(power + 12), e3);
      d0 = vmadd(sine, vsplatAt(power + 16), d0);
      d1 = vmadd(sine, vsplatAt(power + 20), d1);
      d2 = vmadd(sine, vsplatAt(power + 24), d2);
      d3 = vmadd(sine, vsplatAt(power + 28), d3);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32;
    }
    for (; i < shape.tier3; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      const even = vmadd(vb, ob, vmul(va, oa)), sine = vsub(vmul(vb, oa), vmul(va, ob));
      e0 = vmadd(even, vsplatAt(power), e0);
      e1 = vmadd(even, vsplatAt(power + 4), e1);
      d0 = vmadd(sine, vsplatAt(power + 16), d0);
      d1 = vmadd(sine, vsplatAt(power + 20), d1);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32;
    }
    for (; i < count; i++) {
      const oa = vsplatAt(a), ob = vsplatAt(b), va = load<Lanes>(qa), vb = load<Lanes>(qb);
      e0 = vmadd(vmadd(vb, ob, vmul(va, oa)), vsplatAt(power), e0);
      d0 = vmadd(vsub(vmul(vb, oa), vmul(va, ob)), vsplatAt(power + 16), d0);
      a += step, b += step, qa += queryStep, qb += queryStep, power += 32;
    }
    for (let c = count << 1; c < shape.headDim; c++) {
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
    for (let from = coefs + lane, end = odd + half; from < end; from += 2 * GROUP_BYTES, to += GROUP_BYTES) {
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
 *   scores  f32 [64, GROUP]   in: Σ LUT; out: logits
 *   s1, s2  f32 [64]
 *   sums    i32 [8, GROUP]    scratch
 *   most    f32 [GROUP]       running maximum
 */
export function combine(shape: Shape, pairs: usize, scale: usize, s1: usize, s2: usize, scores: usize, sums: usize, most: usize): void {
  const half = shape.basisPairs << 4;      // bytes of the even pairs
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
    let basis = shape.basis;
    const unit = load<Lanes>(scale + lane), even = pairs + lane, odd = even + half;
    let max = load<Lanes>(most + lane);
    for (let u: usize = 0; u < 32; u += 8) {
      let a0 = vintSplat(0), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
      for (let p = even; p < odd; p += GROUP_BYTES, basis += 32) {
        const c = load<IntLanes>(p);
        a0 = vintAdd(a0, vdotPairs(c, vpairSplatAt(basis)));
        a1 = vintAdd(a1, vdotPairs(c, vpairSplatAt(basis + 4)));
        a2 = vintAdd(a2, vdotPairs(c, vpairSplatAt(basis + 8)));
        a3 = vintAdd(a3, vdotPairs(c, vpairSplatAt(basis + 12)));
        a4 = vintAdd(a4, vdotPairs(c, vpairSplatAt(basis + 16)));
        a5 = vintAdd(a5, vdotPairs(c, vpairSplatAt(basis + 20)));
        a6 = vintAdd(a6, vdotPairs(c, vpairSplatAt(basis + 24)));
        a7 = vintAdd(a7, vdotPairs(c, vpairSplatAt(basis + 28)));
      }
      const to = sums + lane;
      store<IntLanes>(to, a0);
      store<IntLanes>(to, a1, 16);
      store<IntLanes>(to, a2, 32);
      store<IntLanes>(to, a3, 48);
      store<IntLanes>(to, a4, 64);
      store<IntLanes>(to, a5, 80);
      store<IntLanes>(to, a6, 96);
      store<IntLanes>(to, a7, 112);
      a0 = vintSplat(0), a1 = a0, a2 = a0, a3 = a0, a4 = a0, a5 = a0, a6 = a0, a7 = a0;
      for (let p = odd; p < odd + half; p += GROUP_BYTES, basis += 32) {
        const c = load<IntLanes>(p);
        a0 = vintAdd(a0, vdotPairs(c, vpairSplatAt(basis)));
        a1 = vintAdd(a1, vdotPairs(c, vpairSplatAt(basis + 4)));
        a2 = vintAdd(a2, vdotPairs(c, vpairSplatAt(basis + 8)));
        a3 = vintAdd(a3, vdotPairs(c, vpairSplatAt(basis + 12)));
        a4 = vintAdd(a4, vdotPairs(c, vpairSplatAt(basis + 16)));
        a5 = vintAdd(a5, vdotPairs(c, vpairSplatAt(basis + 20)));
        a6 = vintAdd(a6, vdotPairs(c, vpairSplatAt(basis + 24)));
        a7 = vintAdd(a7, vdotPairs(c, vpairSplatAt(basis + 28)));
      }
      const after = scores + lane + ((32 + u) << 4), before = scores + lane + ((31 - u) << 4);
      const s1After = s1 + ((32 + u) << 2), s2After = s2 + ((32 + u) << 2), s1Before = s1 + ((31 - u) << 2), s2Before = s2 + ((31 - u) << 2);
      max = fold(max, load<IntLanes>(to), a0, unit, after, s1After, s2After, before, s1Before, s2Before);
      max = fold(max, load<IntLanes>(to, 16), a1, unit, after + 16, s1After + 4, s2After + 4, before - 16, s1Before - 4, s2Before - 4);
      max = fold(max, load<IntLanes>(to, 32), a2, unit, after + 32, s1After + 8, s2After + 8, before - 32, s1Before - 8, s2Before - 8);
      max = fold(max, load<IntLanes>(to, 48), a3, unit, after + 48, s1After + 12, s2After + 12, before - 48, s1Before - 12, s2Before - 12);
      max = fold(max, load<IntLanes>(to, 64), a4, unit, after + 64, s1After + 16, s2After + 16, before - 64, s1Before - 16, s2Before - 16);
      max = fold(max, load<IntLanes>(to, 80), a5, unit, after + 80, s1After + 20, s2After + 20, before - 80, s1Before - 20, s2Before - 20);
      max = fold(max, load<IntLanes>(to, 96), a6, unit, after + 96, s1After + 24, s2After + 24, before - 96, s1Before - 24, s2Before - 24);
      max = fold(max, load<IntLanes>(to, 112), a7, unit, after + 112, s1After + 28, s2After + 28, before - 112, s1Before - 28, s2Before - 28);
    }
    store<Lanes>(most + lane, max);
  }
}

@inline function fold(
  max: Lanes, even: IntLanes, odd: IntLanes, unit: Lanes,
  after: usize, s1After: usize, s2After: usize, before: usize, s1Before: usize, s2Before: usize
): Lanes {
  const x = vmul(vsplatAt(s1After), vmadd(vsplatAt(s2After), load<Lanes>(after), vmul(vfromInt(vintAdd(even, odd)), unit)));
  const y = vmul(vsplatAt(s1Before), vmadd(vsplatAt(s2Before), load<Lanes>(before), vmul(vfromInt(vintSub(even, odd)), unit)));
  store<Lanes>(after, x);
  store<Lanes>(before, y);
  return vmax(max, vmax(x, y));
}

/** Tokens at or beyond a lane's limit get no probability: scores ← HIDDEN. Returns nothing; most is computed again. */
export function hide(scores: usize, tokens: usize, position: f32, limits: usize, most: usize): void {
  for (let lane: usize = 0; lane < GROUP_BYTES; lane += LANE_BYTES) {
    const limit = load<Lanes>(limits + lane), hidden = vsplat(HIDDEN), one = vsplat(1);
    let at = vsplat(position), max = load<Lanes>(most + lane);
    for (let p = scores + lane, end = p + (tokens << 4); p < end; p += GROUP_BYTES) {
      const score = vselect(load<Lanes>(p), hidden, vgt(limit, at));
      max = vmax(max, score);
      store<Lanes>(p, score);
      at = vadd(at, one);
    }
    store<Lanes>(most + lane, max);
  }
}
