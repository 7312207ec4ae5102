// Windows of tokens whose magnitudes lie anywhere in f16's range: every number in a block is finite, every token's error bounded.

import { type CodecName, codecs, type Rope } from 'nsnquant';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { allFinite, atMost, sameBits, sameRounding } from './compare.ts';
import { anyBalance, type Input, inputs, ropes, uneven } from './inputs.ts';
import { readBlock, type Side, sectionsOf } from './pages.ts';
import { BALANCED_TOKEN_ERROR, TOKEN_ERROR } from './tolerance.ts';
import { reference as referenceBackend, scalar, simd128 } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];

// Windows of any finite numbers. Keys carry RoPE, values do not.
const extremes: Record<string, Input> = {
  uneven,
  'zeros but for one token': (tokens, headDim, seed) => {
    const x = uneven(tokens, headDim, seed);
    return x.fill(0, 0, 5 * headDim).fill(0, 6 * headDim);
  },
  '±65,504 and f16 subnormals in turn': (tokens, headDim, seed) => {
    const [large, small] = [inputs['largest finite']!(tokens, headDim, seed), inputs['f16 subnormals']!(tokens, headDim, seed)];
    return large.map((value, i) => (Math.floor(i / headDim) % (2 + (seed % 7)) ? small[i]! : value));
  },
  '65,504 with alternating signs, one token smaller': (tokens, headDim, seed) =>
    inputs['alternating signs']!(tokens, headDim, seed).map(
      (sign, i) => sign * 65504 * (Math.floor(i / headDim) === 9 ? 2 ** -(seed % 40) : 1)
    ),
  '65,504, one token smaller': (tokens, headDim, seed) =>
    new Float32Array(tokens * headDim).fill(65504).map((value, i) => (Math.floor(i / headDim) === 9 ? value * 2 ** -(seed % 40) : value))
};
const shapes = [
  { headDim: 64, side: 'keys', rope: ropes(64)['halves']! },
  { headDim: 64, side: 'keys', rope: ropes(64)['halves']!, balance: anyBalance(64, 1) },
  { headDim: 64, side: 'values' },
  { headDim: 80, side: 'keys', rope: ropes(80)['partial interleaved']!, balance: anyBalance(80, 2) },
  { headDim: 32, side: 'keys' }
] as const satisfies readonly { headDim: number; side: Side; rope?: Rope; balance?: Uint8Array }[];

for (const name of names) {
  for (const { headDim, side, ...more } of shapes) {
    const balanced = 'balance' in more;
    const options = { codec: name, headDim, side, ...more };
    const at = sectionsOf(codecs[name], headDim, side, balanced);
    const [exact, plain, simd] = await Promise.all([referenceBackend, scalar, simd128].map(tested => tested.kernels(options)));
    const what = `${name}, headDim ${headDim}, ${balanced ? 'balanced' : 'plain'} ${side}, ${'rope' in more ? 'RoPE' : 'no RoPE'}`;
    group(`${what}, tokens of any magnitude`, test => {
      for (const [input, make] of Object.entries(extremes)) {
        test(`encode() writes finite numbers, and decoded tokens err by a share of their norms and of the window's: ${input}`, () => {
          for (let seed = 0; seed < 40; seed++) {
            const x = make(64, headDim, seed);
            const bytes = plain!.encode(x);
            sameBits(`seed ${seed}: simd128`, simd!.encode(x), bytes);
            const length = brute.norms(x, headDim, brute.f64);
            sameRounding(`seed ${seed}`, readBlock(bytes, at).s1, length, Math.max(...length), true);
            const step = Math.max((Math.max(...length) - Math.min(...length)) / 15, 1e-5);
            for (const [what, verbs, coded] of [
              ['scalar', plain!, bytes],
              ['reference', exact!, exact!.encode(x)]
            ] as const) {
              const block = readBlock(coded, at);
              for (const { scale, min } of [block.s1, ...block.o]) allFinite(`${what}, seed ${seed}: scales`, [scale, min]);
              allFinite(`${what}, seed ${seed}: s2`, block.s2);
              const decoded = verbs.decode(coded);
              const error = brute.norms(
                decoded.map((value, i) => value - x[i]!),
                headDim,
                brute.f64
              );
              const most = (balanced ? BALANCED_TOKEN_ERROR : TOKEN_ERROR)[name];
              error.forEach((value, t) => atMost(`${what}, seed ${seed}: token ${t}`, value, most * (length[t]! + step)));
            }
          }
        });
      }
    });
  }
}
