// Sequence: one conversation in a cache: a page table, raw tokens and a length for every layer.

import type { Output, PageTable, Run, Tokens } from './backend.ts';
import type { AttendOptions, KVCache } from './cache.ts';
import { checkInteger } from './check.ts';
import { type FileContents, writeFile } from './file.ts';
import { WINDOW } from './format/layout.ts';
import type { GpuTokens, Input } from './input.ts';

/**
 * Tokens in a cache. Made by `cache.sequence()`, `fork()` and `cache.restore()`.
 *
 * In every layer the first `sinks` tokens stay raw; then come windows of 64, sealed into coded pages one by one, and a raw
 * tail. A prompt's own tokens stay raw until the next call, so that attention within a call is exact.
 */
export class Sequence {
  readonly cache: KVCache;
  readonly #slot: number;
  readonly #tables: readonly PageTable[];
  /** The layer whose complete windows wait to be sealed; at most one, as every append begins by sealing. */
  #pending = -1;
  #open = true;

  /** @internal Use `cache.sequence()`. */
  constructor(cache: KVCache) {
    const { layers, rawPages, pagesPerLayer, sinks, recent, maxAppend } = cache.shape;
    cache.store; // throws if disposed
    this.cache = cache;
    this.#slot = cache.pool.takeSlot();
    this.#tables = Array.from({ length: layers }, (_, layer) => ({
      length: 0,
      sinkPlace: sinks === 0 ? -1 : rawPages + this.#slot * layers + layer,
      pages: new Uint32Array(pagesPerLayer),
      pageCount: 0,
      raws: new Uint32Array(2 + recent + Math.ceil(maxAppend / WINDOW)),
      rawCount: 0
    }));
  }

  /** Tokens that every layer holds. */
  get length(): number {
    return this.#tables.reduce((least, table) => Math.min(least, table.length), Infinity);
  }

  /** Bytes that this sequence's tokens take: coded pages, sinks, raw tokens, page numbers. What forks share counts for each. */
  get bytes(): number {
    const { pages, rawPageBytes, sinkBytes } = this.cache.shape;
    return this.#tables.reduce(
      (sum, table, layer) =>
        sum + table.pageCount * (pages[layer]!.bytes + 4) + table.rawCount * rawPageBytes + (table.length > 0 ? sinkBytes : 0),
      0
    );
  }

  /** Bytes of the coded pages alone, and how many tokens they stand for: what a long context costs. */
  get sealed(): { readonly bytes: number; readonly tokens: number } {
    const { pages } = this.cache.shape;
    return {
      bytes: this.#tables.reduce((sum, table, layer) => sum + table.pageCount * pages[layer]!.bytes, 0),
      tokens: this.#tables.reduce((sum, table) => sum + table.pageCount * WINDOW, 0) / this.#tables.length
    };
  }

  /** @internal A layer's page table. */
  table(layer: number): PageTable {
    if (!this.#open) throw new TypeError('sequence expected open, got disposed');
    this.cache.store; // throws if disposed
    checkInteger('layer', layer, 0, this.#tables.length - 1);
    return this.#tables[layer]!;
  }

  /**
   * Append tokens to a layer.
   *
   * Tokens are rounded to f16 and first enter the raw tail; complete windows are sealed when the next append to this sequence
   * begins, or one to another layer of another sequence. How calls are split never changes a sealed byte.
   *
   * @param layer   0 to layers − 1
   * @param keys    f32 or f16 [tokens, kvHeads, headDim], after RoPE; read before the call returns, never kept
   * @param values  same shape as `keys`
   * @throws {TypeError}  if an argument is of the wrong kind, or the sequence was disposed
   * @throws {RangeError} if lengths differ, are not whole tokens, exceed `capacity` or `maxAppend`, or an element is not
   *                      finite or beyond ±65,504; nothing is appended then
   * @see NSNQuant (arXiv 2505.18231), section 3: Normalize–Shift–Normalize
   *
   * @example
   * chat.append(0, keys, values);
   */
  append(layer: number, keys: Input, values: Input): void {
    this.cache.append([this], layer, [keys], [values]);
  }

  /** @internal Room for tokens at the end of a layer, which then counts them. */
  extend(layer: number, tokens: number): Run[] {
    const table = this.table(layer);
    const { pool, pending } = this.cache;
    pool.held[layer]! += tokens;
    this.#pending = layer;
    pending.add(this);
    const runs: Run[] = [];
    for (let from = 0; from < tokens; ) {
      const { place, at, room } = this.#nextPlace(table);
      const count = Math.min(room, tokens - from);
      runs.push({ place, at, from, tokens: count });
      table.length += count;
      from += count;
    }
    return runs;
  }

  /**
   * Attention of the newest query tokens over all of a layer's tokens.
   *
   * @param layer  0 to layers − 1
   * @param query  f32 [tokens, queryHeads, headDim]: the sequence's newest `tokens` positions; causal
   * @returns      f32 [tokens, queryHeads, headDim]
   *
   * @example
   * const out = await chat.attend(0, query).read();
   */
  attend(layer: number, query: Float32Array | GpuTokens, options?: AttendOptions): Output {
    return this.cache.attend([this], layer, [query], options);
  }

  /** Codes every complete window now (but the `recent` newest), as the next append would. */
  seal(): void {
    this.table(0);
    if (this.#pending >= 0) this.cache.seal([this]);
  }

  /** @internal The layer whose complete windows wait to be sealed, or −1. */
  get pending(): number {
    return this.#pending;
  }

  /** @internal Moves the pending layer's complete windows from raw places to pages, both of which are added to the lists. */
  takeComplete(places: number[], pages: number[]): void {
    const { pool, pending } = this.cache;
    const layer = this.#pending;
    const table = this.#tables[layer]!;
    const complete = this.#sealedPages(table) - table.pageCount;
    for (let n = 0; n < complete; n++) {
      const page = pool.takePage(layer);
      places.push(table.raws[n]!);
      pages.push(page);
      pool.givePlace(table.raws[n]!);
      table.pages[table.pageCount++] = page;
    }
    table.raws.copyWithin(0, complete, table.rawCount);
    table.rawCount -= complete;
    this.#pending = -1;
    pending.delete(this);
  }

  /**
   * What a layer holds, decoded: sinks and raw tokens as f16 kept them, the rest as codes give them back.
   *
   * @returns keys and values, f32 [length, kvHeads, headDim]
   */
  async decode(layer: number): Promise<Tokens> {
    return this.cache.store.read(layer, this.table(layer));
  }

  /**
   * Another sequence with the same tokens. Sealed pages are shared; sinks and raw tokens are copied, and count again.
   *
   * @throws {RangeError} if `sequences` are open already, or the copied tokens exceed `capacity`
   *
   * @example
   * const branch = chat.fork();
   */
  fork(): Sequence {
    this.table(0);
    const { pool, store, shape } = this.cache;
    this.#tables.forEach((table, layer) => pool.checkRoom(layer, table.length - WINDOW * this.#sealedPages(table)));
    const fork = new Sequence(this.cache); // refuses before anything is sealed
    this.seal();
    this.#tables.forEach((table, layer) => {
      const to = fork.#tables[layer]!;
      to.length = table.length;
      to.pageCount = table.pageCount;
      to.pages.set(table.pages);
      for (let n = 0; n < table.pageCount; n++) pool.sharePage(layer, table.pages[n]!);
      if (shape.sinks > 0) store.copyPlace(table.sinkPlace, to.sinkPlace);
      for (let n = 0; n < table.rawCount; n++) store.copyPlace(table.raws[n]!, (to.raws[to.rawCount++] = pool.takePlace()));
      pool.held[layer]! += rawTokens(table);
    });
    return fork;
  }

  /**
   * Forget the tokens from position `length` on, in every layer. A page that is cut in the middle is decoded into the raw
   * tail: its tokens keep the error they have.
   *
   * @param length  0 to this.length
   *
   * @example
   * branch.crop(100);
   */
  crop(length: number): void {
    this.table(0);
    checkInteger('length', length, 0, this.length);
    const { pool, shape } = this.cache;
    const keep = Math.floor(Math.max(0, length - shape.sinks) / WINDOW);
    this.#tables.forEach((table, layer) => {
      // A page that a fork needs stays held, and what is kept of a cut one comes on top of it.
      let more = length - WINDOW * Math.min(keep, table.pageCount) - rawTokens(table);
      for (let n = keep; n < table.pageCount; n++) more -= pool.shared(layer, table.pages[n]!) ? 0 : WINDOW;
      if (more > 0) pool.checkRoom(layer, more);
    });
    this.seal();
    this.#tables.forEach((table, layer) => this.#cropLayer(table, layer, length));
  }

  /**
   * The whole sequence as one versioned byte array (safetensors), for `cache.restore` on any backend.
   *
   * @throws {RangeError} if layers hold different numbers of tokens
   *
   * @example
   * await store.put('system-prompt', await chat.save());
   */
  async save(): Promise<Uint8Array> {
    this.seal();
    const { store, shape } = this.cache;
    const { length } = this;
    this.#tables.forEach((table, layer) => {
      if (table.length !== length) {
        throw new RangeError(`layer ${layer} expected ${length} tokens, as the shortest has, got ${table.length}`);
      }
    });
    // All reads are queued before the first is awaited: the file is the sequence at the time of the call.
    const layers = await Promise.all(this.#tables.map((table, layer) => store.dump(layer, table)));
    return writeFile(shape, { length, layers });
  }

  /** @internal Takes over what a file holds; the sequence is new and empty. */
  load({ length, layers }: FileContents): void {
    const { pool, store } = this.cache;
    this.#tables.forEach((table, layer) => {
      const { pages, raws, sinks } = layers[layer]!;
      table.length = length;
      pool.held[layer]! += length;
      for (const bytes of pages) {
        const page = (table.pages[table.pageCount++] = pool.takePage(layer));
        store.setPage(layer, page, bytes);
      }
      for (const bytes of raws) {
        const place = (table.raws[table.rawCount++] = pool.takePlace());
        store.setPlace(place, bytes);
      }
      if (sinks) store.setPlace(table.sinkPlace, sinks);
    });
  }

  /** Gives pages and raw places back to the cache. The sequence cannot be used afterwards. */
  dispose(): void {
    if (!this.#open) return;
    const { pool } = this.cache;
    this.#tables.forEach((table, layer) => {
      pool.held[layer]! -= rawTokens(table);
      this.#release(table, layer, 0, 0);
    });
    pool.giveSlot(this.#slot);
    this.cache.pending.delete(this);
    this.#open = false;
  }

  /** Coded pages once every complete window but the `recent` newest is sealed. */
  #sealedPages(table: PageTable): number {
    const { sinks, recent } = this.cache.shape;
    return Math.max(table.pageCount, Math.floor(Math.max(0, table.length - sinks) / WINDOW) - recent);
  }

  /** Where the next token goes. */
  #nextPlace(table: PageTable): { place: number; at: number; room: number } {
    const { sinks } = this.cache.shape;
    if (table.length < sinks) return { place: table.sinkPlace, at: table.length, room: sinks - table.length };
    const at = (table.length - sinks) % WINDOW;
    if (at === 0) table.raws[table.rawCount++] = this.cache.pool.takePlace();
    return { place: table.raws[table.rawCount - 1]!, at, room: WINDOW - at };
  }

  #cropLayer(table: PageTable, layer: number, length: number): void {
    const { pool, store, shape } = this.cache;
    const before = rawTokens(table);
    const windows = Math.max(0, length - shape.sinks) / WINDOW;
    const keep = Math.floor(windows);
    if (keep < table.pageCount && keep < windows) {
      // The cut page becomes the tail.
      const page = table.pages[keep]!;
      this.#release(table, layer, keep, 0);
      store.decode(layer, page, (table.raws[table.rawCount++] = pool.takePlace()));
    } else {
      const pages = Math.min(keep, table.pageCount);
      this.#release(table, layer, pages, Math.ceil(windows) - pages);
    }
    table.length = length;
    pool.held[layer]! += rawTokens(table) - before;
  }

  /** Gives back all but the first pages and raws. */
  #release(table: PageTable, layer: number, pages: number, raws: number): void {
    const { pool } = this.cache;
    while (table.pageCount > pages) pool.givePage(layer, table.pages[--table.pageCount]!);
    while (table.rawCount > raws) pool.givePlace(table.raws[--table.rawCount]!);
  }
}

/** Tokens that are not in coded pages. */
function rawTokens(table: PageTable): number {
  return table.length - table.pageCount * WINDOW;
}
