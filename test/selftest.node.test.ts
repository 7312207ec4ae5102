// Proves that the self-test bites: a GPU that computes wrongly in one place is not used. In Node alone: what is altered is text, and
// other engines would say the same of it.

import { openBackend } from 'nsnquant';
import { group } from '../tools/group.ts';
import { miscompiling, openDevice, refusesDevice, required } from './gpu.ts';

const encode = '[\\d.]+ % of bytes';
const error = '[\\d.]+';

/** One mistake in each shader, as a compiler or a driver might make it; f16 that reads as 0 was met in the field. */
const mistakes: readonly (readonly [shader: string, what: string, from: string, to: string, message: string])[] = [
  ['write', 'no signs', '& 0x8000', '& 0', `encode differs from the reference in ${encode}`],
  ['write', 'subnormal halves as 0', 'shift > 24', 'shift > 0', `encode of subnormal halves differs from the reference in ${encode}`],
  ['encode', 'the farthest codeword', 'score > best', '-score > best', `encode differs from the reference in ${encode}`],
  ['encode', 'subnormal halves read as 0', '* 0x1p-24f', '* 0', `encode of subnormal halves differs from the reference in ${encode}`],
  [
    'encode',
    'subnormal halves written as 0',
    'shift > 24',
    'shift > 0',
    `encode of subnormal halves differs from the reference in ${encode}`
  ],
  ['attend', 'f16 as 0', 'unpack2x16float(book', '0 * unpack2x16float(book', `attend differs from the reference by ${error}`],
  ['attend', 'subnormal halves as 0', '* 0x1p-24f', '* 0', `attend of subnormal halves differs from the reference by ${error}`],
  ['merge', 'a quotient off by 1 %', 'o / d', 'o * 1.01 / d', `attend differs from the reference by ${error}`],
  ['decode', 'a sign', 'SCALE + rotatedMean', 'SCALE - rotatedMean', `decode differs from the reference by ${error}`],
  ['decode', 'subnormal halves as 0', '* 0x1p-24f', '* 0', `decode of subnormal halves differs from the reference by ${error}`]
];

const gpu = await openDevice();

group('openBackend() on a device that computes wrongly', test => {
  if (typeof gpu === 'string') {
    if (required)
      test('there is a device', () => {
        throw new Error(gpu);
      });
    else test.skip('is refused', gpu);
    return;
  }
  for (const [shader, what, from, to, message] of mistakes) {
    test(`in ${shader}, ${what}, is refused with what differs`, () =>
      refusesDevice(
        () => openBackend({ device: miscompiling(gpu, shader, from, to) }),
        new RegExp(`^webgpu backend failed its self-test on test miscompiling: ${message}$`)
      ));
  }
});
