// Calls that are wrong whatever a cache holds, for the random histories.

import type { KVCache, Sequence } from 'nsnquant';
import { below } from './inputs.ts';

export interface Scene {
  readonly cache: KVCache;
  /** An open sequence of the cache, and all of them. */
  readonly sequence: Sequence;
  readonly open: readonly Sequence[];
  /** Of another cache of the same shape. */
  readonly foreign: Sequence;
  readonly disposed: Sequence | undefined;
  /** A file that the cache would restore. */
  readonly file: Uint8Array | undefined;
  readonly next: () => number;
}

/** Some of the arguments are drawn anew for each list. */
export function mistakesIn({ cache, sequence, open, foreign, disposed, file, next }: Scene): readonly (() => unknown)[] {
  const { capacity, maxAppend, layers } = cache.shape;
  const { headDim, queryHeads } = layers[0]!;
  const layer = below(next, layers.length);
  const pick = <T>(list: readonly T[]): T => list[below(next, list.length)]!;
  const x = new Float32Array(2 * headDim).fill(0.5);
  const wrong = x.slice();
  wrong[below(next, wrong.length)] = pick([NaN, Infinity, -Infinity, 65505, -1e30]);
  const beyond = pick([-1, layers, 0.5, NaN, '0', null, undefined]) as number;
  const long = new Float32Array((maxAppend + 1) * headDim);
  const query = new Float32Array(queryHeads * headDim);
  const everyone = open.map(() => x);
  const mistakes: (() => unknown)[] = [
    () => sequence.append(layer, wrong, x),
    () => sequence.append(layer, x, wrong),
    () => sequence.append(layer, x, x.subarray(1)),
    () => sequence.append(layer, x.subarray(1), x),
    () => sequence.append(layer, Array.from(x) as never, x),
    () => sequence.append(layer, x, new Uint16Array(2 * headDim).fill(0x7c00)),
    () => sequence.append(layer, long, long),
    () => sequence.append(beyond, x, x),
    () => cache.append([sequence, sequence], layer, [x, x], [x, x]),
    () => cache.append([sequence, foreign], layer, [x, x], [x, x]),
    () => cache.append([sequence, {} as never], layer, [x, x], [x, x]),
    () => cache.append([sequence], layer, [x, x], [x, x]),
    () => cache.append(open, layer, everyone, everyone.with(-1, wrong)),
    () => sequence.attend(layer, new Float32Array((capacity + 1) * queryHeads * headDim)),
    () => sequence.attend(layer, query.subarray(1)),
    () => sequence.attend(beyond, query),
    () =>
      sequence.attend(
        layer,
        query.map(() => NaN)
      ),
    () => cache.attend([sequence, foreign], layer, [query, query]),
    () => sequence.decode(beyond),
    () => sequence.crop(sequence.length + 1),
    () => sequence.crop(-1),
    () => sequence.crop(0.5),
    () => cache.restore(undefined as never)
  ];
  if (file) {
    mistakes.push(
      () => cache.restore(file.subarray(0, below(next, file.length))),
      () => cache.restore(file.map((byte, at) => (at === 8 ? byte ^ (1 << below(next, 8)) : byte)))
    );
  }
  if (disposed) {
    mistakes.push(
      () => disposed.append(layer, x, x),
      () => disposed.attend(layer, query),
      () => disposed.fork(),
      () => disposed.crop(0),
      () => disposed.save(),
      () => cache.append([sequence, disposed], layer, [x, x], [x, x])
    );
  }
  return mistakes;
}
