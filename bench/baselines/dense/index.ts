// Attention of one token's queries over dense keys and values: the baselines that nsnquant's kernels are timed against.
// For the benchmark only; its layout is known to ../dense.ts.
//
// asc is told the head dimension: --use HEAD_DIM=128.

import * as float from "./float";
import * as int8 from "./int8";
import { greatest, weigh } from "./softmax";
import { CHUNK, Lines, N0, N1, Pages, Plain, maxAcross, sumAcross, touch } from "./vectors";

type Stream = N1;
type Tile = N0;

/** Tokens between two changes of kernel: multiples of every tile. A block of keys or values fits the level 1 cache. */
const BLOCK: usize = 24;
/** Longer for int8, whose sums are converted to f32 after each block. */
const INT8_BLOCK: usize = 96;
@inline function blockTokens<E>(): usize { return sizeof<E>() == 1 ? INT8_BLOCK : BLOCK; }

/** Bytes of a head's queries and sums. */
const ROW: usize = HEAD_DIM * 4;

/** Tokens past the last that tiles and whole vectors reach; their scores are HIDDEN. */
const OVERHANG: usize = 12;
const HIDDEN: f32 = -3e38;

/** What each group of up to four heads keeps in `work`: f32x4 max, sum and (int8) query scales, then f32 scores [tokens + OVERHANG, slot]. */
const SUM: usize = 16;
const QUERY_SCALES: usize = 32;
const SCORES: usize = 48;
@inline function groupBytes(tokens: usize): usize { return SCORES + (tokens + OVERHANG) * 16; }
@inline function headsOf(heads: usize, h: usize): usize { return min<usize>(heads - h, 4); }
@inline function slotOf(heads: usize): usize { return heads > 2 ? 4 : heads; }

/**
 * f16 blocks are converted once for all groups of heads rather than by each: 116 ns a token where it took 129 (d 128, 8 heads, Xeon).
 * Not with fused multiplications, which leave the ports free that converting needs: 98 ns where it took 92.
 */
@inline function widens<E>(heads: usize): bool { return sizeof<E>() == 2 && heads > 4 && !ASC_FEATURE_RELAXED_SIMD; }
/** After the groups: a block of f16 rows as f32 [BLOCK + 3, HEAD_DIM], for more than one group to read. */
@inline function wideRows(work: usize, tokens: usize, heads: usize): usize { return work + ((heads + 3) >> 2) * groupBytes(tokens); }

/** f16 values count 2⁻¹¹² times too little, their weights 2⁹⁶ times too much; the sums would overflow with 2¹¹². See `four` in float.ts. */
const HALF_SCALE: f32 = 5192296858534827628530496329220096.0; // 2^112
const HALF_LIFT: f32 = 96;

/**
 * out[h] ← Σₜ softmaxₜ(q[h] · k[t] / √HEAD_DIM) v[t]
 *
 *   E       what is stored: f32, u16 (f16 bits) or i8
 *   S       Stream or Tile, the form of the sums of values; int8 has only Tile
 *   A       Plain, Lines or Pages, how to look ahead
 *   q       f32 [heads, HEAD_DIM], spoiled
 *   k       E [tokens, HEAD_DIM]; int8: then f32 scales [tokens], zeros up to a multiple of 4
 *   v       the same; int8: E [tokens / 2, HEAD_DIM, 2] instead, then scales
 *   work    groupBytes for each four heads or part of them, then `wideRows`
 *   out     f32 [heads, HEAD_DIM]
 *
 * All are 16-byte aligned. Up to 36 KB past k and v are read, and finite numbers shall be there.
 */
function attend<E, S, A>(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  begin<E>(q, work, out, tokens, heads);
  scores<E, A>(q, k, work, tokens, heads);
  for (let h: usize = 0, group = work; h < heads; h += 4, group += groupBytes(tokens)) {
    v128.store(group, maxAcross(v128.load(group), slotOf(headsOf(heads, h))));
  }
  mix<E, S, A>(v, work, out, tokens, heads);
  finish<E>(work, out, tokens, heads);
}

/** The queries take the scale of the scores, in powers of 2. */
function begin<E>(q: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  let scale = <f32>(1.4426950408889634 / Math.sqrt(HEAD_DIM));
  for (let h: usize = 0, group = work; h < heads; h += 4, group += groupBytes(tokens)) {
    v128.store(group, f32x4.splat(HIDDEN));
    v128.store(group, f32x4.splat(0), SUM);
    if (sizeof<E>() == 1) int8.quantizeQueries(q + h * ROW, headsOf(heads, h), scale, group + QUERY_SCALES);
  }
  if (sizeof<E>() > 1) {
    if (sizeof<E>() == 2) scale *= HALF_SCALE;
    for (let p = q, end = q + heads * ROW; p < end; p += 16) v128.store(p, f32x4.mul(f32x4.splat(scale), v128.load(p)));
  }
  memory.fill(out, 0, heads * ROW);
}

/** Block by block, so that a second group of heads finds the keys in cache. */
function scores<E, A>(q: usize, k: usize, work: usize, tokens: usize, heads: usize): void {
  const wide = widens<E>(heads);
  for (let t: usize = 0; t < tokens; t += blockTokens<E>()) {
    const n = min(blockTokens<E>(), tokens - t), rows = k + t * HEAD_DIM * sizeof<E>();
    if (wide) float.widen<A>(rows, wideRows(work, tokens, heads), n + 3);
    for (let h: usize = 0, group = work; h < heads; h += 4, group += groupBytes(tokens)) {
      if (wide) blockScores<f32, Plain>(headsOf(heads, h), q + h * ROW, wideRows(work, tokens, heads), 0, group, t, n, tokens);
      else if (h == 0) blockScores<E, A>(headsOf(heads, h), q, rows, k + tokens * HEAD_DIM + t * 4, group, t, n, tokens);
      else blockScores<E, Plain>(headsOf(heads, h), q + h * ROW, rows, k + tokens * HEAD_DIM + t * 4, group, t, n, tokens);
    }
  }
}

@inline function blockScores<E, A>(heads: usize, q: usize, rows: usize, scales: usize, group: usize, t: usize, n: usize, tokens: usize): void {
  const slotBytes = slotOf(heads) * 4, block = group + SCORES + t * slotBytes, end = block + n * slotBytes;
  if (sizeof<E>() == 1) int8.keys<A>(heads, q, group + QUERY_SCALES, rows, scales, block, n);
  else float.keys<E, A>(heads, q, rows, block, n);
  if (t + n == tokens) {
    for (let p = end; p < end + OVERHANG * slotBytes; p += 4) store<f32>(p, HIDDEN);
  }
  v128.store(group, greatest(block, n * slotBytes, v128.load(group)));
}

/** Scores become weights a block at a time, just before they are used. */
function mix<E, S, A>(v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  const scales = v + ((tokens + 1) & ~1) * HEAD_DIM, wide = widens<E>(heads);
  for (let t: usize = 0; t < tokens; t += blockTokens<E>()) {
    const n = min(blockTokens<E>(), tokens - t), rows = v + t * HEAD_DIM * sizeof<E>();
    if (wide) float.widen<A>(rows, wideRows(work, tokens, heads), n + 3);
    for (let h: usize = 0, group = work; h < heads; h += 4, group += groupBytes(tokens)) {
      const slotBytes = slotOf(headsOf(heads, h)) * 4, block = group + SCORES + t * slotBytes;
      const weights = t + n == tokens ? n + OVERHANG - 4 : n; // less than OVERHANG: `weigh` takes whole vectors
      const sum = weigh(block, weights * slotBytes, v128.load(group), sizeof<E>() == 2 ? HALF_LIFT : 0, v128.load(group, SUM));
      v128.store(group, sum, SUM);
      if (wide) blockMix<f32, S, Plain>(headsOf(heads, h), block, wideRows(work, tokens, heads), 0, out + h * ROW, n);
      else if (h == 0) blockMix<E, S, A>(headsOf(heads, h), block, rows, scales + t * 4, out, n);
      else blockMix<E, S, Plain>(headsOf(heads, h), block, rows, scales + t * 4, out + h * ROW, n);
    }
  }
}

@inline function blockMix<E, S, A>(heads: usize, block: usize, rows: usize, scales: usize, out: usize, n: usize): void {
  if (sizeof<E>() == 1) int8.values<A>(heads, block, rows, scales, out, n);
  else if (offsetof<S>() == offsetof<Stream>()) float.stream<E, A>(heads, block, rows, out, n);
  else float.tile<E, A>(heads, block, rows, out, n);
}

function finish<E>(work: usize, out: usize, tokens: usize, heads: usize): void {
  for (let h: usize = 0, group = work; h < heads; h += 4, group += groupBytes(tokens)) {
    const sums = sumAcross(v128.load(group, SUM), slotOf(headsOf(heads, h)));
    v128.store(group, f32x4.div(f32x4.splat(sizeof<E>() == 2 ? HALF_SCALE : 1), sums));
    for (let i: usize = 0; i < headsOf(heads, h); i++) {
      const factor = v128.load32_splat(group + i * 4);
      for (const end = out + ROW; out < end; out += 16) v128.store(out, f32x4.mul(factor, v128.load(out)));
    }
  }
}

/** Nothing but the reading of `bytes`, a cache line at a time: the floor under any attention that is not in cache. */
export function read(p: usize, bytes: usize): void {
  for (const end = p + bytes; p < end; p += 256) touch<Pages>(p - CHUNK, 256);
}

export function f32Stream(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<f32, Stream, Plain>(q, k, v, work, out, tokens, heads);
}
export function f32StreamLines(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<f32, Stream, Lines>(q, k, v, work, out, tokens, heads);
}
export function f32StreamPages(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<f32, Stream, Pages>(q, k, v, work, out, tokens, heads);
}
export function f32Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<f32, Tile, Plain>(q, k, v, work, out, tokens, heads);
}
export function f32TilePages(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<f32, Tile, Pages>(q, k, v, work, out, tokens, heads);
}
export function f16Stream(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<u16, Stream, Plain>(q, k, v, work, out, tokens, heads);
}
export function f16StreamLines(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<u16, Stream, Lines>(q, k, v, work, out, tokens, heads);
}
export function f16StreamPages(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<u16, Stream, Pages>(q, k, v, work, out, tokens, heads);
}
export function f16Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<u16, Tile, Plain>(q, k, v, work, out, tokens, heads);
}
export function f16TilePages(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<u16, Tile, Pages>(q, k, v, work, out, tokens, heads);
}
export function int8Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<i8, Tile, Plain>(q, k, v, work, out, tokens, heads);
}
export function int8TileLines(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<i8, Tile, Lines>(q, k, v, work, out, tokens, heads);
}
export function int8TilePages(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: usize, heads: usize): void {
  attend<i8, Tile, Pages>(q, k, v, work, out, tokens, heads);
}
