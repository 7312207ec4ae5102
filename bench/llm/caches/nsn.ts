// nsnquant's own cache behind the calls that the model makes: one KVCache with one sequence.
import { type Backend, type CodecName, codecs, KVCache, type Sequence } from 'nsnquant';
import type { Config } from '../engine/config.ts';
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
}

export class NsnCache implements HeldCache {
  readonly cache: KVCache;
  readonly #keys: CodecName;
  readonly #values: CodecName;
  #sequence: Sequence;

  constructor(backend: Backend, config: Config, { keys, values, rope, ...options }: NsnOptions) {
    const { layers, kvHeads, queryHeads, headDim } = config;
    this.#keys = keys;
    this.#values = values;
    this.cache = new KVCache(backend, {
      layers,
      kvHeads,
      queryHeads,
      headDim,
      keys,
      values,
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

  /** The sequence's bytes and the codebooks it needs, f16 [256, channels] each. */
  get bytes(): number {
    return [...new Set([this.#keys, this.#values])].reduce((sum, name) => sum + 2 * codecs[name].codebook.length, this.#sequence.bytes);
  }

  get codedBits(): number | null {
    const { layers, kvHeads, headDim } = this.cache.shape;
    const { bytes, tokens } = this.#sequence.sealed;
    return tokens === 0 ? null : (8 * bytes) / (2 * tokens * layers * kvHeads * headDim);
  }

  dispose(): void {
    this.#sequence.dispose();
    this.cache.dispose();
  }
}
