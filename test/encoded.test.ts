// encoded.ts must bite, as the other comparers must (bite.test.ts): it is all that holds a GPU's pages. It is given blocks that are
// right, and the same with one number, nibble, code or byte of padding changed.

import { type CodecName, codecs } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import { encodedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { exactRope, keyLike } from './inputs.ts';
import { sectionsOf } from './pages.ts';
import { reference, simd128 } from './verbs.ts';

const headDim = 72; // rows of codes and a group of channels that end in padding
const rope = exactRope(headDim);
const tokens = rounded(keyLike(64, headDim, 1));
const refuses = (run: () => void, message: RegExp) => assert.throws(run, (error: Error) => message.test(error.message));

for (const name of Object.keys(codecs) as CodecName[]) {
  const codec = codecs[name];
  const opened = await Promise.all([simd128, reference].map(tested => tested.kernels({ codec: name, headDim, rope })));

  group(`encodedFrom(), ${name}`, test => {
    const [block] = opened.map(verbs => verbs.encode(tokens));
    const at = sectionsOf(codec, headDim);
    const check = (bytes: Uint8Array, x = tokens, turn: typeof rope | null = rope) => {
      const ties = { near: 0, codes: 0 };
      encodedFrom(name, bytes, x, codec, headDim, turn ?? undefined, ties);
      return ties;
    };
    /** A copy with one byte changed. */
    const changed = (byte: number, change: (value: number) => number) => {
      const copy = block!.slice();
      copy[byte] = change(copy[byte]!);
      return copy;
    };
    /** A copy with a 4-bit code one step further. */
    const stepped = (byte: number) => changed(byte, value => (value % 16 < 15 ? value + 1 : value - 1));

    test('accepts what WebAssembly and the reference code, and counts all of it', () => {
      for (const verbs of opened) {
        const { near, codes } = check(verbs.encode(tokens));
        assert.is(codes, (64 * headDim) / codec.channels);
        assert.ok(near <= 1, `${near}`);
      }
    });

    test('refuses another codeword, and rows of codes that are swapped', () => {
      for (const byte of [0, at.rowBytes + 1, 63 * at.rowBytes]) refuses(() => check(changed(byte, code => code ^ 0x80)), /expected code/);
      const swapped = block!.slice();
      swapped.set(block!.subarray(0, at.rowBytes), at.rowBytes);
      swapped.set(block!.subarray(at.rowBytes, 2 * at.rowBytes), 0);
      refuses(() => check(swapped), /expected code/);
    });

    test('refuses a norm, a mean and their scales that are one step off', () => {
      for (const byte of [at.s1[0], at.s1[1] - 1]) refuses(() => check(stepped(byte)), /norms expected code/);
      for (const byte of [at.o[0], at.o[1] - 1]) refuses(() => check(stepped(byte)), /mean expected code/);
      refuses(() => check(changed(at.scales[0], byte => byte ^ 2)), /norms expected scale/);
      refuses(() => check(changed(at.scales[0] + 2, byte => byte ^ 2)), /norms expected minimum/);
      refuses(() => check(changed(at.scales[0] + 4, byte => byte ^ 2)), /mean expected scale/);
      refuses(() => check(changed(at.scales[1] - 2, byte => byte ^ 2)), /mean expected minimum/);
    });

    test('refuses a second norm that is two f16 numbers off', () => {
      for (const byte of [at.s2[0], at.s2[1] - 2]) refuses(() => check(changed(byte, value => value ^ 2)), /expected s2 of token/);
    });

    test('refuses padding that is not 0', () => {
      // After the means, and for the codecs whose rows do not end on a word, after a row's codes.
      const bytes = [at.o[1], ...(headDim / codec.channels < at.rowBytes ? [at.rowBytes - 1] : [])];
      for (const byte of bytes) refuses(() => check(changed(byte, () => 1)), /layout expected the same bits/);
    });

    test('refuses the block of other tokens, of swapped tokens, and of tokens turned otherwise', () => {
      refuses(() => check(block!, rounded(keyLike(64, headDim, 2))), /expected/);
      const swapped = tokens.slice();
      swapped.set(tokens.subarray(0, headDim), headDim);
      swapped.set(tokens.subarray(headDim, 2 * headDim), 0);
      refuses(() => check(block!, swapped), /expected/);
      refuses(() => check(block!, tokens, null), /mean expected/);
      refuses(() => check(block!, tokens, { ...rope, interleaved: true }), /mean expected/);
    });
  });
}

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
