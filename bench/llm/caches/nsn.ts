// nsnquant's own cache behind the calls that the model makes: one KVCache with one sequence.

import type { Config } from '@nsnquant/gguf';
import { type Backend, type CodecName, KVCache, type Sequence } from 'nsnquant';
import type { PrefixStore } from 'nsnquant/prefixes';
import { codebookBytes } from '../../bytes.ts';
import type { HeldCache } from './cache.ts';

export interface NsnOptions {
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly capacity: number;
  /** Tokens of the longest append. */
  readonly maxAppend: number;
  readonly sinks: number;
  readonly recent: number;
  /** Whether the cache is told how keys were rotated. */
  readonly rope: boolean;
  /** As the library's option. */
  readonly balance: 'learn' | 'off' | Uint8Array;
}

export class NsnCache implements HeldCache {
  readonly cache: KVCache;
  #sequence: Sequence;

  constructor(backend: Backend, config: Config, { rope, ...options }: NsnOptions) {
    const { layers, kvHeads, queryHeads, headDim } = config;
    this.cache = new KVCache(backend, {
      layers,
      kvHeads,
      queryHeads,
      headDim,
      ...options,
      sequences: 1,
      ...(rope && { rope: config.rope })
    });
    this.#sequence = this.cache.sequence();
  }

  get sequence(): Sequence {
    return this.#sequence;
  }

  get length(): number {
    return this.#sequence.length;
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    this.#sequence.append(layer, keys, values);
  }

  attend(layer: number, query: Float32Array): Promise<Float32Array> {
    return this.#sequence.attend(layer, query).read();
  }

  crop(length: number): void {
    this.#sequence.crop(length);
  }

  /** Goes on with what `sequence.save()` gave. */
  restore(bytes: Uint8Array): void {
    this.#sequence.dispose();
    this.#sequence = this.cache.restore(bytes);
  }

  /** Goes on with what a store has of a prompt, or anew. */
  async load(prefixes: PrefixStore, tokens: readonly number[]): Promise<void> {
    this.#sequence.dispose();
    this.#sequence = (await prefixes.load(this.cache, tokens)) ?? this.cache.sequence();
  }

  get bytes(): number {
    return this.#sequence.bytes + codebookBytes(this.cache.shape);
  }

  get codedBits(): number | null {
    const elements = this.cache.shape.layers.reduce((sum, { kvHeads, headDim, valueDim }) => sum + kvHeads * (headDim + valueDim), 0);
    const { bytes, tokens } = this.#sequence.sealed;
    return tokens === 0 ? null : (8 * bytes) / (tokens * elements);
  }

  dispose(): void {
    this.#sequence.dispose();
    this.cache.dispose();
  }
}
