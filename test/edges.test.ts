// The edge of capacity: a call fits in a cache exactly where a larger one holds no more after it, and then `free` tokens still fit.

import { type CacheOptions, KVCache, type LayerOptions, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses } from './compare.ts';
import { bells } from './inputs.ts';
import { simd128 } from './verbs.ts';

const WIDTH = 32;
const base = { layers: 2, kvHeads: 1, queryHeads: 1, headDim: WIDTH, capacity: 2000, sequences: 4 } satisfies CacheOptions;
const rows = (tokens: number) => bells(tokens, WIDTH, tokens);

function append(sequence: Sequence, tokens: number): void {
  for (const layer of [0, 1]) sequence.append(layer, rows(tokens), rows(tokens));
}

const shapes: Record<string, Partial<CacheOptions>> = {
  'layers that learn': {},
  'plain keys': { balance: 'off' },
  'recent windows': { recent: 2 },
  'a sliding window': { layers: [{}, { window: 50 }], balance: 'off' },
  'nothing but what is behind a window': { layers: [{ window: 1 }, { window: 1 }], sinks: 0 }
};

const cacheLayers = ({ layers }: Partial<CacheOptions>) => (Array.isArray(layers) ? (layers as readonly LayerOptions[]) : []);

for (const [what, options] of Object.entries(shapes)) {
  group(`the edge of capacity: ${what}`, test => {
    /** Three sequences: complete windows of two wait, the third is empty. */
    const begin = (capacity: number) => {
      const cache = new KVCache(simd128.backend, { ...base, ...options, capacity });
      const [first, second, third] = [cache.sequence(), cache.sequence(), cache.sequence()];
      append(first, 70);
      append(first, 100);
      append(second, 90);
      return { cache, sequences: [first, second, third] as const };
    };
    const calls: Record<string, (before: ReturnType<typeof begin>) => Sequence> = {
      'fork()': ({ sequences: [first] }) => first.fork(),
      'reorder()': ({ cache, sequences }) => {
        cache.reorder(sequences, [0, 1, 0]);
        return sequences[2];
      }
    };
    /** Where a layer has a window, more may fit: what is behind it goes. */
    const isExact = cacheLayers(options).every(layer => !layer.window);
    for (const [name, call] of Object.entries(calls)) {
      test(`${name} fits where there is room for what all hold after it, and else changes nothing`, async () => {
        const large = begin(base.capacity);
        const before = base.capacity - large.cache.free;
        call(large);
        const after = base.capacity - large.cache.free;
        const least = Math.max(before, after);
        for (const capacity of [least, least + 37]) {
          const roomy = begin(capacity);
          const copy = call(roomy);
          assert.is(roomy.cache.free, capacity - after);
          if (capacity > after) append(copy, capacity - after);
          if (isExact) await refusesOneMore(copy, capacity);
        }
        if (after <= before) return;
        const small = begin(after - 1);
        const seen = () => [small.cache.free, ...small.sequences.map(sequence => sequence.bytes)];
        const was = seen();
        await refuses(
          () => call(small),
          RangeError,
          `"capacity" expected at most ${after - 1} tokens, got ${after} (${before} held + ${after - before} more)`
        );
        assert.equal(seen(), was);
        const [, second] = small.sequences;
        append(second, small.cache.free);
        if (isExact) await refusesOneMore(second, after - 1);
      });
    }
  });
}

async function refusesOneMore(sequence: Sequence, held: number): Promise<void> {
  await refuses(
    () => append(sequence, 1),
    RangeError,
    `"capacity" expected at most ${held} tokens, got ${held + 1} (${held} held + 1 more)`
  );
}
