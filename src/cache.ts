// KVCache: the memory for every layer's pages, shared by the sequences it makes.

import type { Backend, Output, Store } from './backend.ts';
import { checkFloats, checkObject, checkPositive, plural, wholeTokens } from './check.ts';
import { readFile } from './file.ts';
import { Pool } from './pool.ts';
import { Sequence } from './sequence.ts';
import { cacheShape, type CacheOptions, type CacheShape } from './shape.ts';

export interface AttendOptions {
  /** Multiplies every logit. Default 1/√headDim. */
  readonly scale?: number;
  /** Where the result goes; a new array by default. Hand one in to allocate nothing while decoding. */
  readonly out?: Float32Array;
}

/**
 * A quantized KV cache.
 *
 * All memory is allocated here: what does not fit is refused now, never in the middle of a conversation.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the backend cannot hold `capacity` tokens
 *
 * @example
 * const cache = new KVCache(await openBackend(), { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192 });
 * const chat = cache.sequence();
 */
export class KVCache {
  readonly backend: Backend;
  readonly shape: CacheShape;
  /** @internal */
  readonly pool: Pool;
  /** @internal Sequences whose last append may have left complete windows raw. */
  readonly pending = new Set<Sequence>();
  #store: Store | undefined;

  constructor(backend: Backend, options: CacheOptions) {
    checkObject('backend', backend);
    if (typeof backend.createStore !== 'function') {
      throw new TypeError(`"backend" expected what openBackend() resolves to, got ${backend instanceof Promise ? 'Promise' : 'object'}`);
    }
    this.backend = backend;
    this.shape = cacheShape(options);
    this.#store = backend.createStore(this.shape);
    this.pool = new Pool(this.shape);
  }

  /** Every byte allocated: pages, raw tokens, sinks, tables, codebooks, scratch. */
  get bytes(): number {
    return this.store.bytes;
  }

  /**
   * Settles when the memory is granted: at once, but on a GPU, which may refuse it later than the constructor returns.
   * Every read rejects as this does.
   *
   * @throws {BackendError} if the device has no memory for this cache
   */
  get ready(): Promise<void> {
    return this.store.ready ?? Promise.resolve();
  }

  /** @internal The memory, unless it was disposed. */
  get store(): Store {
    if (!this.#store) throw new TypeError('cache expected open, got disposed');
    return this.#store;
  }

  /**
   * A new, empty sequence.
   *
   * @throws {RangeError} if `sequences` are open already
   */
  sequence(): Sequence {
    return new Sequence(this);
  }

  /**
   * A sequence from the bytes that `Sequence.save` made, on this or any other backend.
   *
   * @throws {RangeError} if the bytes are of another version, or of a cache of another shape
   */
  restore(bytes: Uint8Array): Sequence {
    this.store;   // throws if disposed
    const contents = readFile(this.shape, bytes);
    this.shape.pages.forEach((_, layer) => this.pool.checkRoom(layer, contents.length));
    const sequence = new Sequence(this);
    sequence.load(contents);
    return sequence;
  }

  /**
   * Attention for a batch: one launch for all sequences, whatever their lengths.
   *
   * @param sequences  distinct sequences of this cache
   * @param layer      0 to layers − 1
   * @param queries    for every sequence f32 [tokens, queryHeads, headDim]: its newest `tokens` positions, causal
   * @returns          f32 [all tokens, queryHeads, headDim], sequences one after another
   * @throws {TypeError | RangeError} if a sequence or an array does not fit; nothing has run then
   *
   * @example
   * const out = await cache.attend([chat, branch], layer, [q1, q2]).read();
   */
  attend(sequences: readonly Sequence[], layer: number, queries: readonly Float32Array[], options: AttendOptions = {}): Output {
    const { queryHeads, headDim } = this.shape;
    const { store } = this;
    checkObject('options', options);
    if (!Array.isArray(sequences)) throw new TypeError(`"sequences" expected array, got ${typeof sequences}`);
    if (!Array.isArray(queries)) throw new TypeError(`"queries" expected array, got ${typeof queries}`);
    if (queries.length !== sequences.length) {
      throw new RangeError(`"queries" expected length ${sequences.length} (one for each sequence), got ${queries.length}`);
    }
    let total = 0;
    const tables = sequences.map((sequence, n) => {
      if (!(sequence instanceof Sequence) || sequence.cache !== this) {
        throw new TypeError(`"sequences[${n}]" expected sequence of this cache`);
      }
      if (sequences.indexOf(sequence) !== n) throw new RangeError(`"sequences[${n}]" expected a distinct sequence`);
      const name = sequences.length === 1 ? 'query' : `queries[${n}]`;
      const table = sequence.table(layer);
      const query = queries[n]!;
      if (!(query instanceof Float32Array)) throw new TypeError(`"${name}" expected Float32Array`);
      const tokens = wholeTokens(name, query.length, queryHeads, headDim);
      if (tokens > table.length) {
        throw new RangeError(`"${name}" expected at most ${plural(table.length, 'token')} (all that layer ${layer} holds), got ${tokens}`);
      }
      checkFloats(name, query, query.length, '');
      total += query.length;
      return table;
    });
    const scale = options.scale ?? 1 / Math.sqrt(headDim);
    checkPositive('scale', scale);
    const out = options.out ?? new Float32Array(total);
    if (options.out !== undefined) {
      if (!(out instanceof Float32Array)) throw new TypeError('"out" expected Float32Array');
      if (out.length !== total) throw new RangeError(`"out" expected length ${total} (that of the queries), got ${out.length}`);
    }
    return store.attend(layer, tables, queries, scale, out);
  }

  /** Gives the memory back. Every sequence is disposed with it. */
  dispose(): void {
    this.#store?.dispose();
    this.#store = undefined;
  }
}
