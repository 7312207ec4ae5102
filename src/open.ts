// Picks a backend by what the machine is and what it measures. Never falls back without saying so in `reason`.

import { BackendError, type Backend, type BackendName } from './backend.ts';
import { checkInteger, checkObject, checkOneOf } from './check.ts';
import { WINDOW } from './layout.ts';
import { openReference } from './reference-backend.ts';
import { selfTest } from './selftest.ts';
import { cacheShape, type CacheOptions, type CacheShape } from './shape.ts';
import { openWasm, type WasmVariant } from './wasm.ts';
import { findDevice, webGpuBackend, type Candidate } from './webgpu.ts';

export interface OpenOptions {
  /** Insist on a backend. */
  readonly prefer?: BackendName;
  /** Insist on one of the wasm binaries: `scalar`, `simd128` or `relaxed`. */
  readonly variant?: WasmVariant;
  /** An engine's own device for the webgpu backend; it stays the engine's. By default one is requested. */
  readonly device?: GPUDevice;
  /** What the backends are timed on where both are there. Default 1 layer of 8 KV heads, 32 query heads, 128 channels. */
  readonly shape?: Omit<CacheOptions, 'capacity' | 'layers'>;
  /** Sequences attended at once while timing. Default 1. */
  readonly batch?: number;
  /** Tokens of each sequence while timing. Default 4096. */
  readonly context?: number;
}

/** What each backend is timed for. */
const TIMED_MS = 20;

/**
 * Opens the backend that suits this machine. On a real GPU, WebGPU and WebAssembly are both timed and the faster is taken;
 * a software adapter is taken only where `prefer` says so. A GPU must first give the reference's results.
 *
 * @throws {BackendError} if the engine cannot run what was asked for
 *
 * @example
 * const backend = await openBackend();
 * console.log(backend.name, backend.variant, backend.reason);
 */
export async function openBackend(options: OpenOptions = {}): Promise<Backend> {
  checkObject('options', options);
  const { prefer, variant, device, batch = 1, context = 4096 } = options;
  if (prefer !== undefined) checkOneOf('prefer', prefer, ['wasm', 'webgpu', 'reference']);
  if (variant !== undefined) checkOneOf('variant', variant, ['scalar', 'simd128', 'relaxed']);
  if (device !== undefined) checkObject('device', device);
  checkInteger('batch', batch, 1, 65536);
  checkInteger('context', context, 1, 2 ** 24);
  if (prefer === 'reference') return openReference();
  if (prefer === 'wasm' || (prefer === undefined && variant !== undefined)) return openWasm(variant);

  let candidate: Candidate;
  try {
    candidate = await findDevice(device && { device });
  } catch (error) {
    if (prefer === 'webgpu' || !(error instanceof BackendError)) throw error;
    return wasmBecause(error.message);
  }
  const giveUp = (): void => { if (!device) candidate.device.destroy(); };
  if (prefer === undefined && candidate.software) {
    giveUp();
    return wasmBecause(`${candidate.description} is no GPU`);
  }
  const gpu = webGpuBackend(candidate, prefer ? 'it was asked for' : 'it is the faster');
  const fault = await selfTest(gpu).catch((error: Error) => error.message);
  if (fault !== undefined) {
    giveUp();
    const message = `failed its self-test on ${candidate.description}: ${fault}`;
    if (prefer === 'webgpu') throw new BackendError('webgpu', message);
    return wasmBecause(`webgpu ${message}`);
  }
  if (prefer === 'webgpu') return gpu;

  const wasm = await openWasm();
  const shape = cacheShape({
    kvHeads: 8, queryHeads: 32, headDim: 128, ...options.shape,
    layers: 1, capacity: batch * context, sequences: batch, maxAppend: Math.min(WINDOW, batch * context)
  });
  const [gpuMs, wasmMs] = [await time(gpu, shape, batch, context), await time(wasm, shape, batch, context)];
  const measured = `attend of ${batch} × ${context} tokens took ${gpuMs.toPrecision(3)} ms on webgpu, ${wasmMs.toPrecision(3)} ms on wasm ${wasm.variant}`;
  if (gpuMs < wasmMs) return { ...gpu, reason: `${gpu.reason}: ${measured}`, createStore: gpu.createStore };
  giveUp();
  return wasmBecause(measured);
}

async function wasmBecause(reason: string): Promise<Backend> {
  const wasm = await openWasm();
  return { ...wasm, reason: `${wasm.reason}; ${reason}` };
}

/** Milliseconds of one attend over coded pages, the least of the runs that fit. */
async function time(backend: Backend, shape: CacheShape, batch: number, context: number): Promise<number> {
  const store = backend.createStore(shape);
  try {
    const rows = new Float32Array(WINDOW * shape.kvHeads * shape.headDim).map((_, i) => Math.sin(i * i));
    store.write(0, 0, rows, rows, 0, WINDOW);
    const pages = Math.max(1, Math.floor(context / WINDOW));
    const count = Math.min(pages * batch, shape.pagesPerLayer);
    for (let page = 0; page < count; page++) store.encode(0, 0, page);
    const tables = Array.from({ length: batch }, (_, n) => ({
      length: shape.sinks + pages * WINDOW,
      sinkPlace: shape.sinks > 0 ? shape.rawPages + n : -1,
      pages: Uint32Array.from({ length: pages }, (_, i) => (n * pages + i) % Math.max(count, 1)),
      pageCount: count > 0 ? pages : 0,
      raws: new Uint32Array(1),
      rawCount: count > 0 ? 0 : 1
    }));
    const queries = tables.map(() => new Float32Array(shape.queryHeads * shape.headDim).fill(0.1));
    const out = new Float32Array(batch * shape.queryHeads * shape.headDim);
    const once = async (): Promise<number> => {
      const started = performance.now();
      await store.attend(0, tables, queries, 1 / Math.sqrt(shape.headDim), out).read();
      return performance.now() - started;
    };
    await once();
    let best = Infinity;
    for (const end = performance.now() + TIMED_MS; performance.now() < end || best === Infinity;) best = Math.min(best, await once());
    return best;
  } finally {
    store.dispose();
  }
}
