// Mix: the weighted sum of coded values by buckets: a token adds its weight to one bucket per code, and the codebook enters
// once per query. Heads in lanes.
//
//   out = H·Σⱼ Σ_c B[j][c]·C[c]  +  Σ_windows (Σₜ pₜ·s1)·o,   B[j][c] = Σ over t with c(t, j) = c of pₜ·s1·s2
//
// Specification: `mix` in src/reference/reference.ts.
//
// Buckets are zero between calls: `reduceBuckets` leaves them so while it has them in cache (clearing 128 KB first cost 0.5 % at 4,096
// tokens).

import { Lanes, VECTOR_BYTES, vabs, vadd, vdiv, vgt, vmadd, vmul, vselect, vsplat, vsplatAt, vsplatAt4, vsplatAt8, vsplatAt12, vsub } from "lanes";
import { LANE_ROW, Segment, Side, stageOf, TILE_ROW } from "./abi";
import { BUCKETS, NEGATED, pass, SCORES_BYTES, TABLE_ROW } from "./scratch";
import { EXP, exp2 } from "./softmax";

/**
 * The running maximum moved: what was gathered under the old one is multiplied by factor, f32 [LANES]. What would come below 2⁻¹¹⁰
 * becomes 0: beside the new maximum it is nothing, and denormal products would be many where slopes let logits rise with every window.
 */
export function rescaleBuckets(rows: usize, factor: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const by = load<Lanes>(factor + lane), least = vdiv(vsplat(7.70372e-34), by), zero = vsplat(0);
    for (let j: usize = 0; j < rows; j++) {
      for (let p = BUCKETS + lane + j * TABLE_ROW, end = p + 256 * LANE_ROW; p < end; p += LANE_ROW) {
        const x = load<Lanes>(p);
        store<Lanes>(p, vmul(vselect(x, zero, vgt(vabs(x), least)), by));
      }
    }
  }
}

/**
 * scores[t] ← p·s1·s2 with p = 2^(scores[t] − m); d += Σ p; share = Σ p·s1. With `scatterAdd` of the first eight columns of codes:
 * buckets wait for loads and stores, the exponential for arithmetic. (Two tokens a turn: −1 %, for twice the code. Two a turn in
 * `gather` and `scatterAdd`: nothing at nsn2, for 14 % more of a binary.)
 *
 *   scores     f32 [64, LANES]
 *   norms      f32 [2, 64]: s1, s2 of the values
 *   m, d, share  f32 [LANES]
 */
export function softmaxWeights(scores: usize, norms: usize, m: usize, d: usize, share: usize, codes: usize, rowBytes: usize): void {
  if (VECTOR_BYTES == LANE_ROW) {
    softmaxLanes(scores, norms, m, d, share, codes, rowBytes, 0);
  } else {
    for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
      softmaxLanes(scores + lane, norms, m + lane, d + lane, share + lane, codes, rowBytes, lane);
    }
  }
}

@inline function softmaxLanes(
  scores: usize, norms: usize, m: usize, d: usize, share: usize, codes: usize, rowBytes: usize, lane: usize
): void {
  const max = load<Lanes>(m);
  const low = vsplatAt(EXP), magic = vsplatAt(EXP + 4), c0 = vsplatAt(EXP + 8), c1 = vsplatAt(EXP + 12);
  const c2 = vsplatAt(EXP + 16), c3 = vsplatAt(EXP + 20), c4 = vsplatAt(EXP + 24), c5 = vsplatAt(EXP + 28);
  let total = load<Lanes>(d), shares = vsplat(0);
  for (const end = norms + TILE_ROW; norms < end; norms += 4, scores += LANE_ROW, codes += rowBytes) {
    const e = exp2(vsub(load<Lanes>(scores), max), low, magic, c0, c1, c2, c3, c4, c5);
    const x = vmul(e, vsplatAt(norms)), weight = vmul(x, vsplatAt(norms + TILE_ROW));
    total = vadd(total, e);
    shares = vadd(shares, x);
    store<Lanes>(scores, weight);
    if (rowBytes < 8) addToFour(codes, lane, weight);
    else addToEight<u8, u8>(codes, lane, weight);
  }
  store<Lanes>(d, total);
  store<Lanes>(share, shares);
}

/** out[i] += share · o[i]:  f32 [headDim, LANES] += f32 [LANES] · f32 [headDim] */
export function mixMean(share: usize, o: usize, headDim: usize, out: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const by = load<Lanes>(share + lane);
    let p = out + lane;
    for (let i = o, end = o + (headDim << 2); i < end; i += 8, p += 2 * LANE_ROW) {
      store<Lanes>(p, vmadd(by, vsplatAt(i), load<Lanes>(p)));
      store<Lanes>(p, vmadd(by, vsplatAt4(i), load<Lanes>(p, 16)), 16);
    }
  }
}

/**
 * B[j][c(t, j)] += weights[t] over eight columns of codes (see `gather`, its twin).
 *
 *   weights  f32 [64, LANES]
 */
export function scatterAdd(codes: usize, rowBytes: usize, column: usize, weights: usize): void {
  codes += column;
  if (rowBytes - column < 8) {
    scatterAdd4(codes, rowBytes, weights, column * TABLE_ROW);
    return;
  }
  switch (<i32>(column >> 3)) {
    case 0: scatterAdd8<u8, u8>(codes, rowBytes, weights); break;
    case 1: scatterAdd8<u16, u8>(codes, rowBytes, weights); break;
    case 2: scatterAdd8<u32, u8>(codes, rowBytes, weights); break;
    case 3: scatterAdd8<u64, u8>(codes, rowBytes, weights); break;
    case 4: scatterAdd8<u8, u16>(codes, rowBytes, weights); break;
    case 5: scatterAdd8<u16, u16>(codes, rowBytes, weights); break;
    case 6: scatterAdd8<u32, u16>(codes, rowBytes, weights); break;
    case 7: scatterAdd8<u64, u16>(codes, rowBytes, weights); break;
    default: scatterAddFar(codes, rowBytes, weights, column * TABLE_ROW);
  }
}

function scatterAdd8<A, B>(codes: usize, rowBytes: usize, weights: usize): void {
  if (VECTOR_BYTES == LANE_ROW) {
    scatterAddLanes<A, B>(codes, rowBytes, weights, 0, 0);
  } else {
    for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) scatterAddLanes<A, B>(codes, rowBytes, weights + lane, lane, 0);
  }
}

/** Columns from 64 on: the buckets' address is no constant. */
function scatterAddFar(codes: usize, rowBytes: usize, weights: usize, table: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    scatterAddLanes<u8, u8>(codes, rowBytes, weights + lane, lane, table);
  }
}

@inline function scatterAddLanes<A, B>(codes: usize, rowBytes: usize, weights: usize, lane: usize, table: usize): void {
  for (const end = weights + SCORES_BYTES; weights < end; weights += LANE_ROW, codes += rowBytes) {
    addToEight<A, B>(codes, lane + table, load<Lanes>(weights));
  }
}

function scatterAdd4(codes: usize, rowBytes: usize, weights: usize, table: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    let p = codes;
    for (let from = weights + lane, end = from + SCORES_BYTES; from < end; from += LANE_ROW, p += rowBytes) {
      addToFour(p, lane + table, load<Lanes>(from));
    }
  }
}

@inline function addToEight<A, B>(codes: usize, base: usize, weight: Lanes): void {
  const w = <usize>load<u32>(codes), v = <usize>load<u32>(codes, 4);
  const p0 = ((w & 0xff) << 4) + base, p1 = ((w >> 4) & 0xff0) + base, p2 = ((w >> 12) & 0xff0) + base, p3 = ((w >> 20) & 0xff0) + base;
  const p4 = ((v & 0xff) << 4) + base, p5 = ((v >> 4) & 0xff0) + base, p6 = ((v >> 12) & 0xff0) + base, p7 = ((v >> 20) & 0xff0) + base;
  store<Lanes>(p0, vadd(load<Lanes>(p0, BUCKETS + pass<A, B>()), weight), BUCKETS + pass<A, B>());
  store<Lanes>(p1, vadd(load<Lanes>(p1, BUCKETS + pass<A, B>() + TABLE_ROW), weight), BUCKETS + pass<A, B>() + TABLE_ROW);
  store<Lanes>(p2, vadd(load<Lanes>(p2, BUCKETS + pass<A, B>() + 2 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 2 * TABLE_ROW);
  store<Lanes>(p3, vadd(load<Lanes>(p3, BUCKETS + pass<A, B>() + 3 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 3 * TABLE_ROW);
  store<Lanes>(p4, vadd(load<Lanes>(p4, BUCKETS + pass<A, B>() + 4 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 4 * TABLE_ROW);
  store<Lanes>(p5, vadd(load<Lanes>(p5, BUCKETS + pass<A, B>() + 5 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 5 * TABLE_ROW);
  store<Lanes>(p6, vadd(load<Lanes>(p6, BUCKETS + pass<A, B>() + 6 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 6 * TABLE_ROW);
  store<Lanes>(p7, vadd(load<Lanes>(p7, BUCKETS + pass<A, B>() + 7 * TABLE_ROW), weight), BUCKETS + pass<A, B>() + 7 * TABLE_ROW);
}

@inline function addToFour(codes: usize, base: usize, weight: Lanes): void {
  const w = <usize>load<u32>(codes);
  const p0 = ((w & 0xff) << 4) + base, p1 = ((w >> 4) & 0xff0) + base, p2 = ((w >> 12) & 0xff0) + base, p3 = ((w >> 20) & 0xff0) + base;
  store<Lanes>(p0, vadd(load<Lanes>(p0, BUCKETS), weight), BUCKETS);
  store<Lanes>(p1, vadd(load<Lanes>(p1, BUCKETS + TABLE_ROW), weight), BUCKETS + TABLE_ROW);
  store<Lanes>(p2, vadd(load<Lanes>(p2, BUCKETS + 2 * TABLE_ROW), weight), BUCKETS + 2 * TABLE_ROW);
  store<Lanes>(p3, vadd(load<Lanes>(p3, BUCKETS + 3 * TABLE_ROW), weight), BUCKETS + 3 * TABLE_ROW);
}

/**
 * out[jD + k] += Σ_c B[j][c] · scale · C[c][k] over the stages of one segment. Codebooks are symmetric: B[j][c] − B[j][c + 128] meets
 * C[c].
 *
 *   out  f32 [channels, LANES]
 *
 * Clears the buckets as it reads them last.
 */
export function reduceBuckets(segment: Segment, out: usize): void {
  for (let n: usize = 0; n < segment.stageCount; n++) {
    const stage = stageOf(segment, n);
    const channels = stage.book.channels, words = stage.words;
    for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
      let buckets = BUCKETS + stage.column * TABLE_ROW + lane;
      for (let p = out + lane, end = p + segment.channels * LANE_ROW; p < end; buckets += TABLE_ROW) {
        if (channels == 2) {
          reduce2(buckets, words, p);
          p += 2 * LANE_ROW;
        } else {
          // Four channels a time: with eight accumulators V8 spills one (12 against 4.4 µs a query, Zen 5).
          for (let k: usize = 0; k < channels; k += 4) {
            reduce4(buckets, words + (k << 2), channels << 2, p, k + 4 == channels);
            p += 4 * LANE_ROW;
          }
        }
      }
    }
  }
}

/** Buckets of columns from `first` on. */
export function clearBuckets(side: Side, first: usize): void {
  for (let j = first; j < side.rowBytes; j++) memory.fill(BUCKETS + j * TABLE_ROW, 0, 256 * LANE_ROW);
}

function reduce4(buckets: usize, words: usize, wordBytes: usize, out: usize, last: bool): void {
  const zero = vsplat(0);
  let a0 = load<Lanes>(out), a1 = load<Lanes>(out, 16), a2 = load<Lanes>(out, 32), a3 = load<Lanes>(out, 48);
  for (const end = buckets + NEGATED; buckets < end; buckets += LANE_ROW, words += wordBytes) {
    const w = vsub(load<Lanes>(buckets), load<Lanes>(buckets, NEGATED));
    if (last) {
      store<Lanes>(buckets, zero);
      store<Lanes>(buckets, zero, NEGATED);
    }
    a0 = vmadd(w, vsplatAt(words), a0);
    a1 = vmadd(w, vsplatAt4(words), a1);
    a2 = vmadd(w, vsplatAt8(words), a2);
    a3 = vmadd(w, vsplatAt12(words), a3);
  }
  store<Lanes>(out, a0);
  store<Lanes>(out, a1, 16);
  store<Lanes>(out, a2, 32);
  store<Lanes>(out, a3, 48);
}

function reduce2(buckets: usize, words: usize, out: usize): void {
  const zero = vsplat(0);
  let a0 = load<Lanes>(out), a1 = load<Lanes>(out, 16);
  for (const end = buckets + NEGATED; buckets < end; buckets += LANE_ROW, words += 8) {
    const w = vsub(load<Lanes>(buckets), load<Lanes>(buckets, NEGATED));
    store<Lanes>(buckets, zero);
    store<Lanes>(buckets, zero, NEGATED);
    a0 = vmadd(w, vsplatAt(words), a0);
    a1 = vmadd(w, vsplatAt4(words), a1);
  }
  store<Lanes>(out, a0);
  store<Lanes>(out, a1, 16);
}
