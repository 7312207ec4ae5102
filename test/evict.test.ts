// Forgetting in the middle and going on: which positions are held, and that everything that works on a sequence works on what is left.

import { type CacheOptions, inspect, KVCache, type Sequence } from 'nsnquant';
import { attend } from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { exactRope, keyLike, normal, queryWidth } from './inputs.ts';
import { readSaved, withHeader } from './pages.ts';
import { MASS } from './tolerance.ts';
import { simd128 } from './verbs.ts';

const WIDTH = 32;
const base = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: WIDTH, capacity: 1000, sequences: 3 } satisfies CacheOptions;
const keys = keyLike(600, WIDTH, 1);
const values = normal(600, WIDTH, 2);

/** Appends tokens [from, to) of a stream to every layer. */
function extend(sequence: Sequence, from: number, to: number): Sequence {
  const part = (x: Float32Array) => x.subarray(from * WIDTH, to * WIDTH);
  sequence.shape.layers.forEach((_, layer) => {
    sequence.append(layer, part(keys), part(values));
  });
  return sequence;
}

for (const tested of backends) {
  const open = (options: Partial<CacheOptions> = {}) => new KVCache(tested.backend, { ...base, ...options });
  const query = (cache: KVCache, tokens = 1) => normal(tokens, queryWidth(cache.shape), 3);

  group(`eviction on ${tested.name}`, test => {
    test('forgets the whole coded windows between two positions, in all layers or in one', () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 300); // sinks 0 to 3, windows from 4, 68, 132, 196, raw from 260
      const all = sequence.bytes;
      assert.is(cache.free, 700);
      sequence.evict({ from: 60, to: 200 });
      assert.equal(sequence.ranges(0), [
        { from: 0, to: 68 },
        { from: 196, to: 300 }
      ]);
      assert.is(sequence.tokens(0), 172);
      assert.is(sequence.length, 300);
      assert.is(cache.free, 700 + 128);
      sequence.evict({ from: 0, to: 68, layer: 1 });
      assert.equal(sequence.ranges(0).length, 2);
      assert.equal(sequence.ranges(1), [
        { from: 0, to: 4 },
        { from: 196, to: 300 }
      ]);
      assert.is(cache.free, 700 + 128); // as the fullest layer has it
      assert.ok(sequence.bytes < all);
      cache.dispose();
    });

    test('keeps what it keeps to the bit, and what comes later is coded as if nothing had gone', async () => {
      const cache = open({ rope: exactRope(WIDTH) });
      const whole = extend(extend(cache.sequence(), 0, 300), 300, 420);
      const left = extend(cache.sequence(), 0, 300);
      left.evict({ from: 68, to: 196 });
      extend(left, 300, 420);
      for (const sequence of [whole, left]) sequence.seal();
      for (const layer of [0, 1]) {
        const [all, some] = [await whole.decode(layer), await left.decode(layer)];
        for (const side of ['keys', 'values'] as const) {
          assert.is(some[side].length, (420 - 128) * WIDTH);
          sameBits(side, some[side], Float32Array.from([...all[side].subarray(0, 68 * WIDTH), ...all[side].subarray(196 * WIDTH)]));
        }
      }
      cache.dispose();
    });

    test('attention is that over what is left', async () => {
      const cache = open({ rope: exactRope(WIDTH) });
      const sequence = extend(cache.sequence(), 0, 300);
      sequence.evict({ from: 68, to: 196 });
      extend(sequence, 300, 310);
      await attendWithinRule('ten tokens', sequence, query(cache, 10));
      extend(sequence, 310, 311);
      await attendWithinRule('one token', sequence, query(cache), { layer: 1 });
      sequence.evict({ from: 0, to: 310 });
      await attendWithinRule('sinks and the tail', sequence, query(cache));
      cache.dispose();
    });

    test('a fork, a file and a crop have what is left', async () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 300);
      sequence.evict({ from: 68, to: 132 });
      sequence.evict({ from: 196, to: 260, layer: 0 });
      const ranges = [
        [
          { from: 0, to: 68 },
          { from: 132, to: 196 },
          { from: 260, to: 300 }
        ],
        [
          { from: 0, to: 68 },
          { from: 132, to: 300 }
        ]
      ];
      const file = await sequence.save();
      const fork = sequence.fork();
      sequence.dispose();
      const restored = cache.restore(file);
      for (const other of [fork, restored]) {
        assert.equal(
          [0, 1].map(layer => other.ranges(layer)),
          ranges
        );
        sameBits('file', await other.save(), file);
        extend(other, 300, 400);
      }
      sameBits('file', await fork.save(), await restored.save());
      fork.crop(170); // within a page that both hold
      assert.equal(fork.ranges(0), [
        { from: 0, to: 68 },
        { from: 132, to: 170 }
      ]);
      extend(fork, 170, 250);
      await attendWithinRule('after a crop', fork, query(cache, 3));
      fork.crop(132); // the end of what is gone: no token of it is needed
      assert.equal(fork.ranges(1), [{ from: 0, to: 68 }]);
      assert.is(fork.length, 132);
      extend(fork, 132, 140);
      await attendWithinRule('after a crop to the end of a gap', fork, query(cache, 8));
      fork.dispose();
      restored.dispose();
      assert.is(cache.free, base.capacity);
      cache.dispose();
    });

    test('a layer that has lost all its pages has not forgotten what it learned', async () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 300);
      sequence.seal();
      const learned = await sequence.balance();
      sequence.evict({ from: 0, to: 300 });
      sameBits('balance', await sequence.balance(), learned);
      const restored = cache.restore(await sequence.save());
      sameBits('balance', await restored.balance(), learned);
      sameBits('file', await extend(restored, 300, 400).save(), await extend(sequence, 300, 400).save());
      cache.dispose();
    });

    test('gives room in which a conversation rolls on', async () => {
      const cache = open({ capacity: 200, sequences: 1 });
      const sequence = extend(cache.sequence(), 0, 200);
      for (let from = 200; from < 600; from += 20) {
        if (cache.free < 20) sequence.evict({ from: 0, to: sequence.length });
        extend(sequence, from, from + 20);
        assert.ok(sequence.tokens(0) <= 200);
      }
      assert.is(sequence.length, 600);
      await attendWithinRule('after 600 tokens', sequence, query(cache, 20));
      cache.dispose();
    });

    for (const sinks of [0, 4]) {
      for (const more of [{}, { sinkLogits: [1, -2], window: 150, softcap: 4 }]) {
        test(`mass says where attention goes: sinks ${sinks}, ${JSON.stringify(more)}`, async () => {
          const cache = open({ layers: 1, sinks, rope: exactRope(WIDTH), ...more });
          const sequence = extend(extend(cache.sequence(), 0, 270), 270, 300);
          if (!('window' in more)) sequence.evict({ from: 64, to: 140 });
          const q = query(cache, 3);
          const found = await sequence.mass(0, q);
          assert.equal(
            found.flatMap(({ from, to }) => Array.from({ length: to - from }, (_, n) => from + n)),
            sequence.ranges(0).flatMap(({ from, to }) => Array.from({ length: to - from }, (_, n) => from + n))
          );
          // By values that are 1 in the window, 0 elsewhere: what the reference makes of the decoded keys.
          const { keys } = await sequence.decode(0);
          const positions = found.flatMap(({ from, to }) => Array.from({ length: to - from }, (_, n) => from + n));
          const { window, softcap, sinkLogits } = cache.shape.layers[0]!;
          for (const { from, to, mass } of found) {
            let expected = 0;
            for (let row = 0; row < 6; row++) {
              const row64 = Float64Array.from(q.subarray(row * WIDTH, (row + 1) * WIDTH), x => x / Math.sqrt(WIDTH));
              const ones = positions.map(position => Number(position >= from && position < to));
              const options = { position: 297 + Math.floor(row / 2), positions, window, softcap };
              expected += attend(row64, keys, ones, { ...options, sinkLogit: sinkLogits?.[row % 2] ?? -Infinity }).out[0]! / 6;
            }
            // Differences of exponentials of f32 logarithms, at most 1.
            assert.ok(Math.abs(mass - expected) < MASS, `${from}: expected ${expected}, got ${mass}`);
          }
          cache.dispose();
        });
      }
    }

    test('mass is of the sequence at the time of the call', async () => {
      const cache = open({ layers: 1, sequences: 1 });
      const sequence = extend(extend(cache.sequence(), 0, 300), 300, 310);
      const q = query(cache);
      const found = await sequence.mass(0, q);
      const late = sequence.mass(0, q);
      sequence.crop(0);
      extend(extend(sequence, 310, 590), 590, 600); // in the same pages and slots
      assert.equal(await late, found);
      cache.dispose();
    });

    test('a refusal codes nothing', async () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 300);
      const held = await sequence.decode(0);
      const message = '"to" expected the end of a coded window that begins at 250 or behind it, got 300';
      await refuses(() => sequence.evict({ from: 250, to: 300 }), RangeError, message);
      assert.is(sequence.sealed.tokens, 0);
      sameBits('keys', (await sequence.decode(0)).keys, held.keys);
      sequence.evict({ from: 196, to: 300 }); // the fourth window, which is coded by this
      assert.equal(sequence.ranges(1), [
        { from: 0, to: 196 },
        { from: 260, to: 300 }
      ]);
      cache.dispose();
    });

    test('refuses what is no range of whole windows, and a cut through what is gone; all is as before', async () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 300);
      sequence.evict({ from: 68, to: 132 });
      const file = await sequence.save();
      const refusals: readonly (readonly [call: () => unknown, type: new (...args: any[]) => Error, message: string])[] = [
        [
          () => sequence.evict({ from: 69, to: 131 }),
          RangeError,
          '"to" expected the end of a coded window that begins at 69 or behind it, got 131'
        ],
        [
          () => sequence.evict({ from: 68, to: 132 }),
          RangeError,
          '"to" expected the end of a coded window that begins at 68 or behind it, got 132'
        ],
        [
          () => sequence.evict({ from: 260, to: 300 }),
          RangeError,
          '"to" expected the end of a coded window that begins at 260 or behind it, got 300'
        ],
        [() => sequence.evict({ from: 0, to: 301 }), RangeError, '"to" expected integer from 1 to 300, got 301'],
        [() => sequence.evict({ from: 132, to: 132 }), RangeError, '"from" expected integer from 0 to 131, got 132'],
        [() => sequence.evict({ from: 0, to: 300, layer: 2 }), RangeError, '"layer" expected integer from 0 to 1, got 2'],
        [
          () => sequence.evict({ from: 0, to: 300, layers: 1 } as never),
          TypeError,
          '"options" expected only from, to and layer, got layers'
        ],
        [() => sequence.evict(undefined as never), TypeError, '"options" expected object, got undefined'],
        [() => sequence.crop(100), RangeError, '"length" expected a position that layer 0 holds (others were evicted), got 100'],
        [
          () => sequence.attend(0, query(cache, 169)),
          RangeError,
          '"query" expected at most 168 tokens (what older ones see layer 0 holds no longer), got 169'
        ],
        [() => sequence.ranges(2), RangeError, '"layer" expected integer from 0 to 1, got 2'],
        [() => sequence.tokens(0.5), RangeError, '"layer" expected integer from 0 to 1, got 0.5']
      ];
      for (const [call, type, message] of refusals) {
        await refuses(call, type, message);
        sameBits('file', await sequence.save(), file);
      }
      sequence.dispose();
      await refuses(() => sequence.evict({ from: 0, to: 1 }), TypeError, 'sequence expected open, got disposed');
      await refuses(() => sequence.ranges(0), TypeError, 'sequence expected open, got disposed');
      cache.dispose();
      await refuses(() => cache.free, TypeError, 'cache expected open, got disposed');
    });
  });
}

group('files of what was evicted', test => {
  const options = { ...base, layers: [{}, { window: 100 }] };
  /** Windows 0 to 3 are coded; of them 0 is behind the second layer's window, and 1 and 2 are seen by both. */
  const saved = async (change: (sequence: Sequence) => unknown) => {
    const cache = new KVCache(simd128.backend, options);
    const sequence = extend(extend(cache.sequence(), 0, 200), 200, 270);
    change(sequence);
    const file = await sequence.save();
    const restored = cache.restore(file);
    sameBits('file of what was restored', await restored.save(), file);
    return { file, sequence, restored };
  };
  const goneIn = (file: Uint8Array) => {
    const { windows, dropped, whole } = readSaved(file).metadata;
    return `${windows}; ${dropped}; ${whole}`;
  };

  test('tell it from what is behind a sliding window, also once it is itself', async () => {
    const { file } = await saved(() => {});
    assert.is(goneIn(file), '0-3 2-3; 0 2; all all');
    const { file: without, sequence } = await saved(sequence => sequence.evict({ from: 68, to: 260 }));
    assert.is(goneIn(without), '0-0 -; 0 2; 270 270');
    sequence.crop(262);
    assert.is(goneIn(await sequence.save()), '0-0 -; 0 2; 262 262');
    sequence.evict({ from: 0, to: 68 });
    extend(sequence, 262, 600);
    assert.is(goneIn(await sequence.save()), '4-8 7-8; 0 7; 262 262');
    sequence.crop(560);
    assert.is(goneIn(await sequence.save()), '4-7 7-7; 0 7; 262 262');
    sequence.crop(4);
    assert.is(goneIn(await sequence.save()), '- -; 0 0; all all');
  });

  test('are refused where they tell what cannot have been', async () => {
    const { file } = await saved(sequence => sequence.evict({ from: 68, to: 132, layer: 0 }));
    assert.is(goneIn(file), '0-0,2-3 2-3; 0 2; 270 all');
    const cache = new KVCache(simd128.backend, options);
    for (const [field, other, message] of [
      ['dropped', '0', 'file expected dropped 2 integers from 0 to 4, got 0'],
      ['dropped', '0 5', 'file expected dropped 2 integers from 0 to 4, got 0 5'],
      ['dropped', '1 2', 'file expected dropped 0 2, got 1 2'], // no window is behind the first layer's
      ['dropped', '0 3', 'file expected dropped 0 2, got 0 3'], // it is there
      ['whole', '270', 'file expected whole 2 integers from 0 to 270 or all, got 270'],
      ['whole', '270 271', 'file expected whole 2 integers from 0 to 270 or all, got 270 271'],
      ['whole', '270 Infinity', 'file expected whole 2 integers from 0 to 270 or all, got 270 Infinity'],
      ['whole', 'all all', 'file expected whole 270 all, got all all'], // the next token would see it
      ['whole', '270 270', 'file expected whole 270 all, got 270 270'] // the next token sees all
    ] as const) {
      const bytes = withHeader(file, header => {
        header.__metadata__[field] = other;
      });
      for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) await refuses(read, RangeError, message);
    }
  });
});
