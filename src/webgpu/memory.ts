// Every buffer of a cache, allocated at once or refused, and what layers bind of them. Pages and raw slots lie in chunks no larger than
// the device can bind; what a layer holds in many is read two a dispatch.

import { BackendError } from '../backend.ts';
import { blockOffset, rawBytes, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { type CacheShape, slotBytes, slotTokens, tokenBytes } from '../shape.ts';
import { Arena } from './chunks.ts';
import { Constants } from './constants.ts';
import { type Device, USAGE } from './device.ts';
import { LIST_BYTES } from './jobs.ts';
import { type LayerPrograms, layerPrograms } from './programs.ts';
import type { Range } from './readback.ts';
import { type Limits, Schedule } from './schedule.ts';
import { Staging } from './staging.ts';
import { structWords } from './structs.ts';

const STORAGE = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;
/** Bytes of keys, and of values, that are staged on their way in or out: a window at least. */
const STAGED_BYTES = 2 ** 22;
/** Bytes of pages and raw slots that a device is asked for at most: where those of more lie would itself take gigabytes. */
const MOST_BYTES = 2 ** 38;

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
  readonly schedule: GPUBuffer;
  /** What `schedule` holds, so that only what changed is sent. */
  readonly sent: Uint32Array<ArrayBuffer>;
  /** Of attend, one for every pair of chunks; and of merge. */
  readonly attend: readonly GPUBindGroup[];
  readonly merge: GPUBindGroup;
}

export class Memory {
  bytes = 0;
  readonly layers: readonly Layer[];
  readonly slots: Arena;
  readonly offsets: Constants;
  readonly constants: GPUBuffer;
  /** Of queries, f32 [layers][sequences, KV heads, headDim / 2], where keys are balanced. */
  readonly energies: GPUBuffer | undefined;
  readonly staging: Staging;
  readonly jobs: GPUBuffer;
  /** As large as a raw slot: what is copied within a buffer goes by way of it, and what learning needs for a moment. */
  readonly scratch: GPUBuffer;
  readonly queries: GPUBuffer;
  readonly output: GPUBuffer;
  /** f32 [tokens, queryHeads] */
  readonly lse: GPUBuffer;
  readonly schedule: Schedule;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #limit: number;
  readonly #buffers: GPUBuffer[] = [];

  constructor(device: Device, shape: CacheShape) {
    const { limits, queue } = device.gpu;
    this.#device = device;
    this.#shape = shape;
    this.#limit = Math.floor(Math.min(limits.maxStorageBufferBindingSize, limits.maxBufferSize) / 16) * 16;
    const { pageBytes, rawBytes } = tokenBytes(shape);
    if (pageBytes + rawBytes > MOST_BYTES) {
      throw new BackendError('webgpu', `expected at most ${MOST_BYTES} bytes for capacity ${shape.capacity}, got ${pageBytes + rawBytes}`);
    }
    const { layers, sequences, rawSlots, rawSlotBytes, sinkSlots, sinkBytes } = shape;
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    try {
      this.slots = this.#arena('raw slots', [
        { count: rawSlots, bytes: rawSlotBytes },
        { count: sinkSlots, bytes: sinkBytes }
      ]);
      const arenas = layers.map(({ page: { bytes } }, n) => this.#arena('pages', [{ count: shape.pageCounts[n]!, bytes }]));
      const chunkGroups = Math.ceil(Math.max(this.slots.chunks.length, ...arenas.map(arena => arena.chunks.length)) / 2);

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
      const perToken = most(({ kvHeads, headDim, valueDim }) => kvHeads * Math.max(headDim, valueDim));
      const staged = 4 * perToken * Math.max(WINDOW, Math.floor(Math.min(STAGED_BYTES, this.#limit) / (4 * perToken)));
      const buffers = [this.#create('staged keys', staged), this.#create('staged values', staged)] as const;
      this.staging = new Staging(queue, buffers, slot => slotTokens(shape, slot));
      this.jobs = this.#create('jobs', LIST_BYTES);
      this.scratch = this.#create('scratch', Math.max(rawSlotBytes, sinkBytes));

      this.schedule = new Schedule(shape, chunkGroups, this.#limit);
      const { callTokens } = this.schedule;
      this.queries = this.#create('queries', callTokens * most(({ queryHeads, headDim }) => 4 * queryHeads * headDim));
      this.output = this.#create('output', callTokens * most(({ queryHeads, valueDim }) => 4 * queryHeads * valueDim));
      this.lse = this.#create('log-sum-exps', callTokens * most(({ queryHeads }) => 4 * queryHeads));
      const partials = this.#create('partials', this.schedule.partialBytes);
      const params = Array.from({ length: chunkGroups }, (_, chunkGroup) => {
        const buffer = this.#create('chunk group', 16, USAGE.UNIFORM | USAGE.COPY_DST);
        queue.writeBuffer(buffer, 0, structWords('Params', [{ chunkGroup }]));
        return buffer;
      });
      this.layers = arenas.map((pages, layer) => this.#layer(layer, pages, energies[layer]!, partials, params));
    } catch (error) {
      this.dispose();
      throw error;
    }
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
  }

  #create(label: string, bytes: number, usage: number = STORAGE): GPUBuffer {
    const size = Math.ceil(bytes / 16) * 16;
    if (size > this.#limit)
      throw new BackendError('webgpu', `expected at most ${this.#limit} bytes for ${label} (the device's limit), got ${size}`);
    this.bytes += size;
    const buffer = this.#device.gpu.createBuffer({ label, size, usage });
    this.#buffers.push(buffer);
    return buffer;
  }

  #arena(label: string, sizes: readonly { readonly count: number; readonly bytes: number }[]): Arena {
    return new Arena(sizes, this.#limit, bytes => this.#create(label, bytes));
  }

  #layer(layer: number, pages: Arena, energies: number, partials: GPUBuffer, params: readonly GPUBuffer[]): Layer {
    const heads = this.#shape.layers[layer]!;
    const { page } = heads;
    const sent = new Uint32Array(this.schedule.words.length);
    const schedule = this.#create('schedule', sent.byteLength);
    const programs = layerPrograms(heads, this.offsets);
    return {
      programs,
      pages,
      pageBytes: page.bytes,
      limits: {
        quads: programs.attend.length,
        chunkGroups: params.length,
        pagesPerChunk: Math.max(1, Math.floor(pages.chunks[0]!.size / page.bytes)),
        slopesAt: this.offsets.logitsOf(heads.slopes),
        sinkLogitsAt: this.offsets.logitsOf(heads.sinkLogits)
      },
      headWords: (page.keys.bytes + page.values.bytes) / 4,
      blocks: [blockOffset(page, 0, 'keys') / 4, blockOffset(page, 0, 'values') / 4],
      energies,
      schedule,
      sent,
      attend: params.map((uniform, group) => {
        const chunksOf = (arena: Arena): GPUBuffer[] => [arena.chunkAt(2 * group), arena.chunkAt(2 * group + 1)];
        const buffers = [...chunksOf(pages), ...chunksOf(this.slots), this.constants, schedule, this.queries, partials, uniform];
        return this.#device.bind('attend', buffers);
      }),
      merge: this.#device.bind('merge', [schedule, partials, this.constants, this.output, this.lse])
    };
  }
}
