// Asymmetric rounding of a small group to 4 or 8 bits. Scalar in every build: a window has 64 norms and a few groups of 32 channels.

import { clampHalf, fromHalf, toHalf } from "./half";

/**
 * codes = round(clamp((x − min)/scale, 0, 2^bits − 1)); x ← codes · scale + min, with scale and min as f16 keeps them. Ties are rounded
 * to even here and in encode.wgsl, upwards in the reference: RTN_TIE in test/tolerance.ts forgives either.
 *
 *   x       f32 [count]
 *   codes   u4 or u8 [count]    count even
 *   scales  f16 [2]             (scale, minimum)
 *   bits    4 or 8
 *   keep    a code worth less than 0.7 of x gives way to the next (norms)
 *
 * Specification: `roundToNearest` and `normalize` in src/reference/reference.ts.
 */
export function rtn(x: usize, count: usize, codes: usize, scales: usize, bits: usize, keep: bool): void {
  let low = load<f32>(x), high = low;
  for (let p = x + 4, end = x + (count << 2); p < end; p += 4) {
    low = min<f32>(low, load<f32>(p));
    high = max<f32>(high, load<f32>(p));
  }
  const most: f32 = bits == 8 ? 255 : 15;
  const scaleHalf = toHalf(clampHalf(max<f32>((high - low) / most, 1e-5)));
  const minHalf = toHalf(clampHalf(low));
  store<u16>(scales, scaleHalf);
  store<u16>(scales, minHalf, 2);
  const scale = fromHalf(scaleHalf), minimum = fromHalf(minHalf);
  for (let i: usize = 0; i < count; i += 2) {
    const p = x + (i << 2);
    const even = code(load<f32>(p), scale, minimum, most, keep);
    const odd = code(load<f32>(p, 4), scale, minimum, most, keep);
    if (bits == 8) store<u16>(codes + i, even | (odd << 8));
    else store<u8>(codes + (i >> 1), even | (odd << 4));
    store<f32>(p, <f32>even * scale + minimum);
    store<f32>(p, <f32>odd * scale + minimum, 4);
  }
}

@inline function code(x: f32, scale: f32, minimum: f32, most: f32, keep: bool): i32 {
  const c = <i32>nearest<f32>(min<f32>(max<f32>((x - minimum) / scale, 0), most));
  return c + <i32>(keep && <f32>c * scale + minimum < <f32>0.7 * x);
}
