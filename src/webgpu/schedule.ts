// The schedule of an attend, which attend.wgsl and merge.wgsl read: which query rows attend to which windows, split over the context
// (split-KV) so that even one sequence fills a GPU. A Schedule struct, then entries of four words:
//
//   requests      one for each sequence of a call
//   raw windows   of every sequence once
//   tiles         rows of a request that share a workgroup; for merge
//   splits        windows of a tile, coded ones or raw ones; for attend
//   page numbers  four to an entry; at a fixed place, as most are those of the step before

import { BackendError, type PageTable } from '../backend.ts';
import { align, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import type { CacheShape } from '../shape.ts';
import { QUAD } from './programs.ts';
import { fieldsOf, putStruct } from './structs.ts';

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

/** What of a device a schedule is drawn for. */
export interface Limits {
  /** Quads that a workgroup of attend can hold. */
  readonly quads: number;
  readonly chunkGroups: number;
  readonly pagesPerChunk: number;
}

/** A sequence's windows: where its page numbers and its raw windows begin in their lists, and how many of these there are. */
interface Windows {
  readonly firstPage: number;
  readonly firstRaw: number;
  readonly raws: number;
}

export class Schedule {
  /** Query tokens of one call. */
  readonly callTokens: number;
  /** Partial results, for every chunk group and KV head. */
  readonly partials: number;
  readonly words: Uint32Array<ArrayBuffer>;
  /** Words in use: [0, used) and [pages, pages + pageNumbers). */
  used = 0;
  pageNumbers = 0;
  readonly pages: number;
  readonly #shape: CacheShape;

  /**
   * @param partialBytes  of one partial result, of all chunk groups and KV heads of any layer
   * @param limit         bytes of one buffer: as many splits as it holds, down to one token a call
   * @throws {BackendError} if it cannot hold the page numbers of every sequence
   */
  constructor(shape: CacheShape, partialBytes: number, limit: number) {
    const { layers, sequences } = shape;
    this.#shape = shape;
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    const quadsPerToken = most(({ queryHeads, kvHeads }) => Math.ceil(queryHeads / kvHeads / QUAD));
    const tokenBytes = most(({ queryHeads, headDim }) => 4 * queryHeads * headDim);
    let tokens = Math.max(CALL_TOKENS, sequences);
    let extra = Math.ceil(WORKGROUPS / Math.min(...layers.map(({ kvHeads }) => kvHeads)));
    // A coded and a raw split for every quad.
    const partials = (): number => Math.ceil(2 * (1 + IDLE_ROWS) * tokens * quadsPerToken) + extra;
    while (extra > 0 && partials() * partialBytes > limit) extra = Math.floor(extra / 2);
    while (tokens > 1 && Math.max(partials() * partialBytes, tokens * tokenBytes) > limit) tokens = Math.ceil(tokens / 2);
    this.callTokens = tokens;
    this.partials = partials();
    const rawWindows = shape.rawSlots + Math.min(shape.sinkSlots, tokens);
    this.pages = HEADER + ENTRY * (tokens + rawWindows + tokens * quadsPerToken + this.partials);
    const words = this.pages + align(sequences * shape.pagesPerLayer, ENTRY) + ENTRY;
    if (4 * words > limit)
      throw new BackendError('webgpu', `expected at most ${limit} bytes for schedule (the device's limit), got ${4 * words}`);
    this.words = new Uint32Array(words);
  }

  /**
   * Draws the schedule into `words`.
   *
   * @param rowsPerToken  query heads of a KV head
   * @param placeOf       where a raw slot lies
   * @param orderOf       where among the constants a sequence's order of channels lies
   */
  draw(
    requests: readonly Request[],
    rowsPerToken: number,
    scale: number,
    limits: Limits,
    placeOf: (slot: number) => SlotPlace,
    orderOf: (sequence: number) => number
  ): Dispatches {
    const rawWindowsAt = requests.length;
    const windows = this.#drawWindows(requests, rawWindowsAt, placeOf);
    let rawWindows = 0;
    for (const { raws } of windows.values()) rawWindows += raws;

    const rowsOf = ({ tokens }: Request): number => tokens * rowsPerToken;
    const quads = quadsFor(requests.map(rowsOf), limits.quads);
    const tileRows = QUAD * quads;
    const tilesOf = (request: Request): number => Math.ceil(rowsOf(request) / tileRows);
    const tiles = requests.reduce((sum, request) => sum + tilesOf(request), 0);
    const passes = requests.reduce(
      (sum, request) => sum + tilesOf(request) * (request.table.pageCount + windows.get(request.table)!.raws),
      0
    );
    // Each tile has at most one split of either kind more than its share.
    const perSplit = Math.max(SPLIT_WINDOWS, Math.ceil(passes / Math.max(1, Math.floor(this.partials / quads) - 2 * tiles)));

    const tilesAt = rawWindowsAt + rawWindows;
    const splitsAt = tilesAt + tiles;
    let firstToken = 0;
    let tile = 0;
    let splits = 0;
    requests.forEach((request, n) => {
      const { table, tokens, position } = request;
      const { firstPage, firstRaw, raws } = windows.get(table)!;
      putStruct(this.words, wordAt(n), 'Request', { firstToken, tokens, position, firstPage });
      firstToken += tokens;
      for (let firstRow = 0; firstRow < rowsOf(request); firstRow += tileRows) {
        const firstSplit = splits;
        const add = (from: number, end: number, order: number): void => {
          for (let firstWindow = from; firstWindow < end; firstWindow += perSplit) {
            const endWindow = Math.min(firstWindow + perSplit, end);
            putStruct(this.words, wordAt(splitsAt + splits++), 'Split', { tile, firstWindow, endWindow, order });
          }
        };
        add(0, table.pageCount, orderOf(table.sequence));
        add(firstRaw, firstRaw + raws, RAW);
        putStruct(this.words, wordAt(tilesAt + tile++), 'Tile', { request: n, firstRow, firstSplit, splits: splits - firstSplit });
      }
    });
    putStruct(this.words, 0, 'Schedule', {
      scale: bits(scale * Math.LOG2E),
      splits,
      splitsAt,
      tiles,
      tilesAt,
      requestsAt: 0,
      rawWindowsAt,
      pagesAt: (this.pages - HEADER) / ENTRY,
      chunkGroups: limits.chunkGroups,
      pagesPerChunk: limits.pagesPerChunk,
      quads,
      sinks: this.#shape.sinks
    });
    this.used = wordAt(splitsAt + splits);
    return { quads, splits, tiles };
  }

  /** Page numbers, and raw windows from entry `at` on, of every sequence once. */
  #drawWindows(requests: readonly Request[], at: number, placeOf: (slot: number) => SlotPlace): Map<PageTable, Windows> {
    const { sinks } = this.#shape;
    const windows = new Map<PageTable, Windows>();
    let raw = 0;
    this.pageNumbers = 0;
    for (const { table } of requests) {
      if (windows.has(table)) continue;
      const [firstPage, firstRaw] = [this.pageNumbers, raw];
      this.words.set(table.pages.subarray(0, table.pageCount), this.pages + firstPage);
      this.pageNumbers += table.pageCount;
      const add = (slot: number, position: number): void => {
        const { offset, chunk, capacity } = placeOf(slot);
        const tokens = Math.min(capacity, table.length - position);
        putStruct(this.words, wordAt(at + raw++), 'RawWindow', { offset: offset / 4, chunk, tokens, position });
      };
      if (sinks > 0) add(table.sinkSlot, 0);
      for (let i = 0; i < table.rawCount; i++) add(table.raws[i]!, sinks + WINDOW * (table.pageCount + i));
      windows.set(table, { firstPage, firstRaw, raws: raw - firstRaw });
    }
    return windows;
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

/** The first word of an entry. */
function wordAt(entry: number): number {
  return HEADER + ENTRY * entry;
}

function bits(x: number): number {
  return new Uint32Array(Float32Array.of(x).buffer)[0]!;
}
