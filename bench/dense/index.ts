// Attention of one token's queries over dense keys and values: the baselines that nsnquant's kernels are timed against. Benchmark only.

import { N0, N1 } from "./vectors";
import * as float from "./float";
import * as int8 from "./int8";
import { greatest, maxAcross, sumAcross, weigh } from "./softmax";

/** Tokens per block: multiples of every tile. */
const BLOCK: i32 = BLOCK_TOKENS;
const INT8_BLOCK: i32 = INT8_BLOCK_TOKENS;
/** Tokens past the end that tiles and vectors reach. */
const OVERHANG: usize = 12;
const STATE: usize = 48;

@inline function blockOf<E>(): i32 { return sizeof<E>() == 1 ? INT8_BLOCK : BLOCK; }
@inline function slotOf(heads: i32): usize { return heads >= 3 ? 4 : heads; }
@inline function groupOf(heads: i32, h: i32): i32 { return min(heads - h, 4); }

@inline function blockKeys<E, A>(group: i32, q: usize, queryScales: usize, k: usize, scales: usize, scores: usize, n: usize): void {
  if (sizeof<E>() == 1) int8.keys<A>(group, q, queryScales, k, scales, scores, n);
  else float.keys<E, A>(group, q, k, scores, n);
}
@inline function blockValues<E, S, A>(group: i32, scores: usize, unit: v128, v: usize, out: usize, n: usize): void {
  if (sizeof<E>() == 1) int8.values<A>(group, scores, unit, v, out, n);
  else float.values<E, S, A>(group, scores, v, out, n);
}

function attend<E, S, A>(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void {
  const groups = (heads + 3) >> 2;
  const scoresBytes = (<usize>tokens + OVERHANG) << 4;
  const scores = work + <usize>groups * STATE;
  const kScales = k + tokens * HEAD_DIM, vScales = v + ((tokens + 1) & ~1) * HEAD_DIM;
  const queryBytes = HEAD_DIM * (sizeof<E>() == 1 ? 2 : 4);
  let scale = <f32>(1.4426950408889634 / Math.sqrt(HEAD_DIM));
  if (sizeof<E>() == 1) {
    for (let h = 0, state = work; h < heads; h += 4, state += STATE) int8.quantizeQueries(q + h * HEAD_DIM * 4, groupOf(heads, h), scale, state + 32);
  } else {
    if (sizeof<E>() == 2) scale *= <f32>5192296858534827628530496329220096.0;
    for (let p = q, end = q + <usize>(heads * HEAD_DIM * 4); p < end; p += 16) v128.store(p, f32x4.mul(f32x4.splat(scale), v128.load(p)));
  }
  memory.fill(out, 0, heads * HEAD_DIM * 4);
  for (let g = 0; g < groups; g++) {
    v128.store(work + g * STATE, f32x4.splat(-3e38));
    v128.store(work + g * STATE, f32x4.splat(0), 16);
  }
  for (let t = 0; t < tokens; t += blockOf<E>()) {
    const n = min(blockOf<E>(), tokens - t);
    let s = scores, state = work;
    for (let h = 0; h < heads; h += 4, s += scoresBytes, state += STATE) {
      const group = groupOf(heads, h), slot = slotOf(group);
      const block = s + t * slot * 4;
      const queries = sizeof<E>() == 1 ? q + h * HEAD_DIM * 4 : q + h * HEAD_DIM * 4;
      if (h == 0) blockKeys<E, A>(group, queries, state + 32, k + <usize>t * HEAD_DIM * sizeof<E>(), kScales + t * 4, block, n);
      else blockKeys<E, N0>(group, queries, state + 32, k + <usize>t * HEAD_DIM * sizeof<E>(), kScales + t * 4, block, n);
      if (n + t == tokens) for (let i: usize = 0; i < OVERHANG * slot; i++) store<f32>(block + n * slot * 4 + i * 4, -3e38);
      v128.store(state, greatest(block, n * slot * 4, v128.load(state)));
    }
  }
  for (let h = 0, state = work; h < heads; h += 4, state += STATE) v128.store(state, maxAcross(v128.load(state), slotOf(groupOf(heads, h))));
  for (let t = 0; t < tokens; t += blockOf<E>()) {
    const n = min(blockOf<E>(), tokens - t);
    let s = scores, state = work;
    for (let h = 0; h < heads; h += 4, s += scoresBytes, state += STATE) {
      const group = groupOf(heads, h), slot = slotOf(group);
      const block = s + t * slot * 4;
      const m = t + n == tokens ? n + 8 : n;
      v128.store(state, weigh(block, m * slot * 4, v128.load(state), v128.load(state, 16), sizeof<E>() == 2 ? 96 : 0), 16);
      let unit = f32x4.splat(0);
      if (sizeof<E>() == 1) unit = int8.quantizeWeights(block, vScales + t * 4, n, slot);
      const rows = v + <usize>t * HEAD_DIM * sizeof<E>();
      if (h == 0) blockValues<E, S, A>(group, block, unit, rows, out, n);
      else blockValues<E, S, N0>(group, block, unit, rows, out + h * HEAD_DIM * 4, n);
    }
  }
  for (let h = 0, state = work; h < heads; h += 4, state += STATE) {
    const group = groupOf(heads, h);
    v128.store(state, f32x4.div(f32x4.splat((sizeof<E>() == 2 ? <f32>5192296858534827628530496329220096.0 : <f32>1)), sumAcross(v128.load(state, 16), slotOf(group))));
    for (let i = 0; i < group; i++) {
      const factor = v128.load32_splat(state + i * 4);
      for (let p = out + (h + i) * HEAD_DIM * 4, end = p + HEAD_DIM * 4; p < end; p += 16) v128.store(p, f32x4.mul(factor, v128.load(p)));
    }
  }
}

export function f32Stream(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<f32, N1, N0>(q, k, v, work, out, tokens, heads); }
export function f32StreamAhead(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<f32, N1, N1>(q, k, v, work, out, tokens, heads); }
export function f32Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<f32, N0, N0>(q, k, v, work, out, tokens, heads); }
export function f32TileAhead(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<f32, N0, N1>(q, k, v, work, out, tokens, heads); }
export function f16Stream(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<u16, N1, N0>(q, k, v, work, out, tokens, heads); }
export function f16StreamAhead(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<u16, N1, N1>(q, k, v, work, out, tokens, heads); }
export function f16Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<u16, N0, N0>(q, k, v, work, out, tokens, heads); }
export function f16TileAhead(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<u16, N0, N1>(q, k, v, work, out, tokens, heads); }
export function int8Tile(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<i8, N0, N0>(q, k, v, work, out, tokens, heads); }
export function int8TileAhead(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void { attend<i8, N0, N1>(q, k, v, work, out, tokens, heads); }
