// Scores: logits of up to four query heads against coded keys, by table look-up. Heads in lanes.
//
//   logit(t) = s1 · (s2 · Σⱼ LUT[j][c(t, j)] + ⟨q, RoPEᵤ(o)⟩)         Specification: `scores` in src/reference/reference.ts
//
// The sum over the table is here, the mean's term in rope.ts.

import { Lanes, VECTOR_BYTES, vadd, vmadd, vmul, vneg, vsplatAt, vsplatAt4, vsplatAt8, vsplatAt12 } from "lanes";
import { LANE_ROW, Side } from "./abi";
import { LUT, NEGATED, pass, SCORES_BYTES, TABLE_ROW } from "./scratch";

/**
 * LUT[j][c] = ⟨q'ⱼ, C[c]⟩ for every codeword; rows beyond headDim / D, where codes are padding, are zero.
 *
 *   q  f32 [headDim, LANES]   H·q
 *
 * The codebook is symmetric, LUT[j][c + 128] = −LUT[j][c]: half the products (2.5 of 12 µs fixed cost at headDim 128).
 */
export function buildTable(side: Side, q: usize, headDim: usize): void {
  const channels = side.channels, rows = headDim / channels;
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
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
      p += 8 * LANE_ROW;
    }
  }
  for (let j = rows; j < side.rowBytes; j++) memory.fill(LUT + j * TABLE_ROW, 0, 256 * LANE_ROW);
}

function table8(book: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = book + 128 * 32; book < end; book += 32, table += LANE_ROW) {
    let a = vmul(vsplatAt(book), q0), b = vmul(vsplatAt4(book), q1);
    a = vmadd(vsplatAt8(book), q2, a);
    b = vmadd(vsplatAt12(book), q3, b);
    const next = book + 16;
    a = vmadd(vsplatAt(next), q4, a);
    b = vmadd(vsplatAt4(next), q5, b);
    a = vadd(vmadd(vsplatAt8(next), q6, a), vmadd(vsplatAt12(next), q7, b));
    store<Lanes>(table, a);
    store<Lanes>(table, vneg(a), NEGATED);
  }
}

/** Two rows at once share the loads of codewords. */
function table4(book: usize, q: usize, table: usize): void {
  const q0 = load<Lanes>(q), q1 = load<Lanes>(q, 16), q2 = load<Lanes>(q, 32), q3 = load<Lanes>(q, 48);
  const q4 = load<Lanes>(q, 64), q5 = load<Lanes>(q, 80), q6 = load<Lanes>(q, 96), q7 = load<Lanes>(q, 112);
  for (const end = book + 128 * 16; book < end; book += 16, table += LANE_ROW) {
    const e0 = vsplatAt(book), e1 = vsplatAt4(book), e2 = vsplatAt8(book), e3 = vsplatAt12(book);
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
  for (const end = book + 128 * 8; book < end; book += 8, table += LANE_ROW) {
    const e0 = vsplatAt(book), e1 = vsplatAt4(book);
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
 *   out     f32 [64, LANES]
 */
export function gather(codes: usize, rowBytes: usize, column: usize, out: usize): void {
  codes += column;
  if (rowBytes - column < 8) {
    gather4(codes, rowBytes, out, column * TABLE_ROW, column == 0);
    return;
  }
  switch (<i32>(column >> 3)) {
    case 0: gather8<u8, u8>(codes, rowBytes, out); break;
    case 1: gather8<u16, u8>(codes, rowBytes, out); break;
    case 2: gather8<u32, u8>(codes, rowBytes, out); break;
    case 3: gather8<u64, u8>(codes, rowBytes, out); break;
    case 4: gather8<u8, u16>(codes, rowBytes, out); break;
    case 5: gather8<u16, u16>(codes, rowBytes, out); break;
    case 6: gather8<u32, u16>(codes, rowBytes, out); break;
    case 7: gather8<u64, u16>(codes, rowBytes, out); break;
    default: gatherFar(codes, rowBytes, out, column * TABLE_ROW);
  }
}

function gather8<A, B>(codes: usize, rowBytes: usize, out: usize): void {
  if (VECTOR_BYTES == LANE_ROW) {
    gatherLanes<A, B>(codes, rowBytes, out, 0, 0);
  } else {
    for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) gatherLanes<A, B>(codes, rowBytes, out + lane, lane, 0);
  }
}

/** Columns from 64 on: the table's address is no constant. Shares the body of pass 1, which adds to `out`. */
function gatherFar(codes: usize, rowBytes: usize, out: usize, table: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    gatherLanes<u16, u8>(codes, rowBytes, out + lane, lane, table - 8 * TABLE_ROW);
  }
}

@inline function gatherLanes<A, B>(codes: usize, rowBytes: usize, out: usize, lane: usize, table: usize): void {
  const base = lane + table;
  for (const end = out + SCORES_BYTES; out < end; out += LANE_ROW, codes += rowBytes) {
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
function gather4(codes: usize, rowBytes: usize, out: usize, table: usize, first: bool): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const base = lane + table;
    let p = codes;
    for (let to = out + lane, end = to + SCORES_BYTES; to < end; to += LANE_ROW, p += rowBytes) {
      const w = <usize>load<u32>(p);
      const a = vadd(load<Lanes>(((w & 0xff) << 4) + base, LUT), load<Lanes>(((w >> 12) & 0xff0) + base, LUT + 2 * TABLE_ROW));
      const b = vadd(load<Lanes>(((w >> 4) & 0xff0) + base, LUT + TABLE_ROW), load<Lanes>(((w >> 20) & 0xff0) + base, LUT + 3 * TABLE_ROW));
      const sum = vadd(a, b);
      store<Lanes>(to, first ? sum : vadd(sum, load<Lanes>(to)));
    }
  }
}
