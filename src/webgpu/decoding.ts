// Tokens of a cache on their way out: pages are decoded, raw slots read, both into rows of the type and order that are asked for.

import type { Piece, Tokens } from '../backend.ts';
import type { Data } from '../format/half.ts';
import { rawOffset, WINDOW } from '../format/layout.ts';
import { isF16, isGpuTarget, type Target } from '../input.ts';
import { eachRun, type Layout, type Rows, stridesOf } from '../rows.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import { groups, JOBS, type Jobs } from './jobs.ts';
import type { Memory } from './memory.ts';
import { tileTokens } from './programs.ts';
import type { Part, Range, ReadBack } from './readback.ts';
import type { Struct } from './structs.ts';

const SIDES = ['keys', 'values'] as const;

export class Decoding {
  readonly #shape: CacheShape;
  readonly #memory: Memory;
  readonly #jobs: Jobs;
  readonly #readBack: ReadBack;

  constructor(shape: CacheShape, memory: Memory, jobs: Jobs, readBack: ReadBack) {
    this.#shape = shape;
    this.#memory = memory;
    this.#jobs = jobs;
    this.#readBack = readBack;
  }

  /** All is queued before the first is awaited: tokens are those of the time of the call. */
  async read(layer: number, sequence: number, pieces: readonly Piece[], out: Tokens<Target, Target>, layout: Layout): Promise<void> {
    const { kvHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    const last = pieces.at(-1);
    const rows: Rows = { layout, tokens: last ? last.first + last.tokens : 0, heads: kvHeads };
    // A window each: what is decoded lies in one of the two buffers that tokens are staged in, what is made of it in the other.
    const room = this.#memory.stage(pieces.length * WINDOW, [kvHeads * headDim, kvHeads * valueDim]);
    const windows = Math.min(Math.floor(room / WINDOW), JOBS);
    const parts: Part[] = [];
    for (let n = 0; n < pieces.length; n += windows) {
      const some = pieces.slice(n, n + windows);
      for (const side of [0, 1] as const) {
        this.#extract(layer, sequence, some, side, layout, isF16(out[SIDES[side]]));
        parts.push(...this.#take(some, rows, side === 0 ? headDim : valueDim, out[SIDES[side]]));
      }
    }
    await this.#readBack.collect(parts);
  }

  /** Decodes a side of a sequence's pages, one after another. */
  decodePages(layer: number, numbers: readonly number[], sequence: number, side: 0 | 1, to: GPUBuffer): void {
    const { pages, programs, headWords, blocks } = this.#memory.layers[layer]!;
    const { kvHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    const { constants, offsets } = this.#memory;
    const decoded = (n: number): number => Number(to === this.#memory.staged[1].buffer) + 2 * n;
    // A chunk at a time: what lies between two of a chunk is decoded by the next dispatch.
    for (let first = 0; first < numbers.length; ) {
      const chunk = pages.chunkOf[numbers[first]!]!;
      let end = first;
      while (end < numbers.length && pages.chunkOf[numbers[end]!] === chunk) end++;
      const job = (page: number, n: number): Struct<'DecodeJob'> => ({
        block: pages.offsetOf[page]! / 4 + blocks[side],
        headWords,
        window: first + n,
        order: offsets.orderOf(layer, sequence)
      });
      this.#jobs.set('DecodeJob', numbers.slice(first, end).map(job));
      const bindings = this.#memory.bind('decode', [pages.chunks[chunk]!, constants, this.#jobs.list, to], layer, decoded(chunk));
      this.#jobs.run(programs.decode[side], bindings, kvHeads, WINDOW / tileTokens(side === 0 ? headDim : valueDim), end - first);
      first = end;
    }
  }

  /** A side of pieces into the second staging buffer, as an array of theirs alone. */
  #extract(layer: number, sequence: number, pieces: readonly Piece[], side: 0 | 1, layout: Layout, half: boolean): void {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    const { slots, staged, layers } = this.#memory;
    const [decoded, rows] = staged.map(({ buffer }) => buffer) as [GPUBuffer, GPUBuffer];
    const channels = side === 0 ? headDim : valueDim;
    const first = pieces[0]!.first;
    const tokens = pieces.reduce((sum, piece) => sum + piece.tokens, 0);
    const strides = stridesOf({ layout, tokens, heads: kvHeads });
    const run = (source: GPUBuffer, key: number, jobs: readonly Struct<'ExtractJob'>[]): void => {
      this.#jobs.set('ExtractJob', jobs);
      const bindings = this.#memory.bind('extract', [source, this.#jobs.list, rows], key);
      const most = Math.max(...jobs.map(job => job.tokens));
      this.#jobs.run(layers[layer]!.programs.extract[side], bindings, Math.ceil((most * channels) / 2 / 64), jobs.length, kvHeads);
    };
    const rowsOf = (piece: Piece): Pick<Struct<'ExtractJob'>, 'tokens' | 'row' | 'tokenRows' | 'headRows' | 'halfRows'> => ({
      tokens: piece.tokens,
      row: (piece.first - first) * strides.tokenRows,
      ...strides,
      halfRows: Number(half)
    });
    const coded = pieces.filter(piece => piece.coded);
    if (coded.length > 0) {
      const numbers = coded.map(({ number }) => number);
      this.decodePages(layer, numbers, sequence, side, decoded);
      const windowAt = (n: number, at: number): number => (n * WINDOW + at) * kvHeads * channels;
      const plain = { half: 0, tokenPairs: (kvHeads * channels) / 2, headPairs: channels / 2 };
      run(
        decoded,
        -1,
        coded.map((piece, n) => ({ begin: windowAt(n, piece.at), ...plain, ...rowsOf(piece) }))
      );
    }
    const raw = pieces.filter(piece => !piece.coded);
    for (const [chunk, , numbers] of groups(raw.length, n => [slots.chunkOf[raw[n]!.number]!, 0])) {
      const jobs = numbers.map(n => {
        const { number, at } = raw[n]!;
        const capacity = slotTokens(this.#shape, number);
        const begin = slots.offsetOf[number]! / 4 + rawOffset(heads, capacity, 0, side, at) / 2;
        return { begin, half: 1, tokenPairs: channels / 2, headPairs: (capacity * (headDim + valueDim)) / 2, ...rowsOf(raw[n]!) };
      });
      run(slots.chunks[chunk]!, chunk, jobs);
    }
  }

  /** What #extract left, into a GPUBuffer, or copied so that it can be read. */
  #take(pieces: readonly Piece[], rows: Rows, channels: number, out: Target): Part[] {
    const rowBytes = channels * (isF16(out) ? 2 : 4);
    const from = this.#memory.staged[1].buffer;
    const tokens = pieces.reduce((sum, piece) => sum + piece.tokens, 0);
    const ranges: Range[] = [];
    const runs: (readonly [row: number, count: number])[] = [];
    eachRun(rows, pieces[0]!.first, tokens, (row, partRow, count) => {
      ranges.push([from, partRow * rowBytes, count * rowBytes]);
      runs.push([row * rowBytes, count * rowBytes]);
    });
    if (!isGpuTarget(out)) {
      const data: Data = out;
      return [
        { read: this.#readBack.copy(ranges), into: runs.map(([at, bytes]) => new Uint8Array(data.buffer, data.byteOffset + at, bytes)) }
      ];
    }
    this.#readBack.copyInto(
      ranges,
      out.buffer as GPUBuffer,
      runs.map(([at]) => (out.offset ?? 0) + at)
    );
    return [];
  }
}
