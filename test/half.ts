// f16 and the floats of second norms by their definitions, without bit tricks. Must not use the package: its conversions are among what
// is tested.

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

/** The nth of the floats that second norms are rounded to: 32 in every octave, from the smallest normal f32 number on. */
export function floatValue(n: number): number {
  const octave = Math.floor(n / 32);
  return octave === 0 ? n * 2 ** -131 : (32 + (n % 32)) * 2 ** (octave - 132);
}

/** Which of them is nearest to an f32 number, the larger of two that are as near. */
export function nearestFloat(x: number): number {
  const value = Math.fround(x);
  let octave = 1;
  while (octave < 254 && value >= 2 ** (octave - 126)) octave++;
  return 32 * (octave - 1) + Math.floor(value / 2 ** (octave - 132) + 0.5);
}
