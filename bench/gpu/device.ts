// The devices that the WebGPU tables run on: the machine's adapter, and Dawn's null backend, which accepts everything and executes
// nothing. Opens them; neither times nor counts.

import { dawn, findGpu } from '../../tools/gpu.ts';

export interface Gpu {
  readonly device: GPUDevice;
  /** The adapter in words. */
  readonly name: string;
  /** A CPU that acts as a GPU: its times say nothing about GPUs. */
  readonly software: boolean;
}

/** The reason of an engine that knows WebGPU and finds no device. */
export const NO_ADAPTER = 'there is no adapter';

const SOFTWARE = /swiftshader|llvmpipe|lavapipe|basic render/i;

/** A device of the machine's adapter, or why there is none. Its timestamps are not rounded, where that is for Dawn to say. */
export async function openGpu(): Promise<Gpu | string> {
  const gpu = await findGpu('disable-dawn-features=timestamp_quantization');
  if (typeof gpu === 'string') return gpu;
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) return NO_ADAPTER;
  const { vendor, architecture, device: model, description, isFallbackAdapter } = adapter.info;
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  const device = await adapter.requestDevice({
    label: 'benchmark',
    // As openBackend() asks for where the device is its own; all other limits are the defaults.
    requiredLimits: { maxStorageBufferBindingSize, maxBufferSize },
    requiredFeatures: adapter.features.has('timestamp-query') ? ['timestamp-query'] : []
  });
  const name =
    [vendor, architecture, model, description].filter((part, n, all) => part && all.indexOf(part) === n).join(' ') || 'unnamed adapter';
  return { device, name, software: isFallbackAdapter || SOFTWARE.test(name) };
}

/** A device that executes nothing, with the default limits, or why there is none. */
export async function openNull(): Promise<GPUDevice | string> {
  const gpu = await dawn('backend=null');
  if (typeof gpu === 'string') return gpu;
  return (await gpu.requestAdapter())?.requestDevice() ?? 'Dawn has no null backend';
}
