// Attention of a cache's queries: what one dispatch holds of them at a time, and its results into arrays or GPUBuffers.

import type { Output, PageTable } from '../backend.ts';
import type { Data } from '../format/half.ts';
import { type Input, isF16, isGpuTarget, type Target, tokensOf } from '../input.ts';
import { eachRun, type Layout } from '../rows.ts';
import type { CacheShape } from '../shape.ts';
import { type Device, dispatch } from './device.ts';
import type { Layer, Memory } from './memory.ts';
import type { Part, Range, ReadBack } from './readback.ts';
import type { Call, Request } from './schedule.ts';
import { type Copy, stage } from './staging.ts';

/** Rows of results that lie together, in what is asked for and in the output of a dispatch. */
interface RowRun {
  readonly row: number;
  readonly partRow: number;
  readonly count: number;
}

/** Adds a run, to the last where it goes on from there. */
function addRun(runs: RowRun[], run: RowRun): void {
  const last = runs.at(-1);
  if (last && last.row + last.count === run.row && last.partRow + last.count === run.partRow) {
    runs[runs.length - 1] = { ...last, count: last.count + run.count };
  } else runs.push(run);
}

export class Attending {
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #memory: Memory;
  readonly #readBack: ReadBack;

  constructor(device: Device, shape: CacheShape, memory: Memory, readBack: ReadBack) {
    this.#device = device;
    this.#shape = shape;
    this.#memory = memory;
    this.#readBack = readBack;
  }

  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly Input[],
    layout: Layout,
    scale: number,
    out: Target,
    lse?: Target
  ): Output<Data> {
    const { queryHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    const { schedule } = this.#memory;
    const all = queries.reduce((sum, query) => sum + tokensOf(query, queryHeads * headDim), 0);
    const rooms = [this.#memory.queries, this.#memory.output, this.#memory.lse] as const;
    const callRows = Math.min(all, schedule.callTokens) * queryHeads;
    this.#memory.enlarge([rooms[0], 4 * callRows * headDim], [rooms[1], 4 * callRows * valueDim], [rooms[2], 4 * callRows]);
    const [staged, output, lseBuffer] = rooms.map(({ buffer }) => buffer) as [GPUBuffer, GPUBuffer, GPUBuffer];
    const results = [
      { from: output, to: out, rowBytes: valueDim * (isF16(out) ? 2 : 4) },
      ...(lse ? [{ from: lseBuffer, to: lse, rowBytes: 4 }] : [])
    ];
    const parts: Part[] = [];
    let requests: Request[] = [];
    let copies: Copy[] = [];
    let runs: RowRun[] = [];
    let used = 0; // tokens
    let halfQueries = false;
    const flush = (): void => {
      const call = { scale, layout, halfQueries, halfOutput: isF16(out) };
      this.#dispatchAttend(layer, requests, call, copies, encoder => {
        const ranges: Range[] = [];
        const into: Uint8Array[] = [];
        for (const { from, to, rowBytes } of results) {
          for (const { row, partRow, count } of runs) {
            if (isGpuTarget(to)) {
              const at = (to.offset ?? 0) + row * rowBytes;
              encoder.copyBufferToBuffer(from, partRow * rowBytes, to.buffer as GPUBuffer, at, count * rowBytes);
            } else {
              ranges.push([from, partRow * rowBytes, count * rowBytes]);
              into.push(new Uint8Array(to.buffer, to.byteOffset + row * rowBytes, count * rowBytes));
            }
          }
        }
        if (ranges.length > 0) parts.push({ read: this.#readBack.record(encoder, ranges), into });
      });
      used = 0;
      requests = [];
      copies = [];
      runs = [];
    };
    let done = 0; // rows of the sequences before
    tables.forEach((table, n) => {
      const query = queries[n]!;
      const rows = { layout, tokens: tokensOf(query, queryHeads * headDim), heads: queryHeads };
      if (used > 0 && isF16(query) !== halfQueries) flush();
      halfQueries = isF16(query);
      for (let from = 0; from < rows.tokens; ) {
        const count = Math.min(rows.tokens - from, schedule.callTokens - used);
        const firstRow = used * queryHeads;
        const place = { buffer: staged, offset: firstRow * headDim * (halfQueries ? 2 : 4) };
        stage(this.#device.gpu.queue, query, rows, headDim, from, count, place, copies);
        eachRun(rows, from, count, (row, partRow, length) => addRun(runs, { row: done + row, partRow: firstRow + partRow, count: length }));
        requests.push({ table, tokens: count, position: table.length - rows.tokens + from });
        from += count;
        used += count;
        if (used === schedule.callTokens) flush();
      }
      done += rows.tokens * queryHeads;
    });
    if (used > 0) flush();
    if (!isGpuTarget(out)) return this.#readBack.output(parts, out);
    const range: Range = [out.buffer as GPUBuffer, out.offset ?? 0, done * results[0]!.rowBytes];
    return this.#readBack.output(parts, { range, half: isF16(out) });
  }

  /** One dispatch of attend for every pair of chunks that holds something of it, and one of merge. */
  #dispatchAttend(
    layer: number,
    requests: readonly Request[],
    call: Call,
    copies: readonly Copy[],
    finish: (encoder: GPUCommandEncoder) => void
  ): void {
    const shape = this.#shape.layers[layer]!;
    const { kvHeads } = shape;
    const memory = this.#memory;
    const { schedule, offsets, constants, params, queries, output, lse, partials, slots } = memory;
    const at = memory.layers[layer]!;
    const { programs, limits, pages } = at;
    const { quads, splits, tiles, partialBytes } = schedule.draw(shape, requests, call, limits, n => offsets.orderOf(layer, n));
    memory.enlarge([partials, partialBytes], [at.schedule, 4 * schedule.length]);
    const { buffer } = at.schedule;
    if (at.sent?.buffer !== buffer) at.sent = { buffer, words: new Uint32Array(buffer.size / 4) };
    // Pages change once in 64 tokens: only what differs is sent, the front, places of pages and numbers of windows apart.
    const { front, used, pages: places, windows, pageCount } = schedule;
    this.#send(at.sent, front, used, 0);
    this.#send(at.sent, places, pageCount, front.length);
    this.#send(at.sent, windows, pageCount, front.length + places.length);
    this.#device.submit(encoder => {
      for (const copy of copies) copy(encoder);
      const pass = encoder.beginComputePass({ label: 'attend' });
      pass.setPipeline(this.#device.pipeline(programs.attend[quads - 1]!));
      splits.forEach((count, pair) => {
        if (count === 0) return;
        const chunks = [...memory.chunkPair(pages, pair), ...memory.chunkPair(slots, pair)];
        const buffers = [...chunks, constants, buffer, queries.buffer, partials.buffer, params[pair]!];
        pass.setBindGroup(0, memory.bind('attend', buffers, layer, pair));
        dispatch(pass, count, kvHeads);
      });
      pass.setPipeline(this.#device.pipeline(programs.merge));
      pass.setBindGroup(0, memory.bind('merge', [buffer, partials.buffer, constants, output.buffer, lse.buffer], layer));
      dispatch(pass, tiles, kvHeads);
      pass.end();
      finish(encoder);
    });
  }

  /** The first words of one of a schedule's lists into a buffer, from word `at` on, but those that it holds. */
  #send({ buffer, words: sent }: NonNullable<Layer['sent']>, words: Uint32Array, count: number, at: number): void {
    let [from, to] = [0, count];
    while (from < to && words[from] === sent[at + from]) from++;
    while (to > from && words[to - 1] === sent[at + to - 1]) to--;
    if (from === to) return;
    sent.set(words.subarray(from, to), at + from);
    this.#device.gpu.queue.writeBuffer(buffer, 4 * (at + from), sent, at + from, to - from);
  }
}
