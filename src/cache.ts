// KVCache: the memory for every layer's pages, shared by the sequences it makes.

import { type Backend, checkBackend, type Output, type Store } from './backend.ts';
import { checkArray, checkInteger, checkLength, checkOptions, checkPositive, kind, plural } from './check.ts';
import { readFile } from './file.ts';
import { checkInput, checkOut, checkQuery, type GpuTarget, type GpuTokens, type Input, wholeTokens } from './input.ts';
import { Pool } from './pool.ts';
import { Sequence } from './sequence.ts';
import { type CacheOptions, type CacheShape, cacheShape } from './shape.ts';

export interface AttendOptions {
  /** Multiplies every logit: above 0, at most 2³². Default 1/√headDim. */
  readonly scale?: number;
  /** Where the result goes; a new array by default. Hand one in to allocate nothing while decoding, or a GPUBuffer's range. */
  readonly out?: Float32Array | GpuTarget;
}

const ATTEND_OPTIONS = ['scale', 'out'] as const satisfies readonly (keyof AttendOptions)[];

/** Queries and keys are shorter than 2^20.5; the square of a scaled query stays below 2^106, a logit above what hides a token (−1e30). */
const SCALE_MOST = 2 ** 32;

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
    checkBackend('backend', backend);
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
    this.store; // throws if disposed
    const contents = readFile(this.shape, bytes);
    this.shape.pages.forEach((_, layer) => this.pool.checkRoom(layer, contents.length));
    const sequence = new Sequence(this);
    sequence.load(contents);
    return sequence;
  }

  /**
   * Append tokens to a layer of several sequences: a batch's decoding step in one go.
   *
   * @param sequences  distinct sequences of this cache
   * @param layer      0 to layers − 1
   * @param keys       for every sequence what `Sequence.append` takes
   * @param values     likewise
   * @throws {TypeError | RangeError} as `Sequence.append` does; nothing is appended to any sequence then
   *
   * @example
   * cache.append([chat, branch], layer, [k1, k2], [v1, v2]);
   */
  append(sequences: readonly Sequence[], layer: number, keys: readonly Input[], values: readonly Input[]): void {
    const { store, pool, pending } = this;
    const { kvHeads, headDim, maxAppend } = this.shape;
    this.#checkBatch(sequences, layer, { keys, values });
    const counts = sequences.map((sequence, n) => {
      sequence.table(layer);
      const [keysName, valuesName] = sequences.length === 1 ? ['keys', 'values'] : [`keys[${n}]`, `values[${n}]`];
      const length = checkInput(keysName!, keys[n]!, store.takesBuffers, kvHeads * headDim);
      const tokens = wholeTokens(keysName!, length, kvHeads, headDim);
      const valuesLength = checkInput(valuesName!, values[n]!, store.takesBuffers, kvHeads * headDim);
      checkLength(valuesName!, valuesLength, length, `${plural(tokens, 'token')} × ${plural(kvHeads, 'head')} × ${headDim}`);
      if (tokens > maxAppend) {
        throw new RangeError(`"${keysName}" expected at most ${plural(maxAppend, 'token')} a call (option "maxAppend"), got ${tokens}`);
      }
      return tokens;
    });
    pool.checkRoom(
      layer,
      counts.reduce((sum, tokens) => sum + tokens, 0)
    );

    // Sequences that are not in this batch may be at the same layer, in another; those that are at another layer have attended
    // to theirs. This bounds the raw memory that prompts need, to one layer's tokens.
    this.seal([...pending].filter(sequence => sequence.pending !== layer || sequences.includes(sequence)));
    store.write(sequences.map((sequence, n) => ({ keys: keys[n]!, values: values[n]!, runs: sequence.extend(layer, counts[n]!) })));
  }

  /** @internal Codes the complete windows of sequences, those of one layer in one go. */
  seal(sequences: readonly Sequence[]): void {
    const layers = new Map<number, { places: number[]; pages: number[] }>();
    for (const sequence of sequences) {
      const { pending: layer } = sequence;
      let windows = layers.get(layer);
      if (!windows) layers.set(layer, (windows = { places: [], pages: [] }));
      sequence.takeComplete(windows.places, windows.pages);
    }
    for (const [layer, { places, pages }] of layers) {
      if (places.length > 0) this.store.encode(layer, places, pages);
    }
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
  attend(
    sequences: readonly Sequence[],
    layer: number,
    queries: readonly (Float32Array | GpuTokens)[],
    options: AttendOptions = {}
  ): Output {
    const { queryHeads, headDim } = this.shape;
    const { store } = this;
    const perToken = queryHeads * headDim;
    checkOptions('options', options, ATTEND_OPTIONS);
    this.#checkBatch(sequences, layer, { queries });
    let total = 0;
    const tables = sequences.map((sequence, n) => {
      const name = sequences.length === 1 ? 'query' : `queries[${n}]`;
      const table = sequence.table(layer);
      const tokens = checkQuery(name, queries[n], store.takesBuffers, queryHeads, headDim);
      if (tokens > table.length) {
        throw new RangeError(`"${name}" expected at most ${plural(table.length, 'token')} (all that layer ${layer} holds), got ${tokens}`);
      }
      total += tokens * perToken;
      return table;
    });
    const { scale = 1 / Math.sqrt(headDim), out = new Float32Array(total) } = options;
    checkPositive('scale', scale, SCALE_MOST);
    checkOut('out', out, store.takesBuffers, total);
    return store.attend(layer, tables, queries, scale, out);
  }

  /** Distinct, open sequences of this cache, and for each one of every list. */
  #checkBatch(sequences: readonly Sequence[], layer: number, lists: Record<string, readonly unknown[]>): void {
    this.store; // throws if disposed
    checkInteger('layer', layer, 0, this.shape.layers - 1);
    checkArray('sequences', sequences);
    for (const [name, list] of Object.entries(lists)) {
      checkArray(name, list);
      if (list.length !== sequences.length) {
        throw new RangeError(`"${name}" expected length ${sequences.length} (one for each sequence), got ${list.length}`);
      }
    }
    for (let n = 0; n < sequences.length; n++) {
      const sequence = sequences[n]; // a hole in the list is undefined
      if (!(sequence instanceof Sequence)) throw new TypeError(`"sequences[${n}]" expected Sequence, got ${kind(sequence)}`);
      if (sequence.cache !== this) throw new RangeError(`"sequences[${n}]" expected sequence of this cache, got one of another`);
      const first = sequences.indexOf(sequence);
      if (first !== n) throw new RangeError(`"sequences[${n}]" expected a distinct sequence, got "sequences[${first}]" again`);
    }
  }

  /** Gives the memory back. Every sequence is disposed with it. */
  dispose(): void {
    this.#store?.dispose();
    this.#store = undefined;
  }
}
