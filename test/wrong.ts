// Wrong results made from right ones, and that a comparer refuses them.

import * as assert from 'uvu/assert';

/** A comparer throws, in the form of tests' messages. */
export const bites = (run: () => unknown, message = /expected/) => assert.throws(run, (error: Error) => message.test(error.message));

/** A copy with rows a and b swapped. */
export function swapped<T extends Uint8Array | Float32Array | Float64Array>(x: T, width: number, a: number, b: number): T {
  const out = x.slice() as T;
  out.set(x.subarray(a * width, (a + 1) * width), b * width);
  out.set(x.subarray(b * width, (b + 1) * width), a * width);
  return out;
}

/** A copy with one element changed. */
export function changed<T extends Uint8Array | Float32Array | Float64Array>(x: T, at: number, change: (value: number) => number): T {
  const out = x.slice() as T;
  out[at] = change(out[at]!);
  return out;
}
