// Proves that the self-test bites: a GPU that computes wrongly in one place is not used. In Node alone: what is altered is text, and
// other engines would say the same of it.

import { openBackend } from 'nsnquant';
import { shaders } from '../src/webgpu/generated/shaders.ts';
import { group } from '../tools/group.ts';
import { altered, miscompiling, openDevice, refusesDevice } from './gpu.ts';
import { gpuRequired } from './variables.ts';

const by = (error: string) => (verb: string) => `${verb} differs from the reference ${error}`;
const bytes = by('in [\\d.]+ % of bytes');
const numbers = by('by [\\d.]+');

/** One mistake in each shader, as a compiler or a driver might make it; f16 that reads as 0 was met in the field. */
const mistakes: readonly (readonly [shader: string, what: string, from: string, to: string, message: string])[] = [
  ['write', 'no signs', '& 0x8000', '& 0', bytes('learn')],
  ['write', 'subnormal halves as 0', 'shift > 24', 'shift > 0', bytes('learn of subnormal halves')],
  ['energies', 'channels that are missing', 'a * a + b * b', 'a * a', bytes('learn')],
  ['learn', 'levels of queries alone', 'level.x |', '0 |', bytes('learn')],
  ['learn', 'the last among equals', 'other < pair', 'other > pair', bytes('encode')],
  ['encode', 'subnormal halves read as 0', '* 0x1p-24f', '* 0', bytes('learn of subnormal halves')],
  ['encode', 'subnormal halves written as 0', 'shift > 24', 'shift > 0', bytes('learn of subnormal halves')],
  ['encode', 'the farthest codeword', 'score > best', '-score > best', bytes('encode')],
  ['encode', 'no second stage', 'y - coded', 'y - 0 * coded', bytes('encode')],
  ['attend', 'f16 as 0', 'unpack2x16float(book', '0 * unpack2x16float(book', numbers('attend')],
  ['attend', 'one s2 for all segments', 'stage.segment, thread', '0, thread', numbers('attend')],
  ['attend', 'subnormal halves as 0', '* 0x1p-24f', '* 0', numbers('attend of subnormal halves')],
  ['attend', 'no sliding window', 'position + schedule', '1000 + schedule', numbers('attend')],
  ['attend', 'sinks behind it unseen', 'position < schedule.kept', 'position < 0', numbers('attend')],
  ['attend', 'logits without their cap', 'SOFTCAP == 1', 'SOFTCAP == 2', numbers('attend')],
  ['attend', 'slopes of the first head for all', 'quad + r) % perKvHead', 'quad + r) * 0', numbers('attend')],
  ['merge', 'no sink logits', 'SINK_LOGITS == 1', 'SINK_LOGITS == 2', numbers('attend')],
  ['merge', 'log-sum-exps in base 2', ') * LN2', ')', numbers('attend')],
  ['merge', 'a quotient off by 1 %', 'o / select', 'o * 1.01 / select', numbers('attend')],
  ['attend', 'f16 queries as 0', 'vec4f(fromHalf(words.x)', '0 * vec4f(fromHalf(words.x)', numbers('attend in f16, heads first,')],
  ['merge', 'f16 results with their channels swapped', '16 * n', '16 - 16 * n', numbers('attend in f16, heads first,')],
  ['merge', 'rows in the order of tokens', 'schedule.headsFirst == 1', 'false', numbers('attend in f16, heads first,')],
  ['decode', 'a sign', 'scale + rotatedMean', 'scale - rotatedMean', numbers('decode')],
  ['decode', 'subnormal halves as 0', '* 0x1p-24f', '* 0', numbers('decode of subnormal halves')]
];

const gpu = await openDevice();

/**
 * Of attention's row tiles a self-test runs the smallest and the largest, of four query rows and of sixteen. Those between are compiled
 * without the mistake, so that all mistakes share them.
 */
function rightBetween(right: GPUDevice, wrong: GPUDevice): GPUDevice {
  const module = right.createShaderModule({ label: 'attend', code: shaders.attend });
  return altered(wrong, {
    createComputePipelineAsync(descriptor: GPUComputePipelineDescriptor) {
      const { label, compute } = descriptor;
      const between = label === 'attend' && [2, 3].includes(compute.constants!['QUADS']!);
      return right.createComputePipelineAsync(between ? { ...descriptor, compute: { ...compute, module } } : descriptor);
    }
  });
}

group('openBackend() on a device that computes wrongly', test => {
  if (typeof gpu === 'string') {
    if (gpuRequired)
      test('there is a device', () => {
        throw new Error(gpu);
      });
    else test.skip('is refused', gpu);
    return;
  }
  for (const [shader, what, from, to, message] of mistakes) {
    test(`in ${shader}, ${what}, is refused with what differs`, () =>
      refusesDevice(
        () => openBackend({ device: rightBetween(gpu.device, miscompiling(gpu, shader, from, to)) }),
        new RegExp(`^webgpu backend failed its self-test on test miscompiling: ${message}$`)
      ));
  }
});
