// Odd tokens and scales that are no errors: what comes of them is finite, on every backend.

import { type CodecName, codecs } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends } from './backends.ts';
import { allFinite, sameBits } from './compare.ts';
import { nearestHalf } from './half.ts';
import { inputs } from './inputs.ts';
import { cacheOn, HEAD_DIM, queries, rows } from './refusing.ts';
import { ALIKE } from './tolerance.ts';

/** The range of scales: its least is 0 in f32, its most is far from what f32 cannot hold. */
group('odd scales that are no errors', test => {
  for (const tested of backends) {
    test(`the least attends to all tokens alike, the most to finite numbers, on ${tested.name}`, async () => {
      for (const input of ['key-like', 'largest finite'] as const) {
        for (const tokens of [1, 70]) {
          // 140 rows: a prompt, for which pages are decoded.
          const cache = cacheOn(tested, { layers: 1, sinks: 2 });
          const sequence = cache.sequence();
          const keys = inputs[input]!(tokens, HEAD_DIM, 5);
          const values = rows(tokens, 6);
          sequence.append(0, inputs[input]!(100, HEAD_DIM, 7), rows(100, 8));
          sequence.append(0, keys, values);
          const query = inputs[input]!(tokens, 2 * HEAD_DIM, 9);
          for (const scale of [2 ** 32, Number.MIN_VALUE, 1e-300, 1e-45, 1e-39]) {
            const out = await sequence.attend(0, query, { scale }).read();
            allFinite(`${input}, ${tokens} tokens, scale ${scale}`, out);
            if (scale > 1) continue;
            // Read after attending: decode() needs nothing sealed.
            const held = (await sequence.decode(0)).values;
            const last = out.subarray(out.length - HEAD_DIM);
            for (let i = 0; i < HEAD_DIM; i++) {
              let mean = 0;
              for (let t = 0; t < 100 + tokens; t++) mean += held[t * HEAD_DIM + i]! / (100 + tokens);
              assert.ok(
                Math.abs(last[i]! - mean) <= ALIKE,
                `${input}, ${tokens} tokens, scale ${scale}: ${last[i]} is not the mean ${mean}`
              );
            }
          }
          cache.dispose();
        }
      }
    });
  }
});

group('odd tokens that are no errors', test => {
  const odd = ['nothing but zeros', 'zero tokens', 'equal tokens', 'largest finite', 'f32 subnormals'] as const;
  const TOKENS = 134;

  for (const tested of backends) {
    // One number of rows: a GPU has a pipeline for each.
    const asked = tested.gpu ? 8 : 3;
    // On a GPU the one whose numbers are largest, and what others are compiled for; shapes.test.ts has such tokens in every codec.
    const names: readonly CodecName[] = tested.gpu ? ['nsn1', 'nsn3'] : (Object.keys(codecs) as CodecName[]);
    for (const codec of names) {
      for (const name of odd) {
        test(`${name} in ${codec} on ${tested.name} decode and attend to finite numbers, learned from or not`, async () => {
          const cache = cacheOn(tested, { layers: 1, keys: codec, values: codec, sinks: 0, capacity: 2 * TOKENS });
          const x = inputs[name]!(TOKENS, HEAD_DIM, 5);
          const sequence = cache.sequence();
          sequence.append(0, x, x);
          // What is learned of such queries is odd, too.
          sequence.attend(0, inputs[name]!(tested.gpu ? asked : TOKENS, 2 * HEAD_DIM, 6));
          sequence.seal();
          assert.is(sequence.sealed.tokens, 128);
          for (const of of [sequence, cache.restore(await sequence.save())]) {
            const { keys, values } = await of.decode(0);
            allFinite('keys', keys);
            allFinite('values', values);
            for (let t = 0; t < TOKENS; t++) {
              const row = (of: Float32Array) => of.subarray(t * HEAD_DIM, (t + 1) * HEAD_DIM);
              if (row(x).some(value => value !== 0)) continue;
              assert.ok(
                row(keys).every(value => value === 0),
                `keys of token ${t}`
              );
              assert.ok(
                row(values).every(value => value === 0),
                `values of token ${t}`
              );
            }
            for (const query of [queries(asked), new Float32Array(asked * 64), inputs['largest finite']!(asked, 64, 6)]) {
              allFinite('attention', await of.attend(0, query).read());
            }
            of.dispose();
          }
          cache.dispose();
        });
      }

      test(`the largest tokens in ${codec} on ${tested.name} are cut as the nearest finite f16`, async () => {
        const cache = cacheOn(tested, { layers: 1, keys: codec, values: codec, sinks: 0, capacity: 256 });
        const x = inputs['largest finite']!(128, HEAD_DIM, 5);
        const sequence = cache.sequence();
        sequence.append(0, x, x);
        sequence.seal();
        const whole = await sequence.decode(0);
        sequence.crop(127);
        const cut = await sequence.decode(0);
        for (const side of ['keys', 'values'] as const) {
          // Codes can stand for numbers that f16 has no room for.
          const expected = whole[side].subarray(0, 127 * HEAD_DIM).map(nearestHalf);
          // The first window stays coded.
          sameBits(side, cut[side].subarray(64 * HEAD_DIM), expected.subarray(64 * HEAD_DIM));
        }
        allFinite('attention', await sequence.attend(0, queries(asked)).read());
        sequence.append(0, x, x);
        sequence.seal();
        const again = await sequence.decode(0);
        allFinite('keys', again.keys);
        allFinite('values', again.values);
        cache.dispose();
      });
    }
  }
});
