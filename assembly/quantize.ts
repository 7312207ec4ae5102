// Quantize: the nearest codeword, argmax(y·C − ‖C‖²/2), the lowest code among equals. Exact, and never all 256 codewords.
// Every build adds in the same order, so all give the same codes.

import { IntLanes, Lanes, VECTOR_BYTES, vabs, vadd, vbits, vdotPairs, vfloor, vgt, vintAbs, vintAdd, vintLargest, vintMax,
  vintSplat, vintSub, vmax, vmin, vmul, vpair, vpairSplatAt, vselect, vsplat, vsub } from "lanes";
import { Codebook, TILE_ROW } from "./abi";
import { CELL_FACTORS, CELL_LISTS, CODED_BOUNDS, CODED_PAIRS, CODED_SCORES } from "./scratch";

/** Bytes of two channels of 128 rounded codewords, i16 [128, 2], and of their half norms, i32 [128]. */
const ROUNDED_ROW: usize = 512;

/**
 * codes[t, j] = nearest codeword of channels jD … jD + D − 1 of token t; yc = Σ ⟨y, C[c]⟩ of every token.
 *
 *   y      f32 [channels, 64]; D = 2 and 4: |y| ≤ 25 (‖y‖ = √channels, channels ≤ 576)
 *   codes  u8  [64, rowBytes]
 *   yc     f32 [64]
 *
 * Specification: `quantize` in src/reference/reference.ts.
 */
export function quantize(book: Codebook, y: usize, channels: usize, codes: usize, rowBytes: usize, yc: usize): void {
  memory.fill(yc, 0, TILE_ROW);
  const groupBytes = book.channels * TILE_ROW;
  for (let end = y + channels * TILE_ROW; y < end; y += groupBytes, codes++) {
    if (book.channels == 8) quantize8(book, y, codes, rowBytes, yc);
    else if (book.channels == 4) quantize4(book, y, codes, rowBytes, yc);
    else quantize2(book, y, codes, rowBytes, yc);
  }
}

/**
 * D = 2 and 4 read a grid over the channels' values: each cell lists the codewords that are nearest somewhere in it (found by
 * cells.ts) in groups of four that are scored at once, one group at D = 2 and 1.9 at D = 4. Twice the score is
 * Σ C·(2y − C), which needs no norms. The grid has the cells of one half: a token in the other is negated, and so is its codeword,
 * which is the lowest among equals then before it is negated.
 *
 *   grid   u32 [cells^D / 2]   offset of the list << 8 | its groups
 *   list   u8 [4] codes a group (D = 4); f32 [2, 4] codewords and u8 [4] codes, padded to 48 bytes (D = 2). Ascending.
 *
 * Lanes keep their best to the end: a group's best as a scalar, the better by `select`, is a branch in V8, and 670 ns a row of
 * 128 channels at D = 4 where this takes 425. Unrealized speed-up: the first group apart from the loop, 405, but twice the code.
 */
function quantize2(book: Codebook, y: usize, codes: usize, rowBytes: usize, yc: usize): void {
  cellLists(book, y, 2);
  const grid = book.grid, halfNorms = book.halfNorms;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
    const factor = load<f32>(CELL_FACTORS + t), y0 = factor * load<f32>(y + t), y1 = factor * load<f32>(y + t, TILE_ROW);
    const entry = load<u32>(CELL_LISTS + t);
    let p = grid + <usize>(entry >> 8), best: f32 = -Infinity, code: usize = 0;
    const end = p + <usize>(entry & 255) * 48;
    if (VECTOR_BYTES == 16) {
      const y0_f32x4 = f32x4.splat(y0), y1_f32x4 = f32x4.splat(y1);
      const scores = v128Scores2(p, y0_f32x4, y1_f32x4), max = everyLaneMax(scores);
      best = f32x4.extract_lane(max, 0);
      code = <usize>load<u8>(p + firstLane(scores, max), 32);
      for (p += 48; p < end; p += 48) {   // 16 of 4,096 cells, far out
        const scores = v128Scores2(p, y0_f32x4, y1_f32x4), max = everyLaneMax(scores);
        if (f32x4.extract_lane(max, 0) > best) {
          best = f32x4.extract_lane(max, 0);
          code = <usize>load<u8>(p + firstLane(scores, max), 32);
        }
      }
    } else {
      for (; p < end; p += 48) {
        for (let lane: usize = 0; lane < 4; lane++) {
          const c0 = load<f32>(p + (lane << 2)), c1 = load<f32>(p + (lane << 2), 16);
          const score = c0 * (y0 - c0) + c1 * (y1 - c1);
          if (score > best) {
            best = score;
            code = <usize>load<u8>(p + lane, 32);
          }
        }
      }
    }
    store<u8>(codes, <u8>code ^ mirrored(factor));
    store<f32>(yc + t, load<f32>(yc + t) + (best * 0.5 + load<f32>(halfNorms + (code << 2))));
  }
}

function quantize4(book: Codebook, y: usize, codes: usize, rowBytes: usize, yc: usize): void {
  cellLists(book, y, 4);
  const grid = book.grid, words = book.words, halfNorms = book.halfNorms;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
    const entry = load<u32>(CELL_LISTS + t), factor = load<f32>(CELL_FACTORS + t);
    const list = grid + <usize>(entry >> 8), end = <usize>(entry & 255) << 2;
    let best: f32, code: usize;
    if (VECTOR_BYTES == 16) {
      const row_f32x4 = v128Times(y + t, f32x4.splat(factor));
      let scores = f32x4.splat(-Infinity), at = i32x4.splat(0);
      for (let group: usize = 0; group < end; group += 4) {
        const more = v128Scores4(list + group, words, row_f32x4);
        at = v128.bitselect(i32x4.splat(<i32>group), at, f32x4.gt(more, scores));
        scores = f32x4.pmax(scores, more);
      }
      at = i32x4.add(at, i32x4(0, 1, 2, 3));
      const max = everyLaneMax(scores);
      best = f32x4.extract_lane(max, 0);
      code = <usize>load<u8>(list + lowestLane(v128.or(at, f32x4.ne(scores, max))));
    } else {
      best = -Infinity;
      code = 0;
      for (let p = list; p < list + end; p++) {
        const c = <usize>load<u8>(p), word = words + (c << 4);
        const score = (term(y + t, factor, word, 0) + term(y + t, factor, word, 1))
          + (term(y + t, factor, word, 2) + term(y + t, factor, word, 3));
        if (score > best) {
          best = score;
          code = c;
        }
      }
    }
    store<u8>(codes, <u8>code ^ mirrored(factor));
    store<f32>(yc + t, load<f32>(yc + t) + (best * 0.5 + load<f32>(halfNorms + (code << 2))));
  }
}

/** C·(±2y − C) of one channel; v128Terms of four. */
@inline function term(y: usize, factor: f32, word: usize, k: usize): f32 {
  const c = load<f32>(word + (k << 2));
  return c * (factor * load<f32>(y + k * TILE_ROW) - c);
}

/** 128, which makes a codeword its negation, where a factor is −2; else 0. */
@inline function mirrored(factor: f32): u8 {
  return <u8>(reinterpret<u32>(factor) >> 24) & 128;
}

/** ±2y of a token's four channels. */
@inline function v128Times(y: usize, factor: v128): v128 {
  const row = v128.load_lane<u32>(
    y, v128.load_lane<u32>(y, v128.load_lane<u32>(y, v128.load32_zero(y), 1, TILE_ROW), 2, 2 * TILE_ROW), 3, 3 * TILE_ROW
  );
  return f32x4.mul(row, factor);
}

@inline function v128Scores2(group: usize, y0: v128, y1: v128): v128 {
  const c0 = v128.load(group), c1 = v128.load(group, 16);
  return f32x4.add(f32x4.mul(c0, f32x4.sub(y0, c0)), f32x4.mul(c1, f32x4.sub(y1, c1)));
}

/** Lane i: the sum of codeword i's terms, (0 + 1) + (2 + 3). */
@inline function v128Scores4(group: usize, words: usize, row: v128): v128 {
  const codes = load<u32>(group);
  const a = v128Terms(row, words + <usize>((codes & 255) << 4)), b = v128Terms(row, words + <usize>((codes >> 8 & 255) << 4));
  const c = v128Terms(row, words + <usize>((codes >> 16 & 255) << 4)), d = v128Terms(row, words + <usize>(codes >> 24 << 4));
  const ab = f32x4.add(i32x4.shuffle(a, b, 0, 2, 4, 6), i32x4.shuffle(a, b, 1, 3, 5, 7));
  const cd = f32x4.add(i32x4.shuffle(c, d, 0, 2, 4, 6), i32x4.shuffle(c, d, 1, 3, 5, 7));
  return f32x4.add(i32x4.shuffle(ab, cd, 0, 2, 4, 6), i32x4.shuffle(ab, cd, 1, 3, 5, 7));
}

@inline function v128Terms(row: v128, word: usize): v128 {
  const c = v128.load(word);
  return f32x4.mul(c, f32x4.sub(row, c));
}

@inline function everyLaneMax(x: v128): v128 {
  const pairs = f32x4.pmax(x, i32x4.shuffle(x, x, 2, 3, 0, 1));
  return f32x4.pmax(pairs, i32x4.shuffle(pairs, pairs, 1, 0, 3, 2));
}

@inline function firstLane(x: v128, value: v128): usize {
  return <usize>ctz<i32>(i32x4.bitmask(f32x4.eq(x, value)));
}

@inline function lowestLane(x: v128): usize {
  const pairs = i32x4.min_u(x, i32x4.shuffle(x, x, 2, 3, 0, 1));
  return <usize>i32x4.extract_lane(i32x4.min_u(pairs, i32x4.shuffle(pairs, pairs, 1, 0, 3, 2)), 0);
}

/**
 * CELL_LISTS[t] = the grid's entry of the cell of token t's channels, digits clamp(floor(y · gridScale + cells/2)), the first channel
 * lowest, or of that cell's mirror image; CELL_FACTORS[t] = 2, or −2. All tokens before any list is read: a list's length is then known
 * in time for its loop (450 → 410 ns a row at D = 4).
 */
function cellLists(book: Codebook, y: usize, channels: usize): void {
  const scale = vsplat(book.gridScale), half = vsplat(<f32>book.gridCells * 0.5);
  const count = vsplat(<f32>book.gridCells), last = vsplat(<f32>(book.gridCells - 1)), zero = vsplat(0);
  let cells: f32 = 1;
  for (let k: usize = 0; k < channels; k++) cells *= <f32>book.gridCells;
  const middle = vsplat((cells - 1) * 0.5), magic = vsplat(8388607.5);   // 2²³ − ½: the integer below it becomes the low bits
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    let cell = zero;
    for (let p = y + t + (channels - 1) * TILE_ROW; p >= y; p -= TILE_ROW) {
      const digit = vmin(last, vmax(zero, vfloor(vadd(vmul(load<Lanes>(p), scale), half))));
      cell = vadd(vmul(cell, count), digit);
    }
    const from = vsub(cell, middle);
    store<IntLanes>(CELL_LISTS + t, vbits(vadd(vabs(from), magic)));
    store<Lanes>(CELL_FACTORS + t, vselect(vsplat(-2), vsplat(2), vgt(zero, from)));
  }
  const grid = book.grid;
  for (let t: usize = 0; t < TILE_ROW; t += 4) store<u32>(CELL_LISTS + t, load<u32>(grid + (<usize>load<u16>(CELL_LISTS + t) << 2)));
}

/**
 * D = 8: the codebook is symmetric, so 128 dot products settle all 256 codewords: the score of the better of ±C is
 * |y·C| − ‖C‖²/2. They are taken in i16, codewords in lanes; the few that come within twice their error of the best (1.006 on
 * average) are scored again in f32, and so are all 128 for a token that i16 does not hold.
 *
 *   rounded  i16 [4, 128, 2] codewords · 2¹², by pairs of channels; then i32 [128] ‖C‖²/2 · 2²⁴
 *
 * Unrealized speed-up: two tokens at a time, so that they share loads: 830 ns a row of 128 channels, this 810. A grid does not
 * prune eight channels.
 */
function quantize8(book: Codebook, y: usize, codes: usize, rowBytes: usize, yc: usize): void {
  round(y, book.margin);
  const rounded = book.rounded, words = book.words, halfNorms = book.halfNorms;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
    const y01 = vpairSplatAt(CODED_PAIRS + t), y23 = vpairSplatAt(CODED_PAIRS + t + TILE_ROW);
    const y45 = vpairSplatAt(CODED_PAIRS + t + 2 * TILE_ROW), y67 = vpairSplatAt(CODED_PAIRS + t + 3 * TILE_ROW);
    let largest = vintSplat(i32.MIN_VALUE);
    for (let c: usize = 0; c < ROUNDED_ROW; c += 2 * VECTOR_BYTES) {
      const p = rounded + c, to = CODED_SCORES + c;
      largest = vintMax(largest, roundedScore(p, to, y01, y23, y45, y67));
      largest = vintMax(largest, roundedScore(p + VECTOR_BYTES, to + VECTOR_BYTES, y01, y23, y45, y67));
    }

    const bound = load<f32>(CODED_BOUNDS + t);
    let low: u64 = ~0, high: u64 = ~0;   // the candidates among codewords 0 to 63 and 64 to 127
    if (bound < Infinity) {
      const above = vintLargest(largest) - <i32>bound;
      low = scoresAbove(CODED_SCORES, above);
      high = scoresAbove(CODED_SCORES + 64 * 4, above);
    }
    let best: f32 = -Infinity, code: usize = 0, product: f32 = 0;
    while ((low | high) != 0) {
      const inHigh = u64(low == 0);            // 0 or 1; a branch would be mispredicted every other time
      const c = <usize>(ctz(low) + (ctz(high) & (0 - inHigh)));
      high &= high - inHigh;
      low &= low - 1;
      const dot = exactDot(y + t, words + (c << 5)), halfNorm = load<f32>(halfNorms + (c << 2));
      const score = abs<f32>(dot) - halfNorm;
      const candidate = c | (<usize>(score > dot - halfNorm) << 7);
      if (score > best || (score == best && candidate < code)) {
        best = score;
        code = candidate;
        product = abs<f32>(dot);
      }
    }
    store<u8>(codes, <u8>code);
    store<f32>(yc + t, load<f32>(yc + t) + product);
  }
}

/**
 * CODED_PAIRS = y · 2¹² as i16. CODED_BOUNDS = 2¹²·(‖y‖₁ + margin), twice the error of a rounded score, whose factors are off by up
 * to ½ each; infinite beyond i16.
 */
function round(y: usize, margin: f32): void {
  const one = vsplat(4096), magic = vsplat(12582912);   // 2²³ + 2²²: the integer below it becomes the low bits
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    let sum = vsplat(margin), peak = vsplat(0);
    for (let k: usize = 0; k < 4; k++) {
      const p = y + t + 2 * k * TILE_ROW;
      const even = load<Lanes>(p), odd = load<Lanes>(p, TILE_ROW);
      store<IntLanes>(CODED_PAIRS + t + k * TILE_ROW, vpair(vbits(vadd(vmul(even, one), magic)), vbits(vadd(vmul(odd, one), magic))));
      sum = vadd(sum, vadd(vabs(even), vabs(odd)));
      peak = vmax(peak, vmax(vabs(even), vabs(odd)));
    }
    store<Lanes>(CODED_BOUNDS + t, vselect(vsplat(Infinity), vmul(sum, one), vgt(peak, vsplat(7.9))));
  }
}

@inline function roundedScore(p: usize, to: usize, y01: IntLanes, y23: IntLanes, y45: IntLanes, y67: IntLanes): IntLanes {
  const dot = vintAdd(
    vintAdd(vdotPairs(y01, load<IntLanes>(p)), vdotPairs(y23, load<IntLanes>(p, ROUNDED_ROW))),
    vintAdd(vdotPairs(y45, load<IntLanes>(p, 2 * ROUNDED_ROW)), vdotPairs(y67, load<IntLanes>(p, 3 * ROUNDED_ROW)))
  );
  const score = vintSub(vintAbs(dot), load<IntLanes>(p, 4 * ROUNDED_ROW));
  store<IntLanes>(to, score);
  return score;
}

/** Bit i of 64: i32 [i] at p > least. */
@inline function scoresAbove(p: usize, least: i32): u64 {
  let bits: u64 = 0;
  if (VECTOR_BYTES == 16) {
    const least_i32x4 = i32x4.splat(least);
    for (let i: u64 = 0; i < 64; i += 16, p += 64) bits |= v128Above(p, least_i32x4) << i;
  } else {
    for (let i: u64 = 0; i < 64; i++, p += 4) bits |= (load<i32>(p) > least ? <u64>1 : 0) << i;
  }
  return bits;
}

@inline function v128Above(p: usize, least: v128): u64 {
  return <u64>i8x16.bitmask(i8x16.narrow_i16x8_s(
    i16x8.narrow_i32x4_s(i32x4.gt_s(v128.load(p), least), i32x4.gt_s(v128.load(p, 16), least)),
    i16x8.narrow_i32x4_s(i32x4.gt_s(v128.load(p, 32), least), i32x4.gt_s(v128.load(p, 48), least))
  ));
}

@inline function exactDot(y: usize, word: usize): f32 {
  return load<f32>(y) * load<f32>(word) + load<f32>(y, TILE_ROW) * load<f32>(word, 4)
    + load<f32>(y, 2 * TILE_ROW) * load<f32>(word, 8) + load<f32>(y, 3 * TILE_ROW) * load<f32>(word, 12)
    + load<f32>(y, 4 * TILE_ROW) * load<f32>(word, 16) + load<f32>(y, 5 * TILE_ROW) * load<f32>(word, 20)
    + load<f32>(y, 6 * TILE_ROW) * load<f32>(word, 24) + load<f32>(y, 7 * TILE_ROW) * load<f32>(word, 28);
}
