// Decode: a block of a page back to a tile of tokens: s1 · (H·(s2·C[c]) + RoPEᵤ(o)). Tokens in lanes.

import { Lanes, VECTOR_BYTES, vadd, vhalfBits, vhalfScale, vloadHalf, vloadNibbles, vmul, vnibbleBits, vnibbleScale, vsplat } from "lanes";
import { MEAN_GROUP, Shape, Side, TILE_ROW } from "./abi";
import { hadamard } from "./hadamard";
import { fromHalf } from "./half";
import { O, S1, S2 } from "./scratch";
import { addMean } from "./shift";

/**
 *   block  bytes as src/format/layout.ts draws them
 *   x      f32 [headDim, 64]
 *
 * Specification: `decode` in src/reference/reference.ts.
 */
export function decode(shape: Shape, side: Side, block: usize, x: usize, rotate: bool): void {
  const scratch = shape.scratch, s1 = scratch + S1, s2 = scratch + S2, o = scratch + O;
  unpackNorms(side, block, s1, s2);
  unpackMean(side, block, shape.headDim, o);
  codewords(side, block, shape.headDim, s2, x);
  hadamard(x, shape.headDim, TILE_ROW, shape.hadamardSize, shape.hadamardScale);
  addMean(shape, x, o, 1, rotate);
  for (let p = x, end = x + shape.headDim * TILE_ROW; p < end; p += TILE_ROW) {
    for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) store<Lanes>(p + t, vmul(load<Lanes>(p + t), load<Lanes>(s1 + t)));
  }
}

/** s1, s2  f32 [64] */
export function unpackNorms(side: Side, block: usize, s1: usize, s2: usize): void {
  const scale = vnibbleScale(fromHalf(load<u16>(block + side.scales)));
  const minimum = vsplat(fromHalf(load<u16>(block + side.scales, 2)));
  const codes = block + side.s1, halves = block + side.s2;
  const nibbles = vnibbleBits(), bits = vhalfBits(), rebase = vhalfScale();
  for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
    store<Lanes>(s1 + t, vadd(vloadNibbles(codes, t >> 2, nibbles, scale), minimum));
    store<Lanes>(s2 + t, vloadHalf(halves + (t >> 1), bits, rebase));
  }
}

/** o  f32 [headDim] */
export function unpackMean(side: Side, block: usize, headDim: usize, o: usize): void {
  const codes = block + side.o, nibbles = vnibbleBits();
  let scales = block + side.scales + 4;
  for (let i: usize = 0; i < headDim; i += MEAN_GROUP, scales += 4) {
    const scale = vnibbleScale(fromHalf(load<u16>(scales))), minimum = vsplat(fromHalf(load<u16>(scales, 2)));
    const end = min<usize>(i + MEAN_GROUP, headDim);
    for (let k = i; k < end; k += VECTOR_BYTES >> 2) {
      store<Lanes>(o + (k << 2), vadd(vloadNibbles(codes, k, nibbles, scale), minimum));
    }
  }
}

/** x[jD + k, t] = C[c(t, j)][k] · s2[t] */
function codewords(side: Side, codes: usize, headDim: usize, s2: usize, x: usize): void {
  const channels = side.channels, wordBytes = channels << 2;
  for (let t: usize = 0; t < TILE_ROW; t += 4, codes += side.rowBytes) {
    const scale = load<f32>(s2 + t);
    let to = x + t;
    for (let p = codes, end = codes + headDim / channels; p < end; p++) {
      const word = side.book + <usize>load<u8>(p) * wordBytes;
      for (let k: usize = 0; k < wordBytes; k += 4, to += TILE_ROW) store<f32>(to, load<f32>(word + k) * scale);
    }
  }
}
