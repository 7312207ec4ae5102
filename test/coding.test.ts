// The reference's coding of a window, plain and balanced, against its verbs and against definitions: dense matrices, and f64 attention
// over decoded tokens.

import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, equals, relativeL2, sameBits } from './compare.ts';
import { encodedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { anyBalance, exactRope, inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { readBlock, type Side, sectionsOf } from './pages.ts';
import { EQUAL_TOKENS, LOWERED, NEAR_TIES } from './tolerance.ts';

const { codecs } = reference;
const names = Object.keys(codecs) as reference.CodecName[];
const kinds = [
  ['keys', false],
  ['keys', true],
  ['values', false]
] as const;

/** How a side is coded, by the package and drawn anew. */
function codingOf(name: reference.CodecName, headDim: number, side: Side, balanced: boolean, rope?: reference.Rope) {
  const layout = reference.blockLayout(codecs[name], headDim, side, balanced);
  const balance = anyBalance(headDim, 99);
  const coding = reference.codingOf(layout, rope, balanced ? reference.channelOrder(balance, headDim, rope) : undefined);
  return {
    layout,
    coding,
    at: sectionsOf(codecs[name], headDim, side, balanced),
    order: balanced ? brute.orderOf(balance, headDim, rope) : undefined
  };
}

const tokensOf = (headDim: number, seed: number) => rounded(keyLike(64, headDim, seed));

for (const name of names) {
  for (const [side, balanced] of kinds) {
    group(`reference, ${name}, ${balanced ? 'balanced' : 'plain'} ${side}`, test => {
      for (const headDim of [32, 64, 80]) {
        for (const rope of [undefined, ...(side === 'keys' ? [exactRope(headDim), ropes(headDim)['partial interleaved']!] : [])]) {
          const title = `headDim ${headDim}, ${rope ? (rope.interleaved ? 'partial RoPE' : 'RoPE') : 'no RoPE'}`;
          const { layout, coding, at, order } = codingOf(name, headDim, side, balanced, rope);
          const x = tokensOf(headDim, 10);
          const window = reference.encode(x, headDim, coding);
          const bytes = reference.pack(window, layout);

          test(`encode() gives what the definitions give of its own norms, means and codes: ${title}`, () => {
            const ties = { near: 0, codes: 0 };
            encodedFrom(title, bytes, x, at, rope, ties, order);
            assert.is(ties.codes, 64 * at.perRow);
            atMost('near ties', ties.near, NEAR_TIES * ties.codes);
          });

          test(`encode() starts with normalize() and shift(): ${title}`, () => {
            const y = Float64Array.from(x);
            sameBits('s1', window.s1, reference.normalize(y, headDim).s1);
            sameBits('o', window.o, reference.shift(y, headDim, side === 'keys' ? 8 : 4, rope).o);
          });

          test(`decode() is s1·(A⁻¹·H·(s2·C) + RoPE(o)) with dense matrices: ${title}`, () => {
            const exact = brute.decode(readBlock(bytes, at), rope, brute.f64, order);
            equals('tokens', reference.decode(window, coding), exact);
          });

          test(`scores() are products with decoded tokens: ${title}`, () => {
            const query = normal(1, headDim, 11);
            const tokens = reference.decode(window, coding);
            equals('logits', reference.scores(query, window, coding), brute.scores(query, tokens, headDim, brute.f64));
          });

          if (!rope)
            test(`mix() is the weighted sum of decoded tokens: ${title}`, () => {
              const weights = inputs['uniform']!(1, 64, 13);
              equals(
                'out',
                reference.mix(weights, window, coding),
                brute.mix(weights, reference.decode(window, coding), headDim, brute.f64)
              );
            });

          test(`unpack() gives back what pack() was given: ${title}`, () => {
            const back = reference.unpack(bytes, layout, headDim);
            for (const field of ['codes', 's1', 's2', 'o'] as const) sameBits(field, back[field], window[field]);
            sameBits('bytes', reference.pack(back, layout), bytes);
          });
        }
      }

      const { layout, coding, at, order } = codingOf(name, 64, side, balanced);
      const coded = (x: ArrayLike<number>) => reference.encode(x, 64, coding);
      const back = (x: ArrayLike<number>) => reference.decode(coded(x), coding);

      test('mix() with one weight of 1 is decode()', () => {
        const window = coded(tokensOf(64, 14));
        const tokens = reference.decode(window, coding);
        for (const t of [0, 31, 63]) {
          const weights = new Float64Array(64);
          weights[t] = 1;
          equals(`token ${t}`, reference.mix(weights, window, coding), tokens.subarray(t * 64, (t + 1) * 64));
        }
      });

      test('encode() of tokens times a power of two changes s1 alone', () => {
        const x = tokensOf(64, 15);
        const [before, after] = [coded(x), coded(x.map(value => value * 8))];
        for (const field of ['codes', 's2', 'o'] as const) sameBits(field, after[field], before[field]);
        sameBits(
          's1',
          after.s1,
          before.s1.map(s1 => s1 * 8)
        );
      });

      test('encode() of permuted tokens permutes the codes', () => {
        const x = tokensOf(64, 16);
        const order = Uint8Array.from({ length: 64 }, (_, t) => (t * 37) % 64);
        const permuted = Float32Array.from({ length: x.length }, (_, i) => x[order[Math.floor(i / 64)]! * 64 + (i % 64)]!);
        const [before, after] = [coded(x), coded(permuted)];
        const { perRow } = at;
        const differing = after.codes.filter((code, n) => code !== before.codes[order[Math.floor(n / perRow)]! * perRow + (n % perRow)]);
        // The mean is summed in another order, in f64: a tie so near is not to be expected in a few thousand codes.
        assert.is(differing.length, 0);
      });

      test('attention over a coded window is attention over its decoded tokens', () => {
        const window = coded(tokensOf(64, 17));
        const tokens = reference.decode(window, coding);
        const query = normal(1, 64, 18);
        const logits = reference.scores(query, window, coding);
        const most = Math.max(...logits);
        const weights = logits.map(logit => Math.exp(logit - most));
        const sum = weights.reduce((a, b) => a + b);
        const { out } = reference.attend(query, tokens, tokens);
        equals(
          'scores and mix',
          reference.mix(
            weights.map(p => p / sum),
            window,
            coding
          ),
          out
        );
        const shape = { kvHeads: 1, queryHeads: 1, headDim: 64 };
        equals('brute force', out, brute.attention(query, tokens, tokens, shape, 1, brute.f64).out);
      });

      for (const [input, make] of Object.entries(inputs)) {
        test(`encode() of ${input} gives what the definitions give, and finite numbers`, () => {
          const x = rounded(make(64, 64, 19));
          const window = coded(x);
          encodedFrom(input, reference.pack(window, layout), x, at, undefined, { near: 0, codes: 0 }, order);
          for (const numbers of [window.s1, window.s2, window.o, reference.decode(window, coding)]) {
            assert.ok(numbers.every(Number.isFinite));
          }
        });
      }

      test('decode() keeps a zero token zero', () => {
        const tokens = back(inputs['zero tokens']!(64, 64, 20));
        for (const t of [0, 32, 63])
          assert.ok(
            tokens.subarray(t * 64, (t + 1) * 64).every(value => value === 0),
            `token ${t}`
          );
        assert.ok(tokens.subarray(64, 128).some(value => value !== 0));
      });

      test('decode() of equal tokens is their mean', () => {
        const x = inputs['equal tokens']!(64, 64, 21);
        const tokens = back(x);
        for (let t = 1; t < 64; t++) sameBits(`token ${t}`, tokens.subarray(t * 64, (t + 1) * 64), tokens.subarray(0, 64));
        atMost('error', relativeL2(tokens, x), EQUAL_TOKENS[side][name]);
      });
    });
  }
}

group('reference, RoPE', test => {
  test('that is known, in halves, interleaved or partial, lowers the error of keys that carry it', () => {
    const means = Float32Array.from(keyLike(64, 64, 22), (value, i) => value + 4 * Math.sin(i % 64));
    for (const [name, rope] of Object.entries(ropes(64))) {
      if (name === 'standing still') continue;
      const x = turned(means, 64, rope, 1000);
      const errorWith = (known: reference.Rope | undefined) => {
        const { coding } = codingOf('nsn2', 64, 'keys', false, known);
        return relativeL2(reference.decode(reference.encode(x, 64, coding), coding), x);
      };
      atMost(name, errorWith(rope) / errorWith(undefined), LOWERED.meanBeforeRope);
    }
  });

  test('at any position gives the same codes of norms', () => {
    const rope = ropes(64)['halves']!;
    const { coding } = codingOf('nsn2', 64, 'keys', true, rope);
    const [near, far] = [0, 5000].map(from => reference.encode(turned(keyLike(64, 64, 23), 64, rope, from), 64, coding));
    // Turned tokens are rounded to f32, and slower pairs are turned as a whole: only the norms stay.
    sameBits('s1 codes', far!.s1Group.codes, near!.s1Group.codes);
  });
});
