// The whole cache on a real WebGPU implementation, held to the reference and to WebAssembly. Skipped, with the reason, where
// this runtime has no adapter; NSN_REQUIRE=webgpu makes that a failure.
import * as assert from 'uvu/assert';
import { BackendError, KVCache, openBackend, type Backend, type CacheOptions, type CodecName, type Sequence } from 'nsnquant';
import { group } from './group.ts';

/** Of attention outputs: f32 on the GPU against f64 or f32, over the same pages. Outputs are means of values near 1. */
const OUTPUT = 1e-3;
/** Bytes of a page that rounding may decide otherwise: near ties of s1, o and codewords. */
const NEAR_TIES = 0.01;

const process = (globalThis as { process?: { env: Record<string, string | undefined>; versions: Record<string, string> } }).process;
const inNode = process?.versions.node !== undefined && !process.versions.deno && !process.versions.bun;

/** A device, or why there is none. Node without a GPU is pointed at the software adapter that Chromium brings. */
async function openDevice(): Promise<GPUDevice | string> {
  let gpu = (globalThis as { navigator?: { gpu?: GPU } }).navigator?.gpu;
  if (!gpu) {
    if (!inNode) return 'no navigator.gpu';
    const name = 'webgpu';
    try {
      const { create } = await import(name);
      const { existsSync } = await import('node:fs');
      const swiftShader = '/usr/lib/chromium/vk_swiftshader_icd.json';
      if (!existsSync('/dev/dri') && !existsSync('/dev/nvidia0') && existsSync(swiftShader)) {
        process!.env.VK_ICD_FILENAMES ??= swiftShader;
        process!.env.XDG_RUNTIME_DIR ??= '/tmp';
      }
      gpu = create([]) as GPU;
    } catch (error) {
      return (error as Error).message.split('\n')[0]!;
    }
  }
  const adapter = await gpu.requestAdapter();
  if (!adapter) return 'no adapter';
  keep.push(gpu);
  // The defaults, nothing more: no optional feature, no raised limit.
  return adapter.requestDevice();
}
const keep: unknown[] = [];

/** A device that does one thing differently. */
function altered(device: GPUDevice, changes: Record<string, unknown>): GPUDevice {
  return new Proxy(device, {
    get(target, key) {
      if (key in changes) return changes[key as string];
      const value = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    }
  });
}

function noise(count: number, seed = 1): Float32Array {
  let state = seed;
  const uniform = () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: count }, () => uniform() + uniform() + uniform() + uniform() - 2);
}

function difference(a: Float32Array, b: Float32Array): number {
  assert.is(a.length, b.length);
  let largest = 0;
  for (let i = 0; i < a.length; i++) largest = Math.max(largest, Number.isFinite(a[i]!) ? Math.abs(a[i]! - b[i]!) : Infinity);
  return largest;
}

const rope = (pairs: number, interleaved: boolean) => ({ invFreq: Array.from({ length: pairs }, (_, i) => 10000 ** (-i / pairs)), interleaved });

const device = await openDevice();
const required = process && inNode && /\b(webgpu|all)\b/.test(process.env.NSN_REQUIRE ?? '');

if (typeof device === 'string') {
  group('webgpu', test => {
    if (required) test('there is an adapter', () => { throw new Error(device); });
    else test.skip('webgpu', device);
  });
} else {
  const gpu = await openBackend({ prefer: 'webgpu', device });
  console.log(gpu.reason);
  const wasm = await openBackend({ prefer: 'wasm' });
  const reference = await openBackend({ prefer: 'reference' });
  const tiny = await openBackend({
    prefer: 'webgpu', device: altered(device, { limits: altered(device.limits as never, { maxStorageBufferBindingSize: 2 ** 20, maxBufferSize: 2 ** 20 }) })
  });

  /** Fills a sequence in uneven steps. */
  const fill = (cache: KVCache, tokens: number, seed = 1): Sequence => {
    const { kvHeads, headDim, layers } = cache.shape;
    const x = noise(2 * tokens * kvHeads * headDim, seed);
    const sequence = cache.sequence();
    for (let from = 0, step = 50; from < tokens; from += step, step = 1 + (step * 7) % 61) {
      const to = Math.min(tokens, from + step);
      const rows = (side: number) => x.slice((side * tokens + from) * kvHeads * headDim, (side * tokens + to) * kvHeads * headDim);
      for (let layer = 0; layer < layers; layer++) sequence.append(layer, rows(0), rows(1));
    }
    sequence.seal();
    return sequence;
  };

  /** The same sequence on the GPU, and on the reference by its saved bytes. */
  const pair = async (options: CacheOptions, tokens: number, backend: Backend = gpu, other: Backend = reference) => {
    const cache = new KVCache(backend, options);
    const sequence = fill(cache, tokens);
    const expected = new KVCache(other, options).restore(await sequence.save());
    return { cache, sequence, expected };
  };

  group('webgpu', test => {
    test('openBackend() names what runs', () => {
      assert.is(gpu.name, 'webgpu');
      assert.is(gpu.variant, 'baseline');
      assert.match(gpu.reason, 'asked for');
    });

    const shapes: [headDim: number, kvHeads: number, queryHeads: number, keys: CodecName, values: CodecName, pairs: number, interleaved: boolean][] = [
      [32, 1, 1, 'nsn4', 'nsn2', 16, false],
      [64, 2, 6, 'nsn4', 'nsn2', 32, true],
      [64, 1, 5, 'nsn1', 'nsn4', 0, false],
      [80, 1, 7, 'nsn2', 'nsn1', 20, false],
      [96, 1, 4, 'nsn2', 'nsn2', 48, true],
      [104, 1, 3, 'nsn1', 'nsn1', 13, false],
      [128, 2, 8, 'nsn1', 'nsn1', 64, false],
      [256, 1, 2, 'nsn4', 'nsn1', 128, false],
      [512, 1, 4, 'nsn1', 'nsn1', 256, true]
    ];
    for (const [headDim, kvHeads, queryHeads, keys, values, pairs, interleaved] of shapes) {
      test(`attend() and decode() match the reference: ${headDim} channels, ${queryHeads}/${kvHeads} heads, ${keys}/${values}, ${pairs} RoPE pairs`, async () => {
        const options = {
          layers: 1, kvHeads, queryHeads, headDim, keys, values, capacity: 256, sequences: 1, ...(pairs && { rope: rope(pairs, interleaved) })
        };
        const { cache, sequence, expected } = await pair(options, 64 * 2 + 4 + 21);
        for (const tokens of [1, 3]) {
          const q = noise(tokens * queryHeads * headDim, 9);
          assert.ok(difference(await sequence.attend(0, q).read(), await expected.attend(0, q).read()) < OUTPUT);
        }
        const [got, want] = [await sequence.decode(0), await expected.decode(0)];
        assert.ok(difference(got.keys, want.keys) < OUTPUT);
        assert.ok(difference(got.values, want.values) < OUTPUT);
        cache.dispose();
      });
    }

    test('encode() gives the bytes of WebAssembly, near ties apart', async () => {
      for (const codec of ['nsn1', 'nsn2', 'nsn4'] as const) {
        const options = { layers: 1, kvHeads: 2, queryHeads: 2, headDim: 64, keys: codec, values: codec, capacity: 256, sequences: 1, rope: rope(32, false) };
        const a = await fill(new KVCache(gpu, options), 196).save();
        const b = await fill(new KVCache(wasm, options), 196).save();
        assert.is(a.length, b.length);
        const differing = a.reduce((sum, byte, i) => sum + Number(byte !== b[i]), 0);
        console.log(`${codec}: ${differing} of ${a.length} bytes differ`);
        assert.ok(differing <= NEAR_TIES * a.length);
      }
    });

    test('saved bytes go from one backend to the other and back unchanged', async () => {
      const options = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: 64, capacity: 256, sequences: 2, rope: rope(32, true) };
      for (const [from, to] of [[gpu, wasm], [wasm, gpu]] as const) {
        const bytes = await fill(new KVCache(from, options), 150).save();
        const there = new KVCache(to, options).restore(bytes);
        assert.equal(await there.save(), bytes);
        const back = new KVCache(from, options).restore(bytes);
        const q = noise(2 * 64, 3);
        assert.ok(difference(await there.attend(1, q).read(), await back.attend(1, q).read()) < OUTPUT);
      }
    });

    test('a batch of sequences of different lengths is what each gives alone', async () => {
      const cache = new KVCache(gpu, { layers: 1, kvHeads: 2, queryHeads: 4, headDim: 32, capacity: 512, sequences: 4 });
      const sequences = [3, 64, 150, 200].map((tokens, n) => fill(cache, tokens, n + 1));
      const queries = [1, 5, 2, 40].map((tokens, n) => noise(Math.min(tokens, sequences[n]!.length) * 4 * 32, n + 7));
      const together = await cache.attend(sequences, 0, queries).read();
      let at = 0;
      for (const [n, sequence] of sequences.entries()) {
        const alone = await sequence.attend(0, queries[n]!).read();
        assert.ok(difference(together.slice(at, at += alone.length), alone) < 1e-5);
      }
    });

    test('a prompt of more tokens than one call takes is causal throughout', async () => {
      const options = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 320, sequences: 1 };
      const x = noise(2 * 300 * 32);
      const outputs = await Promise.all([gpu, wasm].map(backend => {
        const sequence = new KVCache(backend, options).sequence();
        sequence.append(0, x.slice(0, 300 * 32), x.slice(300 * 32));
        return sequence.attend(0, noise(300 * 64, 4)).read();
      }));
      assert.ok(difference(outputs[0]!, outputs[1]!) < OUTPUT);
    });

    test('fork(), crop() and append() of f16 act as on WebAssembly', async () => {
      const options = { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 512, sequences: 2, recent: 1 };
      const results = await Promise.all([gpu, wasm].map(async backend => {
        const sequence = fill(new KVCache(backend, options), 230);
        const branch = sequence.fork();
        branch.crop(100);
        branch.append(0, new Uint16Array(64).fill(0x3800), noise(64));
        return Promise.all([sequence, branch].map(s => s.decode(0)));
      }));
      for (const n of [0, 1]) {
        // A near tie may give one value another code; all but a few are the same to rounding.
        const [a, b] = [results[0]![n]!, results[1]![n]!];
        assert.is(a.keys.length, b.keys.length);
        const off = a.keys.reduce((sum, value, i) => sum + Number(Math.abs(value - b.keys[i]!) > 1e-2), 0);
        assert.ok(off <= NEAR_TIES * a.keys.length);
      }
    });

    test('read() of an earlier attend() is not changed by a later one', async () => {
      const cache = new KVCache(gpu, { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 128 });
      const sequence = fill(cache, 90);
      const [q1, q2] = [noise(32, 1), noise(32, 2)];
      const outputs = [sequence.attend(0, q1), sequence.attend(0, q2)];
      const later = await outputs[1]!.read();
      assert.ok(difference(await outputs[0]!.read(), await sequence.attend(0, q1).read()) < 1e-6);
      assert.ok(difference(later, await sequence.attend(0, q2).read()) < 1e-6);
    });

    test('with bindings of 1 MiB pages and raw windows lie in several chunks and give the same', async () => {
      const options = { layers: 1, kvHeads: 8, queryHeads: 8, headDim: 128, keys: 'nsn4', values: 'nsn4', capacity: 1024, sequences: 1, maxAppend: 64 } as const;
      const { cache, sequence, expected } = await pair(options, 700, tiny, wasm);
      assert.ok(cache.shape.pagesPerLayer * cache.shape.pages[0]!.bytes > 2 ** 20);
      const q = noise(8 * 128, 5);
      assert.ok(difference(await sequence.attend(0, q).read(), await expected.attend(0, q).read()) < OUTPUT);
    });

    test('a page that no binding can hold is refused at once', () => {
      assert.throws(() => new KVCache(tiny, { layers: 1, kvHeads: 64, queryHeads: 64, headDim: 512, capacity: 64 }),
        (error: unknown) => error instanceof BackendError && error.backend === 'webgpu');
    });

    test('an adapter that computes wrongly is refused, and WebAssembly picked with the reason', async () => {
      const wrong = altered(device, {
        adapterInfo: { vendor: 'test', architecture: '', description: 'wrong', isFallbackAdapter: false },
        createShaderModule: (descriptor: GPUShaderModuleDescriptor) =>
          device.createShaderModule({ ...descriptor, code: descriptor.code.replace('sum / total', 'sum * 1.01 / total') })
      });
      const picked = await openBackend({ device: wrong });
      assert.is(picked.name, 'wasm');
      assert.match(picked.reason, /self-test on test wrong: attend differs from the reference by/);
      try {
        await openBackend({ device: wrong, prefer: 'webgpu' });
        assert.unreachable();
      } catch (error) {
        assert.instance(error, BackendError);
      }
    });

    test('a software adapter is never picked unasked', async () => {
      const software = altered(device, { adapterInfo: { vendor: 'test', architecture: 'swiftshader', description: '' } });
      const picked = await openBackend({ device: software });
      assert.is(picked.name, 'wasm');
      assert.match(picked.reason, 'is no GPU');
    });

    test('a real adapter is timed against WebAssembly, and reason carries both figures', async () => {
      const real = altered(device, { adapterInfo: { vendor: 'test', architecture: '', description: 'real' } });
      const picked = await openBackend({ device: real, shape: { kvHeads: 1, queryHeads: 1, headDim: 32 }, context: 256 });
      assert.match(picked.reason, /attend of 1 × 256 tokens took [\d.e+-]+ ms on webgpu, [\d.e+-]+ ms on wasm/);
    });

    test('attend() launches as many dispatches for a batch of long contexts as for one short', async () => {
      let dispatches = 0;
      const counting = altered(device, {
        createCommandEncoder: () => {
          const encoder = device.createCommandEncoder();
          return altered(encoder as never, {
            beginComputePass: () => {
              const pass = encoder.beginComputePass();
              return altered(pass as never, {
                dispatchWorkgroups: (...counts: [number, number, number]) => {
                  dispatches++;
                  pass.dispatchWorkgroups(...counts);
                }
              });
            }
          });
        }
      });
      const cache = new KVCache(await openBackend({ prefer: 'webgpu', device: counting }), {
        layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 1024, sequences: 4
      });
      const sequences = [10, 300, 200, 90].map(tokens => fill(cache, tokens));
      const count = async (chosen: Sequence[]) => {
        dispatches = 0;
        await cache.attend(chosen, 0, chosen.map(() => noise(32))).read();
        return dispatches;
      };
      assert.is(await count(sequences.slice(0, 1)), 2);
      assert.is(await count(sequences), 2);
    });

    // Last: the device is gone afterwards.
    test('a lost device rejects reads with a BackendError, and a saved sequence goes on elsewhere', async () => {
      const options = { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 256 };
      const sequence = fill(new KVCache(gpu, options), 150);
      const saved = await sequence.save();
      const q = noise(32);
      const before = await sequence.attend(0, q).read();
      const pending = sequence.attend(0, q).read();
      device.destroy();
      try {
        await pending;
        assert.unreachable();
      } catch (error) {
        assert.instance(error, BackendError);
        assert.is((error as BackendError).backend, 'webgpu');
      }
      assert.is(sequence.length, 150);
      assert.ok(difference(await new KVCache(wasm, options).restore(saved).attend(0, q).read(), before) < OUTPUT);
    });
  });
}
