// Checks at the public edge. The success path allocates nothing; messages are built only to be thrown, all in one form:
// what is wrong, what was expected with its arithmetic, what came. Nothing behind this edge checks again.

import { type GpuTarget, type Input, isGpuTokens } from './backend.ts';
import { type Data, HALF_MAX, isFloat16Array } from './half.ts';

export function checkInteger(name: string, value: unknown, low: number, high: number): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected integer, got ${kind(value)}`);
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new RangeError(`"${name}" expected integer from ${low} to ${high}, got ${value}`);
  }
}

export function checkOneOf(name: string, value: unknown, choices: readonly string[]): void {
  if (typeof value !== 'string') throw new TypeError(`"${name}" expected string, got ${kind(value)}`);
  if (choices.includes(value)) return;
  const list = choices.length === 1 ? choices[0] : `${choices.slice(0, -1).join(', ')} or ${choices.at(-1)}`;
  throw new RangeError(`"${name}" expected ${list}, got ${value}`);
}

export function checkObject(name: string, value: unknown): asserts value is object {
  if (typeof value !== 'object' || value === null) throw new TypeError(`"${name}" expected object, got ${kind(value)}`);
}

/** A finite number above zero. */
export function checkPositive(name: string, value: unknown): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected number, got ${kind(value)}`);
  if (!(value > 0 && value < Infinity)) throw new RangeError(`"${name}" expected finite number above 0, got ${value}`);
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

export function checkLength(name: string, actual: number, expected: number, arithmetic: string): void {
  if (actual !== expected) throw new RangeError(`"${name}" expected length ${expected} (${arithmetic}), got ${actual}`);
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

export function plural(count: number, noun: string): string {
  return count === 1 ? `1 ${noun}` : `${count} ${noun}s`;
}

function checkFinite(name: string, data: ArrayLike<number>): void {
  for (let i = 0; i < data.length; i++) {
    const x = data[i]!;
    if (x <= HALF_MAX && x >= -HALF_MAX) continue;
    throw new RangeError(`"${name}[${i}]" expected number from −65504 to 65504, got ${x}`);
  }
}

function kind(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value !== 'object') return typeof value;
  return value.constructor?.name ?? 'object';
}
