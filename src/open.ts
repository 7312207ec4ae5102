// Opens the backend that was asked for, WebAssembly unless told otherwise. Never falls back from one to another.

import { BackendError, type Backend, type BackendName } from './backend.ts';
import { checkObject, checkOneOf } from './check.ts';
import { openReference } from './reference-backend.ts';
import { openWasm, type WasmVariant } from './wasm.ts';

export interface OpenOptions {
  /** Insist on a backend. Default `webgpu` where a `device` is given, else `wasm`. */
  readonly prefer?: BackendName;
  /** Insist on one of the wasm binaries: `scalar`, `simd128` or `relaxed`. */
  readonly variant?: WasmVariant;
  /** An engine's own device for the webgpu backend; it stays the engine's. By default one is requested. */
  readonly device?: GPUDevice;
}

/**
 * Opens a backend: WebAssembly, in the best binary the engine validates, unless `prefer` or `device` asks for another.
 *
 * WebGPU (experimental) is never chosen unasked, not even where there is a GPU: it has yet to be timed on real ones. It must
 * first give the reference's results in a self-test. In Node it takes the optional package `webgpu`, which is not imported before.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run what was asked for, or a GPU computes wrongly
 *
 * @example
 * const backend = await openBackend();
 * console.log(backend.name, backend.variant, backend.reason);
 */
export async function openBackend(options: OpenOptions = {}): Promise<Backend> {
  checkObject('options', options);
  const { device, prefer = device === undefined ? 'wasm' : 'webgpu', variant } = options;
  checkOneOf('prefer', prefer, ['wasm', 'webgpu', 'reference']);
  if (variant !== undefined) checkOneOf('variant', variant, ['scalar', 'simd128', 'relaxed']);
  if (device !== undefined) {
    checkObject('device', device);
    if (prefer !== 'webgpu') throw new RangeError(`"prefer" expected webgpu (a device is given), got ${prefer}`);
  }
  if (prefer === 'reference') return openReference();
  if (prefer === 'wasm') return openWasm(variant);
  return openWebGpu(device);
}

async function openWebGpu(device: GPUDevice | undefined): Promise<Backend> {
  // Imported here, so that bundlers that split code load no shaders for those who never ask.
  const [{ findDevice, webGpuBackend }, { selfTest }] = await Promise.all([import('./webgpu.ts'), import('./selftest.ts')]);
  const found = await findDevice(device);
  const backend = webGpuBackend(found, device ? 'its device was given' : 'it was asked for');
  const fault = await selfTest(backend).catch((error: Error) => error.message);
  if (fault === undefined) return backend;
  if (!device) found.device.destroy();
  throw new BackendError('webgpu', `failed its self-test on ${found.description}: ${fault}`);
}
