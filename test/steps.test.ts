// What each step of the algorithm is worth: the reference's verbs, composed with one left out.

import { codecs } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import { group } from '../tools/group.ts';
import { atMost, relativeL2 } from './compare.ts';
import { inputs, keyLike, ropes, turned } from './inputs.ts';
import { HALVES, LOWERED } from './tolerance.ts';

group('reference steps', test => {
  const headDim = 64;
  const rope = ropes(headDim)['halves']!;
  const quantizer = reference.codecQuantizer(codecs.nsn2);
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
    if (step !== 'shift') reference.shift(y, headDim, step === 'the mean before RoPE' ? undefined : rope);
    const mean = before.map((value, i) => value - y[i]!);
    const s2 = step === 'normalizeAgain' ? new Float64Array(64).fill(1) : reference.normalizeAgain(y, headDim);
    if (step !== 'hadamard') reference.hadamard(y, headDim);

    const coded = new Float64Array(y.length);
    reference.quantize(y, quantizer).forEach((code, j) => quantizer.decode(code, coded, j * quantizer.channels));
    for (let t = 0; t < 64; t++) {
      const row = coded.subarray(t * headDim, (t + 1) * headDim);
      const [yy, yc] = [y.subarray(t * headDim, (t + 1) * headDim), row].map(other =>
        other.reduce((sum, value, i) => sum + value * y[t * headDim + i]!, 0)
      );
      row.forEach((value, i) => {
        row[i] = value * s2[t]! * (yy! / yc!);
      });
    }
    if (step !== 'hadamard') reference.hadamard(coded, headDim);
    return relativeL2(
      coded.map((value, i) => s1[Math.floor(i / headDim)]! * (value + mean[i]!)),
      x
    );
  }

  test('encode() and decode() are these verbs', () => {
    const error = relativeL2(reference.decode(reference.encode(x, headDim, quantizer, rope), quantizer, rope), x);
    atMost('difference', Math.abs(errorWithout() / error - 1), HALVES); // s2 is not rounded to f16 here
  });

  for (const step of ['normalize', 'shift', 'the mean before RoPE', 'normalizeAgain', 'hadamard'] as const) {
    test(`without ${step} tokens come back with a larger error`, () => {
      const [without, whole] = [errorWithout(step), errorWithout()];
      console.log(`without ${step}: relative error ${without.toFixed(3)}, with it ${whole.toFixed(3)}`);
      atMost('with it', whole / without, LOWERED.step);
    });
  }
});
