// What the dense kernels share: integers as types, loads, sums across lanes. No state.

/**
 * Integers as types, read by `offsetof<N3>()`. The immediate offset of a load has to be known when a function is compiled: a type
 * parameter is, the argument of an inlined function is not.
 */
@unmanaged export class N0 {}
@unmanaged export class N1 extends N0 { _1: u8; }
@unmanaged export class N2 extends N1 { _2: u8; }
@unmanaged export class N3 extends N2 { _3: u8; }
@unmanaged export class N4 extends N3 { _4: u8; }
@unmanaged export class N5 extends N4 { _5: u8; }
@unmanaged export class N6 extends N5 { _6: u8; }
@unmanaged export class N7 extends N6 { _7: u8; }

/** a · b + c. */
@inline export function madd(a: v128, b: v128, c: v128): v128 {
  if (ASC_FEATURE_RELAXED_SIMD) return f32x4.relaxed_madd(a, b, c);
  return f32x4.add(f32x4.mul(a, b), c);
}

/** [Σa, Σb, Σc, Σd] */
@inline export function sumLanes(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = f32x4.add(v128.shuffle<f32>(a, b, 0, 4, 1, 5), v128.shuffle<f32>(a, b, 2, 6, 3, 7));
  const cd = f32x4.add(v128.shuffle<f32>(c, d, 0, 4, 1, 5), v128.shuffle<f32>(c, d, 2, 6, 3, 7));
  return f32x4.add(v128.shuffle<f32>(ab, cd, 0, 1, 4, 5), v128.shuffle<f32>(ab, cd, 2, 3, 6, 7));
}

/** sumLanes of i32. */
@inline export function sumLanesInt(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = i32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = i32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return i32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/** Bytes that are touched while as many are read. */
const CHUNK: usize = 16384;

/**
 * Brings into cache what a reader of the rows at p needs one chunk later: called with each `bytes` it goes on by. WebAssembly has no prefetch,
 * so a byte is loaded and forgotten. The next chunk is touched in its four pages at once, a quarter of the pace in each: hardware
 * prefetchers stop at the end of a page but follow several. Reads up to 2 · CHUNK past p.
 * Unrealized speed-up: touching the same lines in linear order; measured 1.5 times slower out of cache (Xeon, d 128, 4 heads: 127 against 85 ns a token).
 */
@inline export function touch(p: usize, bytes: usize): void {
  let line = (p & ~(CHUNK - 1)) + CHUNK + ((p & (CHUNK - 1)) >> 2);
  const end = line + (bytes >> 2);
  for (line = (line + 63) & ~63; line < end; line += 64) {
    load<u8>(line);
    load<u8>(line, 4096);
    load<u8>(line, 8192);
    load<u8>(line, 12288);
  }
}
