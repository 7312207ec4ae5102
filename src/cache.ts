// KVCache: the memory for every layer's pages, shared by the sequences it makes.

import { type Backend, checkBackend, type Output } from './backend.ts';
import { checkArray, checkInteger, kind } from './check.ts';
import { Core, type NameOf } from './core.ts';
import { dispose } from './dispose.ts';
import { type FileContents, readFile } from './file.ts';
import type { Input, Results, Target } from './input.ts';
import type { AppendOptions, AttendOptions } from './options.ts';
import type { PageTables } from './pagetable.ts';
import { reorderSequences, Sequence, sequenceOf, tablesOf } from './sequence.ts';
import { type CacheOptions, type CacheShape, cacheShape } from './shape.ts';

const nameOf: NameOf = (list, n) => `${list}[${n}]`;

/** @internal A sequence of what a file holds. */
export let restoreInto: (cache: KVCache, contents: FileContents) => Sequence;

/**
 * A quantized KV cache.
 *
 * Memory is taken as tokens need it, up to `capacity`, or with `reserve: true` all of it here. Where a call finds none it throws a
 * BackendError, and everything is as it was before the call. A GPU answers later than a call returns: see `ready`.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the backend cannot hold `capacity` tokens, or there is no memory for what is taken at once
 *
 * @example
 * const cache = new KVCache(await openBackend(), { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192 });
 * const chat = cache.sequence();
 */
export class KVCache {
  /** The backend that it was made on. */
  readonly backend: Backend;
  /** Its options, completed. */
  readonly shape: CacheShape;
  readonly #core: Core;

  static {
    restoreInto = (cache, contents) => sequenceOf(cache.#core, cache.#core.restore(contents), contents.metadata);
  }

  constructor(backend: Backend, options: CacheOptions) {
    checkBackend('backend', backend);
    this.backend = backend;
    this.shape = cacheShape(options);
    this.#core = new Core(backend, this.shape);
  }

  /**
   * Every byte allocated by now: pages, raw tokens, sinks, tables, codebooks, scratch. What was taken is kept, for later tokens; a GPU gives
   * up what a prompt alone needed when pages next take memory.
   */
  get bytes(): number {
    return this.#core.store().bytes;
  }

  /** Tokens that every layer has room for, over all sequences: `capacity` less what the fullest holds. */
  get free(): number {
    return this.#core.free;
  }

  /**
   * Settles when all memory that was taken by now is granted: at once, but on a GPU, which may refuse it later than the call returns
   * that takes it. Then this and every read of the cache reject from there on, and its memory is given back: only what was saved before
   * goes on elsewhere. With `reserve: true` that can happen at the start alone.
   *
   * @throws {BackendError} if the device has no memory for this cache
   */
  get ready(): Promise<void> {
    return this.#core.store().ready ?? Promise.resolve();
  }

  /**
   * A new, empty sequence.
   *
   * @throws {RangeError}   if `sequences` are open already
   * @throws {BackendError} if there is no memory for its sinks
   */
  sequence(): Sequence {
    return sequenceOf(this.#core, this.#core.open());
  }

  /**
   * A sequence from the bytes that `Sequence.save` made, on this or any other backend. `inspect` says what is in them before.
   *
   * @throws {TypeError}  if this is no Uint8Array
   * @throws {RangeError} if the bytes are damaged, of another version or of a cache of another shape or of a larger `recent`, or tokens
   *                      or sequences are too many; the cache is as it was then
   */
  restore(bytes: Uint8Array): Sequence {
    this.#core.checkOpen();
    return restoreInto(this, readFile(this.shape, bytes));
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
  append(sequences: readonly Sequence[], layer: number, keys: readonly Input[], values: readonly Input[], options?: AppendOptions): void {
    this.#core.append(this.#batch(sequences, layer, { keys, values }), layer, keys, values, nameOf, options);
  }

  /**
   * Attention for a batch: one launch for all sequences, whatever their lengths.
   *
   * @param sequences  distinct sequences of this cache
   * @param layer      0 to layers − 1
   * @param queries    for every sequence f32 or f16 [tokens, queryHeads, headDim]: its newest `tokens` positions, causal
   * @returns          f32 [all tokens, queryHeads, valueDim], or what `out` is, sequences one after another
   * @throws {TypeError | RangeError} if a sequence or an array does not fit; nothing has run then
   *
   * @example
   * const out = await cache.attend([chat, branch], layer, [q1, q2]).read();
   */
  attend<Out extends Target = Float32Array>(
    sequences: readonly Sequence[],
    layer: number,
    queries: readonly Input[],
    options?: AttendOptions<Out>
  ): Output<Results<Out>> {
    return this.#core.attend(this.#batch(sequences, layer, { queries }), layer, queries, nameOf, options);
  }

  /**
   * Beams: every sequence becomes what its parent was before the call, in place. Sealed pages are shared, the rest is copied where a parent
   * has more than one child; what nobody goes on from is given back. Nothing is coded anew, but complete windows of parents with more than
   * one child are sealed first, as by `seal()`.
   *
   * @param sequences  distinct sequences of this cache
   * @param parents    for every sequence the number, among `sequences`, of the one that it goes on from
   * @throws {TypeError | RangeError} if a sequence or a number does not fit, or copied tokens exceed `capacity`; nothing has changed then
   *
   * @example
   * cache.reorder([chat, branch], [1, 1]); // both go on from what `branch` was
   */
  reorder(sequences: readonly Sequence[], parents: readonly number[]): void {
    this.#batch(sequences, 0, { parents });
    reorderSequences(this.#core, sequences, parents);
  }

  /** Gives the memory back. Every sequence is disposed with it. */
  dispose(): void {
    this.#core.dispose();
  }

  /** As dispose(), for `using cache = new KVCache(…)`. */
  [dispose](): void {
    this.dispose();
  }

  /** The page tables of distinct sequences of this cache, with one of every list for each. */
  #batch(sequences: readonly Sequence[], layer: number, lists: Record<string, readonly unknown[]>): PageTables[] {
    this.#core.checkOpen();
    checkInteger('layer', layer, 0, this.shape.layers.length - 1);
    checkArray('sequences', sequences);
    for (const [name, list] of Object.entries(lists)) {
      checkArray(name, list);
      if (list.length !== sequences.length) {
        throw new RangeError(`"${name}" expected length ${sequences.length} (one for each sequence), got ${list.length}`);
      }
    }
    const batch: PageTables[] = [];
    const seen = new Map<Sequence, number>();
    for (let n = 0; n < sequences.length; n++) {
      const sequence = sequences[n]; // a hole in the list is undefined
      if (!(sequence instanceof Sequence)) throw new TypeError(`"sequences[${n}]" expected Sequence, got ${kind(sequence)}`);
      const tables = tablesOf(this.#core, sequence);
      if (!tables) throw new RangeError(`"sequences[${n}]" expected sequence of this cache, got one of another`);
      const first = seen.get(sequence);
      if (first !== undefined) throw new RangeError(`"sequences[${n}]" expected a distinct sequence, got "sequences[${first}]" again`);
      seen.set(sequence, n);
      batch.push(tables);
    }
    return batch;
  }
}
