// Encode: Normalize, Shift, Normalize, Hadamard, quantize, adjust s2, pack; one window of one head and side. Tokens in lanes.

import { Shape, Side, TILE_ROW, WINDOW } from "./abi";
import { hadamard } from "./hadamard";
import { clampHalf, toHalf } from "./half";
import { divide, norms } from "./normalize";
import { quantize } from "./quantize";
import { rtn4 } from "./rtn";
import { CODED_O, S1, S2, YC, YY } from "./scratch";
import { addMean, mean } from "./shift";

/**
 * The block of a page that stands for a tile of tokens.
 *
 *   x       f32 [headDim, 64]   destroyed
 *   block   bytes as src/format/layout.ts draws them
 *   rotate  whether the tokens carry RoPE (keys)
 *
 * No fused operation anywhere: all three binaries write the same bytes. Specification: `encode` in src/reference/reference.ts.
 */
export function encode(shape: Shape, side: Side, x: usize, block: usize, rotate: bool): void {
  const headDim = shape.headDim;
  const scratch = shape.scratch, s1 = scratch + S1, s2 = scratch + S2, yy = scratch + YY, yc = scratch + YC, o = scratch + CODED_O;
  norms(x, headDim, s1);
  rtn4(s1, WINDOW, block + side.s1, block + side.scales, true);
  divide(x, headDim, s1);
  mean(shape, x, o, block + side.o, block + side.scales + 4, rotate);
  addMean(shape, x, o, -1, rotate);
  norms(x, headDim, s2);
  divide(x, headDim, s2);
  hadamard(x, headDim, TILE_ROW, shape.hadamardSize, shape.hadamardScale);
  quantize(side, x, headDim, block, yy, yc);
  for (let t: usize = 0; t < TILE_ROW; t += 4) {
    const dot = load<f32>(yc + t);
    const adjusted = dot > 0 ? load<f32>(s2 + t) * load<f32>(yy + t) / dot : 0;
    store<u16>(block + side.s2 + (t >> 1), toHalf(clampHalf(adjusted)));
  }
}
