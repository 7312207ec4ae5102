// What append and attend take: arrays, or ranges of GPUBuffers; and the checks of them at the public edge.

import { checkInteger, checkLength, checkOneOf, kind, plural } from './check.ts';
import { type Data, HALF_MAX, isFloat16Array } from './format/half.ts';

/**
 * Tokens in a GPUBuffer of the webgpu backend's device, made with usage COPY_SRC: [tokens, heads, headDim]. Copied on the GPU
 * when the call returns, in the order of the queue; nothing passes through JavaScript, and nothing checks that numbers are finite.
 */
export interface GpuTokens {
  readonly buffer: GPUBuffer;
  readonly tokens: number;
  /** Bytes, a multiple of 4. Default 0. */
  readonly offset?: number;
  /** Default `f32`, and always that for queries. */
  readonly format?: 'f32' | 'f16';
}

/** Where results go in a GPUBuffer of the webgpu backend's device, made with usage COPY_DST. */
export interface GpuTarget {
  readonly buffer: GPUBuffer;
  /** Bytes, a multiple of 4. Default 0. */
  readonly offset?: number;
}

/** Keys or values, checked. */
export type Input = Data | GpuTokens;

export function isGpuTokens(input: Input): input is GpuTokens {
  return 'buffer' in input && 'tokens' in input;
}

/** Kind and finiteness of keys or values; the length is the caller's to check. */
export function checkData(name: string, data: unknown): asserts data is Data {
  if (data instanceof Float32Array) return checkFinite(name, data);
  if (isFloat16Array(data)) return checkFinite(name, data);
  if (data instanceof Uint16Array) {
    for (let i = 0; i < data.length; i++) {
      if ((data[i]! & 0x7c00) === 0x7c00) {
        throw new RangeError(`"${name}[${i}]" expected finite f16, got ${data[i]! & 0x3ff ? 'NaN' : 'infinity'}`);
      }
    }
    return;
  }
  throw new TypeError(`"${name}" expected Float32Array, Uint16Array or Float16Array, got ${kind(data)}`);
}

/** A Float32Array of `length` elements of f16's range. */
export function checkFloats(name: string, data: unknown, length: number, arithmetic: string): asserts data is Float32Array {
  if (!(data instanceof Float32Array)) throw new TypeError(`"${name}" expected Float32Array, got ${kind(data)}`);
  checkLength(name, data.length, length, arithmetic);
  checkFinite(name, data);
}

const COPY_SRC = 4;
const COPY_DST = 8;

/**
 * Kind and finiteness of keys, values or queries, and the number of their elements.
 *
 * @param takesBuffers  whether the backend takes GPUBuffers
 */
export function checkInput(name: string, input: Input, takesBuffers: boolean, perToken: number): number {
  if (typeof input !== 'object' || input === null || !isGpuTokens(input)) {
    checkData(name, input);
    return input.length;
  }
  const { format = 'f32', tokens } = input;
  checkInteger(`${name}.tokens`, tokens, 1, 2 ** 24);
  checkOneOf(`${name}.format`, format, ['f32', 'f16']);
  checkBuffer(name, input, takesBuffers, tokens * perToken * (format === 'f16' ? 2 : 4), COPY_SRC);
  return tokens * perToken;
}

/** A range of a GPUBuffer that holds `bytes` bytes and may be copied from or to. */
export function checkBuffer(name: string, { buffer, offset = 0 }: GpuTarget, takesBuffers: boolean, bytes: number, usage: 4 | 8): void {
  if (!takesBuffers) throw new TypeError(`"${name}" expected an array (GPUBuffers are for the webgpu backend), got GPUBuffer`);
  if (typeof buffer?.size !== 'number' || typeof buffer.usage !== 'number')
    throw new TypeError(`"${name}.buffer" expected GPUBuffer, got ${kind(buffer)}`);
  checkInteger(`${name}.offset`, offset, 0, 2 ** 40);
  if (offset % 4 !== 0) throw new RangeError(`"${name}.offset" expected multiple of 4, got ${offset}`);
  if (buffer.size < offset + bytes) {
    throw new RangeError(`"${name}.buffer" expected at least ${offset + bytes} bytes (${bytes} from offset ${offset}), got ${buffer.size}`);
  }
  if ((buffer.usage & usage) === 0)
    throw new RangeError(`"${name}.buffer" expected usage ${usage === COPY_SRC ? 'COPY_SRC' : 'COPY_DST'}, got ${buffer.usage}`);
}

/** A GPUBuffer for results of `bytes` bytes. */
export function checkTarget(name: string, target: GpuTarget, takesBuffers: boolean, bytes: number): void {
  checkBuffer(name, target, takesBuffers, bytes, COPY_DST);
}

/** The number of tokens in `data`, which must hold whole ones, at least one. */
export function wholeTokens(name: string, length: number, heads: number, headDim: number): number {
  const tokens = length / (heads * headDim);
  if (tokens < 1 || !Number.isInteger(tokens)) {
    throw new RangeError(
      `"${name}" expected length a multiple of ${heads * headDim} (${plural(heads, 'head')} × ${headDim}), got ${length}`
    );
  }
  return tokens;
}

function checkFinite(name: string, data: ArrayLike<number>): void {
  for (let i = 0; i < data.length; i++) {
    const x = data[i]!;
    if (x <= HALF_MAX && x >= -HALF_MAX) continue;
    throw new RangeError(`"${name}[${i}]" expected number from −65504 to 65504, got ${x}`);
  }
}
