// Beams and branches: every sequence becomes what its parent was, in place; and a thousand forks leave nothing behind.

import { type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { below, keyLike, normal, queryWidth, random } from './inputs.ts';

const WIDTH = 32;
const base = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: WIDTH, capacity: 2900, sequences: 5 } satisfies CacheOptions;

/** Appends `count` tokens that nothing else has to every layer. */
function extend(sequence: Sequence, count: number, seed: number): Sequence {
  sequence.shape.layers.forEach((_, layer) => {
    sequence.append(layer, keyLike(count, WIDTH, 10 * seed + layer), normal(count, WIDTH, 10 * seed + layer + 5));
  });
  return sequence;
}

for (const tested of backends) {
  const open = (options: Partial<CacheOptions> = {}) => new KVCache(tested.backend, { ...base, ...options });

  group(`beams on ${tested.name}`, test => {
    for (const parents of [
      [0, 1, 2, 3],
      [1, 0, 3, 2],
      [1, 2, 3, 0],
      [2, 2, 2, 2],
      [3, 3, 0, 0],
      [1, 1, 1, 3]
    ].slice(tested.gpu ? 3 : 0)) {
      test(`go on from ${parents.join(', ')}`, async () => {
        const cache = open();
        // Of different lengths, partly of one origin, one within its first window.
        const origin = extend(cache.sequence(), 150, 1);
        const beams = [origin, extend(origin.fork(), 60, 2), extend(cache.sequence(), 20, 3), extend(origin.fork(), 131, 4)];
        for (const beam of beams) beam.attend(0, normal(3, queryWidth(cache.shape), 5));
        const files = await Promise.all(beams.map(beam => beam.save()));
        const { free } = cache;
        cache.reorder(beams, parents);
        for (const [n, beam] of beams.entries()) sameBits(`beam ${n}`, await beam.save(), files[parents[n]!]!);
        if (new Set(parents).size === parents.length) assert.is(cache.free, free);
        for (const [n, beam] of beams.entries()) extend(beam, 70, 6 + n);
        for (const beam of beams) await attendWithinRule('after it', beam, normal(1, queryWidth(cache.shape), 7));
        for (const beam of beams) beam.dispose();
        assert.is(cache.free, base.capacity);
        cache.dispose();
      });
    }

    test('many times over, as forks of the parents would be', async () => {
      const cache = open({ capacity: 1500 });
      const next = random(3);
      const beams = Array.from({ length: 3 }, () => cache.sequence());
      const twins = new KVCache(tested.backend, { ...base, capacity: 1500, sequences: 6 });
      let forks = beams.map(() => twins.sequence());
      for (let round = 0; round < 8; round++) {
        const counts = beams.map(() => 1 + below(next, 40));
        for (const all of [beams, forks]) for (const [n, sequence] of all.entries()) extend(sequence, counts[n]!, 40 * round + n);
        const parents = beams.map(() => below(next, 3));
        cache.reorder(beams, parents);
        const before = forks;
        forks = parents.map(parent => before[parent]!.fork());
        for (const sequence of before) sequence.dispose();
        assert.is(cache.free, twins.free);
      }
      for (const [n, beam] of beams.entries()) sameBits(`beam ${n}`, await beam.save(), await forks[n]!.save());
      cache.dispose();
      twins.dispose();
    });

    test('have the words of their parents', async () => {
      const cache = open();
      const file = await extend(cache.sequence(), 5, 1).save({ metadata: { name: 'a' } });
      const beams = [cache.restore(file), cache.sequence()];
      cache.reorder(beams, [0, 0]);
      assert.equal(beams[1]!.metadata, { name: 'a' });
      cache.dispose();
    });

    test('refuse what is no parent, and copies for which there is no room; all is as before', async () => {
      const cache = open({ capacity: 200, sequences: 3 });
      const beams = [extend(cache.sequence(), 60, 1), extend(cache.sequence(), 60, 2), extend(cache.sequence(), 1, 3)];
      const files = await Promise.all(beams.map(beam => beam.save()));
      const crowded = new KVCache(tested.backend, { ...base, capacity: 200 });
      const one = extend(crowded.sequence(), 60, 1);
      const many = [one, ...Array.from({ length: 3 }, () => extend(crowded.sequence(), 1, 2))];
      for (const [call, type, message] of [
        [() => cache.reorder(beams, [0, 1, 3]), RangeError, '"parents[2]" expected integer from 0 to 2, got 3'],
        [() => cache.reorder(beams, [0, 1, -1]), RangeError, '"parents[2]" expected integer from 0 to 2, got -1'],
        [() => cache.reorder(beams, new Array(3)), TypeError, '"parents[0]" expected integer, got undefined'],
        [() => cache.reorder(beams, [0, 1]), RangeError, '"parents" expected length 3 (one for each sequence), got 2'],
        [() => cache.reorder(beams, '012' as never), TypeError, '"parents" expected array, got string'],
        [
          () => cache.reorder([beams[0]!, beams[0]!], [0, 1]),
          RangeError,
          '"sequences[1]" expected a distinct sequence, got "sequences[0]" again'
        ],
        [() => crowded.reorder(many, [0, 0, 0, 0]), RangeError, '"capacity" expected at most 200 tokens, got 240 (63 held + 177 more)']
      ] as const) {
        await refuses(call, type, message);
        for (const [n, beam] of beams.entries()) sameBits(`beam ${n}`, await beam.save(), files[n]!);
      }
      assert.is(one.length, 60);
      cache.dispose();
      crowded.dispose();
    });

    test('a thousand branches leave nothing behind', async () => {
      const cache = open({ capacity: 600, sequences: 3 });
      const trunk = extend(cache.sequence(), 200, 1);
      trunk.seal();
      const [{ free }, file] = [cache, await trunk.save()];
      for (let n = 0; n < (tested.gpu ? 50 : 1000); n++) {
        const branch = trunk.fork();
        if (n % 100 === 0) extend(branch, 70, 2);
        if (n % 3 === 0) cache.reorder([trunk, branch], [0, 0]);
        branch.dispose();
      }
      assert.is(cache.free, free);
      sameBits('trunk', await trunk.save(), file);
      cache.dispose();
    });
  });
}
