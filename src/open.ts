// Opens a backend: the one asked for, or the one that is faster here. Never falls back without saying so in `reason`.

import { type Backend, BackendError, type BackendName } from './backend.ts';
import { checkInteger, checkObject, checkOneOf, checkOptions, kind } from './check.ts';
import { openReference } from './reference/store.ts';
import { type StepShape, shapeWithoutSize, stepShape } from './shape.ts';
import { tryStep } from './timing.ts';
import { checkWasmOptions, openWasm, type WasmOptions } from './wasm/open.ts';
import { describe, type Found, findAdapter, requestDevice } from './webgpu/adapter.ts';
import { selfTest } from './webgpu/selftest.ts';
import { webGpuBackend } from './webgpu/store.ts';

/** A GPUDevice, by a few of its members: nobody needs the types of browsers. */
export interface GpuDevice {
  /** What it was requested with: caches split their memory by it. */
  readonly limits: object;
  /** Settles when the device is lost. */
  readonly lost: Promise<object>;
  /** Where work is submitted, the library's and the engine's, in order. */
  readonly queue: object;
  /** Called for a device that `openBackend` requested, when the backend is disposed. */
  destroy(): void;
}

/** What `openBackend` may be told: a backend to insist on, or what to choose for. */
export interface OpenOptions extends WasmOptions {
  /** Insist on a backend. By default `webgpu` where a `device` is given, `wasm` where a `variant` or `module` is; else the faster one. */
  readonly prefer?: BackendName;
  /** An engine's own device for the webgpu backend; it stays the engine's. By default one is requested. */
  readonly device?: GpuDevice;
  /**
   * What `new KVCache` will be given, capacity apart: backends are timed with it, and the GPU's kernels compiled for it ahead.
   * By default that of a model of a billion parameters: 8 KV heads of 64, 32 query heads.
   */
  readonly shape?: StepShape;
  /** Sequences that are attended to at once. Default 1. */
  readonly batch?: number;
  /** Tokens of each. Default 2,048. */
  readonly context?: number;
}

const OPEN_OPTIONS = [
  'prefer',
  'variant',
  'module',
  'device',
  'shape',
  'batch',
  'context'
] as const satisfies readonly (keyof OpenOptions)[];

/** Llama 3.2 1B's attention. */
const TYPICAL: StepShape = { layers: 1, kvHeads: 8, queryHeads: 32, headDim: 64 };

/**
 * Opens a backend. Unless one is insisted on, this is WebAssembly, in the best binary the engine validates, or WebGPU where
 * there is a real GPU that computes rightly and is faster: both are timed for some tens of milliseconds, and `reason` says what
 * was measured, or why there was nothing to measure. A software adapter is never chosen.
 *
 * A GPU must first give the reference's results in a self-test. In Node it takes the optional package `webgpu`, which is only
 * loaded where `prefer` asks for it, or `shape`, `batch` or `context` says what to choose for: it is 132 MB, and prints to the
 * terminal where there is no GPU.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run what was insisted on, or a GPU computes wrongly
 *
 * @example
 * const backend = await openBackend();
 * console.log(backend.name, backend.variant, backend.reason);
 */
export async function openBackend(options: OpenOptions = {}): Promise<Backend> {
  checkOptions('options', options, OPEN_OPTIONS);
  const { device, variant, module, batch = 1, context = 2048 } = options;
  const onWasm = variant !== undefined || module !== undefined;
  const { prefer = device !== undefined ? 'webgpu' : onWasm ? 'wasm' : undefined } = options;
  if (prefer !== undefined) checkOneOf('prefer', prefer, ['wasm', 'webgpu', 'reference']);
  checkWasmOptions(options);
  if (device !== undefined) {
    checkDevice(device);
    if (prefer !== 'webgpu') throw new RangeError(`"prefer" expected webgpu (a device is given), got ${prefer}`);
  }
  if (module !== undefined && prefer !== 'wasm') throw new RangeError(`"prefer" expected wasm (a module is given), got ${prefer}`);
  checkInteger('batch', batch, 1, 65536);
  checkInteger('context', context, 1, 2 ** 24);
  const shape = options.shape === undefined ? undefined : stepShape(options.shape);
  if (prefer === 'reference') return openReference();
  if (prefer === 'wasm') return openWasm(options);
  if (prefer === 'webgpu') {
    const given = device as GPUDevice | undefined;
    const found = given
      ? { device: given, description: describe(given.adapterInfo), own: false }
      : await requestDevice(await findAdapter());
    const backend = await openWebGpu(found, given ? 'its device was given' : 'it was asked for');
    return shape ? orDispose(backend, () => compiled(backend, shape)) : backend;
  }
  return choose(shape ?? TYPICAL, batch, context, shape !== undefined || options.batch !== undefined || options.context !== undefined);
}

/** By what is used of it before anything is computed. An adapter, which one may hand in by mistake, has no queue, nor can it be lost. */
function checkDevice(device: unknown): asserts device is GpuDevice {
  checkObject('device', device);
  const { limits, lost, queue } = device as Partial<GpuDevice>;
  if (typeof queue !== 'object' || typeof limits !== 'object' || typeof lost?.then !== 'function')
    throw new TypeError(`"device" expected GPUDevice, got ${kind(device)}`);
}

/** The faster of WebAssembly and WebGPU. */
async function choose(shape: StepShape, batch: number, context: number, load: boolean): Promise<Backend> {
  const cpu = (reason: string): Promise<Backend> => openWasm({}, reason);
  let gpu: Backend;
  let found: Found;
  try {
    const adapter = await findAdapter(load);
    if (adapter.software) return cpu(`webgpu has a software adapter only: ${adapter.description}`);
    found = await requestDevice(adapter);
    gpu = await openWebGpu(found, 'it was chosen');
  } catch (error) {
    if (!(error instanceof BackendError)) throw error;
    return cpu(error.message);
  }
  return orDispose(gpu, async () => {
    const wasm = await openWasm().catch((error: unknown) => {
      if (error instanceof BackendError) return error;
      throw error;
    });
    if (wasm instanceof BackendError) return { ...(await compiled(gpu, shape)), reason: wasm.message };
    const times = [await tryStep(wasm, shape, batch, context), await tryStep(gpu, shape, batch, context)] as const;
    const said = [wasm, gpu].map(({ name, variant }, n) => {
      const time = times[n]!;
      return time instanceof BackendError ? time.message : `${name} ${variant} ${time.toPrecision(3)} ms`;
    });
    const reason = `a layer's step of ${batch} × ${context} tokens takes ${said.join(', ')} on ${found.description}`;
    const [onCpu, onGpu] = times.map(time => (time instanceof BackendError ? Infinity : time)) as [number, number];
    if (onGpu < onCpu) return { ...(await compiled(gpu, shape)), reason }; // what overrides need beyond what was timed
    gpu.dispose();
    return { ...wasm, reason: `${reason}; ${wasm.reason}` };
  });
}

/** The backend, with what caches of this shape need compiled, whatever their size. */
async function compiled(backend: Backend, shape: StepShape): Promise<Backend> {
  await backend.prepare?.(shapeWithoutSize(shape));
  return backend;
}

/** What `run` resolves to; where it throws, the backend has given its device back. */
async function orDispose<T>(backend: Backend, run: () => Promise<T>): Promise<T> {
  try {
    return await run();
  } catch (error) {
    backend.dispose();
    throw error;
  }
}

/** A backend on a device that has passed its self-test. */
async function openWebGpu(found: Found, reason: string): Promise<Backend> {
  const backend = webGpuBackend(found, reason);
  const fault = await selfTest(backend, openReference()).catch((error: Error) => error.message);
  if (fault === undefined) return backend;
  backend.dispose();
  throw new BackendError('webgpu', `failed its self-test on ${found.description}: ${fault}`);
}
