// Asymmetric 4-bit rounding of a small group. Scalar in every build: a window has 64 norms and a few groups of 32 channels.

import { clampHalf, fromHalf, toHalf } from "./half";

/**
 * codes = round(clamp((x − min)/scale, 0, 15)); x ← codes · scale + min, with scale and min as f16 keeps them. Ties are rounded to
 * even here and in encode.wgsl, upwards in the reference: RTN_TIE in test/tolerance.ts forgives either.
 *
 *   x        f32 [count]
 *   nibbles  u4  [count]        count even
 *   scales   f16 [2]            (scale, minimum)
 *   keep     a code worth less than 0.7 of x gives way to the next (norms)
 *
 * Specification: `rtn4` and `normalize` in src/reference/reference.ts.
 */
export function rtn4(x: usize, count: usize, nibbles: usize, scales: usize, keep: bool): void {
  let low = load<f32>(x), high = low;
  for (let p = x + 4, end = x + (count << 2); p < end; p += 4) {
    low = min<f32>(low, load<f32>(p));
    high = max<f32>(high, load<f32>(p));
  }
  const scaleHalf = toHalf(clampHalf(max<f32>((high - low) / 15, 1e-5)));
  const minHalf = toHalf(clampHalf(low));
  store<u16>(scales, scaleHalf);
  store<u16>(scales, minHalf, 2);
  const scale = fromHalf(scaleHalf), minimum = fromHalf(minHalf);
  for (let i: usize = 0; i < count; i += 2) {
    const p = x + (i << 2);
    const even = code(load<f32>(p), scale, minimum, keep);
    const odd = code(load<f32>(p, 4), scale, minimum, keep);
    store<u8>(nibbles + (i >> 1), even | (odd << 4));
    store<f32>(p, <f32>even * scale + minimum);
    store<f32>(p, <f32>odd * scale + minimum, 4);
  }
}

@inline function code(x: f32, scale: f32, minimum: f32, keep: bool): i32 {
  const c = <i32>nearest<f32>(min<f32>(max<f32>((x - minimum) / scale, 0), 15));
  return c + <i32>(keep && <f32>c * scale + minimum < <f32>0.7 * x);
}
