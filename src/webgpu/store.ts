// The GPU backend: a store in GPUBuffers, kernels of shaders/. Every verb is queued when its call returns; only reading waits.

import {
  type Backend,
  backendOf,
  type Dump,
  type Needs,
  type Output,
  type PageTable,
  type Piece,
  type Store,
  type Tokens,
  type Write
} from '../backend.ts';
import type { Data } from '../format/half.ts';
import { rawOffset, WINDOW } from '../format/layout.ts';
import type { Input, Target } from '../input.ts';
import type { LayerShape } from '../layer.ts';
import type { Layout } from '../rows.ts';
import type { CacheShape } from '../shape.ts';
import type { Found } from './adapter.ts';
import { Attending } from './attending.ts';
import { Constants } from './constants.ts';
import { Decoding } from './decoding.ts';
import { Device, type Program } from './device.ts';
import { groups, Jobs } from './jobs.ts';
import { Learning } from './learning.ts';
import { Memory, type PerToken } from './memory.ts';
import { layerPrograms } from './programs.ts';
import { type Range, ReadBack } from './readback.ts';
import { quadsFor } from './schedule.ts';
import { type Copy, decodedWindow, type SlotJob, Staging } from './staging.ts';

/** A backend on a device. Does not test it: open.ts does, before anyone sees it. */
export function webGpuBackend({ device: gpu, description, own }: Found, reason: string): Backend {
  const device = new Device(gpu);
  const prepare = async (shape: CacheShape): Promise<void> => {
    const constants = new Constants(shape);
    const layers = shape.layers.map(layer => layerPrograms(layer, constants));
    // Of attend's forms those for one token and for a long prompt.
    const forms = (attend: readonly Program[], { queryHeads, kvHeads }: LayerShape): Program[] =>
      [...new Set([quadsFor([queryHeads / kvHeads], attend.length), attend.length])].map(quads => attend[quads - 1]!);
    await device.prepare(
      layers.flatMap(({ write, merge, encode, decode, extract, attend, learning = {} }, layer) => {
        return [write, merge, ...encode, ...decode, ...extract, ...forms(attend, shape.layers[layer]!), ...Object.values(learning)];
      })
    );
  };
  return backendOf(
    {
      name: 'webgpu',
      variant: 'baseline',
      reason: `${reason}; adapter ${description}`,
      createStore: shape => new WebGpuStore(device, shape),
      prepare
    },
    () => device.release(own)
  );
}

class WebGpuStore implements Store {
  readonly takesBuffers = true;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #memory: Memory;
  readonly #readBack: ReadBack;
  readonly #jobs: Jobs;
  readonly #learning: Learning;
  readonly #attending: Attending;
  readonly #decoding: Decoding;
  readonly #staging: Staging;

  constructor(device: Device, shape: CacheShape) {
    if (device.lost) throw device.lost;
    this.#device = device;
    this.#shape = shape;
    const readBack = new ReadBack(device);
    const memory = Memory.take(device, shape, (message, error) => readBack.refuse(message, error));
    this.#memory = memory;
    this.#readBack = readBack;
    this.#jobs = new Jobs(device, memory.jobs);
    this.#learning = new Learning(device, shape, memory, this.#jobs);
    this.#attending = new Attending(device, shape, memory, readBack);
    this.#decoding = new Decoding(shape, memory, this.#jobs, readBack);
    this.#staging = new Staging(device.gpu.queue, shape, memory);
  }

  get bytes(): number {
    return this.#memory.bytes;
  }

  get ready(): Promise<void> {
    const ready = this.#memory.answered.then(() => this.#readBack.check());
    ready.catch(() => {}); // who does not wait for it meets it in the next read()
    return ready;
  }

  reserve(needs: Needs): void {
    this.#memory.reserve(needs);
  }

  write(layer: number, writes: readonly Write[]): void {
    const { kvHeads } = this.#shape.layers[layer]!;
    this.#staging.write(writes, kvHeads, this.#perToken(layer), (jobs, copies) => this.#dispatchWrite(layer, jobs, copies));
  }

  copySlot(from: number, to: number): void {
    const [source, sourceOffset, bytes] = this.#memory.slotRange(from);
    const [target, targetOffset] = this.#memory.slotRange(to);
    // By way of another buffer: one cannot be copied into itself.
    const scratch = this.#memory.scratchFor(bytes);
    this.#device.submit(encoder => {
      encoder.copyBufferToBuffer(source, sourceOffset, scratch, 0, bytes);
      encoder.copyBufferToBuffer(scratch, 0, target, targetOffset, bytes);
    });
  }

  setSlot(_layer: number, slot: number, bytes: Uint8Array): void {
    const [buffer, offset] = this.#memory.slotRange(slot);
    this.#device.gpu.queue.writeBuffer(buffer, offset, bytes as Uint8Array<ArrayBuffer>);
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    const { pages } = this.#memory.layers[layer]!;
    this.#device.gpu.queue.writeBuffer(pages.chunk(page), pages.offsetOf[page]!, bytes as Uint8Array<ArrayBuffer>);
  }

  encode(layer: number, slots: readonly number[], pages: readonly number[], sequences: readonly number[]): void {
    const { programs, pages: arena, headWords, blocks } = this.#memory.layers[layer]!;
    const { slots: raw, constants, offsets } = this.#memory;
    const heads = this.#shape.layers[layer]!;
    const chunksOf = (n: number): [number, number] => [raw.chunkOf[slots[n]!]!, arena.chunkOf[pages[n]!]!];
    for (const [slotChunk, pageChunk, numbers] of groups(slots.length, chunksOf)) {
      const buffers = [raw.chunks[slotChunk]!, constants, this.#jobs.list, arena.chunks[pageChunk]!];
      const bindings = this.#memory.bind('encode', buffers, layer, slotChunk, pageChunk);
      for (const side of [0, 1] as const) {
        this.#jobs.set(
          'EncodeJob',
          numbers.map(n => ({
            rows: raw.offsetOf[slots[n]!]! / 4 + rawOffset(heads, WINDOW, 0, side, 0) / 2,
            block: arena.offsetOf[pages[n]!]! / 4 + blocks[side],
            headWords,
            order: offsets.orderOf(layer, sequences[n]!)
          }))
        );
        this.#jobs.run(programs.encode[side], bindings, heads.kvHeads, numbers.length);
      }
    }
  }

  decode(layer: number, page: number, slot: number, sequence: number): void {
    this.#memory.stage(WINDOW, this.#perToken(layer));
    for (const side of [0, 1] as const) this.#decoding.decodePages(layer, [page], sequence, side, this.#memory.staged[side].buffer);
    this.#dispatchWrite(layer, [{ slot, job: decodedWindow(this.#shape.layers[layer]!.kvHeads) }]);
  }

  addEnergies(layer: number, sequence: number, query: Input, layout: Layout, first: number, count: number): void {
    this.#learning.addEnergies(layer, sequence, query, layout, first, count);
  }

  learn(layer: number, sequence: number, slots: readonly number[]): void {
    this.#learning.learn(layer, sequence, slots);
  }

  setBalance(layer: number, sequence: number, balance: Uint8Array): void {
    this.#learning.setBalance(layer, sequence, balance);
  }

  setEnergies(layer: number, sequence: number, energies?: Uint8Array): void {
    this.#learning.setEnergies(layer, sequence, energies);
  }

  copyBalance(layer: number, from: number, to: number): void {
    this.#learning.copy(layer, from, to);
  }

  read(layer: number, sequence: number, pieces: readonly Piece[], out: Tokens<Target, Target>, layout: Layout): Promise<void> {
    return this.#decoding.read(layer, sequence, pieces, out, layout);
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { pages, pageBytes } = this.#memory.layers[layer]!;
    const { length, sequence, pageCount, rawCount, sinkSlot } = table;
    const { balanced } = this.#shape.layers[layer]!.page.keys;
    const hasSinks = this.#shape.sinks > 0 && length > 0;
    const parts = await this.#readBack.each([
      ...Array.from(table.pages.subarray(0, pageCount), (page): Range => [pages.chunk(page), pages.offsetOf[page]!, pageBytes]),
      ...Array.from(table.raws.subarray(0, rawCount), slot => this.#memory.rawRange(layer, slot)),
      ...(hasSinks ? [this.#memory.rawRange(layer, sinkSlot)] : []),
      ...(balanced ? [this.#learning.order(layer, sequence), this.#learning.energies(layer, sequence)] : [])
    ]);
    const energies = balanced ? parts.pop() : undefined;
    const order = balanced ? parts.pop() : undefined;
    return {
      pages: parts.slice(0, pageCount),
      raws: parts.slice(pageCount, pageCount + rawCount),
      sinks: parts[pageCount + rawCount],
      balance: order && this.#memory.offsets.balanceOf(layer, new Uint32Array(order.buffer)),
      energies
    };
  }

  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly Input[],
    layout: Layout,
    scale: number,
    out: Target,
    lse?: Target,
    granted?: () => void
  ): Output<Data> {
    granted?.(); // a device refuses later
    return this.#attending.attend(layer, tables, queries, layout, scale, out, lse);
  }

  dispose(): void {
    this.#memory.dispose();
    this.#readBack.dispose();
  }

  /** Elements of a token. */
  #perToken(layer: number): PerToken {
    const { kvHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    return [kvHeads * headDim, kvHeads * valueDim];
  }

  /** What is staged into slots. */
  #dispatchWrite(layer: number, jobs: readonly SlotJob[], copies: readonly Copy[] = []): void {
    const { headDim, valueDim, kvHeads } = this.#shape.layers[layer]!;
    const { slots, staged, layers } = this.#memory;
    // What is staged is complete before the first of them reads it.
    if (copies.length > 0) this.#device.submit(encoder => copies.forEach(copy => copy(encoder)));
    for (const [chunk, , numbers] of groups(jobs.length, n => [slots.chunkOf[jobs[n]!.slot]!, 0])) {
      const chosen = numbers.map(n => jobs[n]!);
      this.#jobs.set(
        'WriteJob',
        chosen.map(({ slot, job }) => ({ ...job, slot: slots.offsetOf[slot]! / 4 }))
      );
      const most = chosen.reduce((most, { job }) => Math.max(most, job.tokens), 0);
      const bindings = this.#memory.bind('write', [...staged.map(({ buffer }) => buffer), this.#jobs.list, slots.chunks[chunk]!], chunk);
      this.#jobs.run(layers[layer]!.programs.write, bindings, Math.ceil((most * (headDim + valueDim)) / 2 / 64), numbers.length, kvHeads);
    }
  }
}
