// Checks at the public edge. The success path allocates nothing; messages are built only to be thrown, all in one form:
// what is wrong, what was expected with its arithmetic, what came. Nothing behind this edge checks again.

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

export function checkLength(name: string, actual: number, expected: number, arithmetic: string): void {
  if (actual !== expected) throw new RangeError(`"${name}" expected length ${expected} (${arithmetic}), got ${actual}`);
}

export function plural(count: number, noun: string): string {
  return count === 1 ? `1 ${noun}` : `${count} ${noun}s`;
}

/** What came, for a message. */
export function kind(value: unknown): string {
  if (value === null) return 'null';
  if (typeof value !== 'object') return typeof value;
  return value.constructor?.name ?? 'object';
}
