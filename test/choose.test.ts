// Which backend openBackend() takes when none is insisted on, and what it says. The GPU is a real implementation that claims to
// be hardware; the clock of the last test is made up, as no software adapter ever wins.
import { openBackend, plan } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group, type Register } from '../tools/group.ts';
import { gpu as found } from './backends.ts';
import { refuses } from './compare.ts';
import { altered, type Gpu, miscompiling, refusesDevice, selfTested } from './gpu.ts';
import { simd128 } from './verbs.ts';

/** What is timed is compiled already, then. */
const shape = { layers: 1, ...selfTested } as const;
const small = { shape, batch: 2, context: 300 } as const;

/** Runs with `navigator.gpu` replaced: openBackend() looks there first, in every engine. */
async function withGpu<T>(gpu: unknown, run: () => Promise<T>): Promise<T> {
  const before = Object.getOwnPropertyDescriptor(globalThis, 'navigator');
  Object.defineProperty(globalThis, 'navigator', { value: { userAgent: '', gpu }, configurable: true });
  try {
    return await run();
  } finally {
    if (before) Object.defineProperty(globalThis, 'navigator', before);
    else delete (globalThis as { navigator?: unknown }).navigator;
  }
}

/** A GPU with one adapter, of which requestDevice() gives `device`. */
const gpuOf = (info: Partial<GPUAdapterInfo> | undefined, device: () => Promise<GPUDevice>): unknown => ({
  requestAdapter: async () => ({ info, limits: { maxStorageBufferBindingSize: 2 ** 27, maxBufferSize: 2 ** 28 }, requestDevice: device })
});
const none = () => Promise.reject(new Error('no device today'));
const hardware = { vendor: 'test', architecture: 'made-up', description: '' };

group('openBackend() without a GPU to choose', test => {
  const cpu = async (gpu: unknown, reason: RegExp) => {
    const backend = await withGpu(gpu, () => openBackend(small));
    assert.is(backend.name, 'wasm');
    assert.match(backend.reason, reason);
    assert.match(backend.reason, /; this engine validates (relaxed|simd128|scalar)/);
  };

  test('takes the CPU where there is no adapter', () =>
    cpu({ requestAdapter: async () => null }, /^webgpu backend expected an adapter, got none;/));

  test('takes the CPU where asking for an adapter fails, and says why', () =>
    cpu({ requestAdapter: () => Promise.reject(new Error('blocked')) }, /^webgpu backend expected an adapter, got: blocked;/));

  test('takes the CPU where an adapter does not describe itself and gives no device', () =>
    cpu(gpuOf(undefined, none), /^webgpu backend expected a device, got: no device today;/));

  test('never takes a software adapter, and names it', async () => {
    for (const description of [
      'SwiftShader Device (Subzero)',
      'llvmpipe (LLVM 15.0.7, 256 bits)',
      'Microsoft Basic Render Driver',
      'WARP'
    ]) {
      await cpu(
        gpuOf({ ...hardware, description }, none),
        /^webgpu has a software adapter only: test made-up (SwiftShader|llvmpipe|Microsoft|WARP)/
      );
    }
    await cpu(gpuOf({ ...hardware, isFallbackAdapter: true }, none), /^webgpu has a software adapter only: test made-up;/);
  });

  test('takes the CPU where there is no device, and says why', () =>
    cpu(gpuOf(hardware, none), /^webgpu backend expected a device, got: no device today;/));

  test('refuses batches, contexts and shapes that no cache could have', async () => {
    await refuses(() => openBackend({ batch: 0 }), RangeError, '"batch" expected integer from 1 to 65536, got 0');
    await refuses(() => openBackend({ context: 1.5 }), RangeError, '"context" expected integer from 1 to 16777216, got 1.5');
    await refuses(() => openBackend({ shape: 3 as never }), TypeError, '"shape" expected object, got number');
    await refuses(() => openBackend({ shape: { ...shape, headDim: 31 } }), RangeError, '"headDim" expected integer from 32 to 576, got 31');
  });
});

group('openBackend() with a GPU to choose', test => {
  if (typeof found !== 'string') choiceTests(test, found);
  else test.skip('everything on a device', found);
});

function choiceTests(test: Register, gpu: Gpu): void {
  let destroyed = 0;
  /** The tests' device, which outlives them. */
  const lent = (device: GPUDevice) =>
    altered(device, {
      destroy: () => {
        destroyed++;
      }
    });
  const open = (device: GPUDevice) => {
    destroyed = 0;
    return withGpu(
      gpuOf(hardware, async () => lent(device)),
      () => openBackend(small)
    );
  };
  const figures =
    /^a layer's step of 2 × 300 tokens takes wasm (relaxed|simd128) [\d.e+-]+ ms, webgpu baseline [\d.e+-]+ ms on test made-up/;

  test('takes the CPU where the GPU is slower, says the figures, and lets go of the device', async () => {
    const backend = await open(gpu.device);
    assert.is(backend.name, 'wasm');
    assert.match(backend.reason, figures);
    assert.is(destroyed, 1);
  });

  test("takes a device that is given: examples/device.ts gives the mean of equal values, in the engine's buffer", async () => {
    const lines: string[] = [];
    const { log } = console;
    console.log = (line: unknown) => lines.push(`${line}`);
    try {
      await withGpu(
        gpuOf(hardware, async () => lent(gpu.device)),
        () => import('../examples/device.ts')
      );
    } finally {
      console.log = log;
    }
    assert.match(lines.join('\n'), /^its device was given; adapter .+\n0\.25$/);
  });

  test('takes the CPU where the GPU computes wrongly, and says what differs', async () => {
    const backend = await open(miscompiling(gpu, 'merge', 'o / select', 'o * 1.01 / select'));
    assert.is(backend.name, 'wasm');
    assert.match(backend.reason, /^webgpu backend failed its self-test on test made-up: attend differs from the reference by [\d.]+;/);
    assert.is(destroyed, 1);
  });

  test('takes the GPU where the engine validates no WebAssembly', async () => {
    const { validate } = WebAssembly;
    WebAssembly.validate = () => false;
    try {
      const backend = await open(gpu.device);
      assert.is(backend.name, 'webgpu');
      assert.is(backend.reason, 'wasm backend expected an engine that validates WebAssembly, got one that does not');
      assert.is(destroyed, 0);
      backend.dispose();
      assert.is(destroyed, 1);
    } finally {
      WebAssembly.validate = validate;
    }
  });

  test('gives the device back where kernels for the shape that is asked for do not compile', async () => {
    const device = altered(gpu.device, {
      async createComputePipelineAsync(descriptor: GPUComputePipelineDescriptor) {
        const { constants } = descriptor.compute;
        if (['HEAD_DIM', 'VALUE_DIM', 'DIM'].some(name => constants?.[name] === 64)) throw new Error('too large');
        return gpu.device.createComputePipelineAsync(descriptor);
      }
    });
    const { validate } = WebAssembly;
    WebAssembly.validate = () => false;
    try {
      for (const prefer of ['webgpu', undefined] as const) {
        destroyed = 0;
        const chosen = { shape: { ...shape, headDim: 64 }, ...(prefer && { prefer }) };
        const gone = gpuOf(hardware, async () => lent(device));
        await refusesDevice(
          () => withGpu(gone, () => openBackend(chosen)),
          /^webgpu backend expected its shaders to compile, got: too large$/
        );
        assert.is(destroyed, 1);
      }
    } finally {
      WebAssembly.validate = validate;
    }
  });

  test('takes the GPU where it is faster, and says the figures', async () => {
    // Time passes fast until the GPU's cache is made for timing, after the first look at the clock.
    let [now, step] = [0, 0];
    const clock = {
      now: () => {
        step ||= 50;
        return (now += step);
      }
    };
    const device = altered(gpu.device, {
      createBuffer(descriptor: GPUBufferDescriptor) {
        if (step > 0) step = 15;
        return gpu.device.createBuffer(descriptor);
      }
    });
    const before = Object.getOwnPropertyDescriptor(globalThis, 'performance')!;
    Object.defineProperty(globalThis, 'performance', { value: clock, configurable: true });
    try {
      const backend = await open(device);
      assert.is(backend.name, 'webgpu');
      assert.is(backend.variant, 'baseline');
      assert.match(backend.reason, figures);
      assert.is(destroyed, 0);
    } finally {
      Object.defineProperty(globalThis, 'performance', before);
    }
  });
}

group('plan() with a grid', test => {
  const options = { ...shape, capacity: 64 };
  const grid = { backends: [simd128.backend, simd128.backend], batch: [1, 3], context: [1, 200] };

  test('gives the bytes, and a time of every backend for every batch and context', async () => {
    const { steps, ...bytes } = await plan(options, grid);
    assert.equal(bytes, plan(options));
    assert.equal(
      steps.map(({ batch, context }) => [batch, context]),
      [
        [1, 1],
        [1, 200],
        [3, 1],
        [3, 200]
      ]
    );
    for (const { milliseconds, fastest } of steps) {
      assert.is(milliseconds.length, 2);
      assert.ok(milliseconds.every(time => time > 0 && time < Infinity));
      assert.is(fastest, simd128.backend);
    }
  });

  test('times a layer of any number of them, whatever balances their keys', async () => {
    for (const balance of ['learn', 'off', new Uint8Array(3 * 2 * 16)] as const) {
      const { steps } = await plan(
        { ...options, layers: [{}, {}, { keys: 'nsn1' }], balance },
        { backends: [simd128.backend], batch: [2], context: [200] }
      );
      assert.ok(steps[0]!.milliseconds[0]! > 0);
    }
  });

  test('times a layer with a sliding window in a context that is far longer than it', async () => {
    for (const more of [{ window: 64 }, { window: 100, keepSinks: true }, { window: 1, sinks: 0 }]) {
      const cell = { backends: [simd128.backend], batch: [1, 3], context: [100, 2 ** 20] };
      const { steps } = await plan({ ...options, ...more }, cell);
      assert.ok(steps.every(({ milliseconds: [time] }) => time! > 0 && time! < Infinity));
    }
  });

  test('says NaN where a backend has no memory for a cell', async () => {
    // One sequence's pages must be distinct: 2²⁴ tokens of 64 heads are beyond what WebAssembly can address.
    const { steps } = await plan(
      { ...options, kvHeads: 64, queryHeads: 64, headDim: 128 },
      { backends: [simd128.backend], batch: [1], context: [2 ** 24] }
    );
    assert.equal(steps[0]!.milliseconds, [NaN]);
    assert.is(steps[0]!.fastest, undefined);
  });

  test('takes a batch whose pages are more than a cache may have', async () => {
    // 2²⁸ bytes of the smallest pages stand for more than 2²⁴ tokens; page numbers of this batch are beyond WebAssembly's memory.
    const { steps } = await plan(
      { ...options, kvHeads: 1, queryHeads: 1, headDim: 32, keys: 'nsn1', values: 'nsn1' },
      { backends: [simd128.backend], batch: [65536], context: [1024] }
    );
    assert.equal(steps[0]!.milliseconds, [NaN]);
  });

  test('refuses a grid that is none', async () => {
    await refuses(() => plan(options, 3 as never), TypeError, '"grid" expected object, got number');
    await refuses(
      () => plan(options, { ...grid, backends: [{}] as never }),
      TypeError,
      '"grid.backends[0]" expected what openBackend() resolves to, got Object'
    );
    await refuses(() => plan(options, { ...grid, batch: 4 as never }), TypeError, '"grid.batch" expected array, got number');
    await refuses(
      () => plan(options, { ...grid, context: [0] }),
      RangeError,
      '"grid.context[0]" expected integer from 1 to 16777216, got 0'
    );
    await refuses(() => plan({ ...options, headDim: 7 }, grid), RangeError, '"headDim" expected integer from 32 to 576, got 7');
  });
});
