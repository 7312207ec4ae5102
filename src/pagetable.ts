// Which pages and raw slots a sequence holds, layer by layer, and of which windows. Numbers only: must never see a byte, nor a backend's
// memory.

import type { PageTable, Range, Run } from './backend.ts';
import { plural } from './check.ts';
import { WINDOW } from './format/layout.ts';
import { type Gone, wholeBefore } from './gone.ts';
import { CAPACITY_MOST } from './layer.ts';
import type { Pool } from './pool.ts';
import { LEARNED_WINDOWS, sealable, windowsBehind } from './shape.ts';

/** One layer of one sequence: what a backend reads, and this file alone changes; and what is known of its queries. */
interface LayerTable extends PageTable, Gone {
  length: number;
  pages: Uint32Array;
  windows: Uint32Array;
  pageCount: number;
  raws: Uint32Array;
  coded: number;
  rawCount: number;
  /** While it has still to learn: queries of the positions before this one were counted, if they ever were asked. */
  counted: number;
  /** The oldest position that may still be asked about: the first of the newest append. */
  oldest: number;
  dropped: number;
  whole: number;
}

/** The page tables of one sequence. */
export class PageTables {
  readonly layers: readonly Readonly<LayerTable>[];
  readonly #pool: Pool;
  readonly #tables: readonly LayerTable[];
  /** Its number among a cache's sequences: under it the store keeps its sinks, and what it has learned. */
  readonly number: number;
  /** The layer that was appended to last: what a prompt has just put there is still to be attended to. */
  newest = -1;
  #open = true;

  /** @throws {RangeError} if `sequences` are open already */
  constructor(pool: Pool) {
    pool.checkSequences();
    const { layers, rawSlots, sinks } = pool.shape;
    const number = pool.sequences.allocate();
    this.#pool = pool;
    this.number = number;
    this.#tables = layers.map((_, layer) => ({
      length: 0,
      sequence: number,
      sinkSlot: sinks === 0 ? -1 : rawSlots + number * layers.length + layer,
      pages: new Uint32Array(),
      windows: new Uint32Array(),
      pageCount: 0,
      raws: new Uint32Array(),
      coded: 0,
      rawCount: 0,
      counted: 0,
      oldest: 0,
      dropped: 0,
      whole: Infinity
    }));
    this.layers = this.#tables;
  }

  /** False once it was released. */
  get open(): boolean {
    return this.#open;
  }

  /** Positions that every layer has. */
  get length(): number {
    return this.#tables.reduce((least, table) => Math.min(least, table.length), Infinity);
  }

  /** Tokens of a layer that were not coded. */
  rawTokens(layer: number): number {
    const { length, coded } = this.#tables[layer]!;
    return length - coded * WINDOW;
  }

  /** Refuses more tokens than a call may bring, or than there are positions. */
  checkAppend(name: string, layer: number, tokens: number): void {
    const { maxAppend } = this.#pool.shape;
    const left = CAPACITY_MOST - this.#tables[layer]!.length;
    const most = Math.min(maxAppend, left);
    const why = maxAppend <= left ? 'a call (option "maxAppend")' : `more (positions end at ${CAPACITY_MOST})`;
    if (tokens > most) throw new RangeError(`"${name}" expected at most ${plural(most, 'token')} ${why}, got ${tokens}`);
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
    const { length, coded } = this.#tables[layer]!;
    return sealable(this.#pool.shape, this.#wholeWindows(length), coded);
  }

  /** Whether these are more than tokens that come one by one complete. */
  leftByPrompt(layer: number): boolean {
    return this.completeWindows(layer) > (this.learns(layer) ? LEARNED_WINDOWS : 1);
  }

  /** How many of those are behind every query that may still come, so that they need no page. */
  completeBehind(layer: number): number {
    return this.#completeBehind(layer, this.#tables[layer]!.oldest);
  }

  /** Whether a layer has yet to learn how to balance its keys: none of its windows was coded. */
  learns(layer: number): boolean {
    return this.#pool.shape.balance === 'learn' && this.#tables[layer]!.coded === 0;
  }

  /** Slots of the windows that a layer learns from. */
  learnedSlots(layer: number): number[] {
    return Array.from(this.#tables[layer]!.raws.subarray(0, LEARNED_WINDOWS));
  }

  /**
   * Of a layer's `tokens` newest tokens those whose queries are to be learned from: positions up to the end of the windows that are,
   * each once, however often it is asked about.
   */
  uncounted(layer: number, tokens: number): Range {
    const { length, counted } = this.#tables[layer]!;
    const from = Math.max(counted, length - tokens);
    const to = Math.min(length, this.#pool.shape.sinks + LEARNED_WINDOWS * WINDOW);
    return { from, to: this.learns(layer) ? Math.max(from, to) : from };
  }

  /** The position up to which a layer's queries were counted. Of one that has learned, 0. */
  counted(layer: number): number {
    return this.#tables[layer]!.counted;
  }

  /** Counts the queries of all positions before this one. */
  count(layer: number, position: number): void {
    this.#tables[layer]!.counted = position;
  }

  /** Puts pages in the place of the `count` oldest raw windows, those that `nextPages` named; the first `behind` of them just go. */
  seal(layer: number, count: number, behind: number): void {
    const table = this.#tables[layer]!;
    for (let n = 0; n < count; n++) {
      if (n >= behind) this.#addPage(table, this.#pool.allocatePage(layer), table.coded);
      table.coded++;
    }
    for (const slot of table.raws.subarray(0, count)) this.#pool.slots.release(slot);
    table.raws.copyWithin(0, count, table.rawCount);
    table.rawCount -= count;
    this.#pool.held[layer]! -= behind * WINDOW;
    if (behind > 0) table.dropped = table.coded - count + behind;
    if (table.coded > 0) table.counted = 0; // it has learned; if it forgets, it begins anew
  }

  /** Pages that `drop` gives back after `pass`. */
  passingPages(layer: number): Uint32Array {
    const { length, pages, windows, pageCount } = this.#tables[layer]!;
    const behind = this.#windowsBehind(layer, length);
    let count = 0;
    while (count < pageCount && windows[count]! < behind) count++;
    return pages.subarray(0, count);
  }

  /** Raw windows that the sealing after `pass` gives back without a page. */
  passingSlots(layer: number): number {
    return this.#completeBehind(layer, this.#tables[layer]!.length);
  }

  /** No query comes any more that is older than a layer's next token. What takes that back. */
  pass(layer: number): () => void {
    const table = this.#tables[layer]!;
    const { oldest } = table;
    table.oldest = table.length;
    return () => {
      table.oldest = oldest;
    };
  }

  /** Gives back a layer's pages that are behind every query that may still come. */
  drop(layer: number): void {
    const table = this.#tables[layer]!;
    const behind = Math.min(table.coded, this.#windowsBehind(layer, table.oldest));
    if (table.pageCount > 0 && table.windows[0]! < behind) this.#removePages(layer, window => window < behind);
    table.dropped = Math.max(table.dropped, behind);
  }

  /** Queries from this position on may come. What takes that back. */
  ask(position: number): () => void {
    const before = this.#tables.map(({ oldest }) => oldest);
    for (const table of this.#tables) table.oldest = Math.min(table.oldest, position);
    return () => {
      for (const [layer, table] of this.#tables.entries()) table.oldest = before[layer]!;
    };
  }

  /** Whether `evict` has something to give back once complete windows are coded. */
  evicts(layer: number, from: number, to: number): boolean {
    const { windows, pageCount, coded } = this.#tables[layer]!;
    const [first, end] = [coded + this.completeBehind(layer), coded + this.completeWindows(layer)];
    const held = windows.subarray(0, pageCount).some(window => window >= from && window < to);
    return held || Math.max(from, first) < Math.min(to, end);
  }

  /** Gives back the pages of windows from `from` on and before `to`. */
  evict(layer: number, from: number, to: number): void {
    const table = this.#tables[layer]!;
    this.#removePages(layer, window => window >= from && window < to);
    table.whole = wholeBefore(this.#pool.shape, layer, table, table.length);
  }

  /** Takes all that a sealed sequence holds into this one, which is empty: pages are shared, raw windows get slots of their own. */
  share(from: PageTables): void {
    from.#tables.forEach((source, layer) => {
      const table = this.#tables[layer]!;
      for (let n = 0; n < source.pageCount; n++) {
        this.#pool.retainPage(layer, source.pages[n]!);
        this.#addPage(table, source.pages[n]!, source.windows[n]!);
      }
      this.#addSlots(table, source.rawCount);
      const { length, coded, counted, oldest, dropped, whole } = source;
      Object.assign(table, { length, coded, counted, oldest, dropped, whole });
      this.#pool.held[layer]! += this.rawTokens(layer);
    });
  }

  /**
   * Takes pages and slots for a layer's tokens, which are to come from a file; this table is empty.
   *
   * @param windows  numbers of those that have pages
   * @param rawCount  windows that have none, and are not gone
   */
  fill(
    layer: number,
    windows: readonly number[],
    rawCount: number,
    rest: Pick<LayerTable, 'length' | 'coded' | 'dropped' | 'whole'>
  ): void {
    const table = this.#tables[layer]!;
    for (const window of windows) this.#addPage(table, this.#pool.allocatePage(layer), window);
    this.#addSlots(table, rawCount);
    Object.assign(table, rest, { oldest: rest.length });
    this.#pool.held[layer]! += this.rawTokens(layer) + windows.length * WINDOW;
  }

  /**
   * How many more tokens a layer holds after a crop to `length`, below 0 where fewer. A page that another sequence holds stays counted,
   * and what a cut leaves of it is counted on top.
   */
  cropCost(layer: number, length: number): number {
    const table = this.#tables[layer]!;
    const keep = this.#wholeWindows(length);
    let more = length - WINDOW * Math.min(keep, table.coded) - this.rawTokens(layer);
    for (let n = table.pageCount - 1; n >= 0 && table.windows[n]! >= keep; n--) {
      if (this.#pool.refCount(layer, table.pages[n]!) === 1) more -= WINDOW;
    }
    return more;
  }

  /** Whether a cut to `length` goes through a window that is coded, once `more` are. */
  cuts(layer: number, length: number, more = 0): boolean {
    const keep = this.#wholeWindows(length);
    return keep < this.#tables[layer]!.coded + more && length > this.#pool.shape.sinks + keep * WINDOW;
  }

  /** The page that a cut to `length` goes through, and the slot that its tokens are to be decoded into, which the layer has from now on. */
  cutPage(layer: number, length: number): { readonly page: number; readonly slot: number } | undefined {
    if (!this.cuts(layer, length)) return undefined;
    const table = this.#tables[layer]!;
    const n = table.windows.subarray(0, table.pageCount).indexOf(this.#wholeWindows(length));
    if (table.rawCount === 0) this.#addSlots(table, 1);
    return { page: table.pages[n]!, slot: table.raws[0]! }; // all raw windows lie beyond the cut
  }

  /** Forgets a layer's tokens from `length` on. A page that is cut has been decoded by now, as `cutPage` said. */
  crop(layer: number, length: number): void {
    const { sinks } = this.#pool.shape;
    const table = this.#tables[layer]!;
    const before = this.rawTokens(layer);
    const keep = Math.min(this.#wholeWindows(length), table.coded);
    const raws = Math.ceil(Math.max(0, length - sinks) / WINDOW) - keep;
    this.#removePages(layer, window => window >= keep);
    while (table.rawCount > raws) this.#pool.slots.release(table.raws[--table.rawCount]!);
    table.length = length;
    table.coded = keep;
    table.dropped = Math.min(table.dropped, keep);
    table.whole = wholeBefore(this.#pool.shape, layer, table, length);
    table.counted = Math.min(table.counted, length);
    table.oldest = Math.min(table.oldest, length);
    this.#pool.held[layer]! += this.rawTokens(layer) - before;
  }

  /** Gives all tokens back. */
  clear(): void {
    this.#tables.forEach((_, layer) => this.crop(layer, 0));
    this.newest = -1;
  }

  /** Gives everything back. */
  release(): void {
    this.clear();
    this.#pool.sequences.release(this.number);
    this.#open = false;
  }

  #addPage(table: LayerTable, page: number, window: number): void {
    table.pages = withRoom(table.pages, table.pageCount);
    table.windows = withRoom(table.windows, table.pageCount);
    table.pages[table.pageCount] = page;
    table.windows[table.pageCount++] = window;
  }

  /** Gives back the pages of these windows, the newest first. */
  #removePages(layer: number, goes: (window: number) => boolean): void {
    const table = this.#tables[layer]!;
    const { pages, windows, pageCount } = table;
    for (let n = pageCount - 1; n >= 0; n--) if (goes(windows[n]!)) this.#pool.releasePage(layer, pages[n]!);
    table.pageCount = 0;
    for (let n = 0; n < pageCount; n++) if (!goes(windows[n]!)) this.#addPage(table, pages[n]!, windows[n]!);
  }

  #addSlots(table: LayerTable, count: number): void {
    for (let n = 0; n < count; n++) {
      table.raws = withRoom(table.raws, table.rawCount);
      const slot = this.#pool.slots.allocate(); // before it counts: it may throw
      table.raws[table.rawCount++] = slot;
    }
  }

  /** Complete raw windows that a layer's query at `position` does not see. */
  #completeBehind(layer: number, position: number): number {
    const behind = this.#windowsBehind(layer, position) - this.#tables[layer]!.coded;
    return Math.min(this.completeWindows(layer), Math.max(0, behind));
  }

  #windowsBehind(layer: number, position: number): number {
    return windowsBehind(this.#pool.shape, layer, position);
  }

  /** Windows that `length` tokens fill. */
  #wholeWindows(length: number): number {
    return Math.floor(Math.max(0, length - this.#pool.shape.sinks) / WINDOW);
  }
}

/** A list of `count` numbers with room for one more: twice as long where it was full. */
function withRoom(list: Uint32Array, count: number): Uint32Array {
  if (count < list.length) return list;
  const longer = new Uint32Array(Math.max(4, 2 * count));
  longer.set(list);
  return longer;
}
