// Scores: logits of up to four query heads against coded keys, by table look-up. Heads in lanes.
//
//   logit(t) = s1 · (Σ over segments s2 · Σⱼ LUT[j][c(t, j)] + ⟨q, RoPEᵤ(o)⟩)     Specification: `scores` in src/reference/reference.ts
//
// The sum over the table is here, the mean's term in rope.ts.

import { Lanes, VECTOR_BYTES, vadd, vmadd, vmul, vneg, vsplatAt, vsplatAt4, vsplatAt8, vsplatAt12 } from "lanes";
import { columnsOf, LANE_ROW, segmentOf, Side, Stage, stageOf, TILE_ROW } from "./abi";
import { hadamard } from "./hadamard";
import { inOrder, inversesOf } from "./order";
import { LUT, NEGATED, pass, SCORES_BYTES, TABLE_ROW } from "./scratch";

/**
 * LUT[j][c] = scale · ⟨q'ⱼ, C[c]⟩ for every codeword of column j's stage, q' = H·A⁻¹·q; rows of padding are zero.
 *
 *   order    of balanced keys (order.ts), or 0
 *   q        f32 [headDim, LANES]
 *   rotated  f32 [headDim, LANES]   scratch
 *
 * Codebooks are symmetric, LUT[j][c + 128] = −LUT[j][c]: half the products (2.5 of 12 µs fixed cost at headDim 128).
 */
export function buildTable(side: Side, order: usize, q: usize, headDim: usize, rotated: usize): void {
  if (order) inOrder(q, order, inversesOf(order, headDim), headDim, LANE_ROW, rotated);
  else memory.copy(rotated, q, headDim * LANE_ROW);
  for (let n: usize = 0; n < side.segmentCount; n++) {
    const segment = segmentOf(side, n);
    const rows = rotated + segment.channel * LANE_ROW;
    hadamard(rows, segment.channels, LANE_ROW);
    for (let i: usize = 0; i < segment.stageCount; i++) stageTable(stageOf(segment, i), rows);
  }
  for (let j = columnsOf(side); j < side.rowBytes; j++) memory.fill(LUT + j * TABLE_ROW, 0, 256 * LANE_ROW);
}

/** Rows of two columns at a time: an odd last one has a twin, in a row of padding. */
function stageTable(stage: Stage, q: usize): void {
  const channels = stage.book.channels, words = stage.words;
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let p = q + lane, table = LUT + stage.column * TABLE_ROW + lane;
    for (const end = table + stage.columns * TABLE_ROW; table < end;) {
      if (channels == 8) {
        table8(words, p, table);
        table += TABLE_ROW;
        p += 8 * LANE_ROW;
      } else {
        if (channels == 4) table4(words, p, table);
        else table2(words, p, table);
        table += 2 * TABLE_ROW;
        p += 2 * channels * LANE_ROW;
      }
    }
  }
}

function table8(words: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = words + 128 * 32; words < end; words += 32, table += LANE_ROW) {
    let a = vmul(vsplatAt(words), q0), b = vmul(vsplatAt4(words), q1);
    a = vmadd(vsplatAt8(words), q2, a);
    b = vmadd(vsplatAt12(words), q3, b);
    const next = words + 16;
    a = vmadd(vsplatAt(next), q4, a);
    b = vmadd(vsplatAt4(next), q5, b);
    a = vadd(vmadd(vsplatAt8(next), q6, a), vmadd(vsplatAt12(next), q7, b));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
  }
}

/** Two rows at once share the loads of codewords. */
function table4(words: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = words + 128 * 16; words < end; words += 16, table += LANE_ROW) {
    const e0 = vsplatAt(words), e1 = vsplatAt4(words), e2 = vsplatAt8(words), e3 = vsplatAt12(words);
    const a = vmadd(e3, q3, vmadd(e2, q2, vmadd(e1, q1, vmul(e0, q0))));
    const b = vmadd(e3, q7, vmadd(e2, q6, vmadd(e1, q5, vmul(e0, q4))));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
    store<Lanes>(table, b, TABLE_ROW);
    store<Lanes>(table, vneg(b), TABLE_ROW + NEGATED);
  }
}

function table2(words: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  for (const end = words + 128 * 8; words < end; words += 8, table += LANE_ROW) {
    const e0 = vsplatAt(words), e1 = vsplatAt4(words);
    const a = vmadd(e1, q1, vmul(e0, q0)), b = vmadd(e1, q3, vmul(e0, q2));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
    store<Lanes>(table, b, TABLE_ROW);
    store<Lanes>(table, vneg(b), TABLE_ROW + NEGATED);
  }
}

/**
 * out[t] (+)= Σⱼ LUT[j][c(t, j)] over eight columns of codes: 64 KB of table rows, so that L1 holds what is read.
 * A window's whole row at once is slower from 32 codes on (8.5 against 7.0 ns a token and four heads, Zen 5).
 *
 *   column  the first of the eight, or of the last four
 *   out     f32 [64, LANES]
 *
 * Apart from `gatherScaled`, and called from two places, or compilers would inline it: V8 does worse by one function with the loops of
 * both (4 bits at headDim 128: 49.2 against 47.9 ns a token and three heads).
 */
export function gather(codes: usize, rowBytes: usize, column: usize, out: usize): void {
  codes += column;
  if (rowBytes - column < 8) gather4<Unscaled>(codes, rowBytes, out, column * TABLE_ROW, 0, 0, column == 0);
  else gatherPass<Unscaled>(codes, rowBytes, out, column >> 3, 0);
}

/**
 * The same, of several segments: out[t] (+)= Σⱼ s2·LUT[j][c(t, j)].
 *
 *   pairs   u32 [4]: where the s2 of every two columns are, in bytes beyond `s2`; ascending
 *   s2      f32 [segments, 64]
 */
export function gatherScaled(codes: usize, rowBytes: usize, column: usize, pairs: usize, s2: usize, out: usize): void {
  codes += column;
  const a = s2 + <usize>load<u32>(pairs), b = s2 + <usize>load<u32>(pairs, 4);
  if (rowBytes - column < 8) {
    gather4<Pairs>(codes, rowBytes, out, column * TABLE_ROW, a, b, column == 0);
    return;
  }
  const c = s2 + <usize>load<u32>(pairs, 8), d = s2 + <usize>load<u32>(pairs, 12), number = column >> 3;
  // Of the many ways in which segments meet, those that are frequent have code of their own.
  if (a == d) gatherPass<OneScale>(codes, rowBytes, out, number, a);
  else if (a == b && c == d && number < 4) {
    if (number == 0) gather8<u8, u8, Halves>(codes, rowBytes, out, a, d, 0, 0);
    else if (number == 1) gather8<u16, u8, Halves>(codes, rowBytes, out, a, d, 0, 0);
    else if (number == 2) gather8<u32, u8, Halves>(codes, rowBytes, out, a, d, 0, 0);
    else gather8<u64, u8, Halves>(codes, rowBytes, out, a, d, 0, 0);
  } else if (a == c && number == 1) gather8<u16, u8, SixAndTwo>(codes, rowBytes, out, a, d, 0, 0);
  else if (b == c && number == 0) gather8<u8, u8, TwoFourTwo>(codes, rowBytes, out, a, b, d, 0);
  else if (number == 0) gather8<u8, u8, Pairs>(codes, rowBytes, out, a, b, c, d);
  else gatherFar<Pairs>(codes, rowBytes, out, number, a, b, c, d);
}

/** Which columns of a pass share a scale, told to generic functions by a type: its size and sign are numbers at compile time. */
type Unscaled = u8;
type OneScale = u16;
type Halves = u32;
type SixAndTwo = u64;
type TwoFourTwo = i8;
type Pairs = i16;

function gatherPass<Scales>(codes: usize, rowBytes: usize, out: usize, number: usize, a: usize): void {
  switch (<i32>number) {
    case 0: gather8<u8, u8, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 1: gather8<u16, u8, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 2: gather8<u32, u8, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 3: gather8<u64, u8, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 4: gather8<u8, u16, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 5: gather8<u16, u16, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 6: gather8<u32, u16, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    case 7: gather8<u64, u16, Scales>(codes, rowBytes, out, a, 0, 0, 0); break;
    default: gatherFar<Scales>(codes, rowBytes, out, number, a, 0, 0, 0);
  }
}

function gather8<A, B, Scales>(codes: usize, rowBytes: usize, out: usize, a: usize, b: usize, c: usize, d: usize): void {
  if (VECTOR_BYTES == LANE_ROW) {
    gatherLanes<A, B, Scales>(codes, rowBytes, out, 0, 0, a, b, c, d);
  } else {
    for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
      gatherLanes<A, B, Scales>(codes, rowBytes, out + lane, lane, 0, a, b, c, d);
    }
  }
}

/** The table's address is no constant. Shares the body of pass 1, which adds to `out`. */
function gatherFar<Scales>(codes: usize, rowBytes: usize, out: usize, number: usize, a: usize, b: usize, c: usize, d: usize): void {
  const table = (number - 1) * 8 * TABLE_ROW;
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    gatherLanes<u16, u8, Scales>(codes, rowBytes, out + lane, lane, table, a, b, c, d);
  }
}

/** a to d: the scales, f32 [64] each, as many as there are. */
@inline function gatherLanes<A, B, Scales>(
  codes: usize, rowBytes: usize, out: usize, lane: usize, table: usize, a: usize, b: usize, c: usize, d: usize
): void {
  const base = lane + table;
  for (const end = out + SCORES_BYTES; out < end; out += LANE_ROW, codes += rowBytes) {
    const w = <usize>load<u32>(codes), v = <usize>load<u32>(codes, 4);
    const l0 = load<Lanes>(((w & 0xff) << 4) + base, LUT + pass<A, B>());
    const l1 = load<Lanes>(((w >> 4) & 0xff0) + base, LUT + pass<A, B>() + TABLE_ROW);
    const l2 = load<Lanes>(((w >> 12) & 0xff0) + base, LUT + pass<A, B>() + 2 * TABLE_ROW);
    const l3 = load<Lanes>(((w >> 20) & 0xff0) + base, LUT + pass<A, B>() + 3 * TABLE_ROW);
    const l4 = load<Lanes>(((v & 0xff) << 4) + base, LUT + pass<A, B>() + 4 * TABLE_ROW);
    const l5 = load<Lanes>(((v >> 4) & 0xff0) + base, LUT + pass<A, B>() + 5 * TABLE_ROW);
    const l6 = load<Lanes>(((v >> 12) & 0xff0) + base, LUT + pass<A, B>() + 6 * TABLE_ROW);
    const l7 = load<Lanes>(((v >> 20) & 0xff0) + base, LUT + pass<A, B>() + 7 * TABLE_ROW);
    const l01 = vadd(l0, l1), l23 = vadd(l2, l3), l45 = vadd(l4, l5), l67 = vadd(l6, l7);
    let sum: Lanes;
    if (isSigned<Scales>()) {
      if (sizeof<Scales>() == sizeof<TwoFourTwo>()) {
        sum = vmadd(l67, vsplatAt(c), vmadd(vadd(l23, l45), vsplatAt(b), vmul(l01, vsplatAt(a))));
      } else {
        sum = vmadd(l67, vsplatAt(d), vmadd(l45, vsplatAt(c), vmadd(l23, vsplatAt(b), vmul(l01, vsplatAt(a)))));
        d += 4;
      }
      a += 4, b += 4, c += 4;
    } else if (sizeof<Scales>() == sizeof<Unscaled>()) {
      sum = vadd(vadd(l01, l23), vadd(l45, l67));
    } else if (sizeof<Scales>() == sizeof<OneScale>()) {
      sum = vmul(vadd(vadd(l01, l23), vadd(l45, l67)), vsplatAt(a));
      a += 4;
    } else {
      if (sizeof<Scales>() == sizeof<Halves>()) sum = vmadd(vadd(l45, l67), vsplatAt(b), vmul(vadd(l01, l23), vsplatAt(a)));
      else sum = vmadd(l67, vsplatAt(b), vmul(vadd(vadd(l01, l23), l45), vsplatAt(a)));
      a += 4, b += 4;
    }
    store<Lanes>(out, sizeof<A>() == 1 && sizeof<B>() == 1 ? sum : vadd(sum, load<Lanes>(out)));
  }
}

/** The last four columns of a row that is no multiple of eight. */
function gather4<Scales>(codes: usize, rowBytes: usize, out: usize, table: usize, a: usize, b: usize, first: bool): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const base = lane + table;
    let p = codes, to = out + lane;
    for (let t: usize = 0; t < TILE_ROW; t += 4, to += LANE_ROW, p += rowBytes) {
      const w = <usize>load<u32>(p);
      let x = vadd(load<Lanes>(((w & 0xff) << 4) + base, LUT), load<Lanes>(((w >> 4) & 0xff0) + base, LUT + TABLE_ROW));
      const third = load<Lanes>(((w >> 12) & 0xff0) + base, LUT + 2 * TABLE_ROW);
      let y = vadd(third, load<Lanes>(((w >> 20) & 0xff0) + base, LUT + 3 * TABLE_ROW));
      if (isSigned<Scales>()) {
        x = vmul(x, vsplatAt(a + t));
        y = vmul(y, vsplatAt(b + t));
      }
      const sum = vadd(x, y);
      store<Lanes>(to, first ? sum : vadd(sum, load<Lanes>(to)));
    }
  }
}
