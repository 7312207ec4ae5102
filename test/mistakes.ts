// Calls that are wrong whatever a cache holds, for the random histories.

import type { KVCache, Sequence } from 'nsnquant';
import { below } from './inputs.ts';
import { widthOf } from './model.ts';

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
  const layer = below(next, layers.length);
  const { headDim, queryHeads } = layers[layer]!;
  const [keyWidth, valueWidth] = [widthOf(layers[layer]!, 'keys'), widthOf(layers[layer]!, 'values')];
  const pick = <T>(list: readonly T[]): T => list[below(next, list.length)]!;
  /** Two tokens; and two with a number that has no f16. */
  const two = (width: number) => new Float32Array(2 * width).fill(0.5);
  const wrong = (width: number) => two(width).fill(pick([NaN, Infinity, -Infinity, 65505, -1e30]), below(next, 2 * width));
  const [x, y] = [two(keyWidth), two(valueWidth)];
  const beyond = pick([-1, layers.length, 0.5, NaN, '0', null, undefined]) as number;
  const long = (width: number) => new Float32Array((maxAppend + 1) * width);
  const query = new Float32Array(queryHeads * headDim);
  const [everyX, everyY] = [open.map(() => x), open.map(() => y)];
  const mistakes: (() => unknown)[] = [
    () => sequence.append(layer, wrong(keyWidth), y),
    () => sequence.append(layer, x, wrong(valueWidth)),
    () => sequence.append(layer, x, y.subarray(1)),
    () => sequence.append(layer, x.subarray(1), y),
    () => sequence.append(layer, Array.from(x) as never, y),
    () => sequence.append(layer, x, new Uint16Array(2 * valueWidth).fill(0x7c00)),
    () => sequence.append(layer, long(keyWidth), long(valueWidth)),
    () => sequence.append(beyond, x, y),
    () => cache.append([sequence, sequence], layer, [x, x], [y, y]),
    () => cache.append([sequence, foreign], layer, [x, x], [y, y]),
    () => cache.append([sequence, {} as never], layer, [x, x], [y, y]),
    () => cache.append([sequence], layer, [x, x], [y, y]),
    () => cache.append(open, layer, everyX, everyY.with(-1, wrong(valueWidth))),
    () => sequence.attend(layer, new Float32Array((sequence.length + capacity + 1) * queryHeads * headDim)),
    () => sequence.attend(layer, query.subarray(1)),
    () => sequence.attend(beyond, query),
    () =>
      sequence.attend(
        layer,
        query.map(() => NaN)
      ),
    () => cache.attend([sequence, foreign], layer, [query, query]),
    () => sequence.attend(layer, query, { lse: new Float32Array(queryHeads + 1) }),
    () => sequence.decode(beyond),
    () => sequence.ranges(beyond),
    () => sequence.tokens(beyond),
    () => sequence.evict({ from: 0, to: sequence.length + 1 }),
    () => sequence.evict({ from: 1, to: 1 }),
    () => sequence.evict({ from: -1, to: sequence.length }),
    () => sequence.evict({ from: 0, to: sequence.length, layer: beyond ?? -1 }),
    () => cache.reorder([sequence], [1]),
    () => cache.reorder([sequence, sequence], [0, 1]),
    () => cache.reorder(open, []),
    () => cache.reorder([sequence, foreign], [1, 0]),
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
      () => disposed.append(layer, x, y),
      () => disposed.attend(layer, query),
      () => disposed.fork(),
      () => disposed.crop(0),
      () => disposed.evict({ from: 0, to: 1 }),
      () => disposed.ranges(layer),
      () => cache.reorder([sequence, disposed], [0, 0]),
      () => disposed.save(),
      () => cache.append([sequence, disposed], layer, [x, x], [y, y])
    );
  }
  return mistakes;
}
