// What the dense kernels share: integers as types, sums across lanes, touching ahead. No state.

/**
 * Integers as types, read by `offsetof<N3>()`: the immediate offset of a load has to be known when a function is compiled, and a type
 * parameter is, while the argument of an inlined function is not.
 */
@unmanaged export class N0 {}
@unmanaged export class N1 extends N0 { _1: u8; }
@unmanaged export class N2 extends N1 { _2: u8; }
@unmanaged export class N3 extends N2 { _3: u8; }
@unmanaged export class N4 extends N3 { _4: u8; }
@unmanaged export class N5 extends N4 { _5: u8; }
@unmanaged export class N6 extends N5 { _6: u8; }
@unmanaged export class N7 extends N6 { _7: u8; }

/** a · b + c; rounded once in the relaxed build, twice in the other. */
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

/** `sumLanes` of i32. */
@inline export function sumLanesInt(a: v128, b: v128, c: v128, d: v128): v128 {
  const ab = i32x4.add(v128.shuffle<i32>(a, b, 0, 4, 1, 5), v128.shuffle<i32>(a, b, 2, 6, 3, 7));
  const cd = i32x4.add(v128.shuffle<i32>(c, d, 0, 4, 1, 5), v128.shuffle<i32>(c, d, 2, 6, 3, 7));
  return i32x4.add(v128.shuffle<i32>(ab, cd, 0, 1, 4, 5), v128.shuffle<i32>(ab, cd, 2, 3, 6, 7));
}

/** Greatest over the lanes of the same head, in each of them. `slot`: lanes per token, 1, 2 or 4. */
@inline export function maxAcross(x: v128, slot: usize): v128 {
  if (slot <= 2) x = f32x4.pmax(x, v128.shuffle<f32>(x, x, 2, 3, 0, 1));
  if (slot == 1) x = f32x4.pmax(x, v128.shuffle<f32>(x, x, 1, 0, 3, 2));
  return x;
}

/** Sum over the lanes of the same head, in each of them. */
@inline export function sumAcross(x: v128, slot: usize): v128 {
  if (slot <= 2) x = f32x4.add(x, v128.shuffle<f32>(x, x, 2, 3, 0, 1));
  if (slot == 1) x = f32x4.add(x, v128.shuffle<f32>(x, x, 1, 0, 3, 2));
  return x;
}

// How a kernel looks ahead. WebAssembly has no prefetch, so a byte of each cache line is loaded and forgotten.

/** Not at all: the best in cache. */
export type Plain = N0;
/** In reading order, LINES_AHEAD in front. */
export type Lines = N1;
/**
 * The next CHUNK's four pages side by side, a quarter of the pace in each. Hardware prefetchers stop at the end of a page but follow
 * several at once: out of cache 80 ns a token and KV head where `Lines` takes 126 and `Plain` 147 (d 128, 4 heads, f32, Xeon).
 */
export type Pages = N2;

const LINES_AHEAD: usize = 8192;
const PAGE: usize = 4096;
export const CHUNK: usize = 4 * PAGE;

/** Called before each `bytes` at p are read, one after the other. Reads no further than p + bytes + 2 · CHUNK. */
@inline export function touch<A>(p: usize, bytes: usize): void {
  if (offsetof<A>() == offsetof<Lines>()) {
    const end = p + bytes + LINES_AHEAD;
    for (let line = (p + LINES_AHEAD + 63) & ~63; line < end; line += 64) load<u8>(line);
  } else if (offsetof<A>() == offsetof<Pages>()) {
    const start = (p & ~(CHUNK - 1)) + CHUNK + ((p & (CHUNK - 1)) >> 2), end = start + (bytes >> 2);
    for (let line = (start + 63) & ~63; line < end; line += 64) {
      load<u8>(line);
      load<u8>(line, PAGE);
      load<u8>(line, 2 * PAGE);
      load<u8>(line, 3 * PAGE);
    }
  }
}
