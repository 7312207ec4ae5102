// Who holds which page and which raw slot of a cache, and how many tokens: a table for every layer of every sequence, and the pool
// that all of them take from. Numbers only: must never see a byte, nor a backend's memory.

import type { PageTable, Run } from './backend.ts';
import { WINDOW } from './format/layout.ts';
import { baseSlots, type CacheShape, LEARNED_WINDOWS } from './shape.ts';

/** What is free, and who else holds a page. Nothing is allocated after the constructor. */
export class Pool {
  readonly shape: CacheShape;
  /** Tokens held in each layer; a page that forks share counts once. */
  readonly held: Uint32Array;
  /** Raw slots of 64 tokens. */
  readonly slots: FreeList;
  /** Numbers of sequences: each has sink slots of its own. */
  readonly sequences: FreeList;
  readonly #pages: readonly FreeList[];
  /** Holders of every page: as many as there are sequences, which 16 bits cannot count. */
  readonly #refCounts: readonly Uint32Array[];

  constructor(shape: CacheShape) {
    this.shape = shape;
    this.held = new Uint32Array(shape.layers.length);
    this.slots = new FreeList(shape.rawSlots);
    this.sequences = new FreeList(shape.sequences);
    this.#pages = shape.layers.map(() => new FreeList(shape.pagesPerLayer));
    this.#refCounts = shape.layers.map(() => new Uint32Array(shape.pagesPerLayer));
  }

  /** Refuses tokens that would not fit in a layer. */
  checkRoom(layer: number, tokens: number): void {
    const { capacity } = this.shape;
    const held = this.held[layer]!;
    if (held + tokens > capacity) {
      throw new RangeError(`"capacity" expected at most ${capacity} tokens, got ${held + tokens} (${held} held + ${tokens} more)`);
    }
  }

  /** Refuses one more sequence than there may be. */
  checkSequences(): void {
    if (this.sequences.size > 0) return;
    throw new RangeError(`"sequences" expected at most ${this.shape.sequences} open at once (option "sequences"), got one more`);
  }

  /** The pages that the next `count` allocations will give. */
  nextPages(layer: number, count: number): number[] {
    return this.#pages[layer]!.next(count);
  }

  allocatePage(layer: number): number {
    const page = this.#pages[layer]!.allocate();
    this.#refCounts[layer]![page] = 1;
    return page;
  }

  retainPage(layer: number, page: number): void {
    this.#refCounts[layer]![page]!++;
  }

  refCount(layer: number, page: number): number {
    return this.#refCounts[layer]![page]!;
  }

  /** Lets go of a page; the last holder frees it and its tokens. */
  releasePage(layer: number, page: number): void {
    if (--this.#refCounts[layer]![page]! > 0) return;
    this.#pages[layer]!.release(page);
    this.held[layer]! -= WINDOW;
  }
}

/** A stack of free numbers, lowest on top at first. */
class FreeList {
  size: number;
  readonly #free: Uint32Array;

  constructor(count: number) {
    this.#free = new Uint32Array(count);
    for (let i = 0; i < count; i++) this.#free[i] = count - 1 - i;
    this.size = count;
  }

  allocate(): number {
    if (this.size === 0) throw new Error('free list is empty: reservations are wrong');
    return this.#free[--this.size]!;
  }

  release(number: number): void {
    this.#free[this.size++] = number;
  }

  /** What the next `count` allocations will give. */
  next(count: number): number[] {
    if (this.size < count) throw new Error('free list is empty: reservations are wrong');
    return Array.from(this.#free.subarray(this.size - count, this.size)).reverse();
  }
}

/** One layer of one sequence: what a backend reads, and this file alone changes. */
interface LayerTable extends PageTable {
  length: number;
  pageCount: number;
  rawCount: number;
}

/** The page tables of one sequence. */
export class PageTables {
  readonly layers: readonly PageTable[];
  readonly #pool: Pool;
  readonly #tables: readonly LayerTable[];
  /** Its number among a cache's sequences: under it the store keeps its sinks, and what it has learned. */
  readonly number: number;
  /** The layer that was appended to last: what a prompt has just put there is still to be attended to. */
  newest = -1;
  /** Of every layer that is still to learn: queries of the positions before this one were counted, if they ever were asked. */
  readonly #counted: Uint32Array;
  #open = true;

  /** @throws {RangeError} if `sequences` are open already */
  constructor(pool: Pool) {
    pool.checkSequences();
    const { layers, rawSlots, pagesPerLayer, sinks, maxAppend } = pool.shape;
    const arrays = layers.map(() => ({
      pages: new Uint32Array(pagesPerLayer),
      raws: new Uint32Array(1 + baseSlots(pool.shape) + Math.ceil(maxAppend / WINDOW))
    }));
    // Taken last: where there is no memory for the arrays, nothing is held.
    const number = pool.sequences.allocate();
    this.#pool = pool;
    this.number = number;
    this.#counted = new Uint32Array(layers.length);
    this.#tables = arrays.map(({ pages, raws }, layer) => ({
      length: 0,
      sequence: number,
      sinkSlot: sinks === 0 ? -1 : rawSlots + number * layers.length + layer,
      pages,
      pageCount: 0,
      raws,
      rawCount: 0
    }));
    this.layers = this.#tables;
  }

  /** False once it was released. */
  get open(): boolean {
    return this.#open;
  }

  /** Tokens that every layer holds. */
  get length(): number {
    return this.#tables.reduce((least, table) => Math.min(least, table.length), Infinity);
  }

  /** Tokens of a layer that are not in coded pages. */
  rawTokens(layer: number): number {
    const { length, pageCount } = this.#tables[layer]!;
    return length - pageCount * WINDOW;
  }

  /** Raw slots that `tokens` more tokens of a layer take. */
  slotsFor(layer: number, tokens: number): number {
    const { length, pageCount, rawCount } = this.#tables[layer]!;
    return Math.ceil(Math.max(0, length + tokens - this.#pool.shape.sinks) / WINDOW) - pageCount - rawCount;
  }

  /** Room for tokens at the end of a layer, which then counts them. */
  extend(layer: number, tokens: number): Run[] {
    const { sinks } = this.#pool.shape;
    const table = this.#tables[layer]!;
    const runs: Run[] = [];
    for (let from = 0; from < tokens; ) {
      const sink = table.length < sinks;
      const at = sink ? table.length : (table.length - sinks) % WINDOW;
      if (!sink && at === 0) this.#addSlots(table, 1);
      const count = Math.min((sink ? sinks : WINDOW) - at, tokens - from);
      runs.push({ slot: sink ? table.sinkSlot : table.raws[table.rawCount - 1]!, at, from, tokens: count });
      table.length += count;
      from += count;
    }
    this.#pool.held[layer]! += tokens;
    return runs;
  }

  /** Slots of a layer's complete raw windows but the `recent` newest, oldest first: those that are to be sealed. */
  completeSlots(layer: number): number[] {
    return Array.from(this.#tables[layer]!.raws.subarray(0, this.completeWindows(layer)));
  }

  /** How many slots `completeSlots` gives. */
  completeWindows(layer: number): number {
    const { length, pageCount } = this.#tables[layer]!;
    const whole = this.#wholeWindows(length);
    if (this.learns(layer) && whole < LEARNED_WINDOWS) return 0;
    return Math.max(0, whole - this.#pool.shape.recent - pageCount);
  }

  /** Whether a layer has yet to learn how to balance its keys: it has no coded page. */
  learns(layer: number): boolean {
    return this.#pool.shape.balance === 'learn' && this.#tables[layer]!.pageCount === 0;
  }

  /** Slots of the windows that a layer learns from. */
  learnedSlots(layer: number): number[] {
    return Array.from(this.#tables[layer]!.raws.subarray(0, LEARNED_WINDOWS));
  }

  /**
   * Of a layer's `tokens` newest tokens those whose queries are to be learned from: positions up to the end of the windows that are,
   * each once, however often it is asked about.
   */
  uncounted(layer: number, tokens: number): { readonly from: number; readonly to: number } {
    const { length } = this.#tables[layer]!;
    const from = Math.max(this.#counted[layer]!, length - tokens);
    const to = Math.min(length, this.#pool.shape.sinks + LEARNED_WINDOWS * WINDOW);
    return { from, to: this.learns(layer) ? Math.max(from, to) : from };
  }

  /** The position up to which a layer's queries were counted. Of one that has learned, 0. */
  counted(layer: number): number {
    return this.#counted[layer]!;
  }

  /** Counts the queries of all positions before this one. */
  count(layer: number, position: number): void {
    this.#counted[layer] = position;
  }

  /** Puts pages in the place of the `count` oldest raw windows: those that `nextPages` named. */
  seal(layer: number, count: number): void {
    const table = this.#tables[layer]!;
    for (let n = 0; n < count; n++) {
      table.pages[table.pageCount++] = this.#pool.allocatePage(layer);
      this.#pool.slots.release(table.raws[n]!);
    }
    table.raws.copyWithin(0, count, table.rawCount);
    table.rawCount -= count;
    if (table.pageCount > 0) this.#counted[layer] = 0; // it has learned; if it forgets, it begins anew
  }

  /** Takes all that a sealed sequence holds into this one, which is empty: pages are shared, raw windows get slots of their own. */
  share(from: PageTables): void {
    from.#tables.forEach((source, layer) => {
      const table = this.#tables[layer]!;
      for (const page of source.pages.subarray(0, source.pageCount)) {
        this.#pool.retainPage(layer, page);
        table.pages[table.pageCount++] = page;
      }
      this.#addSlots(table, source.rawCount);
      table.length = source.length;
      this.#counted[layer] = from.#counted[layer]!;
      this.#pool.held[layer]! += this.rawTokens(layer);
    });
  }

  /** Takes pages and slots for a layer's tokens, which are to come from a file; this table is empty. */
  fill(layer: number, length: number, pageCount: number, rawCount: number): void {
    const table = this.#tables[layer]!;
    while (table.pageCount < pageCount) table.pages[table.pageCount++] = this.#pool.allocatePage(layer);
    this.#addSlots(table, rawCount);
    table.length = length;
    this.#pool.held[layer]! += length;
  }

  /**
   * How many more tokens a layer holds after a crop to `length`, below 0 where fewer. A page that another sequence holds stays counted,
   * and what a cut leaves of it is counted on top.
   */
  cropCost(layer: number, length: number): number {
    const table = this.#tables[layer]!;
    const keep = this.#wholeWindows(length);
    let more = length - WINDOW * Math.min(keep, table.pageCount) - this.rawTokens(layer);
    for (const page of table.pages.subarray(keep, Math.max(keep, table.pageCount))) {
      if (this.#pool.refCount(layer, page) === 1) more -= WINDOW;
    }
    return more;
  }

  /** Whether a cut to `length` goes through a coded page. */
  cuts(layer: number, length: number): boolean {
    const keep = this.#wholeWindows(length);
    return keep < this.#tables[layer]!.pageCount && length > this.#pool.shape.sinks + keep * WINDOW;
  }

  /** The page that a cut to `length` goes through, and the slot that its tokens are to be decoded into; or none. */
  cutPage(layer: number, length: number): { readonly page: number; readonly slot: number } | undefined {
    if (!this.cuts(layer, length)) return undefined;
    const table = this.#tables[layer]!;
    const keep = this.#wholeWindows(length);
    // All raw windows lie beyond the cut, so that a slot of theirs will do; else crop() takes the next free one.
    return { page: table.pages[keep]!, slot: table.rawCount > 0 ? table.raws[0]! : this.#pool.slots.next(1)[0]! };
  }

  /** Forgets a layer's tokens from `length` on. A page that is cut has been decoded by now, as `cutPage` said. */
  crop(layer: number, length: number): void {
    const { sinks } = this.#pool.shape;
    const table = this.#tables[layer]!;
    const before = this.rawTokens(layer);
    const pages = Math.min(this.#wholeWindows(length), table.pageCount);
    const raws = Math.ceil(Math.max(0, length - sinks) / WINDOW) - pages;
    this.#addSlots(table, Math.max(0, raws - table.rawCount));
    while (table.pageCount > pages) this.#pool.releasePage(layer, table.pages[--table.pageCount]!);
    while (table.rawCount > raws) this.#pool.slots.release(table.raws[--table.rawCount]!);
    table.length = length;
    this.#counted[layer] = Math.min(this.#counted[layer]!, length);
    this.#pool.held[layer]! += this.rawTokens(layer) - before;
  }

  /** Gives everything back. */
  release(): void {
    this.#tables.forEach((_, layer) => this.crop(layer, 0));
    this.#pool.sequences.release(this.number);
    this.#open = false;
  }

  #addSlots(table: LayerTable, count: number): void {
    for (let n = 0; n < count; n++) {
      const slot = this.#pool.slots.allocate(); // before it counts: it may throw
      table.raws[table.rawCount++] = slot;
    }
  }

  /** Windows that `length` tokens fill. */
  #wholeWindows(length: number): number {
    return Math.floor(Math.max(0, length - this.#pool.shape.sinks) / WINDOW);
  }
}
