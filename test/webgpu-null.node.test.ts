// Compiles every shader for every pair of codecs, head dimension, kind of RoPE and size of query group on Dawn's null backend,
// with the default limits and no optional feature. Nothing is executed there.

import { type CodecName, codecs, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import { dawn } from '../tools/gpu.ts';
import { group } from '../tools/group.ts';
import { altered, required, untested, without } from './gpu.ts';

const names = Object.keys(codecs) as CodecName[];
const headDims = Array.from({ length: (512 - 32) / 8 + 1 }, (_, n) => 32 + 8 * n);
/** Query heads of a KV head: those of models, and what fills a workgroup's blocks of four rows by one, and not. */
const groups = [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 32, 64];

const gpu = without || (await dawn('backend=null'));
const device = typeof gpu === 'string' ? gpu : ((await (await gpu.requestAdapter())?.requestDevice()) ?? 'Dawn has no null backend');

group('webgpu on the null backend', test => {
  if (typeof device === 'string') {
    if (required)
      test('there is a device', () => {
        throw new Error(device);
      });
    else test.skip('every pipeline compiles', device);
    return;
  }
  const compiled: string[] = [];
  const counting = altered(device, {
    createComputePipelineAsync: (descriptor: GPUComputePipelineDescriptor) => {
      compiled.push(JSON.stringify([descriptor.label, descriptor.compute.constants]));
      return device.createComputePipelineAsync(descriptor);
    }
  });
  const found = { device: counting, description: 'null' };
  const backend = untested(found);

  /** Compiles all that a cache of this shape could ask for. */
  const prepare = async (headDim: number, keys: CodecName, values: CodecName, pairs: number, interleaved: boolean, queryHeads: number) => {
    const cache = new KVCache(backend, {
      layers: 1,
      kvHeads: 1,
      queryHeads,
      headDim,
      keys,
      values,
      capacity: 64,
      sequences: 1,
      ...(pairs > 0 && { rope: { invFreq: new Float32Array(pairs).fill(0.1), interleaved } })
    });
    await backend.prepare!(cache.shape);
    await cache.ready;
    cache.dispose();
  };

  for (const keys of names) {
    for (const values of names) {
      test(`every pipeline compiles for ${keys} keys and ${values} values, every head dimension and kind of RoPE`, async () => {
        for (const headDim of headDims) {
          await prepare(headDim, keys, values, 0, false, 3);
          await prepare(headDim, keys, values, headDim / 4, true, 3);
          await prepare(headDim, keys, values, headDim / 2, false, 3);
        }
      });
    }
  }

  test('every pipeline compiles for every size of query group', async () => {
    for (const headDim of [32, 64, 80, 128, 512]) {
      for (const queryHeads of groups) await prepare(headDim, 'nsn4', 'nsn2', headDim / 2, false, queryHeads);
    }
  });

  test('layers of the same codecs share pipelines: 30 compile as many as one', async () => {
    const compiledFor = async (layers: number) => {
      const before = compiled.length;
      const several = untested(found);
      const cache = new KVCache(several, { layers, kvHeads: 1, queryHeads: 3, headDim: 64, capacity: 64, sequences: 1 });
      await several.prepare!(cache.shape);
      cache.dispose();
      return compiled.length - before;
    };
    const one = await compiledFor(1);
    assert.ok(one > 0);
    assert.is(await compiledFor(30), one);
  });

  test('none was left out', () => {
    const distinct = new Set(compiled).size;
    console.log(`${distinct} pipelines`);
    // Of every head dimension, codec and kind of RoPE an encoder and a decoder, and of every pair of codecs attention for one number of
    // rows at least.
    assert.ok(distinct >= headDims.length * 3 * (3 + 3 + 9), `${distinct}`);
  });
});
