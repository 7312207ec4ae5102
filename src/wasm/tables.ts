// Tables of a codebook that coding reads besides its codewords (assembly/quantize.ts).

import { type Codebook, halfNormsOf } from '../format/codec.ts';

/** i16 [4, 128, 2] codewords · 2¹², then i32 [128] ‖C‖²/2 · 2²⁴: the half of 256 codewords of 8 channels that the rest negates. */
export function roundedOf(book: Codebook): Uint8Array {
  const pairs = Int16Array.from({ length: 1024 }, (_, i) => {
    const codeword = (i >> 1) % 128;
    const channel = 2 * (i >> 8) + (i & 1);
    return Math.round(book.codewords[codeword * 8 + channel]! * 2 ** 12);
  });
  const halfNorms = Int32Array.from(halfNormsOf(book).subarray(0, 128), x => Math.round(x * 2 ** 24));
  const bytes = new Uint8Array(pairs.byteLength + halfNorms.byteLength);
  bytes.set(new Uint8Array(pairs.buffer));
  bytes.set(new Uint8Array(halfNorms.buffer), pairs.byteLength);
  return bytes;
}

/** The largest ‖C‖₁, and ½: 2¹¹ units of a rounded score are more than f32 is off by. */
export function marginOf({ channels, codewords }: Codebook): number {
  let largest = 0;
  for (let at = 0; at < codewords.length; at += channels) {
    largest = Math.max(
      largest,
      codewords.subarray(at, at + channels).reduce((sum, x) => sum + Math.abs(x), 0)
    );
  }
  return largest + 0.5;
}
