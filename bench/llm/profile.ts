// A profile: how it is learned from several sequences, and on disk, with what it was made with: under other weights other channels matter.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { type Attention, type Cache, InputError, type Model } from '@nsnquant/gguf';
import { learn } from 'nsnquant/reference';
import { WINDOW } from './caches/cache.ts';
import { openCache, type Resources, raw } from './caches/methods.ts';

/** First tokens of a sequence that nothing is learned from: they are never coded. */
export const SINKS = 4;

/** What a layer was given and asked in one sequence. */
interface Seen {
  /** f32 [tokens, kvHeads, headDim] */
  readonly keys: Float32Array;
  /** f32 [tokens, queryHeads, headDim] */
  readonly queries: Float32Array;
}

/** What a model file is known by. */
export interface ModelMark {
  readonly name: string;
  readonly sha256: string;
}

interface Kept {
  readonly model: ModelMark;
  /** Base64 of u8 [layers, kvHeads, headDim / 2]. */
  readonly balance: string;
}

/** Reads the whole file: two models of one shape may differ anywhere. */
export async function markOf(modelFile: string): Promise<ModelMark> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(modelFile), hash);
  return { name: basename(modelFile), sha256: hash.digest('hex') };
}

export async function writeProfile(file: string, profile: Uint8Array, model: ModelMark): Promise<void> {
  const kept: Kept = { model, balance: Buffer.from(profile).toString('base64') };
  await writeFile(file, `${JSON.stringify(kept)}\n`);
}

/** @throws {InputError} for what is no profile, or was made with another model */
export async function readProfile(file: string, model: ModelMark): Promise<Uint8Array> {
  const kept = parse(
    await readFile(file, 'utf8').catch((error: Error) => {
      throw new InputError(`"--balance" expected a readable file, got ${error.message}`);
    })
  );
  if (!kept) throw new InputError(`${file}: expected a profile that calibrate made, got something else`);
  if (kept.model.sha256 !== model.sha256)
    throw new InputError(`${file}: expected a profile of ${named(model)}, got one of ${named(kept.model)}`);
  return Uint8Array.from(Buffer.from(kept.balance, 'base64'));
}

function named({ name, sha256 }: ModelMark): string {
  return `${name} (SHA-256 ${sha256.slice(0, 12)}…)`;
}

function parse(json: string): Kept | undefined {
  try {
    const kept = JSON.parse(json) as Kept;
    return typeof kept.balance === 'string' && typeof kept.model.name === 'string' && typeof kept.model.sha256 === 'string'
      ? kept
      : undefined;
  } catch {
    return undefined;
  }
}

/**
 * What one sequence learns from its first two windows, but from all complete windows and all queries of several: u8 [layers, kvHeads,
 * headDim / 2].
 */
export async function learnProfile(
  opened: Resources & { readonly model: Model },
  sequences: readonly (readonly number[])[],
  status: (text: string) => void
): Promise<Uint8Array> {
  const { model, config } = opened;
  const seen: Seen[][] = Array.from({ length: config.layers }, () => []);
  for (const [n, tokens] of sequences.entries()) {
    status(`sequence ${n + 1} of ${sequences.length}`);
    const cache = openCache(raw, opened, tokens.length, tokens.length);
    await model.forward(tokens, watched(cache, seen));
    cache.dispose();
  }
  const profile = seen.flatMap((layer, n) => {
    status(`layer ${n + 1} of ${config.layers}`);
    return Array.from({ length: config.kvHeads }, (_, head) => [...balanceOf(layer, head, config.attention[n]!)]).flat();
  });
  return Uint8Array.from(profile);
}

/** The cache, of which each layer's keys and queries are kept. */
function watched(cache: Cache, seen: readonly Seen[][]): Cache {
  const newest: Float32Array[] = [];
  return {
    get length() {
      return cache.length;
    },
    append(layer, keys, values) {
      newest[layer] = keys.slice();
      cache.append(layer, keys, values);
    },
    attend(layer, queries) {
      seen[layer]!.push({ keys: newest[layer]!, queries: queries.slice() });
      return cache.attend(layer, queries);
    }
  };
}

function balanceOf(layer: readonly Seen[], head: number, { kvHeads, queryHeads, headDim, rope }: Attention): Uint8Array {
  const group = queryHeads / kvHeads;
  const windows = layer.flatMap(({ keys }) => {
    const rows = rowsOf(keys, kvHeads * headDim, head * headDim, headDim).subarray(SINKS * headDim);
    const count = Math.floor(rows.length / (WINDOW * headDim));
    return Array.from({ length: count }, (_, n) => rows.subarray(n * WINDOW * headDim, (n + 1) * WINDOW * headDim));
  });
  const queries = layer.map(seen => rowsOf(seen.queries, queryHeads * headDim, head * group * headDim, group * headDim));
  return learn(windows, Float32Array.from(queries.flatMap(rows => [...rows])), headDim, rope === 'none' ? undefined : rope);
}

/** `count` numbers of every row, from `from` on. */
function rowsOf(x: Float32Array, width: number, from: number, count: number): Float32Array {
  return Float32Array.from({ length: (x.length / width) * count }, (_, i) => x[Math.floor(i / count) * width + from + (i % count)]!);
}
