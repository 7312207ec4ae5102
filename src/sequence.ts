// Sequence: one conversation in a cache: a page table, raw tokens and a length for every layer.

import type { Backend, Output, Range, Tokens } from './backend.ts';
import { checkOptions } from './check.ts';
import type { Core, NameOf } from './core.ts';
import { dispose } from './dispose.ts';
import { type FileContents, writeFile } from './file.ts';
import type { Data } from './format/half.ts';
import { rawBytes, WINDOW } from './format/layout.ts';
import { checkMetadata, type Metadata } from './header.ts';
import type { Input, Results, Target } from './input.ts';
import type { Mass } from './mass.ts';
import {
  type AppendOptions,
  type AttendOptions,
  type DecodeOptions,
  type EvictOptions,
  type MassOptions,
  SAVE_OPTIONS,
  type SaveOptions
} from './options.ts';
import type { PageTables } from './pagetable.ts';
import type { CacheShape } from './shape.ts';

/** @internal A sequence of these page tables, for its cache. */
export let sequenceOf: (core: Core, tables: PageTables, metadata?: Metadata) => Sequence;

/** @internal The page tables of a sequence of this cache, if it is one. */
export let tablesOf: (core: Core, sequence: unknown) => PageTables | undefined;

const nameOf: NameOf = list => (list === 'queries' ? 'query' : list);

/** @internal What a sequence's file holds, without words of the application. */
export let contentsOf: (sequence: Sequence) => Promise<FileContents>;

/** @internal Of every layer, the positions whose queries saw all that they should; Infinity where nothing that is seen was evicted. */
export let wholeOf: (sequence: Sequence) => readonly number[];

/** @internal Makes of every sequence what its parent among them was. */
export let reorderSequences: (core: Core, sequences: readonly Sequence[], parents: readonly number[]) => void;

/** The coded pages of a sequence. */
export interface Sealed {
  /** Bytes of all layers. */
  readonly bytes: number;
  /** Tokens that they stand for; where layers differ, the mean. */
  readonly tokens: number;
}

/**
 * Tokens in a cache. Made by `cache.sequence()`, `fork()` and `cache.restore()`.
 *
 * In every layer the first `sinks` tokens stay raw; then come windows of 64, sealed into coded pages one by one, and a raw
 * tail. A prompt's own tokens stay raw until the next append to their layer, so that attention within a call is exact.
 *
 * Where keys are balanced by what a sequence learns (option `balance`), a layer's first window stays raw until its second is complete.
 * When that is sealed, the layer learns from the keys of both and from the queries that it was attended with at positions up to there,
 * from keys alone if there were none. Then it stays at that. A position counts when it is asked about, in ascending order: one before
 * another that was asked already is not counted. A crop takes back the count and not the weight: queries of rejected drafts stay in.
 */
export class Sequence {
  readonly #core: Core;
  #tables: PageTables;
  #metadata: Metadata;

  static {
    sequenceOf = (core, tables, metadata = Object.freeze({})) => new Sequence(core, tables, metadata);
    tablesOf = (core, sequence) =>
      typeof sequence === 'object' && sequence !== null && #core in sequence && sequence.#core === core ? sequence.#tables : undefined;
    contentsOf = sequence => sequence.#core.contents(sequence.#tables, {});
    wholeOf = sequence => sequence.#tables.layers.map(({ whole }) => whole);
    reorderSequences = (core, sequences, parents) => {
      const metadata = sequences.map(sequence => sequence.#metadata);
      const tables = core.reorder(
        sequences.map(sequence => sequence.#tables),
        parents
      );
      sequences.forEach((sequence, n) => {
        sequence.#tables = tables[n]!;
        sequence.#metadata = metadata[parents[n]!]!;
      });
    };
  }

  private constructor(core: Core, tables: PageTables, metadata: Metadata) {
    this.#core = core;
    this.#tables = tables;
    this.#metadata = metadata;
  }

  /** The shape of its cache. */
  get shape(): CacheShape {
    return this.#core.shape;
  }

  /** The backend of its cache. */
  get backend(): Backend {
    return this.#core.backend;
  }

  /** Positions that every layer has: tokens that came, also those that were given back or evicted since. */
  get length(): number {
    return this.#tables.length;
  }

  /** The application's words in the file that this sequence, or the one it is a fork of, was restored from; else none. */
  get metadata(): Readonly<Record<string, string>> {
    return this.#metadata;
  }

  /**
   * Bytes that this sequence's tokens take: coded pages, sinks, raw tokens, page numbers, and what was learned of them. What forks share
   * counts for each.
   */
  get bytes(): number {
    const { layers, sinks } = this.#core.shape;
    return this.#tables.layers.reduce((sum, { length, pageCount, rawCount }, n) => {
      const layer = layers[n]!;
      const once = length > 0 ? rawBytes(layer, sinks) + layer.learnedBytes : 0;
      return sum + pageCount * (layer.page.bytes + 4) + rawCount * rawBytes(layer, WINDOW) + once;
    }, 0);
  }

  /** Bytes of the coded pages alone, and how many tokens they stand for: what a long context costs. */
  get sealed(): Sealed {
    const { layers } = this.#tables;
    const shapes = this.#core.shape.layers;
    return {
      bytes: layers.reduce((sum, table, layer) => sum + table.pageCount * shapes[layer]!.page.bytes, 0),
      tokens: layers.reduce((sum, table) => sum + table.pageCount * WINDOW, 0) / layers.length
    };
  }

  /**
   * Append tokens to a layer.
   *
   * Tokens are rounded to f16 and first enter the raw tail. Complete windows are sealed when the next append to their layer begins,
   * or earlier where the cache needs their raw memory for another layer. How calls are split never changes a sealed byte, as long as
   * each position is attended to before the next call to its layer.
   *
   * @param layer   0 to layers − 1
   * @param keys    f32 or f16 [tokens, kvHeads, headDim], after RoPE; read before the call returns, never kept
   * @param values  f32 or f16 [tokens, kvHeads, valueDim]
   * @throws {TypeError}  if an argument is of the wrong kind, or the sequence was disposed
   * @throws {RangeError} if lengths differ, are not whole tokens, exceed `capacity` or `maxAppend`, or an element is not
   *                      finite or beyond ±65,504; nothing is appended then
   * @see NSNQuant (arXiv 2505.18231), section 3: Normalize–Shift–Normalize
   *
   * @example
   * chat.append(0, keys, values);
   * chat.append(0, keys, values, { layout: 'heads-first' }); // [kvHeads, tokens, headDim]
   */
  append(layer: number, keys: Input, values: Input, options?: AppendOptions): void {
    this.#core.append([this.#tables], layer, [keys], [values], nameOf, options);
  }

  /**
   * Attention of the newest query tokens over all of a layer's tokens. What the layer still has to learn from is counted.
   *
   * @param layer  0 to layers − 1
   * @param query  f32 or f16 [tokens, queryHeads, headDim]: the sequence's newest `tokens` positions; causal
   * @returns      f32 [tokens, queryHeads, valueDim], or what `out` is
   *
   * @example
   * const out = await chat.attend(0, query).read();
   * const half = await chat.attend(0, query, { out: new Uint16Array(out.length), layout: 'heads-first' }).read();
   */
  attend<Out extends Target = Float32Array>(layer: number, query: Input, options?: AttendOptions<Out>): Output<Results<Out>> {
    return this.#core.attend([this.#tables], layer, [query], nameOf, options);
  }

  /** Codes every complete window now, as the next append would: not the `recent` newest, nor a first that is learned from with the next. */
  seal(): void {
    this.#core.seal(this.#tables);
  }

  /**
   * What a layer holds of some positions, by default of all, decoded: sinks and raw tokens as f16 kept them, the rest as codes give them
   * back. Only pages with such positions are read. On a GPU work is queued when the call returns; what goes into GPUBuffers need not be
   * awaited.
   *
   * @param layer  0 to layers − 1
   * @returns      keys f32 [tokens, kvHeads, headDim] and values f32 [tokens, kvHeads, valueDim] of the positions that `ranges` gives, or
   *               what `out` is
   * @throws {TypeError | RangeError} if an option is of the wrong kind or value, or `out` of another length; it is as it was then
   *
   * @example
   * const { keys, values } = await chat.decode(0);
   * const newest = { from: chat.length - 1, out: { keys: new Uint16Array(128), values: new Uint16Array(128) } };
   * await chat.decode(0, newest); // f16 [1, 1, 128]
   */
  async decode<Keys extends Target = Float32Array, Values extends Target = Float32Array>(
    layer: number,
    options?: DecodeOptions<Keys, Values>
  ): Promise<Tokens<Keys, Values>> {
    return this.#core.decode(this.#tables, layer, options) as Promise<Tokens<Keys, Values>>;
  }

  /**
   * What the sequence has learned of its keys: a profile for the option `balance` of other caches, whose sequences then need not learn.
   *
   * @returns u8 [layers, kvHeads, headDim / 2]
   * @throws {RangeError} if a layer has no coded window, and so has learned nothing; or if the cache's option is `'off'`
   *
   * @example
   * chat.append(0, tokens, tokens);
   * chat.seal();
   * const profile = await chat.balance();
   * const next = new KVCache(backend, { layers: 1, kvHeads: 1, queryHeads: 4, headDim: 128, capacity: 1024, balance: profile });
   */
  async balance(): Promise<Uint8Array> {
    return this.#core.balance(this.#tables);
  }

  /**
   * Another sequence with the same tokens, which has learned the same. Complete windows are sealed first, as by `seal()`; sealed pages are
   * shared; sinks and raw tokens are copied, and count again.
   *
   * @throws {RangeError} if `sequences` are open already, or the copied tokens exceed `capacity`
   *
   * @example
   * const branch = chat.fork();
   */
  fork(): Sequence {
    return new Sequence(this.#core, this.#core.fork(this.#tables), this.#metadata);
  }

  /**
   * Forget the tokens from position `length` on, in every layer.
   *
   * What is still raw stays as it is. Any cut within the raw tail loses nothing, nor does cropping what the last append to each layer
   * brought if that completed one window at most (while the cache has raw memory to spare), nor the newest 64 · `recent` tokens. A page
   * that is cut in the middle is decoded into the raw tail: its tokens keep the error they have, and are coded anew once the window is
   * full again. To go back further without that, fork before: `recent: 1` is for drafts that come in several calls, a fork for an answer
   * that may be asked for again.
   * What a sliding window has given back does not return: a layer must still hold what the token at `length` sees, as it does within the
   * 64 · `recent` tokens before the newest append.
   * What was learned goes with a layer's first coded window: it learns anew, from the queries that it is attended with from then on.
   *
   * @param length  0 to this.length
   * @throws {RangeError} if what is left of a page that a fork needs exceeds `capacity`, or tokens before `length` were given back or
   *                      evicted that would be needed
   *
   * @example
   * branch.crop(100);
   */
  crop(length: number): void {
    this.#core.crop(this.#tables, length);
  }

  /**
   * The whole sequence as one versioned byte array (safetensors), for `cache.restore` on any backend. Complete windows are sealed
   * first, as by `seal()`. A checksum covers every byte.
   *
   * A cache means nothing under another model's weights, which it cannot see: `metadata` is for what the application wants to be told
   * when it finds the file again, by `inspect` or as `metadata` of the restored sequence. That is saved again unless other is given;
   * `metadata: {}` is none.
   *
   * @throws {TypeError}  if `metadata` is no object of strings
   * @throws {RangeError} if layers hold different numbers of tokens, or `metadata` has a name of no characters or is beyond 2²⁴
   *                      characters as JSON
   *
   * @example
   * await store.put('system-prompt', await chat.save({ metadata: { model: 'smollm2-135m' } }));
   */
  async save(options: SaveOptions = {}): Promise<Uint8Array> {
    this.#core.checkOpen(this.#tables);
    checkOptions('options', options, SAVE_OPTIONS);
    const metadata = options.metadata === undefined ? this.#metadata : checkMetadata(options.metadata);
    return writeFile(this.shape, await this.#core.contents(this.#tables, metadata));
  }

  /** Tokens that a layer holds: `length`, unless some were evicted or are behind its sliding window. */
  tokens(layer: number): number {
    return this.ranges(layer).reduce((sum, { from, to }) => sum + to - from, 0);
  }

  /** The positions that a layer holds, from `from` on and before `to`, in ascending order: what `decode` gives, and what queries may see. */
  ranges(layer: number): readonly Range[] {
    return this.#core.ranges(this.#tables, layer);
  }

  /**
   * What share of a step's attention goes to the sinks, to every coded page and to every raw window: by it a policy chooses what to evict.
   * Takes about as long as `attend`, and a few microseconds a window and KV head more; nothing is learned from the query. It is of
   * the sequence at the time of the call.
   *
   * @param layer  0 to layers − 1
   * @param query  f32 or f16 [tokens, queryHeads, headDim]: the newest positions, as `attend` takes them
   *
   * @example
   * chat.append(0, tokens, tokens);
   * const pages = (await chat.mass(0, query)).filter(({ from, to }) => from > 0 && to < chat.length);
   * const [least] = pages.sort((a, b) => a.mass - b.mass);
   * if (least) chat.evict({ from: least.from, to: least.to, layer: 0 });
   */
  async mass(layer: number, query: Data, options?: MassOptions): Promise<readonly Mass[]> {
    return this.#core.mass(this.#tables, layer, query, options);
  }

  /**
   * Forget tokens in the middle and go on, as StreamingLLM does: the coded windows that lie wholly between two positions, in all layers
   * or in one. Sinks and the raw tail stay. Complete windows are sealed first, as by `seal()`.
   *
   * Positions are not counted anew: `length` stays as it is, keys keep the rotation that they came with, and the next token's is for
   * position `length`. A conversation that rolls on so sees the right distances, but its positions grow beyond what a model was trained
   * for, if it goes on long enough; `save`, `fork` and `crop` work on what is left.
   *
   * @param options.from   0 to to − 1
   * @param options.to     up to this.length
   * @param options.layer  one layer; by default all
   * @throws {RangeError} if there is no whole coded window between them
   *
   * @example
   * if (cache.free < 256) chat.evict({ from: 0, to: chat.length - 128 }); // keeps sinks, and two windows or three
   */
  evict(options: EvictOptions): void {
    this.#core.evict(this.#tables, options);
  }

  /** Gives pages and raw tokens back to the cache. The sequence cannot be used afterwards. */
  dispose(): void {
    this.#core.release(this.#tables);
  }

  /** As dispose(), for `using chat = cache.sequence()`. */
  [dispose](): void {
    this.dispose();
  }
}
