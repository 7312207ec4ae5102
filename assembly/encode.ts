// Encode: Normalize, Shift; channels in their order; then segment by segment Normalize, Hadamard, quantize, adjust s2, pack. One window of
// one head and side. Tokens in lanes.

import { Lanes, VECTOR_BYTES, vadd, vdiv, vmul, vsplat, vsub } from "lanes";
import { Segment, segmentOf, Shape, Side, stageOf, TILE_ROW, WINDOW } from "./abi";
import { codewords } from "./decode";
import { packFloats } from "./floats";
import { hadamard } from "./hadamard";
import { divide, norms } from "./normalize";
import { inOrder, scalesOf } from "./order";
import { quantize } from "./quantize";
import { rtn } from "./rtn";
import { CODED_O, S1, S2, YC, YY } from "./scratch";
import { addMean, mean } from "./shift";

/**
 * The block of a page that stands for a tile of tokens. Padding is left as it is.
 *
 *   order   of balanced keys (order.ts), or 0
 *   x       f32 [2, headDim, 64]: tokens in the first half; destroyed
 *   block   bytes as src/format/layout.ts draws them
 *   rotate  whether the tokens carry RoPE (keys)
 *
 * No fused operation anywhere: all three binaries write the same bytes. Specification: `encode` in src/reference/reference.ts.
 */
export function encode(shape: Shape, side: Side, order: usize, x: usize, block: usize, rotate: bool): void {
  const headDim = side.headDim, s2 = shape.scratch + S2, yy = shape.scratch + YY, yc = shape.scratch + YC;
  normalizeTokens(shape, side, x, block, rotate);
  let y = x, rest = x + headDim * TILE_ROW;
  if (order) {
    inOrder(x, order, scalesOf(order, headDim), headDim, TILE_ROW, rest);
    y = rest, rest = x;
  }
  for (let n: usize = 0; n < side.segmentCount; n++) {
    const segment = segmentOf(side, n);
    const channels = segment.channels, rows = y + segment.channel * TILE_ROW;
    norms(rows, channels, s2);
    divide(rows, channels, s2);
    hadamard(rows, channels, TILE_ROW);
    refine(segment, rows, block, side.rowBytes, rest, yc);
    dots(rows, rows, channels, yy);
    adjust(s2, yy, yc);
    packFloats(s2, block + side.s2 + n * WINDOW, block + side.exponents + n);
  }
}

/** Normalize and Shift: the tile's tokens, and the sections of s1, o and their scales. */
export function normalizeTokens(shape: Shape, side: Side, x: usize, block: usize, rotate: bool): void {
  const headDim = side.headDim, s1 = shape.scratch + S1, o = shape.scratch + CODED_O;
  norms(x, headDim, s1);
  rtn(s1, WINDOW, block + side.s1, block + side.scales, 4, true);
  divide(x, headDim, s1);
  mean(shape, x, headDim, o, block + side.o, block + side.scales + 4, side.meanBits, rotate);
  addMean(shape, x, headDim, o, -1, rotate);
}

/**
 * The codes of a segment, stage by stage, each of what the ones before it left; yc = ⟨y, what all say together⟩ of every token. What is
 * left may be longer than a grid of candidates reaches: later stages have 8 channels.
 *
 *   y      f32 [channels, 64]
 *   rest   f32 [channels, 64]   scratch
 */
function refine(segment: Segment, y: usize, block: usize, rowBytes: usize, rest: usize, yc: usize): void {
  const channels = segment.channels;
  const first = stageOf(segment, 0);
  quantize(first.book, y, channels, block + first.column, rowBytes, yc);
  if (segment.stageCount == 1) return;
  for (let n: usize = 1; n < segment.stageCount; n++) {
    const stage = stageOf(segment, n);
    codewords(segment, n, block, rowBytes, 0, rest);
    const scale = vsplat(stage.scale);
    for (let p = y, r = rest, end = y + channels * TILE_ROW; p < end; p += VECTOR_BYTES, r += VECTOR_BYTES) {
      store<Lanes>(r, vdiv(vsub(load<Lanes>(p), load<Lanes>(r)), scale));
    }
    quantize(stage.book, rest, channels, block + stage.column, rowBytes, yc);
  }
  codewords(segment, segment.stageCount, block, rowBytes, 0, rest);
  dots(y, rest, channels, yc);
}

/** out[t] = Σ a[i, t] · b[i, t] */
function dots(a: usize, b: usize, channels: usize, out: usize): void {
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    let sum = vsplat(0);
    for (let p = a + t, q = b + t, end = p + channels * TILE_ROW; p < end; p += TILE_ROW, q += TILE_ROW) {
      sum = vadd(sum, vmul(load<Lanes>(p), load<Lanes>(q)));
    }
    store<Lanes>(out + t, sum);
  }
}

/** s2 ← s2·⟨y, y⟩/⟨y, C⟩ of every token: what its codewords stand for is then as long as the token, along the token. */
function adjust(s2: usize, yy: usize, yc: usize): void {
  for (let t: usize = 0; t < TILE_ROW; t += 4) {
    const dot = load<f32>(yc + t);
    store<f32>(s2 + t, dot > 0 ? load<f32>(s2 + t) * load<f32>(yy + t) / dot : 0);
  }
}
