// An engine's own GPUBuffers in and out: the same as arrays, in the order of the queue. Where there is a device; elsewhere the refusals.
import { type GpuTokens, KVCache, openBackend } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { gpu as found } from './backends.ts';
import { refuses } from './compare.ts';
import { refusesDevice, selfTested, untested } from './gpu.ts';
import { halfBits, rounded } from './half.ts';
import { keyLike, normal } from './inputs.ts';
import { ONE_TOKEN } from './tolerance.ts';

const MAP_READ = 1;
const STORAGE = 128;
const COPY_SRC = 4;
const COPY_DST = 8;

const options = { layers: 1, ...selfTested, capacity: 512, sequences: 2 } as const;
const { headDim } = options;
const width = options.kvHeads * headDim;
const queryWidth = options.queryHeads * headDim;

group('GPUBuffers without the webgpu backend', test => {
  test('are refused, and nothing is appended', async () => {
    const sequence = new KVCache(await openBackend({ prefer: 'wasm' }), options).sequence();
    const tokens = { buffer: {} as GPUBuffer, tokens: 1 };
    await refuses(
      () => sequence.append(0, tokens, tokens),
      TypeError,
      '"keys" expected an array (GPUBuffers are for the webgpu backend), got GPUBuffer'
    );
    sequence.append(0, new Float32Array(width), new Float32Array(width));
    await refuses(
      () => sequence.attend(0, tokens),
      TypeError,
      '"query" expected an array (GPUBuffers are for the webgpu backend), got GPUBuffer'
    );
    await refuses(
      () => sequence.attend(0, new Float32Array(queryWidth), { out: { buffer: tokens.buffer } }),
      TypeError,
      '"out" expected an array (GPUBuffers are for the webgpu backend), got GPUBuffer'
    );
    assert.is(sequence.length, 1);
  });
});

group('GPUBuffers', test => {
  const gpu = found;
  if (typeof gpu === 'string') return test.skip('everything on a device', gpu);
  const { device } = gpu;
  const backend = untested(gpu);

  /** A buffer that holds `data` from byte `offset` on. */
  const bufferOf = (data: Float32Array | Uint16Array, offset = 0, usage = STORAGE | COPY_SRC | COPY_DST): GPUBuffer => {
    const buffer = device.createBuffer({ size: Math.ceil((offset + data.byteLength) / 4) * 4, usage });
    device.queue.writeBuffer(buffer, offset, data as Float32Array<ArrayBuffer>);
    return buffer;
  };
  /** What a buffer holds from float `from` on. */
  const floatsOf = async (buffer: GPUBuffer, from: number): Promise<Float32Array> => {
    const copy = device.createBuffer({ size: buffer.size, usage: MAP_READ | COPY_DST });
    const encoder = device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, 0, copy, 0, buffer.size);
    device.queue.submit([encoder.finish()]);
    await copy.mapAsync(MAP_READ);
    return new Float32Array(copy.getMappedRange().slice(4 * from));
  };
  const [keys, values] = [keyLike(200, width, 90), normal(200, width, 91)];

  test('append() and attend() give what arrays give, whole prompts and single tokens, f32 and f16', async () => {
    const cache = new KVCache(backend, options);
    const [plain, given] = [cache.sequence(), cache.sequence()];
    for (const [from, to] of [
      [0, 150],
      [150, 151],
      [151, 200]
    ] as const) {
      const [k, v] = [keys, values].map(x => x.slice(from * width, to * width)) as [Float32Array, Float32Array];
      const f16 = halfBits(rounded(v));
      plain.append(0, k, f16);
      const tokens = to - from;
      given.append(0, { buffer: bufferOf(k, 12), offset: 12, tokens }, { buffer: bufferOf(f16, 256), offset: 256, tokens, format: 'f16' });
      const query = normal(tokens, queryWidth, 92);
      const out = bufferOf(new Float32Array(tokens * queryWidth + 2));
      const expected = await plain.attend(0, query).read();
      const output = given.attend(0, { buffer: bufferOf(query, 4), offset: 4, tokens }, { out: { buffer: out, offset: 8 } });
      // The same kernels over the same numbers: equal to the bit.
      assert.equal(await output.read(), expected);
      // A buffer in, an array out, and the other way around.
      assert.equal(await given.attend(0, { buffer: bufferOf(query), tokens }).read(), expected);
      assert.equal(await given.attend(0, query, { out: { buffer: out } }).read(), expected);
    }
    assert.equal(await given.save(), await plain.save());
    cache.dispose();
  });

  test('attend() puts results and log-sum-exps into buffers and arrays alike', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    sequence.append(0, keys, values);
    const tokens = 140; // more than one call takes
    const query = normal(tokens, queryWidth, 95);
    const lse = new Float32Array(tokens * options.queryHeads);
    const expected = await sequence.attend(0, query, { lse }).read();
    assert.is(new Set(lse).size, lse.length);
    const outBuffer = bufferOf(new Float32Array(tokens * queryWidth + 2));
    const lseBuffer = bufferOf(new Float32Array(lse.length + 3));
    const [out, lseToo] = [
      { buffer: outBuffer, offset: 8 },
      { buffer: lseBuffer, offset: 12 }
    ];
    const again = new Float32Array(lse.length);
    assert.equal(await sequence.attend(0, query, { out, lse: again }).read(), expected);
    assert.equal(again, lse);
    assert.equal(await sequence.attend(0, query, { lse: lseToo }).read(), expected);
    assert.equal(await floatsOf(lseBuffer, 3), lse);
    for (const buffer of [outBuffer, lseBuffer]) device.queue.writeBuffer(buffer, 0, new Float32Array(buffer.size / 4));
    sequence.attend(0, query, { out, lse: lseToo });
    assert.equal(await floatsOf(outBuffer, 2), expected);
    assert.equal(await floatsOf(lseBuffer, 3), lse);
    cache.dispose();
  });

  test('f16 queries in and f16 results out, either layout, whole prompts and single tokens, are what arrays are', async () => {
    const cache = new KVCache(backend, { ...options, capacity: 1024 });
    const [plain, given] = [cache.sequence(), cache.sequence()];
    for (const [from, to] of [
      [0, 150],
      [150, 151]
    ] as const) {
      for (const layout of ['tokens-first', 'heads-first'] as const) {
        const tokens = to - from;
        const [k, v] = [keys, values].map(x => halfBits(rounded(x.slice(from * width, to * width)))) as [Uint16Array, Uint16Array];
        plain.append(0, k, v, { layout });
        const f16 = { tokens, format: 'f16' } as const;
        given.append(0, { buffer: bufferOf(k), ...f16 }, { buffer: bufferOf(v, 8), offset: 8, ...f16 }, { layout });
        const query = halfBits(rounded(normal(tokens, queryWidth, 95)));
        const out = { buffer: bufferOf(new Uint16Array(tokens * queryWidth + 4)), offset: 8, format: 'f16' } as const;
        const expected = await plain.attend(0, query, { out: new Uint16Array(query.length), layout }).read();
        const got: Uint16Array = await given.attend(0, { buffer: bufferOf(query, 4), offset: 4, ...f16 }, { out, layout }).read();
        assert.equal(got, expected);
      }
    }
    assert.equal(await given.save(), await plain.save());
    cache.dispose();
  });

  test('decode() puts tokens into buffers, f32 and f16, either layout, at once', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    sequence.append(0, keys, values);
    sequence.seal();
    const range = { from: 2, to: 195 };
    for (const layout of ['tokens-first', 'heads-first'] as const) {
      const length = 193 * width;
      const expected = await sequence.decode(0, {
        ...range,
        layout,
        out: { keys: new Float32Array(length), values: new Uint16Array(length) }
      });
      const [f32, f16] = [bufferOf(new Float32Array(length + 3)), bufferOf(new Uint16Array(length + 8))];
      const out = { keys: { buffer: f32, offset: 12 }, values: { buffer: f16, offset: 16, format: 'f16' } } as const;
      const decoded = sequence.decode(0, { ...range, layout, out });
      assert.equal(await floatsOf(f32, 3), expected.keys); // was queued when the call returned
      assert.equal(new Uint16Array((await floatsOf(f16, 4)).buffer), expected.values);
      assert.equal(await decoded, out);
      const mixed = await sequence.decode(0, { ...range, layout, out: { keys: out.keys, values: new Uint16Array(length) } });
      assert.equal(mixed.values, expected.values);
    }
    const { keys: none } = await sequence.decode(0, {
      from: 9,
      to: 9,
      out: { keys: { buffer: bufferOf(new Float32Array(1)) }, values: values.slice(0, 0) }
    });
    assert.ok('buffer' in none);
    const small = bufferOf(new Float32Array(width - 1));
    await refuses(
      () => sequence.decode(0, { from: 0, to: 1, out: { keys: { buffer: small }, values: { buffer: small } } }),
      RangeError,
      `"out.keys.buffer" expected at least ${4 * width} bytes (${4 * width} from offset 0), got ${4 * width - 4}`
    );
    cache.dispose();
  });

  test('what a buffer held when the call returned counts, whatever is written into it later', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    const first = keys.slice(0, 5 * width);
    const [k, v] = [bufferOf(first), bufferOf(first)];
    sequence.append(0, { buffer: k, tokens: 5 }, { buffer: v, tokens: 5 });
    for (const buffer of [k, v]) device.queue.writeBuffer(buffer, 0, new Float32Array(5 * width));
    const expected = cache.sequence();
    expected.append(0, first, first);
    assert.equal(await sequence.decode(0), await expected.decode(0));
  });

  test('read() refuses results in a buffer that cannot be copied, instead of what an earlier read left', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    sequence.append(0, keys.slice(0, width), values.slice(0, width));
    const query = normal(1, queryWidth, 94);
    await sequence.attend(0, query).read();
    const attendInto = (usage: number) => {
      const buffer = bufferOf(new Float32Array(queryWidth), 0, usage);
      return { buffer, output: sequence.attend(0, query, { out: { buffer } }) };
    };
    const unreadable = attendInto(STORAGE | COPY_DST);
    const message = `"out.buffer" expected usage COPY_SRC to be read, got ${STORAGE | COPY_DST}`;
    for (const _ of [1, 2]) await refuses(() => unreadable.output.read(), RangeError, message);
    const destroyed = attendInto(STORAGE | COPY_SRC | COPY_DST);
    destroyed.buffer.destroy();
    await refusesDevice(() => destroyed.output.read(), /^webgpu backend expected to copy "out\.buffer", got: ./);
    cache.dispose();
  });

  test('a batch takes buffers and arrays side by side', async () => {
    const cache = new KVCache(backend, options);
    const sequences = [cache.sequence(), cache.sequence()];
    const both = bufferOf(keys.slice(0, 2 * width));
    const row = (n: number): GpuTokens => ({ buffer: both, tokens: 1, offset: n * width * 4 });
    cache.append(sequences, 0, [row(0), keys.slice(width, 2 * width)], [row(0), row(1)]);
    const query = normal(2, queryWidth, 93);
    const out = bufferOf(new Float32Array(2 * queryWidth));
    const read = await cache
      .attend(sequences, 0, [{ buffer: bufferOf(query), tokens: 1 }, query.slice(queryWidth)], { out: { buffer: out } })
      .read();
    // One token each: attention gives back its value, once for every query head of the KV head.
    const expected = rounded(keys.slice(0, 2 * width));
    for (let i = 0; i < read.length; i++) {
      const [n, head, channel] = [Math.floor(i / queryWidth), Math.floor((i % queryWidth) / (3 * headDim)), i % headDim];
      assert.ok(Math.abs(read[i]! - expected[n * width + head * headDim + channel]!) <= ONE_TOKEN * (1 + Math.abs(read[i]!)));
    }
  });

  test('results over each other, or over queries that are not in their place, are refused: long prompts are answered in parts', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    sequence.append(0, keys, values);
    const tokens = 140; // more than one call takes
    const length = tokens * queryWidth;
    const query = normal(tokens, queryWidth, 95);
    const expected = await sequence.attend(0, query).read();
    const buffer = bufferOf(new Float32Array(2 * length));
    const place = '"out" expected the place of "query", rows of as many bytes, or none of its bytes, got some of them';
    const some = 'got some of them';
    for (const [run, message] of [
      [() => sequence.attend(0, { buffer, tokens }, { out: { buffer, offset: 16 } }), place],
      [() => sequence.attend(0, { buffer, tokens }, { out: { buffer, format: 'f16' } }), place],
      [() => sequence.attend(0, { buffer, tokens }, { lse: { buffer } }), `"lse" expected none of the bytes of "query", ${some}`],
      [
        () => sequence.attend(0, query, { out: { buffer }, lse: { buffer, offset: 4 * length - 4 } }),
        `"lse" expected none of the bytes of "out", ${some}`
      ],
      [
        () => sequence.decode(0, { from: 0, to: 1, out: { keys: { buffer }, values: { buffer, offset: 4 * width - 4 } } }),
        `"out.values" expected none of the bytes of "out.keys", ${some}`
      ]
    ] as const) {
      await refuses(run, RangeError, message);
    }
    const inPlace = bufferOf(query, 8);
    assert.equal(
      await sequence.attend(0, { buffer: inPlace, offset: 8, tokens }, { out: { buffer: inPlace, offset: 8 } }).read(),
      expected
    );
    cache.dispose();
  });

  test('append() and attend() refuse buffers that do not fit, and change nothing', async () => {
    const cache = new KVCache(backend, options);
    const sequence = cache.sequence();
    const good = { buffer: bufferOf(keys.slice(0, 2 * width)), tokens: 2 };
    const unreadable = bufferOf(keys.slice(0, 2 * width), 0, STORAGE | COPY_DST);
    const bytes = 2 * width * 4;
    await refuses(
      () => sequence.append(0, { ...good, tokens: 3 }, good),
      RangeError,
      `"keys.buffer" expected at least ${bytes * 1.5} bytes (${bytes * 1.5} from offset 0), got ${bytes}`
    );
    await refuses(
      () => sequence.append(0, { ...good, offset: 4 }, good),
      RangeError,
      `"keys.buffer" expected at least ${bytes + 4} bytes (${bytes} from offset 4), got ${bytes}`
    );
    await refuses(
      () => sequence.append(0, { ...good, offset: 2, tokens: 1 }, good),
      RangeError,
      '"keys.offset" expected multiple of 4, got 2'
    );
    await refuses(
      () => sequence.append(0, { ...good, tokens: 0 }, good),
      RangeError,
      '"keys.tokens" expected integer from 1 to 16777216, got 0'
    );
    await refuses(
      () => sequence.append(0, good, { ...good, tokens: 1 }),
      RangeError,
      `"values" expected length ${2 * width} (2 tokens × 2 heads × ${headDim}), got ${width}`
    );
    await refuses(
      () => sequence.append(0, { ...good, format: 'f64' as 'f32' }, good),
      RangeError,
      '"keys.format" expected f32 or f16, got f64'
    );
    await refuses(
      () => sequence.append(0, { ...good, buffer: unreadable }, good),
      RangeError,
      `"keys.buffer" expected usage COPY_SRC, got ${STORAGE | COPY_DST}`
    );
    await refuses(
      () => sequence.append(0, { ...good, buffer: new ArrayBuffer(8) as never }, good),
      TypeError,
      '"keys.buffer" expected GPUBuffer, got ArrayBuffer'
    );
    assert.is(sequence.length, 0);
    sequence.append(0, good, good);
    const query = new Float32Array(queryWidth);
    await refuses(
      () => sequence.attend(0, query, { out: { buffer: bufferOf(query, 0, STORAGE | COPY_DST), offset: 4 } }),
      RangeError,
      `"out.buffer" expected at least ${queryWidth * 4 + 4} bytes (${queryWidth * 4} from offset 4), got ${queryWidth * 4}`
    );
    await refuses(
      () => sequence.attend(0, { buffer: bufferOf(query), tokens: 1, format: 'f64' as 'f32' }),
      RangeError,
      '"query.format" expected f32 or f16, got f64'
    );
    const small = bufferOf(new Float32Array(queryWidth / 2 - 1));
    await refuses(
      () => sequence.attend(0, { buffer: small, tokens: 1, format: 'f16' }),
      RangeError,
      `"query.buffer" expected at least ${queryWidth * 2} bytes (${queryWidth * 2} from offset 0), got ${queryWidth * 2 - 4}`
    );
    await refuses(
      () => sequence.attend(0, query, { out: { buffer: small, format: 'f16' } }),
      RangeError,
      `"out.buffer" expected at least ${queryWidth * 2} bytes (${queryWidth * 2} from offset 0), got ${queryWidth * 2 - 4}`
    );
    await refuses(
      () => sequence.attend(0, query, { out: { buffer: small, format: 'u16' as 'f16' } }),
      RangeError,
      '"out.format" expected f32 or f16, got u16'
    );
    await refuses(
      () => sequence.attend(0, query, { lse: { buffer: small, format: 'f16' } }),
      RangeError,
      '"lse.format" expected f32, got f16'
    );
    assert.is(sequence.length, 2);
  });
});
