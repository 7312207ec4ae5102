// IEEE half precision (f16): as bits in a number, exact in both directions but for the one rounding of toHalf, and as arrays.

const f32 = new Float32Array(1);
const u32 = new Uint32Array(f32.buffer);

/** @internal The largest finite f16. */
export const HALF_MAX = 65504;

/**
 * @internal The bits of the f16 nearest to an f32, ties to even.
 *
 * @param x  a number of magnitude at most 65,504, rounded to f32 first (as every kernel does)
 */
export function toHalf(x: number): number {
  f32[0] = x;
  const sign = (u32[0]! >>> 16) & 0x8000;
  const magnitude = u32[0]! & 0x7fffffff;
  if (magnitude < 0x38800000) {
    // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴. Adding 0.5 leaves just these bits at the bottom of the f32, rounded.
    u32[0] = magnitude;
    f32[0] = f32[0]! + 0.5;
    return sign | (u32[0]! - 0x3f000000);
  }
  return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
}

/** @internal The bits of the f16 nearest to a number; beyond ±65,504 it is that. */
export function clampedHalf(x: number): number {
  return toHalf(Math.max(-HALF_MAX, Math.min(x, HALF_MAX)));
}

/** @internal The value of an f16's bits; 0x7c00 and above (infinity, NaN) are the caller's to refuse. */
export function fromHalf(bits: number): number {
  u32[0] = (bits & 0x7fff) << 13;
  const magnitude = f32[0]! * 2 ** 112;
  return bits & 0x8000 ? -magnitude : magnitude;
}

/** @internal Neither infinity nor NaN: the largest exponent is theirs. */
export function isFiniteHalf(bits: number): boolean {
  return (bits & 0x7c00) !== 0x7c00;
}

/** Keys, values, queries, results: f32, or f16 as bits or as Float16Array. */
export type Data = Float32Array | Uint16Array | Float16ArrayLike;

/** Float16Array where the engine has one (typed here so that no newer `lib` is needed). */
export interface Float16ArrayLike extends ArrayLike<number> {
  /** Where its bits are. */
  readonly buffer: ArrayBufferLike;
  /** Bytes before the first. */
  readonly byteOffset: number;
  /** 2 */
  readonly BYTES_PER_ELEMENT: number;
  /** What tells it, in whatever realm it was made. */
  readonly [Symbol.toStringTag]: 'Float16Array';
}

const typedArrayTag = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag)!.get!;

/**
 * @internal Which typed array this is, `Float32Array` and so on, or `undefined`. Of whatever realm: `instanceof` takes an array of
 * a frame, a `vm` context or a test runner for none.
 */
export function typedArrayName(value: unknown): string | undefined {
  return typedArrayTag.call(value);
}

/** @internal */
export function isFloat32Array(value: unknown): value is Float32Array {
  return typedArrayName(value) === 'Float32Array';
}

/** @internal The array itself, or the bits of a Float16Array. */
export function wordsOf(data: Data): Float32Array | Uint16Array {
  if (typedArrayName(data) !== 'Float16Array') return data as Float32Array | Uint16Array;
  return new Uint16Array(data.buffer, data.byteOffset, data.length);
}

/** @internal Whether these are f16. */
export function isHalf(data: Data): boolean {
  return data.BYTES_PER_ELEMENT === 2;
}

/** @internal The numbers themselves, those of f16 widened. */
export function floatsOf(data: Data): Float32Array {
  return isHalf(data) ? Float32Array.from(wordsOf(data), fromHalf) : (data as Float32Array);
}
