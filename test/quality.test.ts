// How near attention over coded tokens is to exact attention, and that no finite token makes it infinite.

import { type CodecName, codecs, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { allFinite, atMost, relativeL2 } from './compare.ts';
import { inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { EQUAL_TOKENS, HALVES, LOWERED, QUALITY } from './tolerance.ts';
import { simd128, wasm, withVerbs } from './verbs.ts';

const base = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 64, capacity: 320, sequences: 2 } as const;

const names = Object.keys(codecs) as CodecName[];

group('attention of the cache', test => {
  const shape = { ...base, headDim: 64, queryHeads: 4, kvHeads: 2, capacity: 640 };
  const tokens = 580;
  const kinds: Record<string, () => [keys: Float32Array, values: Float32Array]> = {
    normal: () => [normal(tokens, 128, 30), normal(tokens, 128, 31)],
    'key-like': () => [keyLike(tokens, 128, 32), keyLike(tokens, 128, 33)]
  };

  for (const [kind, make] of Object.entries(kinds)) {
    for (const name of names) {
      test(`attention over ${kind} tokens at ${name} is as near to exact attention as measured`, async () => {
        const [keys, values] = make();
        const q = normal(8, 256, 34);
        const exact = brute.attention(q, keys, values, shape, 1 / 8, brute.f64).out;
        for (const tested of wasm) {
          const cache = new KVCache(tested.backend, { ...shape, keys: name, values: name });
          const sequence = cache.sequence();
          sequence.append(0, keys, values);
          sequence.seal();
          const error = relativeL2(await sequence.attend(0, q).read(), exact);
          if (tested === simd128) console.log(`${kind}, ${name}: relative error ${error.toFixed(4)}`);
          atMost('relative error', error, QUALITY[kind]![name]);
          cache.dispose();
        }
      });
    }
  }

  test('RoPE that is known lowers the error of keys that carry it', async () => {
    const rope = ropes(64)['halves']!;
    const one = { ...shape, kvHeads: 1, queryHeads: 2, keys: 'nsn2', values: 'nsn4' } as const;
    // A mean that is strong in fast pairs too: what turning makes of it within a window is what Shift must undo.
    const keys = turned(
      keyLike(tokens, 64, 39).map((value, i) => value + 2 * Math.sin(i % 64)),
      64,
      rope
    );
    const values = normal(tokens, 64, 40);
    const q = turned(normal(16, 64, 41), 64, rope, tokens);
    const exact = brute.attention(q, keys, values, one, 1 / 8, brute.f64).out;
    const errorWith = async (options: object) => {
      const cache = new KVCache(simd128.backend, { ...one, ...options });
      const sequence = cache.sequence();
      sequence.append(0, keys, values);
      sequence.seal();
      return relativeL2(await sequence.attend(0, q).read(), exact);
    };
    const [known, unknown] = [await errorWith({ rope }), await errorWith({})];
    console.log(`RoPE known: relative error ${known.toFixed(4)}, unknown: ${unknown.toFixed(4)}`);
    atMost('RoPE known', known / unknown, LOWERED.ropeKnown);
  });

  test('sinks and recent windows that stay raw lower the error', async () => {
    const [keys, values] = kinds['normal']!();
    const q = normal(1, 256, 35);
    const exact = brute.attention(q, keys, values, shape, 1 / 8, brute.f64).out;
    const errorWith = async (sinks: number, recent: number) => {
      const cache = new KVCache(simd128.backend, { ...shape, keys: 'nsn1', values: 'nsn1', sinks, recent });
      const sequence = cache.sequence();
      sequence.append(0, keys, values);
      sequence.seal();
      return relativeL2(await sequence.attend(0, q).read(), exact);
    };
    const [none, recent, all] = [await errorWith(0, 0), await errorWith(64, 4), await errorWith(64, 9)];
    atMost('sinks and recent windows', recent / none, LOWERED.raw);
    atMost('everything raw', all, HALVES);
  });

  for (const name of names) {
    // On a GPU by odd.test.ts, in shapes that it compiles anyway.
    for (const tested of withVerbs) {
      test(`windows of zeros, of equal tokens and of ±65,504 are no error and give finite numbers: ${name} on ${tested.name}`, async () => {
        for (const input of ['nothing but zeros', 'equal tokens', 'largest finite', 'one hot', 'negative zeros']) {
          const cache = new KVCache(tested.backend, { ...base, headDim: 32, keys: name, values: name });
          const sequence = cache.sequence();
          const x = inputs[input]!(140, 32, 36);
          sequence.append(0, x, x);
          sequence.seal();
          const held = await sequence.decode(0);
          allFinite(`${input}: keys`, held.keys);
          allFinite(`${input}: values`, held.values);
          for (const q of [normal(2, 64, 37), inputs['largest finite']!(2, 64, 38), new Float32Array(128)]) {
            const out = await sequence.attend(0, q).read();
            allFinite(`${input}: out`, out);
            if (input === 'nothing but zeros') assert.ok(out.every(value => value === 0));
            if (input === 'equal tokens') atMost('error', relativeL2(out.subarray(0, 32), x.subarray(0, 32)), EQUAL_TOKENS);
          }
          cache.dispose();
        }
      });
    }
  }
});
