// The schedule of an attend, which attend.wgsl and merge.wgsl read: which query rows attend to which windows, split over the context
// (split-KV) so that even one sequence fills a GPU. A Schedule struct, then entries of four words:
//
//   requests      one for each sequence of a call
//   raw windows   of every sequence once
//   tiles         rows of a request that share a workgroup; for merge
//   splits        windows of a tile that some row of it sees, coded ones or raw ones; for attend
//   pages         their numbers, four to an entry; at a fixed place, as most are those of the step before
//   windows       the numbers of their windows, likewise

import { BackendError, type PageTable } from '../backend.ts';
import { align, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import type { Layout } from '../rows.ts';
import type { CacheShape } from '../shape.ts';
import { QUAD } from './programs.ts';
import { fieldsOf, floatBits, putStruct } from './structs.ts';

/** Query tokens of one call at most, unless there are more sequences; longer prompts take several calls. */
const CALL_TOKENS = 128;
/** Workgroups that a call is split into where there is work for them: a few for every core of a large GPU. */
const WORKGROUPS = 1024;
/** Windows of one workgroup at least, so that its two Hadamard transforms are paid back. */
const SPLIT_WINDOWS = 2;
/** Rows that may idle for the sake of looking a code up once for more rows, as a share of all. */
const IDLE_ROWS = 0.25;
/** What a split of raw windows has in the place of an order of channels. */
const RAW = 2 ** 32 - 1;
/** Words of an entry, and of what comes before the first. */
const ENTRY = 4;
const HEADER = align(fieldsOf('Schedule').length, ENTRY);

/** Query tokens of one sequence. */
export interface Request {
  readonly table: PageTable;
  readonly tokens: number;
  /** Of the first of them. */
  readonly position: number;
}

/** What the requests of a call have in common. */
export interface Call {
  /** Of queries. */
  readonly scale: number;
  readonly layout: Layout;
  readonly halfQueries: boolean;
  readonly halfOutput: boolean;
}

/** Where a raw slot lies. */
export interface SlotPlace {
  readonly chunk: number;
  /** Bytes from the beginning of its chunk. */
  readonly offset: number;
  /** Tokens that it holds. */
  readonly capacity: number;
}

/** What of a schedule is dispatched, for every KV head. */
export interface Dispatches {
  /** Quads of a row tile. */
  readonly quads: number;
  /** Workgroups of attend, and of merge. */
  readonly splits: number;
  readonly tiles: number;
}

/** What of a layer on a device a schedule is drawn for. */
export interface Limits {
  /** Quads that a workgroup of attend can hold. */
  readonly quads: number;
  readonly chunkGroups: number;
  readonly pagesPerChunk: number;
  /** Word offsets in constants. */
  readonly slopesAt: number;
  readonly sinkLogitsAt: number;
}

/** Where a sequence's pages and its raw windows begin in their lists. */
interface Windows {
  readonly firstPage: number;
  readonly firstRaw: number;
}

/** Windows from one to before another. */
interface Range {
  readonly from: number;
  readonly end: number;
}

/** Rows that share a workgroup, and what some of them see: pages of a table, and raw windows of the schedule in at most two pieces. */
interface Tile {
  readonly request: number;
  readonly firstRow: number;
  readonly pages: Range;
  readonly raws: readonly Range[];
}

export class Schedule {
  /** Query tokens of one call. */
  readonly callTokens: number;
  /** Bytes of partial results, of the layer where a call leaves most. */
  readonly partialBytes: number;
  readonly words: Uint32Array<ArrayBuffer>;
  /** Words in use: [0, used), [pages, pages + pageCount) and [windows, windows + pageCount). */
  used = 0;
  pageCount = 0;
  readonly pages: number;
  readonly windows: number;
  readonly #shape: CacheShape;
  readonly #workgroups: number;
  /** Splits that a tile has at most besides its share of windows: of pages, and of the pieces of raw windows. */
  readonly #pieces: number;

  /**
   * @param chunkGroups  dispatches of attend, each with partial results of its own
   * @param limit        bytes of one buffer: as many splits as it holds, down to one token a call
   * @throws {BackendError} if it cannot hold the page numbers of every sequence
   */
  constructor(shape: CacheShape, chunkGroups: number, limit: number) {
    const { layers, sequences } = shape;
    this.#shape = shape;
    this.#pieces = layers.some(({ keepSinks }) => keepSinks) ? 3 : 2;
    const most = (of: (layer: LayerShape) => number): number => Math.max(...layers.map(of));
    const quadsPerToken = most(({ queryHeads, kvHeads }) => Math.ceil(queryHeads / kvHeads / QUAD));
    const rowBytes = 4 * most(({ queryHeads, headDim, valueDim }) => queryHeads * Math.max(headDim, valueDim));
    let tokens = Math.max(CALL_TOKENS, sequences);
    let workgroups = WORKGROUPS;
    const bytes = (): number =>
      most(layer => this.#partialsOf(layer, tokens, workgroups) * chunkGroups * 16 * (2 + layer.valueDim) * layer.kvHeads);
    while (workgroups > 0 && bytes() > limit) workgroups = Math.floor(workgroups / 2);
    while (tokens > 1 && Math.max(bytes(), tokens * rowBytes) > limit) tokens = Math.ceil(tokens / 2);
    this.callTokens = tokens;
    this.#workgroups = workgroups;
    this.partialBytes = bytes();
    const partials = most(layer => this.#partialsOf(layer, tokens, workgroups));
    const rawWindows = shape.rawSlots + Math.min(shape.sinkSlots, tokens);
    this.pages = HEADER + ENTRY * (tokens + rawWindows + tokens * quadsPerToken + partials);
    this.windows = this.pages + align(sequences * Math.max(...shape.pageCounts), ENTRY) + ENTRY;
    const words = 2 * this.windows - this.pages;
    if (4 * words > limit)
      throw new BackendError('webgpu', `expected at most ${limit} bytes for schedule (the device's limit), got ${4 * words}`);
    this.words = new Uint32Array(words);
  }

  /**
   * Draws the schedule into `words`.
   *
   * @param placeOf  where a raw slot lies
   * @param orderOf  where among the constants a sequence's order of channels lies
   */
  draw(
    layer: LayerShape,
    requests: readonly Request[],
    { scale, layout, halfQueries, halfOutput }: Call,
    limits: Limits,
    placeOf: (slot: number) => SlotPlace,
    orderOf: (sequence: number) => number
  ): Dispatches {
    const rawWindowsAt = requests.length;
    const { windows, rawWindows } = this.#drawWindows(requests, rawWindowsAt, placeOf);
    const perKvHead = layer.queryHeads / layer.kvHeads;
    const quads = quadsFor(
      requests.map(({ tokens }) => tokens * perKvHead),
      limits.quads
    );
    const tiles = requests.flatMap((request, n) => this.#tiles(layer, request, n, windows.get(request.table)!, QUAD * quads));
    const lengthOf = ({ from, end }: Range): number => end - from;
    const passes = tiles.reduce((sum, { pages, raws }) => raws.reduce((sum, piece) => sum + lengthOf(piece), sum + lengthOf(pages)), 0);
    // Each tile has at most one split of every piece more than its share.
    const shares = Math.floor(this.#partialsOf(layer, this.callTokens, this.#workgroups) / quads) - this.#pieces * tiles.length;
    const perSplit = Math.max(SPLIT_WINDOWS, Math.ceil(passes / Math.max(1, shares)));

    let firstToken = 0;
    requests.forEach(({ table, tokens, position }, n) => {
      putStruct(this.words, wordAt(n), 'Request', { firstToken, tokens, position, firstPage: windows.get(table)!.firstPage });
      firstToken += tokens;
    });
    const tilesAt = rawWindowsAt + rawWindows;
    const splitsAt = tilesAt + tiles.length;
    let splits = 0;
    tiles.forEach(({ request, firstRow, pages, raws }, tile) => {
      const firstSplit = splits;
      const add = ({ from, end }: Range, order: number): void => {
        for (let firstWindow = from; firstWindow < end; firstWindow += perSplit) {
          const endWindow = Math.min(firstWindow + perSplit, end);
          putStruct(this.words, wordAt(splitsAt + splits++), 'Split', { tile, firstWindow, endWindow, order });
        }
      };
      add(pages, orderOf(requests[request]!.table.sequence));
      for (const piece of raws) add(piece, RAW);
      putStruct(this.words, wordAt(tilesAt + tile), 'Tile', { request, firstRow, firstSplit, splits: splits - firstSplit });
    });
    putStruct(this.words, 0, 'Schedule', {
      scale: floatBits(scale * Math.LOG2E),
      splits,
      splitsAt,
      tiles: tiles.length,
      tilesAt,
      requestsAt: 0,
      rawWindowsAt,
      pagesAt: (this.pages - HEADER) / ENTRY,
      windowsAt: (this.windows - HEADER) / ENTRY,
      chunkGroups: limits.chunkGroups,
      pagesPerChunk: limits.pagesPerChunk,
      quads,
      sinks: this.#shape.sinks,
      slidingWindow: layer.window === Infinity ? 0 : layer.window,
      kept: layer.keepSinks ? this.#shape.sinks : 0,
      softcap: floatBits(layer.softcap * Math.LOG2E),
      slopesAt: limits.slopesAt,
      sinkLogitsAt: limits.sinkLogitsAt,
      headsFirst: Number(layout === 'heads-first'),
      halfQueries: Number(halfQueries),
      halfOutput: Number(halfOutput)
    });
    this.used = wordAt(splitsAt + splits);
    return { quads, splits, tiles: tiles.length };
  }

  /** Partial results of a quad for every chunk group and KV head: of the tokens of a call, and of workgroups besides. */
  #partialsOf({ queryHeads, kvHeads }: LayerShape, tokens: number, workgroups: number): number {
    return Math.ceil(this.#pieces * (1 + IDLE_ROWS) * tokens * Math.ceil(queryHeads / kvHeads / QUAD)) + Math.ceil(workgroups / kvHeads);
  }

  /** A request's tiles of so many rows. */
  #tiles(layer: LayerShape, { table, tokens, position }: Request, request: number, { firstRaw }: Windows, tileRows: number): Tile[] {
    const { sinks } = this.#shape;
    const perKvHead = layer.queryHeads / layer.kvHeads;
    const rows = tokens * perKvHead;
    return Array.from({ length: Math.ceil(rows / tileRows) }, (_, n) => {
      const firstRow = n * tileRows;
      // Positions that some row sees, and the windows that they are in.
      const begin = Math.max(0, position + Math.floor(firstRow / perKvHead) + 1 - layer.window);
      const end = position + Math.floor((Math.min(firstRow + tileRows, rows) - 1) / perKvHead) + 1;
      const [first, beyond] = [Math.floor((begin - sinks) / WINDOW), Math.ceil((end - sinks) / WINDOW)];
      const firstPage = pagesBefore(table, first);
      const pages = { from: firstPage, end: Math.max(firstPage, pagesBefore(table, beyond)) };
      const raw = (window: number): number => Math.max(0, Math.min(window - table.coded, table.rawCount));
      if (sinks === 0) return { request, firstRow, pages, raws: [{ from: firstRaw + raw(first), end: firstRaw + raw(beyond) }] };
      // Sinks are the first raw window.
      const raws = { from: firstRaw + 1 + raw(first), end: firstRaw + 1 + raw(beyond) };
      if (begin >= sinks && !layer.keepSinks) return { request, firstRow, pages, raws: [raws] };
      if (raws.from === firstRaw + 1) return { request, firstRow, pages, raws: [{ from: firstRaw, end: raws.end }] };
      return { request, firstRow, pages, raws: [{ from: firstRaw, end: firstRaw + 1 }, raws] };
    });
  }

  /** Pages, and raw windows from entry `at` on, of every sequence once, sinks first. */
  #drawWindows(
    requests: readonly Request[],
    at: number,
    placeOf: (slot: number) => SlotPlace
  ): { windows: Map<PageTable, Windows>; rawWindows: number } {
    const { sinks } = this.#shape;
    const windows = new Map<PageTable, Windows>();
    let rawWindows = 0;
    this.pageCount = 0;
    for (const { table } of requests) {
      if (windows.has(table)) continue;
      windows.set(table, { firstPage: this.pageCount, firstRaw: rawWindows });
      this.words.set(table.pages.subarray(0, table.pageCount), this.pages + this.pageCount);
      this.words.set(table.windows.subarray(0, table.pageCount), this.windows + this.pageCount);
      this.pageCount += table.pageCount;
      const add = (slot: number, position: number): void => {
        const { offset, chunk, capacity } = placeOf(slot);
        const tokens = Math.min(capacity, table.length - position);
        putStruct(this.words, wordAt(at + rawWindows++), 'RawWindow', { offset: offset / 4, chunk, tokens, position });
      };
      if (sinks > 0) add(table.sinkSlot, 0);
      for (let i = 0; i < table.rawCount; i++) add(table.raws[i]!, sinks + WINDOW * (table.coded + i));
    }
    return { windows, rawWindows };
  }
}

/** Quads of a row tile: as many as there are rows for. */
export function quadsFor(rows: readonly number[], most: number): number {
  const padded = (quads: number): number => quads * rows.reduce((sum, count) => sum + Math.ceil(count / (QUAD * quads)), 0);
  for (let quads = most; quads > 1; quads--) {
    if (padded(quads) <= (1 + IDLE_ROWS) * padded(1)) return quads;
  }
  return 1;
}

/** How many of a table's pages are of windows before one. */
function pagesBefore({ windows, pageCount }: PageTable, window: number): number {
  let [low, high] = [0, pageCount];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (windows[middle]! < window) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The first word of an entry. */
function wordAt(entry: number): number {
  return HEADER + ENTRY * entry;
}
