// What sequences learn of their keys, without reading it back: energies of queries, and the order of channels that follows.

import { type Input, isF16, tokensOf } from '../input.ts';
import { type Layout, stridesOf } from '../rows.ts';
import type { CacheShape } from '../shape.ts';
import type { Device } from './device.ts';
import { groups, type Jobs } from './jobs.ts';
import type { Memory } from './memory.ts';
import type { Range } from './readback.ts';
import { type Copy, stage } from './staging.ts';

export class Learning {
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #memory: Memory;
  readonly #jobs: Jobs;

  constructor(device: Device, shape: CacheShape, memory: Memory, jobs: Jobs) {
    this.#device = device;
    this.#shape = shape;
    this.#memory = memory;
    this.#jobs = jobs;
  }

  addEnergies(layer: number, sequence: number, query: Input, layout: Layout, first: number, count: number): void {
    const { kvHeads, queryHeads, headDim } = this.#shape.layers[layer]!;
    const { queries: room, schedule, layers } = this.#memory;
    const [energies, offset] = this.energies(layer, sequence);
    const rows = { layout, tokens: tokensOf(query, queryHeads * headDim), heads: queryHeads };
    this.#memory.enlarge([room, 4 * Math.min(count, schedule.callTokens) * queryHeads * headDim]);
    const queries = room.buffer;
    const bindings = this.#memory.bind('energies', [queries, this.#jobs.list, energies]);
    for (let from = first; from < first + count; from += schedule.callTokens) {
      const tokens = Math.min(first + count - from, schedule.callTokens);
      const copies: Copy[] = [];
      stage(this.#device.gpu.queue, query, rows, headDim, from, tokens, { buffer: queries, offset: 0 }, copies);
      if (copies.length > 0) this.#device.submit(encoder => copies.forEach(copy => copy(encoder)));
      this.#jobs.set('EnergiesJob', [{ energies: offset / 4, tokens, half: Number(isF16(query)), ...stridesOf({ ...rows, tokens }) }]);
      this.#jobs.run(layers[layer]!.programs.learning!.queries, bindings, Math.ceil(headDim / 2 / 64), kvHeads);
    }
  }

  learn(layer: number, sequence: number, slots: readonly number[]): void {
    const { kvHeads, page } = this.#shape.layers[layer]!;
    const { slots: raw, constants, offsets, layers } = this.#memory;
    const { keys, learn } = layers[layer]!.programs.learning!;
    const headWords = page.keys.bytes / 4;
    const windowWords = kvHeads * headWords;
    const scratch = this.#memory.scratchFor(4 * slots.length * windowWords);
    for (const [chunk, , numbers] of groups(slots.length, n => [raw.chunkOf[slots[n]!]!, 0])) {
      this.#jobs.set(
        'EncodeJob',
        numbers.map(n => {
          return { rows: raw.offsetOf[slots[n]!]! / 4, block: n * windowWords, headWords, order: 0 };
        })
      );
      const bindings = this.#memory.bind('encode', [raw.chunks[chunk]!, constants, this.#jobs.list, scratch], chunk);
      this.#jobs.run(keys, bindings, kvHeads, numbers.length);
    }
    const [energies, offset] = this.energies(layer, sequence);
    const order = offsets.orderOf(layer, sequence);
    this.#jobs.set('LearnJob', [{ windows: slots.length, windowWords, headWords, energies: offset / 4, order }]);
    this.#jobs.run(learn, this.#memory.bind('learn', [scratch, energies, this.#jobs.list, constants]), kvHeads);
  }

  setBalance(layer: number, sequence: number, balance: Uint8Array): void {
    const [buffer, offset] = this.order(layer, sequence);
    this.#device.gpu.queue.writeBuffer(buffer, offset, this.#memory.offsets.wordsOf(layer, balance));
  }

  setEnergies(layer: number, sequence: number, bytes?: Uint8Array): void {
    const [buffer, offset, size] = this.energies(layer, sequence);
    this.#device.gpu.queue.writeBuffer(buffer, offset, (bytes ?? new Uint8Array(size)) as Uint8Array<ArrayBuffer>);
  }

  copy(layer: number, from: number, to: number): void {
    const ranges = [(sequence: number) => this.order(layer, sequence), (sequence: number) => this.energies(layer, sequence)];
    const scratch = this.#memory.scratchFor(Math.max(...ranges.map(rangeOf => rangeOf(from)[2])));
    this.#device.submit(encoder => {
      for (const rangeOf of ranges) {
        const [buffer, source, bytes] = rangeOf(from);
        const [, target] = rangeOf(to);
        encoder.copyBufferToBuffer(buffer, source, scratch, 0, bytes);
        encoder.copyBufferToBuffer(scratch, 0, buffer, target, bytes);
      }
    });
  }

  /** Where a sequence's order of channels lies, u32 [kvHeads, headDim]. */
  order(layer: number, sequence: number): Range {
    const { kvHeads, headDim } = this.#shape.layers[layer]!;
    const { constants, offsets } = this.#memory;
    return [constants, 4 * offsets.orderOf(layer, sequence), 4 * kvHeads * headDim];
  }

  /** Where the energies of a sequence's queries lie, f32 [kvHeads, headDim / 2]. */
  energies(layer: number, sequence: number): Range {
    const { kvHeads, headDim } = this.#shape.layers[layer]!;
    const bytes = 2 * kvHeads * headDim;
    return [this.#memory.energies!, this.#memory.layers[layer]!.energies + sequence * bytes, bytes];
  }
}
