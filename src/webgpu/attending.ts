// Attention of a cache's queries: what one dispatch holds of them at a time, and its results into arrays or GPUBuffers.

import type { Output, PageTable } from '../backend.ts';
import type { Data } from '../format/half.ts';
import { type Input, isF16, isGpuTarget, type Target, tokensOf } from '../input.ts';
import { eachRun, type Layout } from '../rows.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import { type Device, dispatch } from './device.ts';
import type { Layer, Memory } from './memory.ts';
import type { Part, Range, ReadBack } from './readback.ts';
import type { Call, Request, SlotPlace } from './schedule.ts';
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
  readonly #placeOf: (slot: number) => SlotPlace;

  constructor(device: Device, shape: CacheShape, memory: Memory, readBack: ReadBack) {
    this.#device = device;
    this.#shape = shape;
    this.#memory = memory;
    this.#readBack = readBack;
    const { slots } = memory;
    this.#placeOf = slot => ({ chunk: slots.chunkOf[slot]!, offset: slots.offsetOf[slot]!, capacity: slotTokens(shape, slot) });
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
    const { queries: staged, schedule, output, lse: lseBuffer } = this.#memory;
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

  /** One dispatch of attend for every pair of chunks, and one of merge. */
  #dispatchAttend(
    layer: number,
    requests: readonly Request[],
    call: Call,
    copies: readonly Copy[],
    finish: (encoder: GPUCommandEncoder) => void
  ): void {
    const shape = this.#shape.layers[layer]!;
    const { kvHeads } = shape;
    const { schedule, offsets } = this.#memory;
    const at = this.#memory.layers[layer]!;
    const { programs, attend, merge, limits } = at;
    const orderOf = (sequence: number): number => offsets.orderOf(layer, sequence);
    const { quads, splits, tiles } = schedule.draw(shape, requests, call, limits, this.#placeOf, orderOf);
    // Pages change once in 64 tokens: only what differs is sent, the front, page numbers and window numbers apart.
    this.#send(at, schedule.words, 0, schedule.used);
    this.#send(at, schedule.words, schedule.pages, schedule.pages + schedule.pageCount);
    this.#send(at, schedule.words, schedule.windows, schedule.windows + schedule.pageCount);
    this.#device.submit(encoder => {
      for (const copy of copies) copy(encoder);
      const pass = encoder.beginComputePass({ label: 'attend' });
      pass.setPipeline(this.#device.pipeline(programs.attend[quads - 1]!));
      for (const bindings of attend) {
        pass.setBindGroup(0, bindings);
        dispatch(pass, splits, kvHeads);
      }
      pass.setPipeline(this.#device.pipeline(programs.merge));
      pass.setBindGroup(0, merge);
      dispatch(pass, tiles, kvHeads);
      pass.end();
      finish(encoder);
    });
  }

  /** Words of a schedule, from `from` to `to`, into a layer's buffer, but those that it holds. */
  #send({ schedule, sent }: Layer, words: Uint32Array, from: number, to: number): void {
    while (from < to && words[from] === sent[from]) from++;
    while (to > from && words[to - 1] === sent[to - 1]) to--;
    if (from === to) return;
    sent.set(words.subarray(from, to), from);
    this.#device.gpu.queue.writeBuffer(schedule, 4 * from, sent, from, to - from);
  }
}
