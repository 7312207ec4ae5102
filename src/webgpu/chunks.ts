// Things of one or more sizes in GPU buffers that can be bound, none of them straddling two. Numbers only: it never sees a byte.

import { BackendError } from '../backend.ts';

export class Arena {
  readonly chunks: GPUBuffer[] = [];
  readonly chunkOf: Uint32Array;
  /** Bytes from the beginning of the thing's chunk. */
  readonly offsetOf: Float64Array;

  /** @param limit  bytes of a chunk at most */
  constructor(sizes: readonly { readonly count: number; readonly bytes: number }[], limit: number, create: (bytes: number) => GPUBuffer) {
    const total = sizes.reduce((sum, { count }) => sum + count, 0);
    this.chunkOf = new Uint32Array(total);
    this.offsetOf = new Float64Array(total);
    let n = 0;
    let used = 0;
    for (const { count, bytes } of sizes) {
      if (count > 0 && bytes > limit)
        throw new BackendError('webgpu', `expected at most ${limit} bytes for one page (the device's limit), got ${bytes}`);
      for (let i = 0; i < count; i++, n++) {
        if (used + bytes > limit) {
          this.chunks.push(create(used));
          used = 0;
        }
        this.chunkOf[n] = this.chunks.length;
        this.offsetOf[n] = used;
        used += bytes;
      }
    }
    if (used > 0 || this.chunks.length === 0) this.chunks.push(create(Math.max(used, 16)));
  }

  chunk(n: number): GPUBuffer {
    return this.chunks[this.chunkOf[n]!]!;
  }

  /** The nth chunk, or the last: something to bind where nothing is read. */
  chunkAt(n: number): GPUBuffer {
    return this.chunks[Math.min(n, this.chunks.length - 1)]!;
  }
}
