// encoded.ts must bite, as the other comparers must (bite.test.ts): it is all that holds a GPU's pages. It is given blocks that are
// right, and the same with one number, nibble, code or byte of padding changed.

import { type CodecName, codecs } from 'nsnquant';
import * as referenceVerbs from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import * as brute from './brute.ts';
import { encodedFrom, learnedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { anyBalance, exactRope, keyLike } from './inputs.ts';
import { paddingOf, sectionsOf } from './pages.ts';
import { NEAR_LEVELS } from './tolerance.ts';
import { reference, simd128 } from './verbs.ts';

const headDim = 72; // rows of codes and a group of channels that end in padding
const rope = exactRope(headDim);
const tokens = rounded(keyLike(64, headDim, 1));
const refuses = (run: () => void, message: RegExp) => assert.throws(run, (error: Error) => message.test(error.message));

const kinds = [
  ['keys', undefined],
  ['keys', anyBalance(headDim, 5)],
  ['values', undefined]
] as const;

for (const name of Object.keys(codecs) as CodecName[]) {
  for (const [side, balance] of kinds) {
    const turning = side === 'keys' ? rope : undefined;
    const options = { codec: name, headDim, side, ...(turning && { rope: turning }), ...(balance && { balance }) };
    const opened = await Promise.all([simd128, reference].map(tested => tested.kernels(options)));

    group(`encodedFrom(), ${name}, ${balance ? 'balanced' : 'plain'} ${side}`, test => {
      const [block] = opened.map(verbs => verbs.encode(tokens));
      const at = sectionsOf(codecs[name], headDim, side, balance !== undefined);
      const order = balance && brute.orderOf(balance, headDim, rope);
      const check = (bytes: Uint8Array, x = tokens, turn = turning, other = order) => {
        const ties = { near: 0, codes: 0 };
        encodedFrom(name, bytes, x, at, turn, ties, other);
        return ties;
      };
      /** A copy with one byte changed. */
      const changed = (byte: number, change: (value: number) => number) => {
        const copy = block!.slice();
        copy[byte] = change(copy[byte]!);
        return copy;
      };
      /** A copy with a code of a byte, or the low one of two, a step further. */
      const stepped = (byte: number, most = 15) => changed(byte, value => (value % (most + 1) < most ? value + 1 : value - 1));

      test('accepts what WebAssembly and the reference code, and counts all of it', () => {
        for (const verbs of opened) {
          const { near, codes } = check(verbs.encode(tokens));
          assert.is(codes, 64 * at.perRow);
          assert.ok(near <= 1, `${near}`);
        }
      });

      test('refuses another codeword in every stage of every segment, and rows of codes that are swapped', () => {
        for (const { stages } of at.segments) {
          for (const { column, columns } of stages) {
            for (const byte of [column, at.rowBytes + column + columns - 1, 63 * at.rowBytes + column]) {
              refuses(() => check(changed(byte, code => code ^ 0x80)), /expected code/);
            }
          }
        }
        const swapped = block!.slice();
        swapped.set(block!.subarray(0, at.rowBytes), at.rowBytes);
        swapped.set(block!.subarray(at.rowBytes, 2 * at.rowBytes), 0);
        refuses(() => check(swapped), /expected code/);
      });

      test('refuses a norm, a mean and their scales that are one step off', () => {
        for (const byte of [at.s1[0], at.s1[1] - 1]) refuses(() => check(stepped(byte)), /norms expected code/);
        for (const byte of [at.o[0], at.o[1] - 1]) refuses(() => check(stepped(byte, at.meanMost)), /mean expected code/);
        refuses(() => check(changed(at.scales[0], byte => byte ^ 2)), /norms expected scale/);
        refuses(() => check(changed(at.scales[0] + 2, byte => byte ^ 2)), /norms expected minimum/);
        refuses(() => check(changed(at.scales[0] + 4, byte => byte ^ 2)), /mean expected scale/);
        refuses(() => check(changed(at.scales[1] - 2, byte => byte ^ 2)), /mean expected minimum/);
      });

      test('refuses a second norm that is two floats off, and an exponent that is one off, codes moved along', () => {
        for (const byte of [at.s2[0], at.s2[1] - 1]) refuses(() => check(changed(byte, value => value ^ 2)), /expected s2 of token/);
        at.segments.forEach((_, n) => {
          for (const step of [1, -1]) {
            const copy = changed(at.exponents[0] + n, exponent => exponent + step);
            const codes = copy.subarray(at.s2[0] + 64 * n, at.s2[0] + 64 * (n + 1));
            codes.forEach((code, t) => {
              codes[t] = Math.min(Math.max(code - 32 * step, 0), 255);
            });
            refuses(() => check(copy), /expected exponent/);
          }
        });
      });

      test('refuses padding that is not 0, and another number of bytes', () => {
        for (const byte of paddingOf(at)) refuses(() => check(changed(byte, () => 1)), /expected 0 as padding/);
        refuses(() => check(block!.subarray(1)), /bytes, got/);
      });

      test('refuses the block of other tokens, of swapped tokens, and of tokens turned otherwise', () => {
        refuses(() => check(block!, rounded(keyLike(64, headDim, 2))), /expected/);
        const swapped = tokens.slice();
        swapped.set(tokens.subarray(0, headDim), headDim);
        swapped.set(tokens.subarray(headDim, 2 * headDim), 0);
        refuses(() => check(block!, swapped), /expected/);
        if (!turning) return;
        const still = { ...rope, invFreq: Array.from(rope.invFreq, () => 0) };
        refuses(() => check(block!, tokens, still), /mean expected/);
        refuses(() => check(block!, tokens, { ...rope, interleaved: true }), /mean expected/);
      });

      if (order)
        test('refuses the block of keys in another order, or with another scale', () => {
          const { channels, scales } = order;
          const last = headDim - 1;
          const swapped = channels.map((_, i) => channels[i === 0 ? last : i === last ? 0 : i]!);
          // The last channels of nsn1 are dropped: of them nothing is known.
          refuses(() => check(block!, tokens, rope, { channels: swapped, scales }), /expected/);
          refuses(
            () => check(block!, tokens, rope, { channels, scales: scales.map((scale, i) => (i < 2 ? scale * 1.1 : scale)) }),
            /expected/
          );
          refuses(() => check(block!, tokens, rope, { channels, scales: scales.map(scale => 1 / scale) }), /expected/);
        });
    });
  }
}

group('learnedFrom()', test => {
  const windows = [1, 2].map(seed => rounded(keyLike(64, headDim, seed)));
  const queries = Float32Array.from({ length: headDim }, (_, i) => 2 ** -(i % 9));
  const energies = brute.queryEnergies(queries, headDim, rope);
  const balance = referenceVerbs.learn(windows, queries, headDim, rope);
  const check = (bytes: Uint8Array, of = windows, turn = rope, asked = energies) => {
    const ties = { near: 0, codes: 0 };
    learnedFrom('balance', bytes, of, asked, headDim, turn, ties);
    return ties;
  };

  test('accepts what the reference learns, and counts all levels', () => {
    const { near, codes } = check(balance);
    assert.is(codes, headDim);
    assert.ok(near <= NEAR_LEVELS * codes);
  });

  test('refuses a level that is one off, swapped nibbles, other windows, other queries and other pairs', () => {
    balance.forEach((byte, pair) => {
      for (const step of [1, 16]) {
        const copy = balance.slice();
        copy[pair] = (step === 1 ? byte % 16 : byte >> 4) < 15 ? byte + step : byte - step;
        refuses(() => check(copy), /expected level/);
      }
    });
    refuses(() => check(balance.map(byte => (byte >> 4) + ((byte & 15) << 4))), /expected level/);
    refuses(() => check(balance, [windows[0]!, rounded(keyLike(64, headDim, 3))]), /expected level/);
    refuses(
      () =>
        check(
          balance,
          windows,
          rope,
          energies.map(() => 0)
        ),
      /expected level/
    );
    refuses(() => check(balance, windows, { ...rope, interleaved: true }), /expected level/);
    refuses(() => check(balance.subarray(1)), /bytes, got/);
  });
});

group('sameAttention()', test => {
  const expected = Float32Array.of(1, -2, 0);
  const off = (at: number, by: number) => expected.map((value, i) => (i === at ? value + by : value));

  test('asks a CPU for the same bits', () => {
    sameAttention({ gpu: false }, 'out', expected.slice(), expected);
    refuses(() => sameAttention({ gpu: false }, 'out', off(1, 2 ** -22), expected), /same bits/);
  });

  test('forgives a GPU 32 ulps of the largest number, and no NaN, zero or other length', () => {
    sameAttention({ gpu: true }, 'out', off(2, 2 ** -18), expected);
    for (const wrong of [off(2, 2 ** -16), off(0, NaN), new Float32Array(3), expected.slice(1)]) {
      refuses(() => sameAttention({ gpu: true }, 'out', wrong, expected), /expected/);
    }
  });
});
