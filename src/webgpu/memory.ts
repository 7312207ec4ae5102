// Every buffer of a cache, and what shaders bind of them. Pages and raw slots lie in chunks, which are made as they are needed and no
// larger than the device can bind; what a call has on its way lies in buffers that grow with the largest call, and shrink again when
// pages need memory. A device may refuse memory later than it is asked for it: nothing of the cache can be trusted then.

import { BackendError, everything, type Needs } from '../backend.ts';
import { blockOffset, rawBytes, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { type CacheShape, slotBytes, slotTokens, tokenBytes } from '../shape.ts';
import { Arena, checkLimit } from './chunks.ts';
import { Constants } from './constants.ts';
import { type Device, type ShaderName, USAGE } from './device.ts';
import { LIST_BYTES } from './jobs.ts';
import { type LayerPrograms, layerPrograms } from './programs.ts';
import type { Range } from './readback.ts';
import { type Limits, Schedule } from './schedule.ts';
import { structWords } from './structs.ts';

const STORAGE = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;
/** Bytes of keys, and of values, that are staged on their way in or out at most, unless a window has more. */
const STAGED_BYTES = 2 ** 22;
/** Bytes of pages and raw slots that a device is asked for at most: where those of more lie would itself take gigabytes. */
const MOST_BYTES = 2 ** 38;
/** Pages of a layer's first chunk, and what every other adds to them: of 128 pages, 163 in eight chunks. Doubling takes 136 to 256 in six. */
const FIRST_PAGES = 10;
const PAGES_GROWTH = 0.5;
/** Bytes of the first raw slots at least: less would only be more chunks. There are few, so that chunks double. */
const FIRST_BYTES = 2 ** 18;
const SLOTS_GROWTH = 1;

/** Elements of a token, of all KV heads. */
export type PerToken = readonly [keys: number, values: number];

/** A buffer for what a call has on its way, as large as that of the largest since pages or raw slots last took memory. */
export interface Room {
  readonly label: string;
  /** Bytes that it ever needs. */
  readonly most: number;
  buffer: GPUBuffer;
  /** Bytes that calls asked for since then. */
  asked: number;
}

export interface Layer {
  readonly programs: LayerPrograms;
  readonly pages: Arena;
  readonly pageBytes: number;
  readonly limits: Limits;
  /** From a head's blocks in a page to the next head's, and where head 0's begin: keys', and values'; in words. */
  readonly headWords: number;
  readonly blocks: readonly [keys: number, values: number];
  /** Where the energies of its queries begin, in bytes. */
  readonly energies: number;
  readonly schedule: Room;
  /** What a buffer of `schedule` holds, so that only what changed is sent. */
  sent?: { readonly buffer: GPUBuffer; readonly words: Uint32Array<ArrayBuffer> };
}

export class Memory {
  bytes = 0;
  /** Settles when the device has granted, or refused, all that it was asked for by now. */
  answered: Promise<unknown> = Promise.resolve();
  readonly layers: readonly Layer[];
  readonly slots: Arena;
  readonly offsets: Constants;
  readonly constants: GPUBuffer;
  /** Of queries, f32 [layers][sequences, KV heads, headDim / 2], where keys are balanced. */
  readonly energies: GPUBuffer | undefined;
  /** Tokens on their way in or out: f32 [tokens, kvHeads, headDim], and [tokens, kvHeads, valueDim]; or f16; heads first within a part. */
  readonly staged: readonly [keys: Room, values: Room];
  readonly jobs: GPUBuffer;
  /** As large as a raw slot at most: what is copied within a buffer goes by way of it, and what learning needs for a moment. */
  readonly scratch: Room;
  readonly queries: Room;
  readonly output: Room;
  /** f32 [tokens, queryHeads] */
  readonly lse: Room;
  readonly partials: Room;
  /** Of every pair of chunks, its number. */
  readonly params: readonly GPUBuffer[];
  readonly schedule: Schedule;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #limit: number;
  readonly #refuse: (message: string, error: GPUError) => void;
  /** Bytes that were ever asked for. */
  #taken = 0;
  readonly #rooms: Room[] = [];
  readonly #buffers = new Set<GPUBuffer>();
  readonly #bindings = new Map<string, GPUBindGroup>();

  /**
   * Takes what is needed at the start, or with `shape.reserve` everything.
   *
   * @param refuse  is told of memory that the device does not grant
   * @throws {BackendError} if the device could not hold `shape.capacity` tokens in any number of buffers
   */
  static take(device: Device, shape: CacheShape, refuse: (message: string, error: GPUError) => void): Memory {
    const { made, refused } = device.attempt(() => new Memory(device, shape, refuse));
    made.#expect(refused, `${made.bytes} bytes for capacity ${shape.capacity}`);
    return made;
  }

  private constructor(device: Device, shape: CacheShape, refuse: (message: string, error: GPUError) => void) {
    const { limits, queue } = device.gpu;
    this.#device = device;
    this.#shape = shape;
    this.#refuse = refuse;
    this.#limit = Math.floor(Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize) / 16) * 16;
    const { pageBytes, rawBytes } = tokenBytes(shape);
    if (pageBytes + rawBytes > MOST_BYTES) {
      throw new BackendError('webgpu', `expected at most ${MOST_BYTES} bytes for capacity ${shape.capacity}, got ${pageBytes + rawBytes}`);
    }
    const { layers, sequences, rawSlotBytes, sinkBytes } = shape;
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    try {
      const firstSlots = Math.max(layers.length * (rawSlotBytes + sinkBytes), FIRST_BYTES);
      this.slots = this.#arena('raw slots', slotOrder(shape), slot => slotBytes(shape, slot), firstSlots, SLOTS_GROWTH);
      const arenas = layers.map(({ page: { bytes } }, n) => {
        const order = Uint32Array.from({ length: shape.pageCounts[n]! }, (_, page) => page);
        return this.#arena('pages', order, () => bytes, FIRST_PAGES * bytes, PAGES_GROWTH);
      });

      this.offsets = new Constants(shape);
      this.constants = this.#create('constants', 4 * this.offsets.length);
      queue.writeBuffer(this.constants, 0, this.offsets.words);
      let energyBytes = 0;
      const energies = layers.map(({ kvHeads, headDim }) => {
        const at = energyBytes;
        energyBytes += 2 * sequences * kvHeads * headDim;
        return at;
      });
      if (layers[0]!.page.keys.balanced) this.energies = this.#create('energies', energyBytes);
      const perToken = 4 * most(({ kvHeads, headDim, valueDim }) => kvHeads * Math.max(headDim, valueDim));
      const staged = perToken * Math.max(WINDOW, Math.floor(Math.min(STAGED_BYTES, this.#limit) / perToken));
      this.staged = [this.#room('staged keys', staged), this.#room('staged values', staged)];
      this.jobs = this.#create('jobs', LIST_BYTES);
      this.scratch = this.#room('scratch', Math.max(rawSlotBytes, sinkBytes));

      // Of a layer's chunks and of those of raw slots, two of each are bound at a time.
      const pairs = ({ chunks }: Arena): number => Math.max(1, Math.ceil(chunks.length / 2));
      const pagePairs = Math.max(...arenas.map(pairs));
      this.schedule = new Schedule(shape, Math.max(pagePairs, pairs(this.slots)), pagePairs + pairs(this.slots), this.#limit);
      const { callTokens, partialBytes, mostWords, chunkPairs } = this.schedule;
      this.queries = this.#room('queries', callTokens * most(({ queryHeads, headDim }) => 4 * queryHeads * headDim));
      this.output = this.#room('output', callTokens * most(({ queryHeads, valueDim }) => 4 * queryHeads * valueDim));
      this.lse = this.#room('log-sum-exps', callTokens * most(({ queryHeads }) => 4 * queryHeads));
      this.partials = this.#room('partials', partialBytes);
      this.params = Array.from({ length: chunkPairs }, (_, chunkPair) => {
        const buffer = this.#create('chunk pair', 16, USAGE.UNIFORM | USAGE.COPY_DST);
        queue.writeBuffer(buffer, 0, structWords('Params', [{ chunkPair }]));
        return buffer;
      });
      this.layers = arenas.map((pages, layer) => this.#layer(layer, pages, energies[layer]!, 4 * mostWords));
      if (shape.reserve) for (const [arena, things] of this.#wants(everything(shape))) arena.reserve(things);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  /**
   * Memory for all of this, which the device may yet refuse. Buffers of raw slots that are all idle give place to it, and rooms for more
   * than calls asked for of late: a prompt's, once tokens come one by one.
   */
  reserve(needs: Needs): void {
    const wants = this.#wants(needs);
    const reserve = (): void => {
      for (const [arena, things] of wants) arena.reserve(things);
    };
    if (wants.every(([arena, things]) => arena.has(things))) reserve();
    else {
      this.#grow(() => {
        for (const buffer of this.slots.release(needs.idle?.() ?? [])) this.#giveUp(buffer);
        for (const room of this.#rooms) {
          if (roomFor(room, room.asked) < room.buffer.size) this.#resize(room, room.asked);
          room.asked = 0;
        }
        this.schedule.clear();
        reserve();
      });
    }
  }

  /** Room for so many bytes of a call each; what a larger buffer takes the place of is lost. */
  enlarge(...rooms: readonly (readonly [room: Room, bytes: number])[]): void {
    for (const [room, bytes] of rooms) room.asked = Math.max(room.asked, bytes);
    const small = rooms.filter(([{ buffer }, bytes]) => buffer.size < bytes);
    if (small.length === 0) return;
    this.#grow(() => {
      for (const [room, bytes] of small) this.#resize(room, bytes);
    });
  }

  #resize(room: Room, bytes: number): void {
    this.#giveUp(room.buffer);
    room.buffer = this.#create(room.label, roomFor(room, bytes));
  }

  #giveUp(buffer: GPUBuffer): void {
    this.bytes -= buffer.size;
    this.#buffers.delete(buffer);
    buffer.destroy(); // once what is queued has been done with it
  }

  /** Makes room to stage so many tokens, or as many as there may be room for at once, a window at least: how many there is for. */
  stage(tokens: number, perToken: PerToken): number {
    const tokenBytes = 4 * Math.max(...perToken);
    const bytes = Math.min(tokens * tokenBytes, this.staged[0].most);
    this.enlarge([this.staged[0], bytes], [this.staged[1], bytes]);
    return Math.floor(this.staged[0].buffer.size / tokenBytes);
  }

  /** So many bytes for what no call needs any more when it returns. */
  scratchFor(bytes: number): GPUBuffer {
    this.enlarge([this.scratch, bytes]);
    return this.scratch.buffer;
  }

  /** Bindings of a shader, which these numbers stand for until memory grows. */
  bind(name: ShaderName, buffers: readonly GPUBuffer[], ...numbers: number[]): GPUBindGroup {
    const key = `${name} ${numbers.join(' ')}`;
    let bindings = this.#bindings.get(key);
    if (!bindings) this.#bindings.set(key, (bindings = this.#device.bind(name, buffers)));
    return bindings;
  }

  /** Two chunks that are bound together: where there is none yet, something else, as nothing of it is read. */
  chunkPair({ chunks }: Arena, pair: number): [GPUBuffer, GPUBuffer] {
    return [chunks[2 * pair] ?? this.constants, chunks[2 * pair + 1] ?? this.constants];
  }

  slotRange(slot: number): Range {
    return [this.slots.chunk(slot), this.slots.offsetOf[slot]!, slotBytes(this.#shape, slot)];
  }

  /** What a layer has in a slot, which may be larger. */
  rawRange(layer: number, slot: number): Range {
    const [buffer, offset] = this.slotRange(slot);
    return [buffer, offset, rawBytes(this.#shape.layers[layer]!, slotTokens(this.#shape, slot))];
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.destroy();
    this.#buffers.clear();
    this.#bindings.clear();
    this.bytes = 0;
  }

  /** Takes more, and may give up some. */
  #grow(make: () => void): void {
    const before = this.#taken;
    this.#bindings.clear();
    const { refused } = this.#device.attempt(make);
    this.#expect(refused, `${this.#taken - before} bytes more`);
  }

  /** What was granted before a refusal is of no use. */
  #expect(refused: Promise<GPUError | null>, what: string): void {
    const answer = refused.then(error => {
      if (!error) return;
      this.#refuse(`expected ${what}, got: ${error.message}`, error);
      this.dispose();
    });
    this.answered = Promise.all([this.answered, answer]);
  }

  #wants({ pages = new Map(), slots = new Map(), sequences = [] }: Needs): (readonly [Arena, readonly number[]])[] {
    const { layers, rawSlots, sinks } = this.#shape;
    const sinkSlots = sinks === 0 ? [] : sequences.flatMap(sequence => layers.map((_, n) => rawSlots + sequence * layers.length + n));
    return [
      ...Array.from(pages, ([layer, numbers]) => [this.layers[layer]!.pages, numbers] as const),
      [this.slots, [...slots.keys()]],
      [this.slots, sinkSlots]
    ];
  }

  #create(label: string, bytes: number, usage: number = STORAGE): GPUBuffer {
    const size = Math.max(16, Math.ceil(bytes / 16) * 16);
    checkLimit(label, size, this.#limit);
    const buffer = this.#device.gpu.createBuffer({ label, size, usage });
    this.bytes += size;
    this.#taken += size;
    this.#buffers.add(buffer);
    return buffer;
  }

  #room(label: string, most: number): Room {
    checkLimit(label, most, this.#limit);
    const room = { label, most, buffer: this.#create(label, this.#shape.reserve ? most : 0), asked: 0 };
    this.#rooms.push(room);
    return room;
  }

  #arena(label: string, order: Uint32Array, bytesOf: (thing: number) => number, first: number, growth: number): Arena {
    return new Arena(order, bytesOf, first, growth, this.#limit, bytes => this.#create(label, bytes));
  }

  #layer(layer: number, pages: Arena, energies: number, mostScheduled: number): Layer {
    const heads = this.#shape.layers[layer]!;
    const { page } = heads;
    const programs = layerPrograms(heads, this.offsets);
    return {
      programs,
      pages,
      pageBytes: page.bytes,
      limits: {
        quads: programs.attend.length,
        pages,
        slots: this.slots,
        slopesAt: this.offsets.logitsOf(heads.slopes),
        sinkLogitsAt: this.offsets.logitsOf(heads.sinkLogits)
      },
      headWords: (page.keys.bytes + page.values.bytes) / 4,
      blocks: [blockOffset(page, 0, 'keys') / 4, blockOffset(page, 0, 'values') / 4],
      energies,
      schedule: this.#room('schedule', mostScheduled)
    };
  }
}

/** Bytes of a room's buffer for so many: few sizes, so that a call that is a little larger finds room. */
function roomFor({ most }: Room, bytes: number): number {
  return Math.min(2 ** Math.ceil(Math.log2(Math.max(bytes, 16))), most);
}

/** Raw slots in the order in which they are needed: of every sequence its sinks, and a window of every layer. */
function slotOrder({ layers, rawSlots, sinkSlots }: CacheShape): Uint32Array {
  const order: number[] = [];
  const add = (from: number, end: number): void => {
    for (let slot = from; slot < end; slot++) order.push(slot);
  };
  for (let at = 0; at < Math.max(rawSlots, sinkSlots); at += layers.length) {
    add(rawSlots + at, rawSlots + Math.min(at + layers.length, sinkSlots));
    add(at, Math.min(at + layers.length, rawSlots));
  }
  return Uint32Array.from(order);
}
