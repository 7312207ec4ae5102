// Seeded data that looks like a cache: normal values; keys with channel means before RoPE, as real ones have.

import type { Sequence } from 'nsnquant';
import { attend } from 'nsnquant/reference';

export interface KeysAndValues {
  /** f32 [tokens, headDim] */
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** Normal deviates from a 32-bit counter hash. */
export function normals(seed: number): () => number {
  let state = seed >>> 0;
  const uniform = (): number => {
    state = (state + 0x9e3779b9) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return ((x ^ (x >>> 15)) >>> 0) / 2 ** 32;
  };
  return () => Math.sqrt(-2 * Math.log(1 - uniform())) * Math.cos(2 * Math.PI * uniform());
}

/** RoPE of base 10,000, halves. */
export function invFreq(headDim: number): Float32Array {
  return Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim));
}

/** As a real model's: keys carry about three quarters of their energy in the mean before RoPE, values a fifth in theirs. */
export function keysAndValues(seed: number, tokens: number, headDim: number): KeysAndValues {
  const normal = normals(seed);
  const mean = Float64Array.from({ length: headDim }, () => Math.sqrt(3) * normal());
  const valueMean = Float64Array.from({ length: headDim }, () => normal() / 2);
  const frequencies = invFreq(headDim);
  const keys = new Float32Array(tokens * headDim);
  const values = new Float32Array(tokens * headDim);
  const half = headDim / 2;
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < half; i++) {
      const [a, b] = [mean[i]! + normal(), mean[i + half]! + normal()];
      const [cos, sin] = [Math.cos(t * frequencies[i]!), Math.sin(t * frequencies[i]!)];
      keys[t * headDim + i] = a * cos - b * sin;
      keys[t * headDim + i + half] = b * cos + a * sin;
    }
    for (let i = 0; i < headDim; i++) values[t * headDim + i] = valueMean[i]! + normal();
  }
  return { keys, values };
}

/** Appends `tokens` tokens to a layer; KV head h is heads[h % heads.length]. */
export function feed(
  sequence: Sequence,
  layer: number,
  heads: readonly KeysAndValues[],
  tokens: number,
  { kvHeads, headDim }: { kvHeads: number; headDim: number }
): void {
  const step = 64;
  for (let first = 0; first < tokens; first += step) {
    const count = Math.min(step, tokens - first);
    const rows = (side: 'keys' | 'values'): Float32Array => {
      const x = new Float32Array(count * kvHeads * headDim);
      for (let row = 0; row < count * kvHeads; row++) {
        const at = (first + Math.floor(row / kvHeads)) * headDim;
        x.set(heads[(row % kvHeads) % heads.length]![side].subarray(at, at + headDim), row * headDim);
      }
      return x;
    };
    sequence.append(layer, rows('keys'), rows('values'));
  }
  sequence.seal();
}

/** Attention in f64 of queries that share a KV head: f32 [queries, headDim]. */
export function exactAttention(queries: Float32Array, { keys, values }: KeysAndValues, headDim: number): number[] {
  return Array.from({ length: queries.length / headDim }, (_, n) => {
    const query = queries.subarray(n * headDim, (n + 1) * headDim);
    return Array.from(
      attend(
        Float64Array.from(query, x => x / Math.sqrt(headDim)),
        keys,
        values
      )
    );
  }).flat();
}
