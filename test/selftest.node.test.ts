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
 * A self-test runs attention's smallest row tile and its largest, of four query rows and of sixteen, and an encoder that learns beside
 * those that write. A mistake in some of a shader's pipelines is enough: the others are compiled without it, once for all mistakes.
 */
function inSome(right: GPUDevice, wrong: GPUDevice, has: Readonly<Record<string, number>>): GPUDevice {
  const modules = new Map<string, GPUShaderModule>();
  const moduleOf = (label: keyof typeof shaders) => {
    const module = modules.get(label) ?? right.createShaderModule({ label, code: shaders[label] });
    modules.set(label, module);
    return module;
  };
  return altered(wrong, {
    createComputePipelineAsync(descriptor: GPUComputePipelineDescriptor) {
      const { label, compute } = descriptor;
      const other = Object.entries(has).some(([name, value]) => (compute.constants![name] ?? value) !== value);
      const module = other ? moduleOf(label as keyof typeof shaders) : compute.module;
      return right.createComputePipelineAsync({ ...descriptor, compute: { ...compute, module } });
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
  for (const [n, [shader, what, from, to, message]] of mistakes.entries()) {
    const has = { QUADS: n % 2 ? 4 : 1, LEARNS: message.includes('learn') ? 1 : 0 };
    test(`in ${shader}, ${what}, is refused with what differs`, () =>
      refusesDevice(
        () => openBackend({ device: inSome(gpu.device, miscompiling(gpu, shader, from, to), has) }),
        new RegExp(`^webgpu backend failed its self-test on test miscompiling: ${message}$`)
      ));
  }
});
