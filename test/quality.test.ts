// How near attention over coded tokens is to exact attention, and that no finite token makes it infinite.

import { type CodecName, codecs, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { allFinite, atMost, relativeL2 } from './compare.ts';
import { rounded } from './half.ts';
import { inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { EQUAL_TOKENS, HALVES, KEY_BIAS, LOWERED, QUALITY } from './tolerance.ts';
import { simd128, wasm, withVerbs } from './verbs.ts';

const base = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 64, capacity: 320, sequences: 2 } as const;

const names = Object.keys(codecs) as CodecName[];

/** Every four channels of half a head half as large as those before: what queries weigh is in few channels. */
const falling = (x: Float32Array) => x.map((value, i) => value * 2 ** -((i % 32) >> 2));

group('attention of the cache', test => {
  const shape = { ...base, headDim: 64, queryHeads: 4, kvHeads: 2, capacity: 640 };
  const tokens = 580;
  const learned = 4 + 128;
  const kinds: Record<keyof typeof QUALITY, () => [keys: Float32Array, values: Float32Array, queries: Float32Array]> = {
    normal: () => [normal(tokens, 128, 30), normal(tokens, 128, 31), normal(learned + 8, 256, 34)],
    'key-like': () => [keyLike(tokens, 128, 32), keyLike(tokens, 128, 33), normal(learned + 8, 256, 34)],
    falling: () => [
      falling(keyLike(tokens, 128, 32)),
      keyLike(tokens, 128, 33),
      falling(normal(learned + 8, 256, 34)).map(value => 3 * value)
    ]
  };

  for (const [kind, make] of Object.entries(kinds) as [keyof typeof QUALITY, (typeof kinds)['normal']][]) {
    const [keys, values, queries] = make();
    const newest = queries.subarray(learned * 256);
    const exact = brute.attention(newest, keys, values, shape, 1 / 8, brute.f64).out;
    for (const name of names) {
      for (const balance of ['learn', 'off'] as const) {
        const title = `${kind} tokens at ${name}, ${balance === 'learn' ? 'balanced' : 'plain'}`;
        test(`attention over ${title}, is as near to exact attention as measured`, async () => {
          for (const tested of wasm) {
            const cache = new KVCache(tested.backend, { ...shape, keys: name, values: name, balance });
            const sequence = cache.sequence();
            const append = (from: number, to: number) =>
              sequence.append(0, keys.subarray(from * 128, to * 128), values.subarray(from * 128, to * 128));
            append(0, learned);
            sequence.attend(0, queries.subarray(0, learned * 256));
            append(learned, tokens);
            sequence.seal();
            const error = relativeL2(await sequence.attend(0, newest).read(), exact);
            if (tested === simd128) console.log(`${title}: relative error ${error.toFixed(4)}`);
            atMost('relative error', error, QUALITY[kind][balance][name]);
            cache.dispose();
          }
        });
      }
    }
  }

  for (const name of names) {
    for (const balance of ['learn', 'off'] as const) {
      test(`a bias of keys that is 900 long costs nothing of what differs between them: ${name}, balance ${balance}`, async () => {
        // Qwen2 has such: in six channels of slow pairs, or in all.
        const [headDim, tokens] = [128, 4 + 64 * 4];
        const rope = { invFreq: Array.from({ length: 64 }, (_, i) => 1e6 ** (-i / 64)), interleaved: false };
        const differing = normal(tokens, headDim, 42).map(value => 1.5 * value);
        const errorWith = async (length: number, channels: readonly number[], turns: boolean) => {
          const weights = normal(1, headDim, 43).map((value, i) => (channels.includes(i) ? value : 0));
          const norm = Math.hypot(...weights);
          const biased = differing.map((value, i) => value + (length * weights[i % headDim]!) / norm);
          const keys = rounded(turns ? turned(biased, headDim, rope) : biased);
          const cache = new KVCache(simd128.backend, {
            ...{ layers: 1, kvHeads: 1, queryHeads: 1, headDim, capacity: tokens, sequences: 1, keys: name, balance },
            ...(turns && { rope })
          });
          const sequence = cache.sequence();
          sequence.append(0, keys, keys);
          sequence.seal();
          const held = (await sequence.decode(0)).keys;
          const error = brute.norms(
            held.map((value, i) => value - keys[i]!),
            held.length,
            brute.f64
          )[0]!;
          cache.dispose();
          return error / brute.norms(differing, differing.length, brute.f64)[0]!;
        };
        const six = [40, 45, 51, 104, 110, 120];
        for (const [where, channels, turns] of [
          ['six channels', six, false],
          ['six channels, RoPE', six, true],
          ['all channels', Array.from({ length: headDim }, (_, i) => i), false]
        ] as const) {
          const none = await errorWith(0, channels, turns);
          for (const length of [22, 300, 900]) {
            const error = await errorWith(length, channels, turns);
            if (length === 900) console.log(`${name}, ${balance}, ${where}: ${error.toFixed(4)}, without a bias ${none.toFixed(4)}`);
            atMost(`${where}, ${length} long`, error / none, KEY_BIAS);
          }
        }
      });
    }
  }

  test('RoPE that is known lowers the error of keys that carry it', async () => {
    const rope = ropes(64)['halves']!;
    const one = { ...shape, kvHeads: 1, queryHeads: 2, keys: 'nsn2', values: 'nsn4', balance: 'off' } as const;
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
    const [keys, values] = kinds.normal();
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
            if (input === 'equal tokens') atMost('error', relativeL2(out.subarray(0, 32), x.subarray(0, 32)), EQUAL_TOKENS.values[name]);
          }
          cache.dispose();
        }
      });
    }
  }
});
