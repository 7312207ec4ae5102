import { N0, N1 } from "./vectors";
import { keys, values, rowBytes } from "./float";
import { greatest, maxAcross, sumAcross, weigh } from "./softmax";

const BLOCK: i32 = BLOCK_TOKENS;

@inline function slotOf(heads: i32): usize { return heads >= 3 ? 4 : heads; }
@inline function groupOf(heads: i32, h: i32): i32 { return min(heads - h, 4); }

function attend<E, S, A>(q: usize, k: usize, v: usize, work: usize, out: usize, tokens: i32, heads: i32): void {
  const groups = (heads + 3) >> 2;
  const scoresBytes = <usize>(tokens + 16) << 4;
  const scores = work + (<usize>groups << 5);
  const scale = f32x4.splat(<f32>(1.4426950408889634 / Math.sqrt(HEAD_DIM)) * (sizeof<E>() == 2 ? <f32>5192296858534827628530496329220096.0 : <f32>1));
  for (let p = q, end = q + <usize>(heads * HEAD_DIM * 4); p < end; p += 16) v128.store(p, f32x4.mul(scale, v128.load(p)));
  memory.fill(out, 0, heads * HEAD_DIM * 4);
  for (let g = 0; g < groups; g++) {
    v128.store(work + (g << 5), f32x4.splat(-3e38));
    v128.store(work + (g << 5), f32x4.splat(0), 16);
  }
  for (let t = 0; t < tokens; t += BLOCK) {
    const n = min(BLOCK, tokens - t);
    let s = scores, state = work;
    for (let h = 0; h < heads; h += 4, s += scoresBytes, state += 32) {
      const group = groupOf(heads, h), slot = slotOf(group);
      const block = s + t * slot * 4;
      if (h == 0) keys<E, A>(group, q, k + <usize>t * rowBytes<E>(), block, n);
      else keys<E, N0>(group, q + h * HEAD_DIM * 4, k + <usize>t * rowBytes<E>(), block, n);
      if (n < BLOCK) for (let i: usize = 0; i < 6 * slot; i++) store<f32>(block + n * slot * 4 + i * 4, -3e38);
      v128.store(state, greatest(block, n * slot * 4, v128.load(state)));
    }
  }
  {
    let s = scores, state = work;
    if (tokens % BLOCK == 0) for (let h = 0; h < heads; h += 4, s += scoresBytes, state += 32) {
      const slot = slotOf(groupOf(heads, h));
      for (let i: usize = 0; i < 6 * slot; i++) store<f32>(s + tokens * slot * 4 + i * 4, -3e38);
    }
  }
  for (let h = 0, state = work; h < heads; h += 4, state += 32) v128.store(state, maxAcross(v128.load(state), slotOf(groupOf(heads, h))));
  for (let t = 0; t < tokens; t += BLOCK) {
    const n = min(BLOCK, tokens - t);
    let s = scores, state = work;
    for (let h = 0; h < heads; h += 4, s += scoresBytes, state += 32) {
      const group = groupOf(heads, h), slot = slotOf(group);
      const block = s + t * slot * 4;
      v128.store(state, weigh(block, (n < BLOCK ? n + 3 : n) * slot * 4, v128.load(state), v128.load(state, 16)), 16);
      if (h == 0) values<E, S, A>(group, block, v + <usize>t * rowBytes<E>(), out, n);
      else values<E, S, N0>(group, block, v + <usize>t * rowBytes<E>(), out + h * HEAD_DIM * 4, n);
    }
  }
  for (let h = 0, state = work; h < heads; h += 4, state += 32) {
    const group = groupOf(heads, h);
    v128.store(state, f32x4.div(f32x4.splat(1), sumAcross(v128.load(state, 16), slotOf(group))));
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
