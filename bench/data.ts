// Seeded data that looks like a cache: normal values; keys with channel means before RoPE, and pairs of channels of which some carry
// more of a query's logits than others, as real ones have.

import type { Sequence } from 'nsnquant';
import { attend, learn } from 'nsnquant/reference';

/** What one KV head is asked for, and what it is asked. */
export interface Head {
  /** f32 [tokens, headDim] */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** f32 [headDim]: deviations of the channels of queries. */
  readonly asked: Float32Array;
}

/** Standard deviations over the pairs of a head of SmolLM2-135M, in octaves: of the energy of keys, and of queries. */
const KEY_OCTAVES = 0.75;
const QUERY_OCTAVES = 1.1;

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

/** RoPE as the keys of every head carry it. */
export function ropeOf(headDim: number): { invFreq: Float32Array; interleaved: boolean } {
  return { invFreq: invFreq(headDim), interleaved: false };
}

/** As a real model's: keys carry about three quarters of their energy in the mean before RoPE, values a fifth in theirs. */
export function seededHead(seed: number, tokens: number, headDim: number): Head {
  const normal = normals(seed);
  const half = headDim / 2;
  const deviations = (octaves: number): Float64Array => Float64Array.from({ length: half }, () => 2 ** ((octaves * normal()) / 2));
  const keyDeviations = deviations(KEY_OCTAVES);
  const queryDeviations = deviations(QUERY_OCTAVES);
  const mean = Float64Array.from({ length: headDim }, () => Math.sqrt(3) * normal());
  const valueMean = Float64Array.from({ length: headDim }, () => normal() / 2);
  const frequencies = invFreq(headDim);
  const keys = new Float32Array(tokens * headDim);
  const values = new Float32Array(tokens * headDim);
  for (let t = 0; t < tokens; t++) {
    for (let i = 0; i < half; i++) {
      const [a, b] = [mean[i]! + keyDeviations[i]! * normal(), mean[i + half]! + keyDeviations[i]! * normal()];
      const [cos, sin] = [Math.cos(t * frequencies[i]!), Math.sin(t * frequencies[i]!)];
      keys[t * headDim + i] = a * cos - b * sin;
      keys[t * headDim + i + half] = b * cos + a * sin;
    }
    for (let i = 0; i < headDim; i++) values[t * headDim + i] = valueMean[i]! + normal();
  }
  return { keys, values, asked: Float32Array.from({ length: headDim }, (_, i) => queryDeviations[i % half]!) };
}

/** Queries of a cache's heads, KV head h being heads[h % heads.length]: f32 [tokens, kvHeads, group, headDim]. */
export function seededQueries(seed: number, heads: readonly Head[], tokens: number, kvHeads: number, group: number): Float32Array {
  const normal = normals(seed);
  const { length: headDim } = heads[0]!.asked;
  return Float32Array.from({ length: tokens * kvHeads * group * headDim }, (_, i) => {
    const head = Math.floor(i / (group * headDim)) % kvHeads;
    return heads[head % heads.length]!.asked[i % headDim]! * normal();
  });
}

/** What sequences of such heads would learn of their first 128 tokens after the sinks, and as many queries: a profile of `layers` layers. */
export function profileOf(heads: readonly Head[], { layers, kvHeads }: { layers: number; kvHeads: number }, sinks: number): Uint8Array {
  const { length: headDim } = heads[0]!.asked;
  const window = 64 * headDim;
  const learned = heads.map((head, n) => {
    const windows = [0, 1].map(w => head.keys.subarray(sinks * headDim + w * window, sinks * headDim + (w + 1) * window));
    return learn(windows, seededQueries(n, [head], 128, 1, 1), headDim, ropeOf(headDim));
  });
  const layer = Array.from({ length: kvHeads }, (_, head) => learned[head % heads.length]!);
  return Uint8Array.from(Array.from({ length: layers }, () => layer.flatMap(balance => [...balance])).flat());
}

/** Appends `tokens` tokens to a layer; KV head h is heads[h % heads.length], of whose values the first channels are taken. */
export function feed(
  sequence: Sequence,
  layer: number,
  heads: readonly Head[],
  tokens: number,
  { kvHeads, headDim, valueDim = headDim }: { kvHeads: number; headDim: number; valueDim?: number }
): void {
  const step = 64;
  for (let first = 0; first < tokens; first += step) {
    const count = Math.min(step, tokens - first);
    const rows = (side: 'keys' | 'values'): Float32Array => {
      const width = side === 'keys' ? headDim : valueDim;
      const x = new Float32Array(count * kvHeads * width);
      for (let row = 0; row < count * kvHeads; row++) {
        const at = (first + Math.floor(row / kvHeads)) * headDim;
        x.set(heads[(row % kvHeads) % heads.length]![side].subarray(at, at + width), row * width);
      }
      return x;
    };
    sequence.append(layer, rows('keys'), rows('values'));
  }
  sequence.seal();
}

/** Attention in f64 of queries that share a KV head: f32 [queries, headDim]. */
export function exactAttention(queries: Float32Array, { keys, values }: Pick<Head, 'keys' | 'values'>, headDim: number): number[] {
  return Array.from({ length: queries.length / headDim }, (_, n) => {
    const query = queries.subarray(n * headDim, (n + 1) * headDim);
    return Array.from(
      attend(
        Float64Array.from(query, x => x / Math.sqrt(headDim)),
        keys,
        values
      ).out
    );
  }).flat();
}
