// Checks at the public edge, with messages of the library's form.

export function checkObject(name: string, value: unknown): asserts value is object {
  if (typeof value !== 'object' || value === null)
    throw new TypeError(`"${name}" expected object, got ${value === null ? 'null' : typeof value}`);
}

/** Options: an object that has none but the known properties. */
export function checkOptions(name: string, value: unknown, known: readonly string[]): asserts value is object {
  checkObject(name, value);
  for (const key of Object.keys(value)) {
    if (!known.includes(key)) throw new TypeError(`"${name}" expected only ${known.join(', ')}, got ${key}`);
  }
}

export function checkOneOf(name: string, value: unknown, choices: readonly string[]): void {
  if (typeof value !== 'string') throw new TypeError(`"${name}" expected string, got ${typeof value}`);
  if (!choices.includes(value)) throw new RangeError(`"${name}" expected ${choices.join(' or ')}, got ${value}`);
}

export function checkInteger(name: string, value: unknown, low: number, high: number): void {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected integer, got ${typeof value}`);
  if (Number.isInteger(value) && value >= low && value <= high) return;
  throw new RangeError(`"${name}" expected integer from ${low} to ${high}, got ${value}`);
}
