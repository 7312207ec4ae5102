// Compiles every shader for every codec and head dimension on Dawn's null backend, with the default limits and no optional
// feature. Nothing is executed there.
import { codecs, KVCache, type CodecName } from 'nsnquant';
// Not by openBackend: a backend that executes nothing fails its self-test.
import { webGpuBackend } from '../src/webgpu.ts';
import { dawn, required } from './gpu.ts';
import { group } from './group.ts';

const gpu = await dawn('backend=null');
const device = typeof gpu === 'string' ? gpu : (await (await gpu.requestAdapter())?.requestDevice()) ?? 'Dawn has no null backend';

group('webgpu on the null backend', test => {
  if (typeof device === 'string') {
    if (required) test('there is a device', () => { throw new Error(device); });
    else test.skip('every pipeline compiles', device);
    return;
  }
  for (const codec of Object.keys(codecs) as CodecName[]) {
    for (const rotation of ['none', 'partial', 'full'] as const) {
      test(`every pipeline compiles for ${codec} and every head dimension, RoPE ${rotation}`, async () => {
        const open = createStores(device, codec, rotation);
        for (const cache of open) {
          await cache.ready;
          cache.dispose();
        }
      });
    }
  }
});

function* createStores(device: GPUDevice, codec: CodecName, rotation: 'none' | 'partial' | 'full'): Generator<KVCache> {
  const backend = webGpuBackend({ device, description: 'null' }, 'to compile');
  for (let headDim = 32; headDim <= 512; headDim += 8) {
    const pairs = { none: 0, partial: headDim / 4, full: headDim / 2 }[rotation];
    yield new KVCache(backend, {
      layers: 1, kvHeads: 1, queryHeads: 3, headDim, keys: codec, values: codec, capacity: 64, sequences: 1,
      ...(pairs && { rope: { invFreq: new Float32Array(pairs).fill(0.1), interleaved: false } })
    });
  }
}
