// Prompts whose keys, values and queries follow from their token ids, what is to be found of them, and storages to find it in.

import { type Backend, type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import type { PrefixStorage, PrefixStore } from 'nsnquant/prefixes';
import * as assert from 'uvu/assert';
import { sameBits } from './compare.ts';
import { bells, below, random } from './inputs.ts';

export const WIDTH = 32;
export const SINKS = 4;
export const base = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: WIDTH, capacity: 2400, sequences: 8 } satisfies CacheOptions;
export const store = { model: 'a model', budget: Infinity };
/** Tokens of a call. */
const STEP = 32;

/** Seeded token ids. */
export function idsOf(tokens: number, seed: number): number[] {
  const next = random(seed);
  return Array.from({ length: tokens }, () => below(next, 50_000));
}

const known = new Map<number, Float32Array>();

function rowOf(seed: number): Float32Array {
  const row = known.get(seed) ?? bells(1, WIDTH, seed);
  known.set(seed, row);
  return row;
}

/** A sequence sees a prompt from where it is: in the same calls wherever it comes from, so that it learns the same. */
export function see(sequence: Sequence, ids: readonly number[]): Sequence {
  const layers = sequence.shape.layers.length;
  while (sequence.length < ids.length) {
    const from = sequence.length;
    const to = Math.min(from + STEP - (from % STEP), ids.length);
    /** Of every token so many heads. */
    const rows = (what: number, heads = 1): Float32Array => {
      const x = new Float32Array((to - from) * heads * WIDTH);
      for (let row = 0; row < (to - from) * heads; row++) {
        const t = from + Math.floor(row / heads);
        x.set(rowOf(1 + 4 * (ids[t]! * 2048 + t) + what + (row % heads)), row * WIDTH);
      }
      return x;
    };
    for (let layer = 0; layer < layers; layer++) {
      sequence.append(layer, rows(layer), rows(layer + 1));
      sequence.attend(layer, rows(layer + 2, base.queryHeads));
    }
  }
  return sequence;
}

const files = new WeakMap<KVCache, Map<string, Promise<Uint8Array>>>();

/** The file of a sequence that has seen a prompt's first `length` tokens, whole windows of them. */
export function fileOf(cache: KVCache, ids: readonly number[], length: number): Promise<Uint8Array> {
  const made = files.get(cache) ?? new Map<string, Promise<Uint8Array>>();
  files.set(cache, made);
  const tokens = ids.slice(0, length);
  const make = async (): Promise<Uint8Array> => {
    const sequence = see(cache.sequence(), tokens);
    const file = await sequence.save();
    sequence.dispose();
    return file;
  };
  const file = made.get(`${tokens}`) ?? make();
  made.set(`${tokens}`, file);
  return file;
}

/** Puts a prompt, and says what of it is stored. */
export async function put(prefixes: PrefixStore, cache: KVCache, ids: readonly number[]): Promise<number> {
  const sequence = see(cache.sequence(), ids);
  try {
    return await prefixes.put(sequence, ids);
  } finally {
    sequence.dispose();
  }
}

/** How many tokens of a prompt are found; they are those that were stored, whole windows of them. */
export async function found(prefixes: PrefixStore, cache: KVCache, ids: readonly number[]): Promise<number> {
  const sequence = await prefixes.load(cache, ids);
  if (!sequence) return 0;
  const { length } = sequence;
  assert.ok(length < ids.length && (length - cache.shape.sinks) % 64 === 0, `${length} of ${ids.length} tokens`);
  const file = await sequence.save();
  sequence.dispose();
  sameBits(`${length} tokens`, file, await fileOf(cache, ids, length));
  return length;
}

export const cacheOn = (backend: Backend, more: Partial<CacheOptions> = {}): KVCache => new KVCache(backend, { ...base, ...more });

/** A storage whose calls can be watched, or made to fail. */
export function watched(storage: PrefixStorage, before: (method: keyof PrefixStorage, key: string) => unknown): PrefixStorage {
  const call =
    <K extends keyof PrefixStorage>(method: K) =>
    async (key: string, ...rest: unknown[]) => {
      await before(method, key);
      return (storage[method] as (...args: unknown[]) => Promise<never>)(key, ...rest);
    };
  return { getItemRaw: call('getItemRaw'), setItemRaw: call('setItemRaw'), removeItem: call('removeItem'), getKeys: call('getKeys') };
}

/** Keys of the storage of one kind. */
export async function keysOf(storage: PrefixStorage, kind: 'pages' | 'manifests' | 'used'): Promise<string[]> {
  return (await storage.getKeys('')).filter(key => key.startsWith(`nsnquant:${kind}:`)).sort();
}

/** Bytes of all items, as they lie there. */
export async function bytesIn(storage: PrefixStorage): Promise<number> {
  const keys = (await Promise.all((['pages', 'manifests', 'used'] as const).map(kind => keysOf(storage, kind)))).flat();
  const items = await Promise.all(keys.map(key => storage.getItemRaw(key)));
  return items.reduce<number>((sum, item) => sum + (item as Uint8Array).length, 0);
}

/** Names of the pages that manifests name, each of which must be there. */
export async function namedPages(storage: PrefixStorage): Promise<string[]> {
  const pages = await keysOf(storage, 'pages');
  const names: string[] = [];
  for (const key of await keysOf(storage, 'manifests')) {
    const manifest = new Uint8Array((await storage.getItemRaw(key)) as Uint8Array);
    const digest = Array.from(manifest.subarray(64, 96), byte => byte.toString(16).padStart(2, '0')).join('');
    const name = `nsnquant:pages:${digest}-${new DataView(manifest.buffer).getUint32(128, true)}`;
    assert.ok(pages.includes(name), `${key} names pages that are not there`);
    names.push(name);
  }
  return names;
}

/** What it throws. */
export async function thrown(run: () => unknown): Promise<Error> {
  try {
    await run();
  } catch (error) {
    return error as Error;
  }
  throw new Error('nothing was thrown');
}
