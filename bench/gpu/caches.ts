// The caches of the WebGPU tables: filled with saved bytes that WebAssembly made, every sequence with pages of its own, and the
// bytes that attention reads of them, computed from the page layout.

import { type Backend, type CacheOptions, type CodecName, KVCache, openBackend, type Sequence } from 'nsnquant';
import { codecs } from '../../src/format/codec.ts';
import { pageLayout, WINDOW } from '../../src/format/layout.ts';
import { feed, type Head, profileOf, ropeOf } from '../data.ts';

export interface Format {
  readonly name: string;
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly balanced: boolean;
}

/** One codec for both sides, a pair of two, and what balancing costs. */
export const formats: readonly Format[] = [
  ...(Object.keys(codecs) as CodecName[]).map(codec => ({ name: codec, keys: codec, values: codec, balanced: true })),
  { name: 'nsn4 / nsn2', keys: 'nsn4', values: 'nsn2', balanced: true },
  { name: 'nsn2 plain', keys: 'nsn2', values: 'nsn2', balanced: false }
];

export interface CellShape {
  readonly batch: number;
  /** Tokens of every sequence. */
  readonly context: number;
  readonly kvHeads: number;
  /** Query heads of one KV head. */
  readonly group: number;
  readonly headDim: number;
  readonly layers: number;
}

/** Tokens that are appended to a filled sequence at most. */
const MORE = WINDOW;
const SINKS = 4;

/** Options of a cache for `sequences` sequences of a cell's context. */
export function cacheOptions(format: Format, { context, kvHeads, group, headDim, layers }: CellShape, sequences: number): CacheOptions {
  return {
    layers,
    kvHeads,
    queryHeads: kvHeads * group,
    headDim,
    capacity: sequences * (context + MORE),
    keys: format.keys,
    values: format.values,
    rope: ropeOf(headDim),
    balance: format.balanced ? 'learn' : 'off',
    sinks: SINKS,
    sequences,
    maxAppend: WINDOW
  };
}

/** A cell's sequence as saved bytes; KV head h is heads[h % heads.length]. WebAssembly encodes it: every backend reads it. */
export async function savedSequence(format: Format, shape: CellShape, heads: readonly Head[]): Promise<Uint8Array> {
  const options = cacheOptions(format, shape, 1);
  const cache = new KVCache(
    await openBackend({ prefer: 'wasm' }),
    format.balanced ? { ...options, balance: profileOf(heads, shape, SINKS) } : options
  );
  const sequence = cache.sequence();
  for (let layer = 0; layer < shape.layers; layer++) feed(sequence, layer, heads, shape.context, shape);
  return sequence.save();
}

/** A cache with a whole batch. The sequences are equal, but none shares a page: nothing is read twice from the same place. */
export async function filledCache(
  backend: Backend,
  format: Format,
  shape: CellShape,
  saved: Uint8Array
): Promise<{ cache: KVCache; sequences: Sequence[] }> {
  const cache = new KVCache(backend, cacheOptions(format, shape, shape.batch));
  try {
    await cache.ready;
    return { cache, sequences: Array.from({ length: shape.batch }, () => cache.restore(saved)) };
  } catch (error) {
    cache.dispose();
    throw error;
  }
}

/** Bytes of one sequence and layer that attention reads: coded pages with all metadata, sinks and the raw tail in f16. */
export function sequenceBytes({ keys, values, balanced }: Format, { context, kvHeads, headDim }: CellShape): number {
  const pages = Math.floor(Math.max(0, context - SINKS) / WINDOW);
  return (
    pages * pageLayout(codecs[keys], codecs[values], { kvHeads, headDim, valueDim: headDim }, balanced).bytes +
    (context - pages * WINDOW) * tokenBytes(2, kvHeads, headDim)
  );
}

/** Bytes of a token's keys and values as plain numbers. */
export function tokenBytes(elementBytes: number, kvHeads: number, headDim: number): number {
  return 2 * kvHeads * headDim * elementBytes;
}
