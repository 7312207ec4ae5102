// The schedule of an attend, which attend.wgsl and merge.wgsl read: which query rows attend to which windows, split over the context
// (split-KV) so that even one sequence fills a GPU. A Schedule struct, then entries of four words:
//
//   chunk pairs   the splits of every dispatch of attend, which reads two chunks of pages and two of raw slots
//   requests      one for each sequence of a call
//   raw windows   of every sequence once, those of a pair of chunks together
//   tiles         rows of a request that share a workgroup; for merge
//   splits        windows of a tile that some row of it sees, coded ones or raw ones of a pair of chunks; for attend
//   pages         where they lie, four to an entry; at a fixed place, as most are those of the step before
//   windows       the numbers of their windows, likewise
//
// Coded windows are listed as raw ones are. The lists grow with the largest call since they were last emptied.

import type { PageTable } from '../backend.ts';
import { align, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import type { Layout } from '../rows.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import { checkLimit } from './chunks.ts';
import { QUAD } from './programs.ts';
import { fieldsOf, floatBits, putStruct, type Struct } from './structs.ts';

/** Query tokens of one call at most, unless there are more sequences; longer prompts take several calls. */
const CALL_TOKENS = 128;
/** Workgroups that a call is split into where there is work for them: a few for every core of a large GPU. */
const WORKGROUPS = 1024;
/** What the windows of a tile lie in at least: coded ones and raw ones, in a pair of chunks each. */
const PIECES = 2;
/** Windows of one workgroup at least, so that its two Hadamard transforms are paid back. */
const SPLIT_WINDOWS = 2;
/** Rows that may idle for the sake of looking a code up once for more rows, as a share of all. */
const IDLE_ROWS = 0.25;
/** In where something lies, besides its word: that this is of the second chunk of a pair. */
const SECOND = 2 ** 31;
/** What stands for the number of a window where the sinks are meant. */
const SINKS = -1;
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

/** Where pages or raw slots lie. */
export interface Places {
  readonly chunkOf: Uint32Array;
  /** Bytes from the beginning of the chunk. */
  readonly offsetOf: Float64Array;
}

/** What of a schedule is dispatched, for every KV head. */
export interface Dispatches {
  /** Quads of a row tile. */
  readonly quads: number;
  /** Workgroups of attend, by pair of chunks; and of merge. */
  readonly splits: readonly number[];
  readonly tiles: number;
  /** Bytes of partial results. */
  readonly partialBytes: number;
}

/** What of a layer on a device a schedule is drawn for. */
export interface Limits {
  /** Quads that a workgroup of attend can hold. */
  readonly quads: number;
  readonly pages: Places;
  readonly slots: Places;
  /** Word offsets in constants. */
  readonly slopesAt: number;
  readonly sinkLogitsAt: number;
}

/** Windows in one of the schedule's two lists, from one to before another, that lie in a pair of chunks. */
interface Stretch {
  readonly coded: boolean;
  readonly pair: number;
  readonly from: number;
  readonly end: number;
}

/** Rows that share a workgroup, and what some of them see. */
interface Tile {
  readonly request: number;
  readonly firstRow: number;
  readonly seen: readonly Stretch[];
}

export class Schedule {
  readonly chunkPairs: number;
  /** Query tokens of one call. */
  readonly callTokens: number;
  /** Bytes of partial results at most, of the layer where a call leaves most. */
  readonly partialBytes: number;
  /** Words at most. */
  readonly mostWords: number;
  /** A Schedule and the entries behind it up to `used`, then the two lists of coded windows, of which `pageCount` are. */
  front = new Uint32Array(HEADER);
  used = 0;
  pages = new Uint32Array();
  windows = new Uint32Array();
  pageCount = 0;
  readonly #shape: CacheShape;
  readonly #workgroups: number;
  /** Splits that a tile has at most besides its share of windows. */
  readonly #pieces: number;
  readonly #mostFront: number;
  readonly #mostPages: number;
  /** The numbers of raw windows in their list. */
  #raws: number[] = [];

  /**
   * @param chunkPairs  dispatches of attend at most
   * @param stretches   what a sequence's windows lie in at most, from PIECES on
   * @param limit       bytes of one buffer: as many splits as it holds, down to one token a call
   * @throws {BackendError} if it cannot hold what one token leaves, or what lies where of every sequence
   */
  constructor(shape: CacheShape, chunkPairs: number, stretches: number, limit: number) {
    const { layers, sequences } = shape;
    this.#shape = shape;
    this.chunkPairs = chunkPairs;
    this.#pieces = stretches + Number(layers.some(({ keepSinks }) => keepSinks));
    const most = (of: (layer: LayerShape) => number): number => Math.max(...layers.map(of));
    const quadsPerToken = most(({ queryHeads, kvHeads }) => Math.ceil(queryHeads / kvHeads / QUAD));
    const rowBytes = 4 * most(({ queryHeads, headDim, valueDim }) => queryHeads * Math.max(headDim, valueDim));
    let tokens = Math.max(CALL_TOKENS, sequences);
    let workgroups = WORKGROUPS;
    while (tokens > 1 && tokens * rowBytes > limit) tokens = Math.ceil(tokens / 2);
    const partials = (of: (layer: LayerShape) => number): number =>
      most(layer => this.#partialsOf(layer, this.#pieces, tokens, workgroups) * of(layer));
    const rawWindows = (): number => shape.rawSlots + Math.min(shape.sinkSlots, tokens);
    const front = (): number => HEADER + ENTRY * (chunkPairs + tokens + rawWindows() + tokens * quadsPerToken + partials(() => 1));
    this.#mostPages = align(sequences * Math.max(...shape.pageCounts), ENTRY);
    const words = (): number => front() + 2 * this.#mostPages;
    while (Math.max(partials(partialBytes), 4 * words()) > limit && (tokens > 1 || workgroups > 0)) {
      // Tokens that fill all workgroups by themselves come first: a call of fewer is no slower.
      if (tokens > 1 && (workgroups === 0 || this.#pieces * tokens * quadsPerToken > workgroups)) tokens = Math.ceil(tokens / 2);
      else workgroups = Math.floor(workgroups / 2);
    }
    this.callTokens = tokens;
    this.#workgroups = workgroups;
    this.partialBytes = partials(partialBytes);
    this.#mostFront = front();
    this.mostWords = words();
    checkLimit('partials', this.partialBytes, limit);
    checkLimit('schedule', 4 * this.mostWords, limit);
  }

  /** Words now. */
  get length(): number {
    return this.front.length + 2 * this.pages.length;
  }

  /** Makes the lists anew, as long as the next call needs. */
  clear(): void {
    this.front = new Uint32Array(HEADER);
    this.pages = new Uint32Array();
    this.windows = new Uint32Array();
  }

  /**
   * Draws the schedule of a call.
   *
   * @param orderOf  where among the constants a sequence's order of channels lies
   */
  draw(
    layer: LayerShape,
    requests: readonly Request[],
    { scale, layout, halfQueries, halfOutput }: Call,
    limits: Limits,
    orderOf: (sequence: number) => number
  ): Dispatches {
    const tables = new Set(requests.map(({ table }) => table));
    const coded = [...tables].reduce((sum, { pageCount }) => sum + pageCount, 0);
    if (coded > this.pages.length) {
      const words = Math.min(align(2 ** Math.ceil(Math.log2(coded)), ENTRY), this.#mostPages);
      this.pages = new Uint32Array(words);
      this.windows = new Uint32Array(words);
    }
    this.pageCount = 0;
    this.#raws = [];
    const rawWindows: Struct<'RawWindow'>[] = [];
    const stretches = new Map(
      Array.from(tables, table => [table, [...this.#listPages(table, limits.pages), ...this.#listRaws(table, limits.slots, rawWindows)]])
    );

    const perKvHead = layer.queryHeads / layer.kvHeads;
    const quads = quadsFor(
      requests.map(({ tokens }) => tokens * perKvHead),
      limits.quads
    );
    const tiles = requests.flatMap((request, n) => this.#tiles(layer, request, n, stretches.get(request.table)!, QUAD * quads));
    const passes = tiles.reduce((sum, { seen }) => seen.reduce((sum, { from, end }) => sum + end - from, sum), 0);
    // Each tile has at most one split of every piece more than its share, for which there is room besides.
    const shares = Math.floor(this.#partialsOf(layer, PIECES, this.callTokens, this.#workgroups) / quads) - PIECES * tiles.length;
    const perSplit = Math.max(SPLIT_WINDOWS, Math.ceil(passes / Math.max(1, shares)));

    /** By pair of chunks. */
    const splits = Array.from({ length: this.chunkPairs }, () => ({ coded: [] as Struct<'Split'>[], raw: [] as Struct<'Split'>[] }));
    let parts = 0;
    const tileStructs = tiles.map(({ request, firstRow, seen }, tile): Struct<'Tile'> => {
      const firstPart = parts;
      for (const { coded, pair, from, end } of seen) {
        for (let firstWindow = from; firstWindow < end; firstWindow += perSplit) {
          const endWindow = Math.min(firstWindow + perSplit, end);
          splits[pair]![coded ? 'coded' : 'raw'].push({ tile, firstWindow, endWindow, part: parts++ });
        }
      }
      return { request, firstRow, firstPart, parts: parts - firstPart };
    });

    const requestsAt = this.chunkPairs;
    const rawWindowsAt = requestsAt + requests.length;
    const tilesAt = rawWindowsAt + rawWindows.length;
    const splitsAt = tilesAt + tiles.length;
    this.used = wordAt(splitsAt + parts);
    if (this.used > this.front.length) {
      const words = Math.min(2 ** Math.ceil(Math.log2(this.used)), this.#mostFront);
      this.front = new Uint32Array(words);
    }
    const put = <Name extends 'ChunkPair' | 'Request' | 'RawWindow' | 'Tile' | 'Split'>(name: Name, at: number, of: Struct<Name>[]): void =>
      of.forEach((fields, n) => {
        putStruct(this.front, wordAt(at + n), name, fields);
      });
    let firstSplit = 0;
    splits.forEach(({ coded, raw }, pair) => {
      put('ChunkPair', pair, [{ firstSplit, coded: coded.length, splits: coded.length + raw.length }]);
      put('Split', splitsAt + firstSplit, coded);
      put('Split', splitsAt + firstSplit + coded.length, raw);
      firstSplit += coded.length + raw.length;
    });
    let firstToken = 0;
    requests.forEach(({ table, tokens, position }, n) => {
      put('Request', requestsAt + n, [{ firstToken, tokens, position, order: orderOf(table.sequence) }]);
      firstToken += tokens;
    });
    put('RawWindow', rawWindowsAt, rawWindows);
    put('Tile', tilesAt, tileStructs);
    const pagesAt = (this.front.length - HEADER) / ENTRY;
    putStruct(this.front, 0, 'Schedule', {
      scale: floatBits(scale * Math.LOG2E),
      splitsAt,
      tiles: tiles.length,
      tilesAt,
      requestsAt,
      rawWindowsAt,
      pagesAt,
      windowsAt: pagesAt + this.pages.length / ENTRY,
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
    return {
      quads,
      splits: splits.map(({ coded, raw }) => coded.length + raw.length),
      tiles: tiles.length,
      partialBytes: parts * quads * partialBytes(layer)
    };
  }

  /** Partial results of a quad for every KV head: of the tokens of a call, and of workgroups besides. */
  #partialsOf({ queryHeads, kvHeads }: LayerShape, pieces: number, tokens: number, workgroups: number): number {
    return Math.ceil(pieces * (1 + IDLE_ROWS) * tokens * Math.ceil(queryHeads / kvHeads / QUAD)) + Math.ceil(workgroups / kvHeads);
  }

  /** A request's tiles of so many rows. */
  #tiles(layer: LayerShape, { tokens, position }: Request, request: number, stretches: readonly Stretch[], tileRows: number): Tile[] {
    const { sinks } = this.#shape;
    const perKvHead = layer.queryHeads / layer.kvHeads;
    const rows = tokens * perKvHead;
    return Array.from({ length: Math.ceil(rows / tileRows) }, (_, n) => {
      const firstRow = n * tileRows;
      // Positions that some row sees, and the windows that they are in.
      const begin = Math.max(0, position + Math.floor(firstRow / perKvHead) + 1 - layer.window);
      const end = position + Math.floor((Math.min(firstRow + tileRows, rows) - 1) / perKvHead) + 1;
      const [first, beyond] = [Math.floor((begin - sinks) / WINDOW), Math.ceil((end - sinks) / WINDOW)];
      const seen = stretches.flatMap(stretch => {
        const list = stretch.coded ? this.windows : this.#raws;
        const from = lowerBound(list, stretch.from, stretch.end, first);
        const range = { ...stretch, from, end: lowerBound(list, from, stretch.end, beyond) };
        if (!layer.keepSinks || from === stretch.from || list[stretch.from] !== SINKS) return range;
        // Sinks are seen though what is behind them is not.
        if (from === stretch.from + 1) return { ...range, from: stretch.from };
        return [{ ...stretch, end: stretch.from + 1 }, range];
      });
      return { request, firstRow, seen };
    });
  }

  /** Lists a table's coded windows, those of a pair of chunks together. */
  #listPages({ pages, windows, pageCount }: PageTable, { chunkOf, offsetOf }: Places): Stretch[] {
    const next = new Uint32Array(this.chunkPairs);
    for (let n = 0; n < pageCount; n++) next[chunkOf[pages[n]!]! >> 1]!++;
    const stretches = Array.from(next, (count, pair): Stretch => {
      const from = this.pageCount;
      this.pageCount += count;
      next[pair] = from;
      return { coded: true, pair, from, end: this.pageCount };
    });
    for (let n = 0; n < pageCount; n++) {
      const page = pages[n]!;
      const chunk = chunkOf[page]!;
      const at = next[chunk >> 1]!++;
      this.pages[at] = offsetOf[page]! / 4 + (chunk & 1) * SECOND;
      this.windows[at] = windows[n]!;
    }
    return stretches.filter(({ from, end }) => from < end);
  }

  /** Adds a table's sinks and raw windows to the list of these, likewise. */
  #listRaws(table: PageTable, { chunkOf, offsetOf }: Places, list: Struct<'RawWindow'>[]): Stretch[] {
    const { sinks } = this.#shape;
    const raws = Array.from(table.raws.subarray(0, table.rawCount), (slot, n) => ({ slot, window: table.coded + n }));
    if (sinks > 0) raws.unshift({ slot: table.sinkSlot, window: SINKS });
    const pairOf = (slot: number): number => chunkOf[slot]! >> 1;
    raws.sort((a, b) => pairOf(a.slot) - pairOf(b.slot));
    const stretches: Stretch[] = [];
    for (const { slot, window } of raws) {
      const position = window === SINKS ? 0 : sinks + WINDOW * window;
      const tokens = Math.min(slotTokens(this.#shape, slot), table.length - position);
      const last = stretches.at(-1);
      if (last?.pair === pairOf(slot)) stretches[stretches.length - 1] = { ...last, end: last.end + 1 };
      else stretches.push({ coded: false, pair: pairOf(slot), from: list.length, end: list.length + 1 });
      list.push({ place: offsetOf[slot]! / 4 + (chunkOf[slot]! & 1) * SECOND, tokens, position });
      this.#raws.push(window);
    }
    return stretches;
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

/** Bytes of a partial result of a quad for every KV head. */
function partialBytes({ kvHeads, valueDim }: LayerShape): number {
  return 16 * (2 + valueDim) * kvHeads;
}

/** The first of ascending numbers, from one to before another, that is not below a limit. */
function lowerBound(numbers: ArrayLike<number>, from: number, end: number, limit: number): number {
  let [low, high] = [from, end];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle]! < limit) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The first word of an entry. */
function wordAt(entry: number): number {
  return HEADER + ENTRY * entry;
}
