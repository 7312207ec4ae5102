// The list of work that attend.wgsl and merge.wgsl read: which query rows attend to which windows, split over the context so
// that even one sequence fills a GPU. Four words to an entry:
//
//   header         scale · log₂ e as f32, spans, where spans and items begin · blocks, where blocks, raw windows and page numbers
//                  begin · chunk groups, pages per chunk, blocks of four rows in a workgroup, 0
//   items          first token of queries, tokens, position of the first, first page number; one for each sequence of a call
//   raw windows    word offset in its chunk, chunk, capacity · 65536 + tokens, position of the first
//   blocks         item, first row, first span, spans; for merge
//   spans          item, first row, from window, to window + 2³¹ if they are coded; for attend
//   page numbers   four to an entry; at a fixed place, as most are those of the step before

import type { PageTable } from '../backend.ts';
import { WINDOW } from '../format/layout.ts';
import type { CacheShape } from '../shape.ts';
import { ROWS } from './programs.ts';

/** Query tokens of one call at most, unless there are more sequences; longer prompts take several calls. */
const CALL_TOKENS = 128;
/** Workgroups that a call is split into where there is work for them: a few for every core of a large GPU. */
const WORKGROUPS = 1024;
/** Windows of one workgroup at least, so that its two Hadamard transforms are paid back. */
const SPAN_WINDOWS = 2;
/** Rows that may idle for the sake of looking a code up once for more rows, as a share of all. */
const IDLE_ROWS = 0.25;
const HEADER = 3;

/** Query tokens of one sequence. */
export interface Item {
  readonly table: PageTable;
  readonly tokens: number;
  /** Of the first of them. */
  readonly position: number;
}

export interface RawWindow {
  readonly offset: number;
  readonly chunk: number;
  readonly capacity: number;
}

/** How an attend is launched. */
export interface Launch {
  /** Blocks of four rows in a workgroup. */
  readonly blocks: number;
  /** Workgroups of attend, and of merge, for every KV head. */
  readonly attendGroups: number;
  readonly mergeGroups: number;
}

export class Work {
  /** Query tokens of one call. */
  readonly callTokens: number;
  /** Entries of partial results, for every chunk group and KV head. */
  readonly slots: number;
  readonly words: Uint32Array<ArrayBuffer>;
  /** Words in use: [0, used) and [pages, pages + numbers). */
  used = 0;
  numbers = 0;
  readonly pages: number;
  readonly #shape: CacheShape;
  readonly #group: number;

  /**
   * @param slotBytes  of one entry of partial results
   * @param limit      bytes of one buffer: as many spans as it holds, down to one token a call
   */
  constructor(shape: CacheShape, slotBytes: number, limit: number) {
    const { headDim, kvHeads, queryHeads, sequences } = shape;
    this.#shape = shape;
    this.#group = queryHeads / kvHeads;
    const perToken = Math.ceil(this.#group / ROWS);
    let tokens = Math.max(CALL_TOKENS, sequences);
    let extra = Math.ceil(WORKGROUPS / kvHeads);
    // A coded and a raw span for every block.
    const slots = (): number => Math.ceil(2 * (1 + IDLE_ROWS) * tokens * perToken) + extra;
    while (extra > 0 && slots() * slotBytes > limit) extra = Math.floor(extra / 2);
    while (tokens > 1 && Math.max(slots() * slotBytes, 4 * tokens * queryHeads * headDim) > limit) tokens = Math.ceil(tokens / 2);
    this.callTokens = tokens;
    this.slots = slots();
    this.pages = 4 * (HEADER + tokens + shape.rawPages + Math.min(shape.sinkSlots, tokens) + tokens * perToken + this.slots);
    this.words = new Uint32Array(this.pages + Math.ceil((sequences * shape.pagesPerLayer) / 4) * 4 + 4);
  }

  /**
   * Writes the list into `words`.
   *
   * @param mostBlocks   of four rows that one workgroup of attend can hold
   * @param rawWindowOf  where a raw place lies
   */
  plan(
    items: readonly Item[],
    scale: number,
    mostBlocks: number,
    chunkGroups: number,
    pagesPerChunk: number,
    rawWindowOf: (place: number) => RawWindow
  ): Launch {
    const { sinks } = this.#shape;
    const { words } = this;
    const rawsAt = HEADER + items.length;
    let raws = 0;
    this.numbers = 0;
    const lists = new Map<PageTable, { page: number; raw: number; raws: number }>();
    for (const { table } of items) {
      if (lists.has(table)) continue;
      const list = { page: this.numbers, raw: raws, raws: 0 };
      lists.set(table, list);
      words.set(table.pages.subarray(0, table.pageCount), this.pages + this.numbers);
      this.numbers += table.pageCount;
      const addRaw = (place: number, position: number): void => {
        const { offset, chunk, capacity } = rawWindowOf(place);
        this.#entry(rawsAt + raws++, offset / 4, chunk, capacity * 65536 + Math.min(capacity, table.length - position), position);
      };
      if (sinks > 0) addRaw(table.sinkSlot, 0);
      for (let i = 0; i < table.rawCount; i++) addRaw(table.raws[i]!, sinks + WINDOW * (table.pageCount + i));
      list.raws = raws - list.raw;
    }

    const blocks = blocksFor(
      items.map(item => item.tokens * this.#group),
      mostBlocks
    );
    const rows = ROWS * blocks;
    const workgroups = items.reduce((sum, { tokens }) => sum + Math.ceil((tokens * this.#group) / rows), 0);
    const windows = items.reduce(
      (sum, { table, tokens }) => sum + Math.ceil((tokens * this.#group) / rows) * (table.pageCount + lists.get(table)!.raws),
      0
    );
    // Each workgroup's rows have at most one span of either kind more than their share.
    const perSpan = Math.max(SPAN_WINDOWS, Math.ceil(windows / Math.max(1, Math.floor(this.slots / blocks) - 2 * workgroups)));

    const blocksAt = rawsAt + raws;
    const spansAt = blocksAt + workgroups;
    let tokens = 0;
    let spans = 0;
    let merges = 0;
    items.forEach(({ table, tokens: count, position }, item) => {
      const list = lists.get(table)!;
      this.#entry(HEADER + item, tokens, count, position, list.page);
      tokens += count;
      for (let row = 0; row < count * this.#group; row += rows) {
        const first = spans;
        const add = (from: number, to: number, coded: number): void => {
          for (; from < to; from += perSpan)
            this.#entry(spansAt + spans++, item, row, from, Math.min(from + perSpan, to) + coded * 2 ** 31);
        };
        add(0, table.pageCount, 1);
        add(list.raw, list.raw + list.raws, 0);
        this.#entry(blocksAt + merges++, item, row, first, spans - first);
      }
    });
    this.#entry(0, bits(scale * Math.LOG2E), spans, spansAt, HEADER);
    this.#entry(1, merges, blocksAt, rawsAt, this.pages / 4);
    this.#entry(2, chunkGroups, pagesPerChunk, blocks, 0);
    this.used = 4 * (spansAt + spans);
    return { blocks, attendGroups: spans, mergeGroups: merges };
  }

  #entry(n: number, x: number, y: number, z: number, w: number): void {
    const { words } = this;
    words[4 * n] = x;
    words[4 * n + 1] = y;
    words[4 * n + 2] = z;
    words[4 * n + 3] = w;
  }
}

/** Blocks of four rows in a workgroup: as many as there are rows for. */
export function blocksFor(rows: readonly number[], most: number): number {
  const padded = (blocks: number): number => blocks * rows.reduce((sum, count) => sum + Math.ceil(count / (ROWS * blocks)), 0);
  for (let blocks = most; blocks > 1; blocks--) {
    if (padded(blocks) <= (1 + IDLE_ROWS) * padded(1)) return blocks;
  }
  return 1;
}

function bits(x: number): number {
  return new Uint32Array(Float32Array.of(x).buffer)[0]!;
}
