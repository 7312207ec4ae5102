// Every option of a cache at the least and at the most that it may be: such a cache holds, attends, forks, crops and saves as any other.

import { type CacheOptions, KVCache, openBackend, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { refuses, sameBits } from './compare.ts';
import { untested } from './gpu.ts';
import { rounded } from './half.ts';
import { keyLike, normal } from './inputs.ts';
import { simd128 } from './verbs.ts';

const { backend } = simd128;
const base = {
  layers: 1,
  kvHeads: 1,
  queryHeads: 1,
  headDim: 32,
  capacity: 300,
  sinks: 0,
  sequences: 2,
  maxAppend: 70
} satisfies CacheOptions;

/** Appends to the layers in turn, as a model does. Each gets the same tokens. */
function append(sequence: Sequence, tokens: number, seed = 1): { readonly keys: Float32Array; readonly values: Float32Array } {
  const { layers, maxAppend } = sequence.shape;
  const { kvHeads, headDim, valueDim } = layers[0]!;
  const [keys, values] = [keyLike(tokens, kvHeads * headDim, seed), normal(tokens, kvHeads * valueDim, seed + 1)];
  for (let from = 0; from < tokens; from += maxAppend) {
    const part = (x: Float32Array, width: number) => x.subarray(from * width, (from + maxAppend) * width);
    const [k, v] = [part(keys, kvHeads * headDim), part(values, kvHeads * valueDim)];
    for (let layer = 0; layer < layers.length; layer++) sequence.append(layer, k, v);
  }
  return { keys, values };
}

/** [what, options that differ from `base`, tokens, of which this many are coded at the end] */
const bounds: readonly (readonly [what: string, options: Partial<CacheOptions>, tokens: number, coded: number])[] = [
  ['1 layer', { layers: 1 }, 140, 128],
  ['4,096 layers', { layers: 4096 }, 140, 128],
  ['1 KV head', { kvHeads: 1 }, 140, 128],
  ['1,024 KV heads', { kvHeads: 1024, queryHeads: 1024 }, 140, 128],
  ['as many query heads as KV heads', { kvHeads: 3, queryHeads: 3 }, 140, 128],
  ['128 query heads a KV head', { kvHeads: 3, queryHeads: 384 }, 140, 128],
  ['a head dimension of 32', { headDim: 32 }, 140, 128],
  ['a head dimension of 576', { headDim: 576 }, 140, 128],
  ['values of 32 channels, keys of 576', { headDim: 576, valueDim: 32 }, 140, 128],
  ['values of 576 channels, keys of 32', { valueDim: 576 }, 140, 128],
  ['a capacity of 1', { capacity: 1, maxAppend: 1 }, 1, 0],
  ['a capacity of 2²⁴', { capacity: 2 ** 24, keys: 'nsn1', values: 'nsn1' }, 140, 128],
  ['no sinks', { sinks: 0 }, 140, 128],
  ['64 sinks', { sinks: 64 }, 200, 128],
  ['no recent windows', { recent: 0 }, 140, 128],
  ['1,024 recent windows', { recent: 1024, capacity: 64 * 1028, maxAppend: 64 * 1028 }, 64 * 1026 + 1, 128],
  ['1 sequence', { sequences: 1 }, 140, 128],
  ['65,536 sequences', { sequences: 65536 }, 140, 128],
  ['calls of 1 token', { maxAppend: 1 }, 140, 128],
  ['calls of the whole capacity', { maxAppend: 300 }, 300, 256]
];

group('options at their bounds', test => {
  for (const [what, options, tokens, coded] of bounds) {
    test(`a cache of ${what} holds, attends, crops, saves and restores`, async () => {
      const cache = new KVCache(backend, { ...base, ...options });
      const { layers, sinks, capacity } = cache.shape;
      const { kvHeads, queryHeads, headDim, valueDim } = layers[0]!;
      const last = layers.length - 1;
      const width = kvHeads * headDim;
      let sequence = cache.sequence();
      const { keys, values } = append(sequence, tokens);
      sequence.seal();
      assert.is(sequence.length, tokens);
      assert.is(sequence.sealed.tokens, coded);
      // The longest context is attended to in other tests: brute force takes seconds for it.
      if (tokens <= 300) await attendWithinRule(what, sequence, normal(1, queryHeads * headDim, 3), { layer: last });
      const held = await sequence.decode(last);
      sameBits('raw keys', held.keys.subarray((sinks + coded) * width), rounded(keys.subarray((sinks + coded) * width)));
      const raw = (sinks + coded) * kvHeads * valueDim;
      sameBits('raw values', held.values.subarray(raw), rounded(values.subarray(raw)));

      const file = await sequence.save();
      sequence.dispose();
      sequence = cache.restore(file);
      sameBits('file', await sequence.save(), file);
      sequence.crop(tokens - 1);
      const shorter = await sequence.decode(last);
      sameBits(
        'keys after a crop',
        shorter.keys.subarray((sinks + coded) * width),
        rounded(keys.subarray((sinks + coded) * width, -width))
      );
      if (capacity <= 300) {
        const more = capacity - tokens + 2;
        const [one, oneValue] = [new Float32Array(width), new Float32Array(kvHeads * valueDim)];
        if (more <= cache.shape.maxAppend) {
          const [x, y] = [new Float32Array(more * width), new Float32Array(more * kvHeads * valueDim)];
          const message = `"capacity" expected at most ${capacity} tokens, got ${capacity + 1} (${tokens - 1} held + ${more} more)`;
          await refuses(() => sequence.append(last, x, y), RangeError, message);
        }
        for (let n = tokens - 1; n < capacity; n++) sequence.append(last, one, oneValue);
        await refuses(
          () => sequence.append(last, one, oneValue),
          RangeError,
          `"capacity" expected at most ${capacity} tokens, got ${capacity + 1} (${capacity} held + 1 more)`
        );
      }
      cache.dispose();
    });
  }

  test('what no memory holds is refused by the backend, before there is anything of its size', async () => {
    // Within every bound, and 4,299,227,141 raw slots: more numbers than an array has.
    const options = { ...base, layers: 64, sequences: 65536, recent: 1024 };
    const device = {
      limits: { maxStorageBufferBindingSize: 2 ** 27, maxBufferSize: 2 ** 28 },
      queue: {},
      lost: new Promise<never>(() => {}),
      pushErrorScope() {},
      popErrorScope: async () => null,
      createBuffer() {
        throw new Error('asked for memory');
      }
    } as unknown as GPUDevice;
    for (const [refusing, message] of [
      [await openBackend({ prefer: 'reference' }), /^reference backend expected at most 4294967296 bytes for capacity 300, got 35\d{12}$/],
      [backend, /^wasm backend expected at most \d{10} bytes \(32-bit addresses\) for capacity 300, got 35\d{12}$/],
      [untested({ device, description: '' }), /^webgpu backend expected at most 274877906944 bytes for capacity 300, got 35\d{12}$/]
    ] as const) {
      assert.throws(
        () => new KVCache(refusing, options),
        (error: Error) => error.name === 'BackendError' && message.test(error.message),
        refusing.name
      );
    }
  });

  test('65,536 holders of one page all read it, until the last of them is gone', async () => {
    // 16 bits would count the last one as none, and free the page as soon as any of them is disposed.
    const sequences = 65536;
    const cache = new KVCache(backend, { ...base, capacity: 192, sequences, maxAppend: 64, balance: 'off' });
    const chat = cache.sequence();
    append(chat, 64);
    chat.seal();
    const before = await chat.decode(0);
    const branches = Array.from({ length: sequences - 1 }, () => chat.fork());
    await refuses(
      () => chat.fork(),
      RangeError,
      `"sequences" expected at most ${sequences} open at once (option "sequences"), got one more`
    );
    branches.pop()!.dispose();
    const other = cache.sequence();
    append(other, 64, 7); // takes a page, which would be the one that was freed
    other.seal();
    for (const one of [chat, branches[0]!, branches.at(-1)!]) sameBits('keys', (await one.decode(0)).keys, before.keys);
    chat.dispose();
    for (const branch of branches.splice(1)) branch.dispose();
    sameBits('keys of the last holder', (await branches[0]!.decode(0)).keys, before.keys);
    append(other, 64);
    await refuses(() => append(other, 1), RangeError, '"capacity" expected at most 192 tokens, got 193 (192 held + 1 more)');
    branches[0]!.dispose();
    append(other, 64);
    cache.dispose();
  });

  test('positions end at 2²⁴, whatever a sliding window gives back', async () => {
    const most = 2 ** 16;
    const options = { ...base, capacity: 2 * most, maxAppend: most, window: 64, balance: 'off', keys: 'nsn1', values: 'nsn1' } as const;
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    const zeros = new Float32Array(most * 32);
    for (let n = 0; n < 2 ** 24 / most; n++) sequence.append(0, zeros, zeros);
    const one = zeros.subarray(0, 32);
    await refuses(
      () => sequence.append(0, one, one),
      RangeError,
      '"keys" expected at most 0 tokens more (positions end at 16777216), got 1'
    );
    assert.is(cache.restore(await sequence.save()).length, 2 ** 24);
    cache.dispose();
  });
});
