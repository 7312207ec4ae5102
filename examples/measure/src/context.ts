// Keys, values and queries of one context, and what must come out. The same numbers on every device: they are drawn from seeds.
import { type Backend, KVCache, openBackend } from 'nsnquant';
import { exactAttention, type Head, seededHead, seededQueries } from '../../../bench/data.ts';
import { type CellShape, cacheOptions, type Format, savedSequence } from '../../../bench/gpu/caches.ts';
import { type Expected, expectedOver, savedPages } from '../../../test/attention.ts';
import { atMost, withinFloatRule } from '../../../test/compare.ts';
import { nearestHalf } from '../../../test/half.ts';
import { REORDERED } from '../../../test/tolerance.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import type { Dense, Method, ModelShape } from './methods.ts';

/** f16 keys and values of the layers of one walk: more than most caches of processors hold, and less than a phone has. */
const WALK_BYTES = 2 ** 26;
const MOST_LAYERS = 16;
/** Distinct KV heads: head h has the keys, values and queries of h % 2, in memory of its own. */
const DISTINCT = 2;
/** For the shape of a cache none of whose tokens is coded; any codec will do. */
const UNCODED: Format = { name: 'uncoded', keys: 'nsn4', values: 'nsn4', balanced: false };

export interface Context {
  /** `layers`: each has its own memory, though the numbers in it are the same. */
  readonly shape: CellShape;
  /** The distinct ones. */
  readonly heads: readonly Head[];
  /** f32 [kvHeads, group, headDim] */
  readonly queries: Float32Array<ArrayBuffer>;
  /** Attention in f64 over the distinct heads as they are, [DISTINCT, group, headDim]. */
  readonly exact: readonly number[];
}

export function contextOf(tokens: number, model: ModelShape): Context {
  const { kvHeads, group, headDim } = model;
  const layers = Math.floor(WALK_BYTES / (4 * tokens * kvHeads * headDim));
  const heads = Array.from({ length: DISTINCT }, (_, n) => seededHead(n + 1, tokens, headDim));
  const distinct = seededQueries(99, heads, 1, DISTINCT, group);
  const queries = new Float32Array(kvHeads * group * headDim);
  for (let at = 0; at < queries.length; at += distinct.length) queries.set(distinct, at);
  const width = group * headDim;
  const exact = heads.flatMap((head, n) => exactAttention(distinct.subarray(n * width, (n + 1) * width), head, headDim));
  return { shape: { ...model, batch: 1, context: tokens, layers: Math.min(MOST_LAYERS, Math.max(1, layers)) }, heads, queries, exact };
}

/** f64 attention of the distinct heads over their tokens as a method keeps them, how far off naive f32 is, and what else a backend may be. */
export async function expected({ shape, heads, queries, exact }: Context, { kept }: Method, backend: Backend): Promise<Expected> {
  const distinct = { ...shape, layers: 1, kvHeads: DISTINCT };
  const query = queries.subarray(0, exact.length);
  using cache = new KVCache(await openBackend({ prefer: 'wasm' }), cacheOptions(typeof kept === 'string' ? UNCODED : kept, distinct, 1));
  const attending = { backend, shape: cache.shape };
  if (typeof kept === 'string') return expectedOver(attending, 0, query, stored(kept, heads, shape.headDim), []);
  const saved = await savedSequence(kept, distinct, heads);
  return expectedOver(attending, 0, query, await cache.restore(saved).decode(0), savedPages(saved, 0));
}

/**
 * Holds outputs to the rules that tests hold them to: of the distinct KV heads the float rule; all others must be as these are.
 *
 * @param outputs  f32 [kvHeads, group, headDim] each, of several layers
 * @returns        the relative error against exact attention
 * @throws         if one is off by more than test/tolerance.ts forgives
 */
export function check({ exact: uncoded, shape }: Context, { exact, naive, extra }: Expected, outputs: readonly Float32Array[]): number {
  const first = outputs[0]!.subarray(0, uncoded.length);
  withinFloatRule('attention', first, exact, naive, shape.headDim, extra);
  const largest = first.reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  for (const output of outputs) {
    output.forEach((x, i) => atMost(`difference of KV heads at ${i}`, Math.abs(x - first[i % first.length]!), REORDERED * largest));
  }
  return relativeL2(first, uncoded);
}

/** Keys and values of the distinct heads, f32 [tokens, DISTINCT, headDim], rounded as they are stored. */
function stored(kind: Dense, heads: readonly Head[], headDim: number): { keys: Float32Array; values: Float32Array } {
  const side = (name: 'keys' | 'values'): Float32Array => {
    const x = new Float32Array(heads.length * heads[0]![name].length);
    for (let i = 0; i < x.length; i++) {
      const row = Math.floor(i / headDim);
      const value = heads[row % heads.length]![name][Math.floor(row / heads.length) * headDim + (i % headDim)]!;
      x[i] = kind === 'f16' ? nearestHalf(value) : value;
    }
    return x;
  };
  return { keys: side('keys'), values: side('values') };
}
