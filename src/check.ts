// Checks at the public edge. The success path allocates nothing; messages are built only to be thrown, all in one form:
// what is wrong, what was expected with its arithmetic, what came. Nothing behind this edge checks again.

import { HALF_MAX, isFloat16Array, type Data } from './half.ts';

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
