// Compiles every shader for every pair of codecs, every head dimension, kind of keys and size of query group on Dawn's null backend,
// with the default limits and no optional feature. Nothing is executed there.

import { codecs as all, type CacheOptions, type CodecName, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { dawn } from '../tools/gpu.ts';
import { group } from '../tools/group.ts';
import { atMost } from './compare.ts';
import { altered, untested } from './gpu.ts';
import { THOUSAND_TOKENS_BITS } from './tolerance.ts';
import { gpuRequired, withoutGpu } from './variables.ts';

const names = Object.keys(all) as CodecName[];
const headDims = Array.from({ length: (576 - 32) / 8 + 1 }, (_, n) => 32 + 8 * n);
/** Query heads of a KV head: those of models, and what fills a workgroup's blocks of four rows by one, and not. */
const groups = [1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 16, 32, 64, 128];

const gpu = withoutGpu || (await dawn('backend=null'));
const device = typeof gpu === 'string' ? gpu : ((await (await gpu.requestAdapter())?.requestDevice()) ?? 'Dawn has no null backend');

group('webgpu on the null backend', test => {
  if (typeof device === 'string') {
    if (gpuRequired)
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
  const prepare = async (
    headDim: number,
    keys: CodecName,
    values: CodecName,
    balance: 'learn' | 'off',
    pairs: number,
    interleaved = false,
    queryHeads = 3,
    more: Partial<CacheOptions> = {}
  ) => {
    const cache = new KVCache(backend, {
      layers: 1,
      kvHeads: 1,
      queryHeads,
      headDim,
      keys,
      values,
      balance,
      capacity: 64,
      sequences: 1,
      ...(pairs > 0 && { rope: { invFreq: new Float32Array(pairs).fill(0.1), interleaved } }),
      ...more
    });
    await backend.prepare!(cache.shape);
    await cache.ready;
    cache.dispose();
  };

  for (const keys of names) {
    for (const values of names) {
      test(`every pipeline compiles for ${keys} keys and ${values} values and every other head dimension`, async () => {
        // Half of the pairs meet half of the kinds, so that every codec meets all of them.
        const odd = (names.indexOf(keys) + names.indexOf(values)) % 2 === 1;
        for (const [n, headDim] of headDims.entries()) {
          // Half of the pairs at each, every codec among them: the other half is 8 channels away.
          if ((names.indexOf(keys) + (names.indexOf(values) >> 1) + n) % 2) continue;
          await prepare(headDim, keys, values, 'learn', odd ? headDim / 2 : 0);
          await prepare(headDim, keys, values, 'off', odd ? headDim / 2 : headDim / 4, !odd);
        }
      });
    }
  }

  test('every pipeline compiles for every size of query group', async () => {
    for (const headDim of [32, 64, 80, 128, 512]) {
      for (const queryHeads of groups) await prepare(headDim, 'nsn2', 'nsn2', 'learn', headDim / 2, false, queryHeads);
    }
  });

  test('every pipeline compiles for values of another dimension', async () => {
    for (const [n, valueDim] of headDims.entries()) {
      const headDim = headDims[(7 * n + 3) % headDims.length]!;
      await prepare(headDim, names[n % names.length]!, names[(n >> 2) % names.length]!, 'learn', headDim / 2, false, 3, { valueDim });
    }
    const latents: readonly (readonly [keys: CodecName, values: CodecName])[] = [
      ['nsn1', 'nsn2'],
      ['nsn2', 'nsn1'],
      ['nsn2', 'nsn3']
    ];
    for (const [keys, values] of latents) await prepare(576, keys, values, 'learn', 32, true, 128, { valueDim: 512 });
  });

  test('every pipeline compiles with masks, caps, slopes and sink logits', async () => {
    const perHead = [1, 2, 3];
    const features: readonly Partial<CacheOptions>[] = [
      { window: 100 },
      { window: 100, keepSinks: true },
      { softcap: 5 },
      { slopes: perHead },
      { sinkLogits: perHead }
    ];
    for (const more of [...features, Object.assign({}, ...features)]) await prepare(64, 'nsn2', 'nsn2', 'learn', 32, false, 3, more);
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

  test('at 1,000 tokens that came one by one a cache has given up what it learned from', () => {
    const [layers, kvHeads, queryHeads, headDim] = [30, 3, 9, 64];
    const cache = new KVCache(backend, { layers, kvHeads, queryHeads, headDim, capacity: 131072 });
    const sequence = cache.sequence();
    const [token, query] = [new Float32Array(kvHeads * headDim), new Float32Array(queryHeads * headDim)];
    // Where results go, so that nothing waits to be read: f32, of STORAGE | COPY_DST.
    const buffer = device.createBuffer({ size: query.byteLength, usage: 0x88 });
    for (let n = 0; n < 1000; n++) {
      for (let layer = 0; layer < layers; layer++) {
        sequence.append(layer, token, token);
        if (n % 20 === 0) sequence.attend(layer, query, { out: { buffer } });
      }
    }
    assert.is(sequence.length, 1000);
    const bits = (8 * cache.bytes) / (1000 * layers * 2 * kvHeads * headDim);
    console.log(`${bits.toFixed(2)} bits an element`);
    atMost('bits an element', bits, THOUSAND_TOKENS_BITS);
    cache.dispose();
    buffer.destroy();
  });

  test('what a prompt needed on its way is given up once tokens come one by one', () => {
    const [layers, kvHeads, queryHeads, headDim, capacity] = [4, 3, 9, 64, 8192];
    const open = () => new KVCache(backend, { layers, kvHeads, queryHeads, headDim, capacity });
    const [prompted, stepped] = [open(), open()];
    const buffer = device.createBuffer({ size: 4 * 512 * queryHeads * headDim, usage: 0x88 });
    const add = (sequence: Sequence, tokens: number): void => {
      const rows = new Float32Array(tokens * kvHeads * headDim);
      for (let layer = 0; layer < layers; layer++) {
        sequence.append(layer, rows, rows);
        sequence.attend(layer, new Float32Array(tokens * queryHeads * headDim), { out: { buffer } });
      }
    };
    const [chat, once] = [prompted.sequence(), stepped.sequence()];
    add(chat, 512);
    const before = prompted.bytes;
    while (chat.length < 1000) add(chat, 1);
    while (once.length < 1000) add(once, 1);
    assert.ok(before > 2 * stepped.bytes, `${before} bytes after a prompt, ${stepped.bytes} of as many tokens one by one`);
    assert.is(prompted.bytes, stepped.bytes);
    for (const cache of [prompted, stepped]) cache.dispose();
    buffer.destroy();
  });

  test('memory that is refused is told by what was asked for, though more was given up for it', async () => {
    let refuses = false;
    const popErrorScope = async () => {
      const error = await device.popErrorScope();
      return refuses ? { message: 'no room' } : error;
    };
    const refusing = untested({ device: altered(device, { popErrorScope }), description: 'null' });
    const cache = new KVCache(refusing, { layers: 1, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192 });
    const sequence = cache.sequence();
    const add = (tokens: number): void => {
      sequence.append(0, new Float32Array(tokens * 192), new Float32Array(tokens * 192));
      sequence.attend(0, new Float32Array(tokens * 576));
    };
    for (const tokens of [512, 1]) add(tokens);
    await cache.ready;
    const { bytes } = cache;
    refuses = true;
    while (cache.bytes === bytes) add(1);
    assert.ok(cache.bytes < bytes);
    const answer = await cache.ready.then(
      () => 'granted',
      (error: Error) => error.message
    );
    assert.match(answer, /^webgpu backend expected \d+ bytes more, got: no room$/);
    cache.dispose();
  });

  test('none was left out', () => {
    const distinct = new Set(compiled).size;
    console.log(`${distinct} pipelines`);
    // Of every head dimension, codec and kind of keys an encoder and a decoder, and so of values; of half of the pairs of codecs and
    // of the kinds attention for one number of rows at least.
    const [codecs, kinds] = [names.length, 4];
    assert.ok(distinct >= headDims.length * (2 * codecs * (kinds + 1) + (codecs ** 2 * kinds) / 4), `${distinct}`);
  });
});
