// Bytes on their way back from a device, and whether they can be trusted. Knows nothing of a cache: an Output may outlive one, and must
// not keep its memory.

import { BackendError, type Output } from '../backend.ts';
import type { Data } from '../format/half.ts';
import { type Device, USAGE } from './device.ts';

/** As the WebGPU specification has it; Node has no global for it. */
const MAP_READ = 1;
/** Buffers that are kept for the next reading, in bytes each. */
const KEPT_BYTES = 2 ** 20;

/** Bytes that one reading copies at most. */
const READ_BYTES = 2 ** 25;

/** A range of a buffer. */
export type Range = readonly [buffer: GPUBuffer, offset: number, bytes: number];

/** Waits for bytes that were copied when it was made. */
export type Read = () => Promise<ArrayBuffer>;

/** A reading, and where its bytes go, one after another. */
export interface Part {
  readonly read: Read;
  readonly into: readonly Uint8Array[];
}

/** Takes what was copied, in order. Where one rejects the others are read nonetheless: that gives their buffers back. */
export async function readEach(reads: readonly Read[], take: (bytes: ArrayBuffer, n: number) => void): Promise<void> {
  let n = 0;
  try {
    for (; n < reads.length; n++) take(await reads[n]!(), n);
  } catch (error) {
    await Promise.allSettled(reads.slice(n + 1).map(read => read()));
    throw error;
  }
}

export class ReadBack {
  /** Why the device had no memory for what is read. */
  #refusal: BackendError | undefined;
  readonly #device: Device;
  readonly #kept: GPUBuffer[] = [];
  #open = true;

  constructor(device: Device) {
    this.#device = device;
  }

  /** Nothing that is read can be trusted: the device had no memory for it. */
  refuse(message: string, cause: GPUError): void {
    this.#refusal ??= new BackendError('webgpu', message, cause);
  }

  /** Refuses what was read where the memory was, or the device is lost. */
  check(): void {
    if (this.#refusal) throw this.#refusal;
    if (this.#device.lost) throw this.#device.lost;
  }

  /** Copies ranges as they are now, one after another. */
  copy(ranges: readonly Range[]): Read {
    let read!: Read;
    this.#device.submit(encoder => {
      read = this.record(encoder, ranges);
    });
    return read;
  }

  /** Waits for the bytes of ranges as they are now, each by itself. */
  async each(ranges: readonly Range[]): Promise<Uint8Array[]> {
    const copies: Read[] = [];
    const counts: number[] = [];
    for (let n = 0; n < ranges.length; ) {
      const first = n;
      for (let bytes = 0; n < ranges.length && (n === first || bytes + ranges[n]![2] <= READ_BYTES); n++) bytes += ranges[n]![2];
      copies.push(this.copy(ranges.slice(first, n)));
      counts.push(n - first);
    }
    const parts: Uint8Array[] = [];
    await readEach(copies, (bytes, n) => {
      const all = new Uint8Array(bytes);
      let at = 0;
      for (const end = parts.length + counts[n]!; parts.length < end; ) {
        const size = ranges[parts.length]![2];
        parts.push(all.slice(at, (at += size)));
      }
    });
    return parts;
  }

  /** As copy(), as a part of what `encoder` records; to be read once that is submitted. */
  record(encoder: GPUCommandEncoder, ranges: readonly Range[]): Read {
    const bytes = ranges.reduce((sum, range) => sum + range[2], 0);
    const target = this.#take(2 ** Math.ceil(Math.log2(Math.max(bytes, 256))));
    let at = 0;
    for (const [buffer, offset, count] of ranges) {
      encoder.copyBufferToBuffer(buffer, offset, target, at, count);
      at += count;
    }
    return async () => {
      let copy: ArrayBuffer;
      try {
        await target.mapAsync(MAP_READ, 0, bytes);
        copy = target.getMappedRange(0, bytes).slice(0);
        target.unmap(); // Deno maps a buffer of a device that is lost, and then refuses to unmap it
      } catch (cause) {
        throw this.#device.lost ?? new BackendError('webgpu', `expected its device to finish, got: ${(cause as Error).message}`, cause);
      }
      if (this.#open && target.size <= KEPT_BYTES) this.#kept.push(target);
      else target.destroy();
      this.check();
      return copy;
    };
  }

  /** Waits for parts, and puts each into bytes of arrays, one range after another. */
  async collect(parts: readonly Part[]): Promise<void> {
    if (parts.length === 0) this.check();
    await readEach(
      parts.map(({ read }) => read),
      (bytes, n) => {
        let at = 0;
        for (const into of parts[n]!.into) {
          into.set(new Uint8Array(bytes, at, into.length));
          at += into.length;
        }
      }
    );
  }

  /** Copies ranges as they are now into a buffer of the engine's, each to a byte of its own. */
  copyInto(ranges: readonly Range[], target: GPUBuffer, to: readonly number[]): void {
    this.#device.submit(encoder => {
      ranges.forEach(([buffer, offset, bytes], n) => {
        encoder.copyBufferToBuffer(buffer, offset, target, to[n]!, bytes);
      });
    });
  }

  /**
   * Results on their way, every part's into bytes of arrays, one range after another.
   *
   * @param results  what is read: one of those arrays, or what is in a GPUBuffer of the engine's when they are first read
   */
  output(parts: readonly Part[], results: Data | { readonly range: Range; readonly half: boolean }): Output<Data> {
    const collect = async (): Promise<Data> => {
      const target = 'range' in results ? this.#readTarget(results.range) : undefined;
      const [copy] = await Promise.all([target, this.collect(parts)]);
      if (!('range' in results)) return results;
      return results.half ? new Uint16Array(copy!) : new Float32Array(copy!);
    };
    return outputOnce(collect);
  }

  async #readTarget(range: Range): Promise<ArrayBuffer> {
    const { usage } = range[0];
    // The device drops a copy that it refuses, and what is then read is what the target held before.
    if ((usage & USAGE.COPY_SRC) === 0) throw new RangeError(`"out.buffer" expected usage COPY_SRC to be read, got ${usage}`);
    const { made: read, refused } = this.#device.attempt(() => this.copy([range]));
    const bytes = await read();
    const error = await refused;
    if (error) throw new BackendError('webgpu', `expected to copy "out.buffer", got: ${error.message}`, error);
    return bytes;
  }

  dispose(): void {
    this.#open = false;
    for (const buffer of this.#kept.splice(0)) buffer.destroy();
  }

  #take(size: number): GPUBuffer {
    const kept = this.#kept.findIndex(buffer => buffer.size === size);
    if (kept >= 0) return this.#kept.splice(kept, 1)[0]!;
    return this.#device.gpu.createBuffer({ label: 'read back', size, usage: USAGE.MAP_READ | USAGE.COPY_DST });
  }
}

/** An Output that is read once, however often it is asked for. */
function outputOnce(collect: () => Promise<Data>): Output<Data> {
  let result: Promise<Data> | undefined;
  return { read: () => (result ??= collect()) };
}
