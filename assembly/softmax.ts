// Softmax's exponential, in base 2 (queries are scaled by log2 e once). Heads in lanes.

import { Lanes, vadd, vbits, vfromBits, vintAdd, vintShl, vmadd, vmax, vsub } from "lanes";

/**
 * A running maximum is only moved when a score exceeds it by this much: until then probabilities merely exceed 1, which
 * f32 bears (2⁶⁰), and buckets need not be rescaled.
 */
export const HEADROOM: f32 = 60;

/** Below any score: what a masked token gets. */
export const MASKED: f32 = -1e30;

/**
 * What exp2 needs, to be splat into locals before a loop (V8 rebuilds constants inside one: 3.2 against 2.6 ns a token):
 * −100, 1.5·2²³, and the powers of f in 2^f on [−½, ½] (least squares, relative error 8e-8).
 */
export const EXP: usize = memory.data<f32>([
  -100, 12582912,
  1.000000071030, 0.693146949161, 0.240221217536, 0.055507426159, 0.009675459746, 0.001326697041
], 16);

/** 2^x, x at most about 127. Clamped below at 2⁻¹⁰⁰: tiny probabilities must not become denormals, a hundred times slower. */
@inline export function exp2(
  x: Lanes, low: Lanes, magic: Lanes, c0: Lanes, c1: Lanes, c2: Lanes, c3: Lanes, c4: Lanes, c5: Lanes
): Lanes {
  const y = vmax(x, low);
  const z = vadd(y, magic);            // the nearest integer, in the low bits
  const f = vsub(y, vsub(z, magic));
  // Estrin's scheme: two short chains instead of one of five, whose latency the loop would wait for. Degree 3 would save 5 % of attend
  // at one bit and 3 % at two; outputs are off by 6e-5 then, thirty times what tests forgive, and weights of degree 4 by 2.6e-6.
  const g = vmul(f, f);
  const r = vmadd(vmadd(vmadd(c5, f, c4), g, vmadd(c3, f, c2)), g, vmadd(c1, f, c0));
  return vfromBits(vintAdd(vbits(r), vintShl(vbits(z), 23)));
}
