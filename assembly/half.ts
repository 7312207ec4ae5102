// f16 as bits: both directions exact but for the one rounding, to nearest even. Specification: src/format/half.ts.

/** The nearest number within f16's range. */
@inline export function clampHalf(x: f32): f32 {
  return min<f32>(max<f32>(x, -65504), 65504);
}

/** x within ±65,504. */
@inline export function toHalf(x: f32): i32 {
  const bits = reinterpret<i32>(x);
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude < 0x38800000) {
    // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴. Adding 0.5 leaves just these bits at the bottom of the f32, rounded.
    return sign | (reinterpret<i32>(reinterpret<f32>(magnitude) + <f32>0.5) - 0x3f000000);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

@inline export function fromHalf(bits: i32): f32 {
  return reinterpret<f32>(((bits & 0x7fff) << 13) | ((bits & 0x8000) << 16)) * <f32>5192296858534827628530496329220096.0; // 2^112
}
