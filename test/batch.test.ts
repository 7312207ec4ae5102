// Appending to several sequences in one call: the same as one after another, and all or nothing.

import { KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { keyLike, normal } from './inputs.ts';

const options = { layers: 2, kvHeads: 2, queryHeads: 4, headDim: 32, capacity: 800, sequences: 4, sinks: 4 } as const;
const width = options.kvHeads * options.headDim;
const keys = keyLike(300, width, 80);
const values = normal(300, width, 81);

/** Tokens [from, to) of a stream, different for every sequence. */
const tokens = (n: number, from: number, to: number) =>
  [keys, values].map(x => x.slice((from + 20 * n) * width, (to + 20 * n) * width)) as [Float32Array, Float32Array];

for (const { name, backend } of backends) {
  group(`batches on ${name}`, test => {
    /** Steps of different lengths, so that windows fill now in one sequence, now in several. */
    const steps = [
      [60, 68, 1],
      [8, 1, 70],
      [64, 64, 64],
      [1, 1, 1],
      [3, 60, 9]
    ];
    const fill = (
      cache: KVCache,
      append: (cache: KVCache, sequences: Sequence[], layer: number, all: (readonly [Float32Array, Float32Array])[]) => void
    ): Sequence[] => {
      const sequences = [0, 1, 2].map(() => cache.sequence());
      const lengths = [0, 0, 0];
      for (const step of steps) {
        for (let layer = 0; layer < options.layers; layer++)
          append(
            cache,
            sequences,
            layer,
            step.map((count, n) => tokens(n, lengths[n]!, lengths[n]! + count))
          );
        step.forEach((count, n) => {
          lengths[n]! += count;
        });
      }
      return sequences;
    };

    test('append() to a batch leaves the bytes that one after another leave', async () => {
      const together = fill(new KVCache(backend, options), (cache, sequences, layer, all) =>
        cache.append(
          sequences,
          layer,
          all.map(([k]) => k),
          all.map(([, v]) => v)
        )
      );
      const apart = fill(new KVCache(backend, options), (_, sequences, layer, all) =>
        sequences.forEach((sequence, n) => sequence.append(layer, ...all[n]!))
      );
      for (const [n, sequence] of together.entries()) {
        assert.is(sequence.length, apart[n]!.length);
        sameBits(`sequence ${n}`, await sequence.save(), await apart[n]!.save());
      }
    });

    test('append() to a batch refuses all of it or takes all of it', async () => {
      const cache = new KVCache(backend, { ...options, capacity: 200 });
      const other = new KVCache(backend, options).sequence();
      const [a, b] = [cache.sequence(), cache.sequence()];
      cache.append([a, b], 0, [tokens(0, 0, 70)[0], tokens(1, 0, 70)[0]], [tokens(0, 0, 70)[1], tokens(1, 0, 70)[1]]);
      const [k, v] = tokens(0, 70, 101);
      const wrong = k.slice();
      wrong[5] = NaN;
      await refuses(
        () => cache.append([a, b], 0, [k, k], [v, v]),
        RangeError,
        '"capacity" expected at most 200 tokens, got 202 (140 held + 62 more)'
      );
      await refuses(() => cache.append([a, b], 0, [k], [v, v]), RangeError, '"keys" expected length 2 (one for each sequence), got 1');
      await refuses(() => cache.append([a, b], 0, [k, k], [v]), RangeError, '"values" expected length 2 (one for each sequence), got 1');
      await refuses(
        () => cache.append([a, a], 0, [k, k], [v, v]),
        RangeError,
        '"sequences[1]" expected a distinct sequence, got "sequences[0]" again'
      );
      await refuses(
        () => cache.append([a, other], 0, [k, k], [v, v]),
        RangeError,
        '"sequences[1]" expected sequence of this cache, got one of another'
      );
      await refuses(
        () => cache.append([a, b], 0, [k, wrong], [v, v]),
        RangeError,
        '"keys[1][5]" expected number from −65504 to 65504, got NaN'
      );
      await refuses(
        () => cache.append([a, b], 0, [k, k], [v, v.subarray(width)]),
        RangeError,
        `"values[1]" expected length ${31 * width} (31 tokens × 2 heads × 32), got ${30 * width}`
      );
      await refuses(() => cache.append([a, b], 2, [k, k], [v, v]), RangeError, '"layer" expected integer from 0 to 1, got 2');
      for (const [n, sequence] of [a, b].entries()) {
        sequence.append(1, ...tokens(n, 0, 70));
        assert.is(sequence.length, 70);
      }
    });
  });
}
