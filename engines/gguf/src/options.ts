// What callers hand in. A misspelled option would be a plainly wrong model, so what is unknown is refused.

/** @throws {TypeError} for an option whose name is none of `known` */
export function checkOptions(options: object, known: readonly string[]): void {
  for (const name of Object.keys(options)) {
    if (!known.includes(name)) throw new TypeError(`"options" expected ${known.join(', ')}, got ${name}`);
  }
}
