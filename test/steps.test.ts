// What each step of the algorithm is worth: the reference's verbs, composed with one left out.

import * as reference from 'nsnquant/reference';
import { group } from '../tools/group.ts';
import { atMost, relativeL2 } from './compare.ts';
import { floatValue } from './half.ts';
import { inputs, keyLike, ropes, turned } from './inputs.ts';
import { F64, LOWERED } from './tolerance.ts';

group('reference steps', test => {
  const headDim = 64;
  const rope = ropes(headDim)['halves']!;
  const coding = reference.codingOf(reference.blockLayout(reference.codecs.nsn2, headDim, 'keys', false), rope);
  const quantizer = reference.codebookQuantizer(reference.codebooks[4]);
  // Outlier channels are what Hadamard is for: everything else of these tokens is normal without it.
  const outliers = inputs['outlier channel']!(64, headDim, 28);
  const x = turned(
    keyLike(64, headDim, 24).map((value, i) => value + outliers[i]! / 10),
    headDim,
    rope
  );
  type Step = 'normalize' | 'shift' | 'the mean before RoPE' | 'normalizeAgain' | 'hadamard';

  /** The relative error of tokens that went through the verbs and back, one step left out. */
  function errorWithout(step?: Step): number {
    const y = Float64Array.from(x);
    const s1 = step === 'normalize' ? new Float64Array(64).fill(1) : reference.normalize(y, headDim).s1;
    const before = y.slice();
    if (step !== 'shift') reference.shift(y, headDim, 8, step === 'the mean before RoPE' ? undefined : rope);
    const mean = before.map((value, i) => value - y[i]!);
    const s2 = step === 'normalizeAgain' ? new Float64Array(64).fill(1) : reference.normalizeAgain(y, headDim);
    if (step !== 'hadamard') reference.hadamard(y, headDim);

    const coded = new Float64Array(y.length);
    reference.quantize(y, quantizer).forEach((code, j) => quantizer.decode(code, coded, j * quantizer.channels));
    for (let t = 0; t < 64; t++) {
      const [yy, yc] = [y, coded].map(other => {
        let sum = 0;
        for (let i = t * headDim; i < (t + 1) * headDim; i++) sum += y[i]! * other[i]!;
        return sum;
      });
      s2[t]! *= yy! / yc!;
    }
    const { exponent, codes } = reference.roundToFloats(s2);
    coded.forEach((value, i) => {
      coded[i] = value * floatValue(32 * exponent + codes[Math.floor(i / headDim)]!);
    });
    if (step !== 'hadamard') reference.hadamard(coded, headDim);
    return relativeL2(
      coded.map((value, i) => s1[Math.floor(i / headDim)]! * (value + mean[i]!)),
      x
    );
  }

  test('encode() and decode() are these verbs', () => {
    const error = relativeL2(reference.decode(reference.encode(x, headDim, coding), coding), x);
    atMost('difference', Math.abs(errorWithout() / error - 1), F64);
  });

  for (const step of ['normalize', 'shift', 'the mean before RoPE', 'normalizeAgain', 'hadamard'] as const) {
    test(`without ${step} tokens come back with a larger error`, () => {
      const [without, whole] = [errorWithout(step), errorWithout()];
      console.log(`without ${step}: relative error ${without.toFixed(3)}, with it ${whole.toFixed(3)}`);
      atMost('with it', whole / without, LOWERED.step);
    });
  }
});
