// Things of one or more sizes in GPU buffers that can be bound, none of them straddling two. A buffer is made when something in it is
// first needed, and nothing in it ever moves. Numbers only: it never sees a byte.

import { BackendError } from '../backend.ts';

/** Refuses what no buffer of the device can hold. */
export function checkLimit(label: string, bytes: number, limit: number): void {
  if (bytes <= limit) return;
  throw new BackendError('webgpu', `expected at most ${limit} bytes for ${label} (the device's limit), got ${bytes}`);
}

export class Arena {
  /** Those that were made. Which is which, and how large, follows from the order of things alone. */
  readonly chunks: (GPUBuffer | undefined)[] = [];
  readonly chunkOf: Uint32Array;
  /** Bytes from the beginning of the thing's chunk. */
  readonly offsetOf: Float64Array;
  readonly #sizes: number[] = [];
  /** Whether memory was asked for this thing since it was last idle. */
  readonly #used: Uint8Array;
  readonly #create: (bytes: number) => GPUBuffer;

  /**
   * @param order    of things, by which of them is needed first
   * @param bytesOf  a thing has
   * @param first    bytes of the first chunk
   * @param growth   bytes of every other, as a share of all before it: the less, the more chunks there are, and the less lies idle
   * @param limit    bytes of a chunk at most
   */
  constructor(
    order: Uint32Array,
    bytesOf: (thing: number) => number,
    first: number,
    growth: number,
    limit: number,
    create: (bytes: number) => GPUBuffer
  ) {
    this.#create = create;
    this.chunkOf = new Uint32Array(order.length);
    this.offsetOf = new Float64Array(order.length);
    this.#used = new Uint8Array(order.length);
    let total = 0;
    let used = 0;
    let room = 0;
    for (const thing of order) {
      const bytes = bytesOf(thing);
      checkLimit('one page', bytes, limit);
      if (used + bytes > room) {
        room = Math.min(Math.max(total === 0 ? first : growth * total, bytes), limit);
        used = 0;
        this.chunks.push(undefined);
      }
      this.chunkOf[thing] = this.chunks.length - 1;
      this.offsetOf[thing] = used;
      used += bytes;
      total += bytes;
      this.#sizes[this.chunks.length - 1] = used;
    }
  }

  /** Whether there is memory for all of these. */
  has(things: readonly number[]): boolean {
    return things.every(thing => this.chunks[this.chunkOf[thing]!] !== undefined);
  }

  /** Makes what chunks of these are missing. */
  reserve(things: readonly number[]): void {
    for (const thing of things) {
      const chunk = this.chunkOf[thing]!;
      this.chunks[chunk] ??= this.#create(this.#sizes[chunk]!);
      this.#used[thing] = 1;
    }
  }

  /** Gives up the chunks that hold nothing else than idle things, and what was never needed. */
  release(idle: readonly number[]): GPUBuffer[] {
    for (const thing of idle) this.#used[thing] = 0;
    const unused = new Set(this.chunks.keys());
    this.#used.forEach((used, thing) => {
      if (used) unused.delete(this.chunkOf[thing]!);
    });
    return [...unused].flatMap(chunk => {
      const buffer = this.chunks[chunk];
      this.chunks[chunk] = undefined;
      return buffer ?? [];
    });
  }

  /** The chunk of a thing that there is memory for. */
  chunk(thing: number): GPUBuffer {
    return this.chunks[this.chunkOf[thing]!]!;
  }
}
