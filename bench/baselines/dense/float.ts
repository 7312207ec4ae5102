// Products of up to four heads' queries with keys, and weighted sums of values; keys and values stored as f32 or f16, row-major.
//
//   E       what is stored: f32, or u16 holding f16 bits (normal numbers and zeros; see `four`)
//   A       how to look ahead: Plain, Lines or Pages
//   k, v    E [tokens, HEAD_DIM]
//   q, out  f32 [heads, HEAD_DIM]
//   scores  f32 [tokens, slot], slot = heads rounded up to 1, 2 or 4; the fourth of three heads repeats the third. `w` once they are weights
//
// Register tiles hold eight or nine accumulators: enough to cover the latency of addition, few enough that V8 spills none.

import { N0, N1, N2, N3, N4, N5, N6, N7, madd, sumLanes, touch } from "./vectors";

const ROW: usize = HEAD_DIM * 4;
const HALF_MASK = memory.data<u32>([0x8fffe000], 16);

@inline function rowBytes<E>(): usize { return HEAD_DIM * sizeof<E>(); }

/** Held in a local by each kernel: V8 builds a constant anew in every iteration. */
@inline function halfMask(): v128 { return v128.load32_splat(HALF_MASK); }

/**
 * Four channels of row R, from channel 4C on. The bits of an f16 are moved to where an f32 has them (sign, exponent, mantissa) and then
 * mean 2⁻¹¹² times its value. No multiplication mends that: the queries carry 2¹¹², and the sums of values are lifted at the end.
 */
@inline function four<E, R, C>(p: usize, mask: v128): v128 {
  if (sizeof<E>() == 4) return v128.load(p, (offsetof<R>() * HEAD_DIM + offsetof<C>() * 4) * 4);
  return v128.and(i32x4.shl(v128.load16x4_s(p, (offsetof<R>() * HEAD_DIM + offsetof<C>() * 4) * 2), 13), mask);
}

/** Rows of f16 as `four` reads them, to f32. */
export function widen<A>(p: usize, to: usize, rows: usize): void {
  const mask = halfMask();
  for (const end = p + rows * HEAD_DIM * 2; p < end; p += 64, to += 128) {
    touch<A>(p, 64);
    v128.store(to, four<u16, N0, N0>(p, mask));
    v128.store(to, four<u16, N0, N1>(p, mask), 16);
    v128.store(to, four<u16, N0, N2>(p, mask), 32);
    v128.store(to, four<u16, N0, N3>(p, mask), 48);
    v128.store(to, four<u16, N0, N4>(p, mask), 64);
    v128.store(to, four<u16, N0, N5>(p, mask), 80);
    v128.store(to, four<u16, N0, N6>(p, mask), 96);
    v128.store(to, four<u16, N0, N7>(p, mask), 112);
  }
}

function keys4<E, A>(q: usize, k: usize, scores: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = k + tokens * rowBytes<E>(); k < end; k += 2 * rowBytes<E>(), scores += 32) {
    touch<A>(k, 2 * rowBytes<E>());
    let a0 = f32x4.splat(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    let p = k;
    for (let x = q, xEnd = q + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N1, N0>(p, mask);
      const x0 = v128.load(x);
      a0 = madd(a, x0, a0);
      b0 = madd(b, x0, b0);
      const x1 = v128.load(x, ROW);
      a1 = madd(a, x1, a1);
      b1 = madd(b, x1, b1);
      const x2 = v128.load(x, 2 * ROW);
      a2 = madd(a, x2, a2);
      b2 = madd(b, x2, b2);
      const x3 = v128.load(x, 3 * ROW);
      a3 = madd(a, x3, a3);
      b3 = madd(b, x3, b3);
    }
    v128.store(scores, sumLanes(a0, a1, a2, a3));
    v128.store(scores, sumLanes(b0, b1, b2, b3), 16);
  }
}

function keys3<E, A>(q: usize, k: usize, scores: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = k + tokens * rowBytes<E>(); k < end; k += 3 * rowBytes<E>(), scores += 48) {
    touch<A>(k, 3 * rowBytes<E>());
    let a0 = f32x4.splat(0), a1 = a0, a2 = a0, b0 = a0, b1 = a0, b2 = a0, c0 = a0, c1 = a0, c2 = a0;
    let p = k;
    for (let x = q, xEnd = q + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N1, N0>(p, mask), c = four<E, N2, N0>(p, mask);
      const x0 = v128.load(x);
      a0 = madd(a, x0, a0);
      b0 = madd(b, x0, b0);
      c0 = madd(c, x0, c0);
      const x1 = v128.load(x, ROW);
      a1 = madd(a, x1, a1);
      b1 = madd(b, x1, b1);
      c1 = madd(c, x1, c1);
      const x2 = v128.load(x, 2 * ROW);
      a2 = madd(a, x2, a2);
      b2 = madd(b, x2, b2);
      c2 = madd(c, x2, c2);
    }
    v128.store(scores, sumLanes(a0, a1, a2, a2));
    v128.store(scores, sumLanes(b0, b1, b2, b2), 16);
    v128.store(scores, sumLanes(c0, c1, c2, c2), 32);
  }
}

function keys2<E, A>(q: usize, k: usize, scores: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = k + tokens * rowBytes<E>(); k < end; k += 4 * rowBytes<E>(), scores += 32) {
    touch<A>(k, 4 * rowBytes<E>());
    let a0 = f32x4.splat(0), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
    let p = k;
    for (let x = q, xEnd = q + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const x0 = v128.load(x), x1 = v128.load(x, ROW);
      const a = four<E, N0, N0>(p, mask);
      a0 = madd(a, x0, a0);
      a1 = madd(a, x1, a1);
      const b = four<E, N1, N0>(p, mask);
      b0 = madd(b, x0, b0);
      b1 = madd(b, x1, b1);
      const c = four<E, N2, N0>(p, mask);
      c0 = madd(c, x0, c0);
      c1 = madd(c, x1, c1);
      const d = four<E, N3, N0>(p, mask);
      d0 = madd(d, x0, d0);
      d1 = madd(d, x1, d1);
    }
    v128.store(scores, sumLanes(a0, a1, b0, b1));
    v128.store(scores, sumLanes(c0, c1, d0, d1), 16);
  }
}

function keys1<E, A>(q: usize, k: usize, scores: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = k + tokens * rowBytes<E>(); k < end; k += 4 * rowBytes<E>(), scores += 16) {
    touch<A>(k, 4 * rowBytes<E>());
    // Two sums a token: with one, four additions in flight would wait for each other.
    let a0 = f32x4.splat(0), a1 = a0, b0 = a0, b1 = a0, c0 = a0, c1 = a0, d0 = a0, d1 = a0;
    let p = k;
    for (let x = q, xEnd = q + ROW; x < xEnd; x += 32, p += 8 * sizeof<E>()) {
      const x0 = v128.load(x), x1 = v128.load(x, 16);
      a0 = madd(four<E, N0, N0>(p, mask), x0, a0);
      a1 = madd(four<E, N0, N1>(p, mask), x1, a1);
      b0 = madd(four<E, N1, N0>(p, mask), x0, b0);
      b1 = madd(four<E, N1, N1>(p, mask), x1, b1);
      c0 = madd(four<E, N2, N0>(p, mask), x0, c0);
      c1 = madd(four<E, N2, N1>(p, mask), x1, c1);
      d0 = madd(four<E, N3, N0>(p, mask), x0, d0);
      d1 = madd(four<E, N3, N1>(p, mask), x1, d1);
    }
    v128.store(scores, sumLanes(f32x4.add(a0, a1), f32x4.add(b0, b1), f32x4.add(c0, c1), f32x4.add(d0, d1)));
  }
}

/** scores[t, h] ← k[t] · q[h]. Writes whole tiles: up to three tokens past `tokens`. */
@inline export function keys<E, A>(heads: usize, q: usize, k: usize, scores: usize, tokens: usize): void {
  if (heads == 4) keys4<E, A>(q, k, scores, tokens);
  else if (heads == 3) keys3<E, A>(q, k, scores, tokens);
  else if (heads == 2) keys2<E, A>(q, k, scores, tokens);
  else keys1<E, A>(q, k, scores, tokens);
}

// Values streamed: rows are read in order, the sums stay in the level 1 cache and are loaded and stored once a tile of tokens.

function stream4<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = v + tokens * rowBytes<E>(); v < end; v += 2 * rowBytes<E>(), w += 32) {
    touch<A>(v, 2 * rowBytes<E>());
    const a0 = v128.load32_splat(w), a1 = v128.load32_splat(w, 4), a2 = v128.load32_splat(w, 8), a3 = v128.load32_splat(w, 12);
    const b0 = v128.load32_splat(w, 16), b1 = v128.load32_splat(w, 20), b2 = v128.load32_splat(w, 24), b3 = v128.load32_splat(w, 28);
    let p = v;
    for (let x = out, xEnd = out + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N1, N0>(p, mask);
      v128.store(x, madd(b, b0, madd(a, a0, v128.load(x))));
      v128.store(x, madd(b, b1, madd(a, a1, v128.load(x, ROW))), ROW);
      v128.store(x, madd(b, b2, madd(a, a2, v128.load(x, 2 * ROW))), 2 * ROW);
      v128.store(x, madd(b, b3, madd(a, a3, v128.load(x, 3 * ROW))), 3 * ROW);
    }
  }
}

function stream3<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = v + tokens * rowBytes<E>(); v < end; v += 3 * rowBytes<E>(), w += 48) {
    touch<A>(v, 3 * rowBytes<E>());
    const a0 = v128.load32_splat(w), a1 = v128.load32_splat(w, 4), a2 = v128.load32_splat(w, 8);
    const b0 = v128.load32_splat(w, 16), b1 = v128.load32_splat(w, 20), b2 = v128.load32_splat(w, 24);
    const c0 = v128.load32_splat(w, 32), c1 = v128.load32_splat(w, 36), c2 = v128.load32_splat(w, 40);
    let p = v;
    for (let x = out, xEnd = out + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N1, N0>(p, mask), c = four<E, N2, N0>(p, mask);
      v128.store(x, madd(c, c0, madd(b, b0, madd(a, a0, v128.load(x)))));
      v128.store(x, madd(c, c1, madd(b, b1, madd(a, a1, v128.load(x, ROW)))), ROW);
      v128.store(x, madd(c, c2, madd(b, b2, madd(a, a2, v128.load(x, 2 * ROW)))), 2 * ROW);
    }
  }
}

function stream2<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = v + tokens * rowBytes<E>(); v < end; v += 4 * rowBytes<E>(), w += 32) {
    touch<A>(v, 4 * rowBytes<E>());
    const a0 = v128.load32_splat(w), a1 = v128.load32_splat(w, 4), b0 = v128.load32_splat(w, 8), b1 = v128.load32_splat(w, 12);
    const c0 = v128.load32_splat(w, 16), c1 = v128.load32_splat(w, 20), d0 = v128.load32_splat(w, 24), d1 = v128.load32_splat(w, 28);
    let p = v;
    for (let x = out, xEnd = out + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      let x0 = v128.load(x), x1 = v128.load(x, ROW);
      const a = four<E, N0, N0>(p, mask);
      x0 = madd(a, a0, x0);
      x1 = madd(a, a1, x1);
      const b = four<E, N1, N0>(p, mask);
      x0 = madd(b, b0, x0);
      x1 = madd(b, b1, x1);
      const c = four<E, N2, N0>(p, mask);
      x0 = madd(c, c0, x0);
      x1 = madd(c, c1, x1);
      const d = four<E, N3, N0>(p, mask);
      v128.store(x, madd(d, d0, x0));
      v128.store(x, madd(d, d1, x1), ROW);
    }
  }
}

function stream1<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  for (const end = v + tokens * rowBytes<E>(); v < end; v += 4 * rowBytes<E>(), w += 16) {
    touch<A>(v, 4 * rowBytes<E>());
    const a = v128.load32_splat(w), b = v128.load32_splat(w, 4), c = v128.load32_splat(w, 8), d = v128.load32_splat(w, 12);
    let p = v;
    for (let x = out, xEnd = out + ROW; x < xEnd; x += 16, p += 4 * sizeof<E>()) {
      const ab = madd(b, four<E, N1, N0>(p, mask), madd(a, four<E, N0, N0>(p, mask), v128.load(x)));
      v128.store(x, madd(d, four<E, N3, N0>(p, mask), madd(c, four<E, N2, N0>(p, mask), ab)));
    }
  }
}

// Values tiled: the sums of a strip of channels stay in registers while the tokens of a block, which fits the level 1 cache, go by.

function tile4<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  let reached = v;
  for (const stripEnd = v + rowBytes<E>(); v < stripEnd; v += 8 * sizeof<E>(), out += 32) {
    touch<A>(reached, tokens * 8 * sizeof<E>());
    reached += tokens * 8 * sizeof<E>();
    let a0 = v128.load(out), b0 = v128.load(out, 16);
    let a1 = v128.load(out, ROW), b1 = v128.load(out, ROW + 16);
    let a2 = v128.load(out, 2 * ROW), b2 = v128.load(out, 2 * ROW + 16);
    let a3 = v128.load(out, 3 * ROW), b3 = v128.load(out, 3 * ROW + 16);
    let p = v;
    for (let t = w, end = w + (tokens << 4); t < end; t += 16, p += rowBytes<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N0, N1>(p, mask);
      const w0 = v128.load32_splat(t);
      a0 = madd(a, w0, a0);
      b0 = madd(b, w0, b0);
      const w1 = v128.load32_splat(t, 4);
      a1 = madd(a, w1, a1);
      b1 = madd(b, w1, b1);
      const w2 = v128.load32_splat(t, 8);
      a2 = madd(a, w2, a2);
      b2 = madd(b, w2, b2);
      const w3 = v128.load32_splat(t, 12);
      a3 = madd(a, w3, a3);
      b3 = madd(b, w3, b3);
    }
    v128.store(out, a0);
    v128.store(out, b0, 16);
    v128.store(out, a1, ROW);
    v128.store(out, b1, ROW + 16);
    v128.store(out, a2, 2 * ROW);
    v128.store(out, b2, 2 * ROW + 16);
    v128.store(out, a3, 3 * ROW);
    v128.store(out, b3, 3 * ROW + 16);
  }
}

function tile3<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  let reached = v;
  for (const stripEnd = v + rowBytes<E>(); v < stripEnd; v += 8 * sizeof<E>(), out += 32) {
    touch<A>(reached, tokens * 8 * sizeof<E>());
    reached += tokens * 8 * sizeof<E>();
    let a0 = v128.load(out), b0 = v128.load(out, 16);
    let a1 = v128.load(out, ROW), b1 = v128.load(out, ROW + 16);
    let a2 = v128.load(out, 2 * ROW), b2 = v128.load(out, 2 * ROW + 16);
    let p = v;
    for (let t = w, end = w + (tokens << 4); t < end; t += 16, p += rowBytes<E>()) {
      const a = four<E, N0, N0>(p, mask), b = four<E, N0, N1>(p, mask);
      const w0 = v128.load32_splat(t);
      a0 = madd(a, w0, a0);
      b0 = madd(b, w0, b0);
      const w1 = v128.load32_splat(t, 4);
      a1 = madd(a, w1, a1);
      b1 = madd(b, w1, b1);
      const w2 = v128.load32_splat(t, 8);
      a2 = madd(a, w2, a2);
      b2 = madd(b, w2, b2);
    }
    v128.store(out, a0);
    v128.store(out, b0, 16);
    v128.store(out, a1, ROW);
    v128.store(out, b1, ROW + 16);
    v128.store(out, a2, 2 * ROW);
    v128.store(out, b2, 2 * ROW + 16);
  }
}

function tile2<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  let reached = v;
  for (const stripEnd = v + rowBytes<E>(); v < stripEnd; v += 16 * sizeof<E>(), out += 64) {
    touch<A>(reached, tokens * 16 * sizeof<E>());
    reached += tokens * 16 * sizeof<E>();
    let a0 = v128.load(out), b0 = v128.load(out, 16), c0 = v128.load(out, 32), d0 = v128.load(out, 48);
    let a1 = v128.load(out, ROW), b1 = v128.load(out, ROW + 16), c1 = v128.load(out, ROW + 32), d1 = v128.load(out, ROW + 48);
    let p = v;
    for (let t = w, end = w + (tokens << 3); t < end; t += 8, p += rowBytes<E>()) {
      const w0 = v128.load32_splat(t), w1 = v128.load32_splat(t, 4);
      const a = four<E, N0, N0>(p, mask);
      a0 = madd(a, w0, a0);
      a1 = madd(a, w1, a1);
      const b = four<E, N0, N1>(p, mask);
      b0 = madd(b, w0, b0);
      b1 = madd(b, w1, b1);
      const c = four<E, N0, N2>(p, mask);
      c0 = madd(c, w0, c0);
      c1 = madd(c, w1, c1);
      const d = four<E, N0, N3>(p, mask);
      d0 = madd(d, w0, d0);
      d1 = madd(d, w1, d1);
    }
    v128.store(out, a0);
    v128.store(out, b0, 16);
    v128.store(out, c0, 32);
    v128.store(out, d0, 48);
    v128.store(out, a1, ROW);
    v128.store(out, b1, ROW + 16);
    v128.store(out, c1, ROW + 32);
    v128.store(out, d1, ROW + 48);
  }
}

function tile1<E, A>(w: usize, v: usize, out: usize, tokens: usize): void {
  const mask = halfMask();
  let reached = v;
  for (const stripEnd = v + rowBytes<E>(); v < stripEnd; v += 32 * sizeof<E>(), out += 128) {
    touch<A>(reached, tokens * 32 * sizeof<E>());
    reached += tokens * 32 * sizeof<E>();
    let a = v128.load(out), b = v128.load(out, 16), c = v128.load(out, 32), d = v128.load(out, 48);
    let e = v128.load(out, 64), f = v128.load(out, 80), g = v128.load(out, 96), h = v128.load(out, 112);
    let p = v;
    for (let t = w, end = w + (tokens << 2); t < end; t += 4, p += rowBytes<E>()) {
      const w0 = v128.load32_splat(t);
      a = madd(four<E, N0, N0>(p, mask), w0, a);
      b = madd(four<E, N0, N1>(p, mask), w0, b);
      c = madd(four<E, N0, N2>(p, mask), w0, c);
      d = madd(four<E, N0, N3>(p, mask), w0, d);
      e = madd(four<E, N0, N4>(p, mask), w0, e);
      f = madd(four<E, N0, N5>(p, mask), w0, f);
      g = madd(four<E, N0, N6>(p, mask), w0, g);
      h = madd(four<E, N0, N7>(p, mask), w0, h);
    }
    v128.store(out, a);
    v128.store(out, b, 16);
    v128.store(out, c, 32);
    v128.store(out, d, 48);
    v128.store(out, e, 64);
    v128.store(out, f, 80);
    v128.store(out, g, 96);
    v128.store(out, h, 112);
  }
}

/** out[h] ← out[h] + Σ w[t, h] · v[t]. Reads whole tiles: up to three tokens past `tokens`, whose weights shall be next to nothing. */
@inline export function stream<E, A>(heads: usize, w: usize, v: usize, out: usize, tokens: usize): void {
  if (heads == 4) stream4<E, A>(w, v, out, tokens);
  else if (heads == 3) stream3<E, A>(w, v, out, tokens);
  else if (heads == 2) stream2<E, A>(w, v, out, tokens);
  else stream1<E, A>(w, v, out, tokens);
}

/** The same, tiled. HEAD_DIM is a multiple of 32. */
@inline export function tile<E, A>(heads: usize, w: usize, v: usize, out: usize, tokens: usize): void {
  if (heads == 4) tile4<E, A>(w, v, out, tokens);
  else if (heads == 3) tile3<E, A>(w, v, out, tokens);
  else if (heads == 2) tile2<E, A>(w, v, out, tokens);
  else tile1<E, A>(w, v, out, tokens);
}
