// Quantize: the nearest codeword, argmax(y·C − ‖C‖²/2), the lowest code among equals. Exact, and never all 256 codewords.
// Every build adds in the order of channels, so all give the same codes.

import { IntLanes, Lanes, LANE_BYTES, vabs, vadd, vbits, vfloor, vgt, vmax, vmin, vmul,
  vselect, vsplat, vsplatAt, vsub } from "lanes";
import { Side, TILE_ROW } from "./shape";

/**
 * codes[t, j] = nearest codeword of channels jD … jD + D − 1 of token t; also the sums that adjust s2.
 *
 *   y       f32 [headDim, 64], |y| ≤ 23 (‖y‖ = √headDim, headDim ≤ 512)
 *   codes   u8  [64, rowBytes]
 *   yy, yc  f32 [64]          ⟨y, y⟩ and ⟨y, C[c]⟩ of every token
 *
 * Specification: `quantize` in src/reference.ts.
 */
export function quantize(side: Side, y: usize, headDim: usize, codes: usize, yy: usize, yc: usize): void {
  memory.fill(yy, 0, TILE_ROW);
  memory.fill(yc, 0, TILE_ROW);
  squares(y, headDim, yy);
  const groupBytes = side.channels * TILE_ROW;
  for (let end = y + headDim * TILE_ROW; y < end; y += groupBytes, codes++) {
    if (side.channels == 8) quantize8(side, y, codes, yc);
    else if (side.channels == 4) quantize4(side, y, codes, yc);
    else quantize2(side, y, codes, yc);
  }
}

function squares(y: usize, headDim: usize, yy: usize): void {
  for (let t: usize = 0; t < TILE_ROW; t += LANE_BYTES) {
    let sum = vsplat(0);
    for (let p = y + t, end = p + headDim * TILE_ROW; p < end; p += TILE_ROW) {
      const v = load<Lanes>(p);
      sum = vadd(sum, vmul(v, v));
    }
    store<Lanes>(yy + t, sum);
  }
}

/**
 * D = 2 and 4 read a grid over the channels' values: each cell lists the codewords that are nearest somewhere in it
 * (found by src/grid.ts), 2.4 and 9 of 256 on average.
 *
 *   grid   u32 [cells^D]   offset of the list << 8 | its length; then u8 lists, ascending
 */
function quantize2(side: Side, y: usize, codes: usize, yc: usize): void {
  cells(side, y, 2);
  const grid = side.grid, book = side.book, halfNorms = side.halfNorms, rowBytes = side.rowBytes;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
    const y0 = load<f32>(y + t), y1 = load<f32>(y + t, 256);
    const head = load<u32>(grid + (<usize>load<u16>(CELLS + t) << 2));
    let p = grid + <usize>(head >> 8);
    let best: f32 = -Infinity, code: usize = 0;
    for (const end = p + <usize>(head & 255); p < end; p++) {
      const c = <usize>load<u8>(p);
      const word = book + (c << 3);
      const score = y0 * load<f32>(word) + y1 * load<f32>(word, 4) - load<f32>(halfNorms + (c << 2));
      const better = score > best;   // no branch: real data would mispredict it every other time
      best = select<f32>(score, best, better);
      code = select<usize>(c, code, better);
    }
    store<u8>(codes, <u8>code);
    store<f32>(yc + t, load<f32>(yc + t) + (best + load<f32>(halfNorms + (code << 2))));
  }
}

function quantize4(side: Side, y: usize, codes: usize, yc: usize): void {
  cells(side, y, 4);
  const grid = side.grid, book = side.book, halfNorms = side.halfNorms, rowBytes = side.rowBytes;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
    const y0 = load<f32>(y + t), y1 = load<f32>(y + t, 256), y2 = load<f32>(y + t, 512), y3 = load<f32>(y + t, 768);
    const head = load<u32>(grid + (<usize>load<u16>(CELLS + t) << 2));
    let p = grid + <usize>(head >> 8);
    let best: f32 = -Infinity, code: usize = 0;
    for (const end = p + <usize>(head & 255); p < end; p++) {
      const c = <usize>load<u8>(p);
      const word = book + (c << 4);
      const score = y0 * load<f32>(word) + y1 * load<f32>(word, 4) + y2 * load<f32>(word, 8) + y3 * load<f32>(word, 12)
        - load<f32>(halfNorms + (c << 2));
      const better = score > best;   // no branch: real data would mispredict it every other time
      best = select<f32>(score, best, better);
      code = select<usize>(c, code, better);
    }
    store<u8>(codes, <u8>code);
    store<f32>(yc + t, load<f32>(yc + t) + (best + load<f32>(halfNorms + (code << 2))));
  }
}

/** CELLS[t] = the cell of token t's channels: digits clamp(floor(y · gridScale + cells/2)), the first channel lowest. */
function cells(side: Side, y: usize, channels: usize): void {
  const scale = vsplat(side.gridScale), half = vsplat(<f32>side.gridCells * 0.5);
  const count = vsplat(<f32>side.gridCells), last = vsplat(<f32>(side.gridCells - 1)), zero = vsplat(0);
  const magic = vsplat(8388608);   // 2²³: the integer below it becomes the low bits
  for (let t: usize = 0; t < TILE_ROW; t += LANE_BYTES) {
    let cell = zero;
    for (let p = y + t + (channels - 1) * TILE_ROW; p >= y; p -= TILE_ROW) {
      const digit = vmin(last, vmax(zero, vfloor(vadd(vmul(load<Lanes>(p), scale), half))));
      cell = vadd(vmul(cell, count), digit);
    }
    store<IntLanes>(CELLS + t, vbits(vadd(cell, magic)));
  }
}

/**
 * D = 8: the codebook is symmetric, so 128 dot products settle all 256 codewords: the best of ±C is |y·C|, the sign picks.
 * Codewords in lanes.
 */
function quantize8(side: Side, y: usize, codes: usize, yc: usize): void {
  const columns = side.columns, halfNorms = side.halfNorms;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += side.rowBytes) {
    const p = y + t;
    const y0 = vsplatAt(p), y1 = vsplatAt(p + 256), y2 = vsplatAt(p + 512), y3 = vsplatAt(p + 768);
    const y4 = vsplatAt(p + 1024), y5 = vsplatAt(p + 1280), y6 = vsplatAt(p + 1536), y7 = vsplatAt(p + 1792);
    let best: f32 = -Infinity, code: usize = 0;
    for (let lane: usize = 0; lane < 16; lane += LANE_BYTES) {
      let bestScore = vsplat(-Infinity), bestAt = vsplat(0), at = vsplat(0);
      const four = vsplat(4);
      for (let c = lane; c < 512; c += 16) {
        const column = columns + c;
        let dot = vmul(y0, load<Lanes>(column));
        dot = vadd(dot, vmul(y1, load<Lanes>(column, 1024)));
        dot = vadd(dot, vmul(y2, load<Lanes>(column, 2048)));
        dot = vadd(dot, vmul(y3, load<Lanes>(column, 3072)));
        dot = vadd(dot, vmul(y4, load<Lanes>(column, 4096)));
        dot = vadd(dot, vmul(y5, load<Lanes>(column, 5120)));
        dot = vadd(dot, vmul(y6, load<Lanes>(column, 6144)));
        dot = vadd(dot, vmul(y7, load<Lanes>(column, 7168)));
        const score = vsub(vabs(dot), load<Lanes>(halfNorms + c));
        bestAt = vselect(at, bestAt, vgt(score, bestScore));
        bestScore = vmax(bestScore, score);
        at = vadd(at, four);
      }
      store<Lanes>(BEST + lane, bestScore);
      store<Lanes>(BEST + lane, bestAt, 16);
    }
    for (let lane: usize = 0; lane < 4; lane++) {
      const score = load<f32>(BEST + (lane << 2));
      const candidate = <usize>load<f32>(BEST + (lane << 2), 16) + lane;
      if (score > best || (score == best && candidate < code)) {
        best = score;
        code = candidate;
      }
    }
    const column = columns + (code << 2);
    let dot: f32 = 0;
    for (let k: usize = 0; k < 8; k++) dot += load<f32>(p + k * TILE_ROW) * load<f32>(column + (k << 10));
    store<u8>(codes, <u8>(code | (<usize>(dot < 0) << 7)));
    store<f32>(yc + t, load<f32>(yc + t) + abs<f32>(dot));
  }
}

/** u32 [64]: cells, of which the low 16 bits count. */
const CELLS: usize = memory.data(256, 16);
/** f32 [2, 4]: best score and its step, lane by lane. */
const BEST: usize = memory.data(32, 16);
