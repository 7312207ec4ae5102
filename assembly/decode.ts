// Decode: a block of a page back to a tile of tokens: s1 · (A⁻¹·H·(s2·C[c]) + RoPEᵤ(o)), A the order and scales of channels, H and s2
// by segment. Tokens in lanes.

import { Lanes, VECTOR_BYTES, vadd, vfromInt, vloadBytes, vloadNibbles, vmul, vnibbleBits, vnibbleScale, vsplat } from "lanes";
import { MEAN_GROUP, Segment, segmentOf, Shape, Side, stageOf, TILE_ROW, WINDOW } from "./abi";
import { unpackFloats } from "./floats";
import { hadamard } from "./hadamard";
import { fromHalf } from "./half";
import { outOfOrder } from "./order";
import { O, S1, S2 } from "./scratch";
import { addMean } from "./shift";

/**
 *   order   of balanced keys (order.ts), or 0
 *   block   bytes as src/format/layout.ts draws them
 *   x       f32 [2, headDim, 64]: tokens into the first half, the second is scratch of balanced keys
 *
 * Specification: `decode` in src/reference/reference.ts.
 */
export function decode(shape: Shape, side: Side, order: usize, block: usize, x: usize, rotate: bool): void {
  const headDim = side.headDim, scratch = shape.scratch, s1 = scratch + S1, s2 = scratch + S2, o = scratch + O;
  const y = order ? x + headDim * TILE_ROW : x;
  let end = y;
  unpackS2(side, block, s2);
  for (let n: usize = 0; n < side.segmentCount; n++) {
    const segment = segmentOf(side, n);
    const channels = segment.channels, rows = y + segment.channel * TILE_ROW;
    codewords(segment, segment.stageCount, block, side.rowBytes, s2 + n * TILE_ROW, rows);
    hadamard(rows, channels, TILE_ROW);
    end = rows + channels * TILE_ROW;
  }
  memory.fill(end, 0, y + headDim * TILE_ROW - end);
  if (order) outOfOrder(y, order, headDim, TILE_ROW, x);
  unpackMean(side, block, headDim, o);
  addMean(shape, x, headDim, o, 1, rotate);
  unpackS1(side, block, s1);
  for (let p = x, end = x + headDim * TILE_ROW; p < end; p += TILE_ROW) {
    for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) store<Lanes>(p + t, vmul(load<Lanes>(p + t), load<Lanes>(s1 + t)));
  }
}

/** s1  f32 [64] */
export function unpackS1(side: Side, block: usize, s1: usize): void {
  const scale = vnibbleScale(fromHalf(load<u16>(block + side.scales)));
  const minimum = vsplat(fromHalf(load<u16>(block + side.scales, 2)));
  const codes = block + side.s1, nibbles = vnibbleBits();
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    store<Lanes>(s1 + t, vadd(vloadNibbles(codes, t >> 2, nibbles, scale), minimum));
  }
}

/** s2  f32 [segments, 64] */
export function unpackS2(side: Side, block: usize, s2: usize): void {
  for (let n: usize = 0; n < side.segmentCount; n++, s2 += TILE_ROW) {
    unpackFloats(block + side.s2 + n * WINDOW, block + side.exponents + n, s2);
  }
}

/** o  f32 [headDim] */
export function unpackMean(side: Side, block: usize, headDim: usize, o: usize): void {
  const codes = block + side.o, nibbles = vnibbleBits(), bytes = side.meanBits == 8;
  let scales = block + side.scales + 4;
  for (let i: usize = 0; i < headDim; i += MEAN_GROUP, scales += 4) {
    const step = fromHalf(load<u16>(scales)), minimum = vsplat(fromHalf(load<u16>(scales, 2)));
    const end = min<usize>(i + MEAN_GROUP, headDim);
    if (bytes) {
      const scale = vsplat(step);
      for (let k = i; k < end; k += VECTOR_BYTES >> 2) {
        store<Lanes>(o + (k << 2), vadd(vmul(vfromInt(vloadBytes(codes + k)), scale), minimum));
      }
    } else {
      const scale = vnibbleScale(step);
      for (let k = i; k < end; k += VECTOR_BYTES >> 2) {
        store<Lanes>(o + (k << 2), vadd(vloadNibbles(codes, k, nibbles, scale), minimum));
      }
    }
  }
}

/**
 * The codewords of a segment's first stages added up: y[jD + k, t] = Σ s2[t]·scale·C[c(t, j)][k].
 *
 *   s2  f32 [64], or 0 as if it were 1
 *   y   f32 [channels, 64]
 */
export function codewords(segment: Segment, stages: usize, block: usize, rowBytes: usize, s2: usize, y: usize): void {
  for (let n: usize = 0; n < stages; n++) {
    const stage = stageOf(segment, n), words = stage.words, wordBytes = stage.book.channels << 2, columns = stage.columns;
    let codes = block + stage.column;
    for (let t: usize = 0; t < TILE_ROW; t += 4, codes += rowBytes) {
      const scale: f32 = s2 ? load<f32>(s2 + t) : 1;
      let to = y + t;
      for (let p = codes, end = codes + columns; p < end; p++) {
        const word = words + <usize>load<u8>(p) * wordBytes;
        if (n == 0) {
          for (let k: usize = 0; k < wordBytes; k += 4, to += TILE_ROW) store<f32>(to, load<f32>(word + k) * scale);
        } else {
          for (let k: usize = 0; k < wordBytes; k += 4, to += TILE_ROW) store<f32>(to, load<f32>(to) + load<f32>(word + k) * scale);
        }
      }
    }
  }
}
