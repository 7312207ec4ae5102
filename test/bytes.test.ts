// What a cache says it takes, against what it takes: plan(), cache.bytes, sequence.bytes and the memory itself.

import { type CacheOptions, type CodecName, codecs, KVCache, plan } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends, scatteredWebgpu } from './backends.ts';
import { atMost } from './compare.ts';
import { bells, keyLike } from './inputs.ts';
import { sectionsOf } from './pages.ts';
import { gpuMemoryBound, memoryBound } from './tolerance.ts';
import { wasm } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];
const small: CacheOptions = { layers: 2, kvHeads: 2, queryHeads: 6, headDim: 64, capacity: 300 };

/** A page by the drawing at the top of src/format/layout.ts. */
const pageBytes = (keys: CodecName, values: CodecName, kvHeads: number, headDim: number, balanced = true) =>
  kvHeads * (sectionsOf(codecs[keys], headDim, 'keys', balanced).bytes + sectionsOf(codecs[values], headDim, 'values', false).bytes);

/** What a sequence has learned of a layer's keys: a byte and an f32 for every pair of channels. */
const learnedBytes = (kvHeads: number, headDim: number) => ((kvHeads * headDim) / 2) * 5;

/** Raw tokens of all heads, keys and values, at two bytes a number. */
const rawBytes = (kvHeads: number, headDim: number, tokens: number) => kvHeads * 2 * tokens * headDim * 2;

function append(cache: KVCache, tokens: number) {
  const sequence = cache.sequence();
  const { layers } = cache.shape;
  const { kvHeads, headDim } = layers[0]!;
  const width = kvHeads * headDim;
  for (let layer = 0; layer < layers.length; layer++) sequence.append(layer, keyLike(tokens, width, layer), bells(tokens, width, layer));
  return sequence;
}

group('plan', test => {
  test('gives the bytes and bits of a token as the layout draws them', () => {
    // codes 64 · 8 · bits, s2 64 a segment, s1 32, o 64 of keys and 32 of values, scales 12, an exponent a segment; whole words
    const values = { nsn1: 656, nsn2: 1168, nsn3: 1680, nsn4: 2192 };
    const plain = { nsn1: 688, nsn2: 1200, nsn3: 1712, nsn4: 2224 };
    const balanced = { nsn1: 816, nsn2: 1328, nsn3: 1776, nsn4: 2224 };
    const bits = {
      learn: { nsn1: '1.44', nsn2: '2.44', nsn3: '3.38', nsn4: '4.31' },
      off: { nsn1: '1.31', nsn2: '2.31', nsn3: '3.31', nsn4: '4.31' }
    };
    for (const codec of names) {
      for (const balance of ['learn', 'off'] as const) {
        const planned = plan({ layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192, keys: codec, values: codec, balance });
        const page = 3 * ((balance === 'learn' ? balanced : plain)[codec] + values[codec]);
        assert.is(planned.bytesPerToken, (30 * page) / 64, codec);
        assert.is(planned.bitsPerElement, (page * 8) / (64 * 3 * 2 * 64), codec);
        assert.is(planned.bitsPerElement.toFixed(2), bits[balance][codec]);
        assert.is(planned.f16BytesPerToken, 30 * 3 * 2 * 64 * 2);
        assert.is(planned.pageBytes, 30 * 128 * page);
      }
    }
  });

  test('counts the tokens that stay raw: tails, recent windows, sinks and one prompt for every sequence', () => {
    const raw = rawBytes(3, 64, 64);
    // [options, raw windows, sink tokens]; of a layer that learns a complete window stays raw too until there are two.
    const cases: readonly [Partial<CacheOptions>, number, number][] = [
      [{ sequences: 1, maxAppend: 64, balance: 'off' }, 2 * 1 + 1, 2 * 4],
      [{ sequences: 1, maxAppend: 65, balance: 'off' }, 2 * 1 + 2, 2 * 4],
      [{ sequences: 3, maxAppend: 1, sinks: 0, balance: 'off' }, 3 * 2 + 3, 0],
      [{ sequences: 3, maxAppend: 1, recent: 2, sinks: 64, balance: 'off' }, 3 * 2 * 3 + 3, 3 * 2 * 64],
      [{ sequences: 1, maxAppend: 65, balance: new Uint8Array(2 * 3 * 32) }, 2 * 1 + 2, 2 * 4],
      [{ sequences: 1, maxAppend: 65 }, 2 * 2 + 2, 2 * 4],
      [{ sequences: 3, maxAppend: 1, recent: 1 }, 3 * 2 * 2 + 3, 3 * 2 * 4],
      [{ sequences: 3, maxAppend: 1, recent: 2 }, 3 * 2 * 3 + 3, 3 * 2 * 4]
    ];
    for (const [options, windows, sinks] of cases) {
      const planned = plan({ layers: 2, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 1000, ...options });
      const what = JSON.stringify({ ...options, balance: typeof options.balance });
      const learned = options.balance === 'off' ? 0 : options.sequences! * 2 * learnedBytes(3, 64);
      assert.is(planned.rawBytes, windows * raw + rawBytes(3, 64, sinks), what);
      assert.is(planned.learnedBytes, learned, what);
      assert.is(planned.bytes, planned.rawBytes + planned.pageBytes + learned);
      assert.is(planned.pageBytes, 2 * 15 * pageBytes('nsn3', 'nsn3', 3, 64, options.balance !== 'off'));
    }
  });

  test('adds up layers of different codecs', () => {
    const planned = plan({ ...small, layers: [{}, { keys: 'nsn1', values: 'nsn4' }] });
    assert.is(planned.pageBytes, 4 * (pageBytes('nsn3', 'nsn3', 2, 64) + pageBytes('nsn1', 'nsn4', 2, 64)));
  });
});

const shapes: readonly (readonly [string, Partial<CacheOptions>])[] = [
  ['two layers', {}],
  ['one bit', { keys: 'nsn1', values: 'nsn1' }],
  ['large heads', { headDim: 256, keys: 'nsn4', values: 'nsn4' }],
  ['all codecs', { layers: [{ keys: 'nsn1' }, { keys: 'nsn2' }, { keys: 'nsn3' }, {}] }],
  ['plain keys', { balance: 'off' }],
  ['largest heads', { headDim: 512, keys: 'nsn4', values: 'nsn1' }],
  ['64 query heads a KV head', { queryHeads: 128 }],
  ['many sequences', { sequences: 100, maxAppend: 1, capacity: 6400 }],
  ['many tokens', { capacity: 20000, maxAppend: 512 }]
];

for (const { name, backend, gpu } of backends.filter(tested => tested !== scatteredWebgpu)) {
  // No byte depends on what a kernel does: on a GPU one head dimension and one codec, which others compile.
  const headDim = gpu ? 32 : 64;
  const keys = gpu ? 'nsn3' : 'nsn1';
  const own = { ...small, headDim };

  group(`bytes, ${name}`, test => {
    test('of a cache that takes all at once are those of its plan, and of tables and scratch at most what is stated', () => {
      for (const [what, options] of shapes) {
        const cache = new KVCache(backend, { ...small, ...options, reserve: true });
        const planned = plan({ ...small, ...options });
        assert.ok(cache.bytes >= planned.bytes, `${what} expected at least ${planned.bytes} bytes, got ${cache.bytes}`);
        if (backend.name === 'reference') assert.is(cache.bytes, planned.bytes, what);
        else atMost(`${what}: tables and scratch`, cache.bytes - planned.bytes, (gpu ? gpuMemoryBound : memoryBound)(cache.shape));
        cache.dispose();
      }
    });

    test('of a cache with sinks and a token in every layer are at least what its plan says of the first', () => {
      for (const sinks of [0, 4, 64]) {
        const options = { ...own, sinks, capacity: 6400 };
        const cache = new KVCache(backend, options);
        append(cache, sinks + 1);
        const { firstBytes, bytes } = plan(options);
        if (backend.name === 'reference') assert.is(cache.bytes, firstBytes);
        assert.ok(cache.bytes >= firstBytes && cache.bytes < bytes, `${firstBytes} ≤ ${cache.bytes} < ${bytes}`);
        cache.dispose();
      }
    });

    for (const balance of ['learn', 'off'] as const) {
      test(`of a sequence are its coded pages, raw windows, sinks, page numbers and what it has learned: balance ${balance}`, () => {
        for (const [sinks, recent] of [
          [4, 0],
          [0, 0],
          [64, 1]
        ] as const) {
          for (const tokens of [0, 1, 63, 64, 65, 68, 129, 250]) {
            const cache = new KVCache(backend, { ...own, sinks, recent, balance, layers: [{}, { keys }] });
            const sequence = tokens > 0 ? append(cache, tokens) : cache.sequence();
            const windows = Math.max(0, tokens - sinks) / 64;
            const raw = rawBytes(2, headDim, 64);
            const sinkBytes = tokens > 0 ? rawBytes(2, headDim, sinks) + (balance === 'learn' ? learnedBytes(2, headDim) : 0) : 0;
            const pageOf = (layer: number) => pageBytes(layer === 0 ? 'nsn3' : keys, 'nsn3', 2, headDim, balance === 'learn');
            const bytesOf = (pages: number, layer: number) => pages * (pageOf(layer) + 4) + (Math.ceil(windows) - pages) * raw + sinkBytes;
            const what = `${tokens} tokens, ${sinks} sinks, ${recent} recent`;
            // All windows wait for the next call, and one alone for a second to learn from.
            const pages = balance === 'learn' && windows < 2 ? 0 : Math.max(0, Math.floor(windows) - recent);
            assert.is(sequence.bytes, bytesOf(0, 0) + bytesOf(0, 1), `${what}, before seal`);
            sequence.seal();
            assert.is(sequence.bytes, bytesOf(pages, 0) + bytesOf(pages, 1), what);
            assert.equal(sequence.sealed, { bytes: pages * (pageOf(0) + pageOf(1)), tokens: 64 * pages }, what);
          }
        }
      });
    }

    test('of a fork count what it shares again; those of a cropped sequence shrink', () => {
      const sequence = append(new KVCache(backend, own), 140);
      sequence.seal();
      const { bytes } = sequence;
      assert.is(sequence.fork().bytes, bytes);
      assert.is(sequence.bytes, bytes);
      sequence.crop(68);
      assert.is(sequence.bytes, 2 * (pageBytes('nsn3', 'nsn3', 2, headDim) + 4 + rawBytes(2, headDim, 4) + learnedBytes(2, headDim)));
      sequence.crop(0);
      assert.is(sequence.bytes, 0);
    });
  });
}

/** The memories that `run` makes. */
function memoriesOf(run: () => void): WebAssembly.Memory[] {
  const { Memory } = WebAssembly;
  const made: WebAssembly.Memory[] = [];
  WebAssembly.Memory = class extends Memory {
    constructor(descriptor: WebAssembly.MemoryDescriptor) {
      super(descriptor);
      made.push(this);
    }
  };
  try {
    run();
  } finally {
    WebAssembly.Memory = Memory;
  }
  return made;
}

for (const { name, backend } of wasm) {
  group(`memory, ${name}`, test => {
    test('is one of whole pages, and where all was taken at once it does not grow while decoding', async () => {
      let cache!: KVCache;
      const memories = memoriesOf(() => {
        cache = new KVCache(backend, { ...small, layers: 2, recent: 1, reserve: true });
      });
      assert.is(memories.length, 1);
      const [memory] = memories;
      assert.is(memory!.buffer.byteLength, cache.bytes);
      assert.is(cache.bytes % 65536, 0);
      const { buffer } = memory!;
      const width = 2 * 64;
      const steps = 200;
      const more = memoriesOf(() => {
        const sequence = append(cache, 90);
        const [keys, values] = [keyLike(steps, width, 3), bells(steps, width, 4)];
        const query = bells(1, 6 * 64, 5);
        const out = new Float32Array(6 * 64);
        for (let t = 0; t < steps; t++) {
          for (const layer of [0, 1]) {
            sequence.append(layer, keys.subarray(t * width, (t + 1) * width), values.subarray(t * width, (t + 1) * width));
            sequence.attend(layer, query, { out });
          }
        }
        assert.is(sequence.length, 290);
      });
      assert.is(more.length, 0);
      // A memory that grows gets another buffer, and the old one is left with no bytes.
      assert.is(memory!.buffer, buffer);
      assert.is(buffer.byteLength, cache.bytes);
    });
  });
}
