// The whole cache on a real WebGPU implementation, held to the reference and to WebAssembly: Dawn, on SwiftShader where test/lanes.ts
// finds one. Skipped, with the reason, where there is no adapter; NSN_REQUIRE=webgpu makes that a failure.
import { spawnSync } from 'node:child_process';
import * as assert from 'uvu/assert';
import { BackendError, KVCache, openBackend, type Backend, type CacheOptions, type Sequence } from 'nsnquant';
// Not by openBackend: each self-test would compile a set of pipelines of its own, which SwiftShader takes seconds for.
import { webGpuBackend } from '../src/webgpu.ts';
import { dawn, required } from './gpu.ts';
import { group } from './group.ts';

/** Of attention outputs: f32 on the GPU against f64 or f32, over the same pages. Outputs are means of values near 1. */
const OUTPUT = 1e-3;
/** Bytes of a page that rounding may decide otherwise: near ties of s1, o and codewords. */
const NEAR_TIES = 0.01;

/** A device with the default limits and no optional feature, or why there is none. */
async function openDevice(): Promise<GPUDevice | string> {
  const gpu = await dawn();
  if (typeof gpu === 'string') return gpu;
  return (await gpu.requestAdapter())?.requestDevice() ?? 'Dawn found no adapter, and test/lanes.ts no SwiftShader';
}

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

group('webgpu unless asked for', test => {
  test('openBackend() takes wasm, loads no Dawn and prints nothing', () => {
    const code = `
      const { openBackend } = await import('nsnquant');
      const { name } = await openBackend();
      console.log(name, process.report.getReport().sharedObjects.some(file => file.endsWith('dawn.node')));`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', code], { encoding: 'utf8' });
    assert.is(stderr, '');
    assert.is(stdout, 'wasm false\n');
  });

  test('openBackend() refuses a device for another backend', async () => {
    try {
      await openBackend({ prefer: 'wasm', device: {} as GPUDevice });
      assert.unreachable();
    } catch (error) {
      assert.instance(error, RangeError);
      assert.is((error as Error).message, '"prefer" expected webgpu (a device is given), got wasm');
    }
  });
});

// Two shapes, so that most tests find their pipelines compiled.
const threeQueries = {
  layers: 1, kvHeads: 2, queryHeads: 6, headDim: 64, keys: 'nsn4', values: 'nsn2', capacity: 256, sequences: 4, rope: rope(32, false)
} as const;
const fourQueries = {
  layers: 1, kvHeads: 1, queryHeads: 4, headDim: 128, keys: 'nsn1', values: 'nsn1', capacity: 256, sequences: 1, rope: rope(16, true)
} as const;

const device = await openDevice();

if (typeof device === 'string') {
  group('webgpu', test => {
    if (required) test('there is an adapter', () => { throw new Error(device); });
    else test.skip('everything on a device', device);
  });
} else {
  const gpu = await openBackend({ device });
  console.log(gpu.reason);
  const wasm = await openBackend({ prefer: 'wasm' });
  const reference = await openBackend({ prefer: 'reference' });
  const tinyBytes = 2 ** 16;
  const tiny = webGpuBackend({
    device: altered(device, { limits: altered(device.limits as never, { maxStorageBufferBindingSize: tinyBytes, maxBufferSize: tinyBytes }) }),
    description: 'tiny'
  }, 'to be small');

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
      assert.match(gpu.reason, 'its device was given; adapter ');
    });

    for (const options of [threeQueries, fourQueries]) {
      const { headDim, kvHeads, queryHeads, keys, values } = options;
      const title = `${headDim} channels, ${queryHeads}/${kvHeads} heads, ${keys}/${values}, ${options.rope.invFreq.length} RoPE pairs`;

      test(`attend() and decode() match the reference: ${title}`, async () => {
        const { sequence, expected } = await pair(options, 64 * 2 + 4 + 21);
        for (const tokens of [1, 3]) {
          const q = noise(tokens * queryHeads * headDim, 9);
          assert.ok(difference(await sequence.attend(0, q).read(), await expected.attend(0, q).read()) < OUTPUT);
        }
        const [got, want] = [await sequence.decode(0), await expected.decode(0)];
        assert.ok(difference(got.keys, want.keys) < OUTPUT);
        assert.ok(difference(got.values, want.values) < OUTPUT);
      });

      test(`encode() gives the bytes of WebAssembly, near ties apart: ${title}`, async () => {
        const a = await fill(new KVCache(gpu, options), 196).save();
        const b = await fill(new KVCache(wasm, options), 196).save();
        assert.is(a.length, b.length);
        const differing = a.reduce((sum, byte, i) => sum + Number(byte !== b[i]), 0);
        console.log(`${keys}/${values}: ${differing} of ${a.length} bytes differ`);
        assert.ok(differing <= NEAR_TIES * a.length);
      });
    }

    test('saved bytes go from one backend to the other and back unchanged', async () => {
      const options = { ...threeQueries, layers: 2 };
      for (const [from, to] of [[gpu, wasm], [wasm, gpu]] as const) {
        const bytes = await fill(new KVCache(from, options), 150).save();
        const there = new KVCache(to, options).restore(bytes);
        assert.equal(await there.save(), bytes);
        const back = new KVCache(from, options).restore(bytes);
        const q = noise(6 * 64, 3);
        assert.ok(difference(await there.attend(1, q).read(), await back.attend(1, q).read()) < OUTPUT);
      }
    });

    test('a batch of sequences of different lengths is what each gives alone', async () => {
      const cache = new KVCache(gpu, { ...threeQueries, capacity: 512 });
      const sequences = [3, 64, 150, 200].map((tokens, n) => fill(cache, tokens, n + 1));
      const queries = [1, 5, 2, 40].map((tokens, n) => noise(Math.min(tokens, sequences[n]!.length) * 6 * 64, n + 7));
      const together = await cache.attend(sequences, 0, queries).read();
      let at = 0;
      for (const [n, sequence] of sequences.entries()) {
        const alone = await sequence.attend(0, queries[n]!).read();
        assert.ok(difference(together.slice(at, at += alone.length), alone) < 1e-5);
      }
    });

    test('a prompt of more tokens than one call takes is causal throughout', async () => {
      const options = { ...threeQueries, capacity: 512 };
      const x = noise(2 * 150 * 128);
      const outputs = await Promise.all([gpu, wasm].map(backend => {
        const sequence = new KVCache(backend, options).sequence();
        sequence.append(0, x.slice(0, 150 * 128), x.slice(150 * 128));
        return sequence.attend(0, noise(150 * 6 * 64, 4)).read();
      }));
      assert.ok(difference(outputs[0]!, outputs[1]!) < OUTPUT);
    });

    test('fork(), crop() and append() of f16 act as on WebAssembly', async () => {
      const options = { ...threeQueries, capacity: 512, recent: 1 };
      const results = await Promise.all([gpu, wasm].map(async backend => {
        const sequence = fill(new KVCache(backend, options), 230);
        const branch = sequence.fork();
        branch.crop(100);
        branch.append(0, new Uint16Array(256).fill(0x3800), noise(256));
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
      const cache = new KVCache(gpu, threeQueries);
      const sequence = fill(cache, 90);
      const [q1, q2] = [noise(6 * 64, 1), noise(6 * 64, 2)];
      const outputs = [sequence.attend(0, q1), sequence.attend(0, q2)];
      const later = await outputs[1]!.read();
      assert.ok(difference(await outputs[0]!.read(), await sequence.attend(0, q1).read()) < 1e-6);
      assert.ok(difference(later, await sequence.attend(0, q2).read()) < 1e-6);
    });

    test('with bindings of 64 KiB pages and raw windows lie in several chunks and give the same', async () => {
      const { cache, sequence, expected } = await pair({ ...threeQueries, capacity: 1024, maxAppend: 64, recent: 2, sequences: 1 }, 700, tiny, wasm);
      assert.ok(cache.shape.pagesPerLayer * cache.shape.pages[0]!.bytes > tinyBytes);
      assert.ok(cache.shape.rawPages * cache.shape.rawPageBytes > tinyBytes);
      const q = noise(6 * 64, 5);
      assert.ok(difference(await sequence.attend(0, q).read(), await expected.attend(0, q).read()) < OUTPUT);
    });

    test('a page that no binding can hold is refused at once', () => {
      assert.throws(() => new KVCache(tiny, { layers: 1, kvHeads: 64, queryHeads: 64, headDim: 512, capacity: 64 }),
        /^webgpu backend expected at most 65536 bytes/);
    });

    test('a device that computes wrongly is refused', async () => {
      const wrong = altered(device, {
        adapterInfo: { vendor: 'test', architecture: '', description: 'wrong' },
        createShaderModule: (descriptor: GPUShaderModuleDescriptor) =>
          device.createShaderModule({ ...descriptor, code: descriptor.code.replace('sum / total', 'sum * 1.01 / total') })
      });
      try {
        await openBackend({ device: wrong });
        assert.unreachable();
      } catch (error) {
        assert.instance(error, BackendError);
        assert.match((error as Error).message, /^webgpu backend failed its self-test on test wrong: attend differs from the reference by /);
      }
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
      const cache = new KVCache(webGpuBackend({ device: counting, description: 'counting' }, 'to count'), { ...threeQueries, capacity: 1024 });
      const sequences = [10, 300, 200, 90].map(tokens => fill(cache, tokens));
      const count = async (chosen: Sequence[]) => {
        dispatches = 0;
        await cache.attend(chosen, 0, chosen.map(() => noise(6 * 64))).read();
        return dispatches;
      };
      assert.is(await count(sequences.slice(0, 1)), 2);
      assert.is(await count(sequences), 2);
    });

    // Last: the device is gone afterwards.
    test('a lost device rejects reads with a BackendError, and a saved sequence goes on elsewhere', async () => {
      const options = threeQueries;
      const sequence = fill(new KVCache(gpu, options), 150);
      const saved = await sequence.save();
      const q = noise(6 * 64);
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
