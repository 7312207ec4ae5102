// What tests of refusals share: a small cache, calls with what they must throw, and that nothing changes by them.

import { type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { sameAttention } from './attention.ts';
import { refuses, sameBits } from './compare.ts';
import { bells } from './inputs.ts';
import type { Tested } from './verbs.ts';

export const HEAD_DIM = 32;
export const options = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: HEAD_DIM, capacity: 200, sequences: 3 } as const;
/** Numbers of one token. */
export const TOKEN = HEAD_DIM;

export const rows = (tokens: number, seed = 1) => bells(tokens, HEAD_DIM, seed);
export const queries = (tokens: number, seed = 9) => bells(tokens, 2 * HEAD_DIM, seed);
export const cacheOn = ({ backend }: Tested, more: Partial<CacheOptions> = {}) => new KVCache(backend, { ...options, ...more });

export function appendTo(sequence: Sequence, tokens: number, seed = 1): void {
  for (let layer = 0; layer < 2; layer++) sequence.append(layer, rows(tokens, seed + layer), rows(tokens, seed + 10 + layer));
}

/** A sequence of `tokens` tokens in a new cache. Complete windows of its last layer still wait to be coded. */
export function filled(tested: Tested, tokens = 140, more: Partial<CacheOptions> = {}): { cache: KVCache; sequence: Sequence } {
  const cache = cacheOn(tested, more);
  const sequence = cache.sequence();
  appendTo(sequence, tokens);
  return { cache, sequence };
}

/** Calls with what they must throw. */
export type Refusals = readonly (readonly [run: () => unknown, type: new (...args: any[]) => Error, message: string])[];

export async function refusesAll(refusals: Refusals): Promise<void> {
  for (const [run, type, message] of refusals) await refuses(run, type, message);
}

/** Refuses all, and the sequence is as before each time: what waits to be coded waits on. A twin that saw no error says so. */
export async function refusesAndKeeps(
  tested: Tested,
  refusals: (cache: KVCache, sequence: Sequence) => Refusals,
  more: Partial<CacheOptions> = {}
): Promise<void> {
  const { cache, sequence } = filled(tested, 140, more);
  const { sequence: twin } = filled(tested, 140, more);
  const { bytes } = sequence;
  const outputOf = async (of: Sequence, layer: number) => (await of.attend(layer, queries(8)).read()).slice();
  const before = [await outputOf(sequence, 0), await outputOf(sequence, 1)];
  const sameOutputs = async (when: string) => {
    for (const layer of [0, 1]) sameAttention(tested, `attention ${when}`, await outputOf(sequence, layer), before[layer]!);
  };
  for (const [run, type, message] of refusals(cache, sequence)) {
    await refuses(run, type, message);
    assert.is(sequence.length, 140, message);
    assert.is(sequence.bytes, bytes, message);
    if (!tested.gpu) await sameOutputs(`after "${message}"`);
  }
  // Each of these waits for a GPU's queue: there, once for all refusals.
  await sameOutputs('after all refusals');
  sameBits('saved bytes', await sequence.save(), await twin.save());
  appendTo(sequence, 5, 3);
  appendTo(twin, 5, 3);
  sameBits('saved bytes after 5 more tokens', await sequence.save(), await twin.save());
  sameAttention(tested, 'attention after 5 more tokens', await outputOf(sequence, 0), await outputOf(twin, 0));
  // Nothing was reserved by what was refused: the cache still takes all of its tokens and sequences.
  const rest = cache.shape.capacity - 145;
  const other = cache.sequence();
  appendTo(other, Math.min(rest, cache.shape.maxAppend));
  for (let n = 2; n < cache.shape.sequences; n++) cache.sequence();
}

export const rope = { invFreq: [1, 0.5], interleaved: false };

export const beyond = [NaN, Infinity, -Infinity, 65505, -65505];

/** A copy with one element replaced. */
export function withAt<T extends Float32Array | Uint16Array>(data: T, at: number, value: number): T {
  const copy = data.slice() as T;
  copy[at] = value;
  return copy;
}
