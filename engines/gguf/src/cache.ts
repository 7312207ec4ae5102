// nsnquant's cache behind the calls that a model makes: one KVCache with one sequence.
import { type Backend, type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import type { PrefixStore } from 'nsnquant/prefixes';
import type { Config } from './config.ts';
import type { Cache } from './model.ts';

/** What is left to choose of a cache whose shape a model has. */
export type SequenceCacheOptions = Pick<CacheOptions, 'keys' | 'values' | 'capacity' | 'maxAppend' | 'sinks' | 'recent' | 'balance'> & {
  /** Whether the cache is told how keys were rotated. Default true. */
  readonly rope?: boolean;
};

/** Tokens that are coded together, and forgotten together. */
const WINDOW = 64;

export class SequenceCache implements Cache {
  readonly cache: KVCache;
  #sequence: Sequence;

  constructor(backend: Backend, config: Config, { rope = true, ...options }: SequenceCacheOptions) {
    const layers = rope ? config.attention : config.attention.map(({ rope: _, ...layer }) => layer);
    this.cache = new KVCache(backend, { layers, ...options, sequences: 1 });
    this.#sequence = this.cache.sequence();
  }

  get sequence(): Sequence {
    return this.#sequence;
  }

  /** Positions: tokens that came, forgotten ones too. */
  get length(): number {
    return this.#sequence.length;
  }

  /** Tokens that it has room for. */
  get free(): number {
    return this.cache.free;
  }

  /** Tokens that layers hold. */
  get heldTokens(): number {
    return this.cache.shape.capacity - this.cache.free;
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    this.#sequence.append(layer, keys, values);
  }

  attend(layer: number, query: Float32Array): Promise<Float32Array> {
    return this.#sequence.attend(layer, query).read();
  }

  /** Forgets the tokens from position `length` on. */
  crop(length: number): void {
    this.#sequence.crop(length);
  }

  /** Makes room for tokens: forgets the oldest windows behind the sinks. False if that is not enough. */
  roll(tokens: number): boolean {
    while (this.free < tokens) {
      const { sinks } = this.#sequence.shape;
      const gone = this.length - this.heldTokens;
      const windows = Math.ceil((tokens - this.free) / WINDOW);
      const to = sinks + gone + WINDOW * windows;
      if (to > this.length - WINDOW) return false;
      this.#sequence.evict({ from: 0, to });
    }
    return true;
  }

  /** As Sequence.save() does. */
  save(metadata: Readonly<Record<string, string>>): Promise<Uint8Array> {
    return this.#sequence.save({ metadata });
  }

  /**
   * Goes on with what save() gave.
   *
   * @throws {RangeError} as KVCache.restore() does; it holds what it held then
   */
  async restore(bytes: Uint8Array): Promise<void> {
    const before = await this.#sequence.save();
    this.#sequence.dispose();
    try {
      this.#sequence = this.cache.restore(bytes);
    } catch (error) {
      this.#sequence = this.cache.restore(before);
      throw error;
    }
  }

  /**
   * Goes on with what a store has of a prompt, or anew.
   *
   * @throws {StorageError} if the store fails; it is empty then
   */
  async load(prefixes: PrefixStore, tokens: readonly number[]): Promise<void> {
    this.#sequence.dispose();
    let found: Sequence | undefined;
    try {
      found = await prefixes.load(this.cache, tokens);
    } finally {
      this.#sequence = found ?? this.cache.sequence();
    }
  }

  dispose(): void {
    this.#sequence.dispose();
    this.cache.dispose();
  }
}
