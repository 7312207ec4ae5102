// Finds a GPU and a device on it: the one given, or one of the engine's own. Knows nothing of caches or shaders.

import { BackendError } from '../backend.ts';
import { dawn } from './dawn.ts';

/** A device, and its adapter in words. */
export interface Found {
  readonly device: GPUDevice;
  readonly description: string;
  /** Whether the device was requested here, and is the backend's to destroy; else it is the engine's. */
  readonly own: boolean;
}

/** An adapter in words, and whether it is a CPU that plays GPU: such a one computes rightly, and slower than WebAssembly. */
export interface Adapter {
  readonly adapter: GPUAdapter;
  readonly description: string;
  readonly software: boolean;
}

/** What software adapters call themselves: Chromium's, Mesa's three, and Windows' by both of its names. */
const SOFTWARE = /swiftshader|llvmpipe|lavapipe|softpipe|basic render|\bwarp\b/i;

/**
 * The engine's adapter.
 *
 * @param load  whether Node may load the package `webgpu`
 */
export async function findAdapter(load = true): Promise<Adapter> {
  const gpu = findGpu(load);
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' }).catch((cause: Error) => {
    throw new BackendError('webgpu', `expected an adapter, got: ${cause.message}`, cause);
  });
  if (!adapter) throw new BackendError('webgpu', 'expected an adapter, got none');
  const info = adapter.info as GPUAdapterInfo | undefined; // browsers of 2023 have none
  const description = describe(info);
  return { adapter, description, software: info?.isFallbackAdapter === true || SOFTWARE.test(description) };
}

/** A device of an adapter. */
export async function requestDevice({ adapter, description }: Adapter): Promise<Found> {
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  // Larger chunks mean fewer dispatches; all other limits are the defaults.
  const requiredLimits = { maxStorageBufferBindingSize, maxBufferSize };
  const device = await adapter.requestDevice({ label: 'nsnquant', requiredLimits }).catch((cause: Error) => {
    throw new BackendError('webgpu', `expected a device, got: ${cause.message}`, cause);
  });
  return { device, description, own: true };
}

/** The GPU of a page, a worker, or Deno; in Node that of the optional package `webgpu`. */
function findGpu(load: boolean): GPU {
  const { navigator } = globalThis as { navigator?: { gpu?: GPU } };
  return navigator?.gpu ?? dawn(load);
}

/** An adapter's names for itself. */
export function describe(info: GPUAdapterInfo | undefined): string {
  const { vendor = '', architecture = '', description = '' } = info ?? {};
  return [vendor, architecture, description].filter(part => part !== '').join(' ') || 'unnamed adapter';
}
