// f16 by its definition, without bit tricks. Must not use the package: its conversions are among what is tested.

/** The value of 16 bits: sign, 5 bits of exponent, 10 of fraction. */
export function halfValue(bits: number): number {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const magnitude =
    exponent === 0 ? fraction * 2 ** -24 : exponent < 31 ? (1024 + fraction) * 2 ** (exponent - 25) : fraction === 0 ? Infinity : NaN;
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** The f16 number nearest to an f32 number, ties to even; beyond ±65,504 the largest. */
export function nearestHalf(x: number): number {
  const magnitude = Math.abs(Math.fround(x));
  let step = 2 ** -24;
  while (magnitude / step >= 2048) step *= 2;
  const down = Math.floor(magnitude / step);
  const rest = magnitude / step - down;
  const up = rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? 1 : 0;
  return Math.sign(x) * Math.min((down + up) * step, 65504);
}

/** f32 rounded to f16 and widened again: what a cache holds of raw tokens. */
export const rounded = (x: Float32Array) => Float32Array.from(x, nearestHalf);

/** f16 bits of numbers that f16 holds exactly. */
export function halfBits(x: ArrayLike<number>): Uint16Array {
  return Uint16Array.from(x, value => {
    const magnitude = Math.abs(value);
    const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
    if (magnitude < 2 ** -14) return sign | (magnitude * 2 ** 24);
    const exponent = Math.floor(Math.log2(magnitude));
    return sign | ((exponent + 15) << 10) | (magnitude * 2 ** (10 - exponent) - 1024);
  });
}
