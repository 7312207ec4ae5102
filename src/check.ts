// Checks at the public edge. The success path allocates nothing; messages are built only to be thrown, all in one form:
// what is wrong, what was expected with its arithmetic, what came. Nothing behind this edge checks again.

import { typedArrayName } from './format/half.ts';

export function checkInteger(name: string, value: unknown, low: number, high: number): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected integer, got ${kind(value)}`);
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new RangeError(`"${name}" expected integer from ${low} to ${high}, got ${value}`);
  }
}

/** A number above 0. */
export function checkPositive(name: string, value: unknown, high: number): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected number, got ${kind(value)}`);
  if (!(value > 0 && value <= high)) throw new RangeError(`"${name}" expected number above 0 and at most ${high}, got ${value}`);
}

export function checkOneOf(name: string, value: unknown, choices: readonly string[]): void {
  if (typeof value !== 'string') throw new TypeError(`"${name}" expected string, got ${kind(value)}`);
  if (!choices.includes(value)) throw new RangeError(`"${name}" expected ${listed(choices, 'or')}, got ${value}`);
}

export function checkObject(name: string, value: unknown): asserts value is object {
  if (typeof value !== 'object' || value === null) throw new TypeError(`"${name}" expected object, got ${kind(value)}`);
}

/** An object whose properties are what matters. An array, a Map or a Promise has none to read, and would pass for an empty one. */
export function checkRecord(name: string, value: unknown): asserts value is object {
  checkObject(name, value);
  if (Object.getPrototypeOf(value) === Object.prototype) return; // at once: the tag takes 70 ns
  if (Object.prototype.toString.call(value) !== '[object Object]') throw new TypeError(`"${name}" expected object, got ${kind(value)}`);
}

/**
 * Options: an object that has none but the known properties; `undefined` under one is as if it were not there. What is inherited
 * counts, as reading finds it; what every object inherits does not.
 */
export function checkOptions(name: string, value: unknown, known: readonly string[]): asserts value is object {
  checkRecord(name, value);
  for (const key in value) {
    if (known.includes(key) || key in Object.prototype) continue;
    throw new TypeError(`"${name}" expected only ${listed(known, 'and')}, got ${key}`);
  }
}

export function checkArray(name: string, value: unknown): asserts value is readonly unknown[] {
  if (!Array.isArray(value)) throw new TypeError(`"${name}" expected array, got ${kind(value)}`);
}

export function checkLength(name: string, actual: number, expected: number, arithmetic: string): void {
  if (actual !== expected) throw new RangeError(`"${name}" expected length ${expected} (${arithmetic}), got ${actual}`);
}

export function plural(count: number, noun: string): string {
  return count === 1 ? `1 ${noun}` : `${count} ${noun}s`;
}

/** What came, for a message: `null`, `string`, `function`, `class Foo`, `Array`, `Promise`, `object`. */
export function kind(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value === 'function')
    return /^class\b/.test(Function.prototype.toString.call(value)) ? `class ${value.name}`.trim() : 'function';
  if (typeof value !== 'object') return typeof value;
  const real = typedArrayName(value);
  if (real !== undefined) return real;
  const name = constructorName(value);
  // A Proxy of an array, or an object made from its prototype, is not what it calls itself.
  return /^(\w+\d+(Clamped)?Array)$/.test(name) ? `object with the prototype of ${name}` : name;
}

function constructorName(value: object): string {
  try {
    const { name } = value.constructor;
    return typeof name === 'string' && name !== '' ? name : 'object';
  } catch {
    return 'object'; // no constructor, or a getter or Proxy that throws
  }
}

/** `a, b or c` */
function listed(names: readonly string[], last: 'and' | 'or'): string {
  return names.length === 1 ? names[0]! : `${names.slice(0, -1).join(', ')} ${last} ${names.at(-1)}`;
}
