// A GPU device for the tests: the engine's own, or in Node that of the package `webgpu` (Dawn), as it is and with something
// altered.

import type { BackendError } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend, PageTable, Store } from '../src/backend.ts';
// Not by openBackend: every file would wait for a self-test, whose pipelines SwiftShader takes a quarter of a minute for.
import { webGpuBackend } from '../src/webgpu/store.ts';
import { findGpu } from '../tools/gpu.ts';
import { ropes } from './inputs.ts';
import { withoutGpu } from './variables.ts';

export interface Gpu {
  readonly device: GPUDevice;
  /** The adapter, in its own words. */
  readonly description: string;
}

/** The self-test's second cache: where openBackend() is called in a page, what tests of this shape ask for is compiled. */
export const selfTested = {
  kvHeads: 2,
  queryHeads: 6,
  headDim: 32,
  keys: 'nsn4',
  values: 'nsn2',
  rope: ropes(32)['halves']!
} as const;

/** A new device with the default limits and no optional feature, or why there is none. */
export async function openDevice(): Promise<Gpu | string> {
  if (withoutGpu !== '') return withoutGpu;
  const gpu = await findGpu();
  if (typeof gpu === 'string') return gpu;
  const adapter = await gpu.requestAdapter();
  if (!adapter) return 'there is no adapter, and test/lanes.ts found no SwiftShader';
  const { vendor, architecture, description } = adapter.info;
  return {
    device: sharingPipelines(await adapter.requestDevice()),
    description: [vendor, architecture, description].filter(part => part !== '').join(' ')
  };
}

/** A backend on a device that no self-test has seen. */
export const untested = ({ device, description }: Gpu): Backend => webGpuBackend({ device, description, own: false }, 'to be tested');

/** An object, mostly a device, that does one thing differently. */
export function altered<T extends object>(object: T, changes: object): T {
  return new Proxy(object, {
    get(target, key) {
      if (key in changes) return changes[key as keyof object];
      const value = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    }
  });
}

/** A device that can bind no more than `bytes`: what a cache holds must then lie in many pieces. */
export function bindingAtMost(bytes: number, { device, description }: Gpu): Gpu {
  const limits = altered(device.limits, { maxStorageBufferBindingSize: bytes, maxBufferSize: bytes });
  return { device: altered(device, { limits }), description: `${description}, bindings of ${bytes} bytes` };
}

/**
 * A backend on a device that binds no more than `bytes`, and whose pages lie one to a buffer: every sequence of two pages crosses
 * from one buffer to the next. Numbers of pages are made to leave the others of a buffer out; nothing else is changed.
 */
export function scattered(gpu: Gpu, bytes: number): Backend {
  const backend = untested(bindingAtMost(bytes, gpu));
  return {
    ...backend,
    createStore(shape) {
      const stride = Math.max(...shape.layers.map(({ page }) => Math.floor(bytes / page.bytes)));
      const store = backend.createStore({ ...shape, pageCounts: shape.pageCounts.map(count => count * stride) });
      const apart = (table: PageTable): PageTable => ({ ...table, pages: table.pages.map(page => page * stride) });
      const changes: Partial<Store> = {
        reserve: ({ pages = new Map(), ...needs }) => {
          store.reserve({
            ...needs,
            pages: new Map(Array.from(pages, ([layer, numbers]) => [layer, numbers.map((page: number) => page * stride)]))
          });
        },
        setPage: (layer, page, bytes) => store.setPage(layer, page * stride, bytes),
        encode: (layer, slots, pages, sequences) =>
          store.encode(
            layer,
            slots,
            pages.map(page => page * stride),
            sequences
          ),
        decode: (layer, page, slot, sequence) => store.decode(layer, page * stride, slot, sequence),
        read: (layer, sequence, pieces, ...rest) =>
          store.read(
            layer,
            sequence,
            pieces.map(piece => (piece.coded ? { ...piece, number: piece.number * stride } : piece)),
            ...rest
          ),
        dump: (layer, table) => store.dump(layer, apart(table)),
        attend: (layer, tables, ...rest) => store.attend(layer, tables.map(apart), ...rest)
      };
      return altered(store, changes);
    }
  };
}

/** Refuses with a BackendError of `webgpu` whose message matches. */
export async function refusesDevice(run: () => unknown, message: RegExp): Promise<void> {
  let thrown: unknown;
  try {
    await run();
  } catch (error) {
    thrown = error;
  }
  // By name: backends that this file opens have a class of their own.
  const { name, backend, message: got } = thrown as BackendError;
  assert.is(name, 'BackendError', String(thrown));
  assert.is(backend, 'webgpu');
  assert.match(got, message);
}

/** A device on which `from` reads `to` throughout one shader. */
export function miscompiling({ device }: Gpu, shader: string, from: string, to: string): GPUDevice {
  return altered(device, {
    adapterInfo: { vendor: 'test', architecture: '', description: 'miscompiling' },
    createShaderModule({ label, code }: GPUShaderModuleDescriptor) {
      if (label === shader && !code.includes(from)) throw new Error(`the test expected "${from}" in ${shader}.wgsl`);
      return device.createShaderModule({ label: label!, code: label === shader ? code.replaceAll(from, to) : code });
    }
  });
}

/**
 * Compiles equal pipelines once, whichever backend asks for them: SwiftShader takes seconds for one, and a file of tests has
 * several backends on its device. Equal text has equal bindings, so that each backend's bind groups fit.
 */
function sharingPipelines(device: GPUDevice): GPUDevice {
  const codes = new Map<GPUShaderModule, string>();
  const pipelines = new Map<string, GPUComputePipeline>();
  const pending = new Map<string, Promise<GPUComputePipeline>>();
  const keyOf = ({ compute: { module, constants } }: GPUComputePipelineDescriptor) => JSON.stringify([codes.get(module), constants]);
  return altered(device, {
    createShaderModule(descriptor: GPUShaderModuleDescriptor) {
      const module = device.createShaderModule(descriptor);
      codes.set(module, descriptor.code);
      return module;
    },
    createComputePipeline(descriptor: GPUComputePipelineDescriptor) {
      const key = keyOf(descriptor);
      let pipeline = pipelines.get(key);
      if (!pipeline) pipelines.set(key, (pipeline = device.createComputePipeline(descriptor)));
      return pipeline;
    },
    async createComputePipelineAsync(descriptor: GPUComputePipelineDescriptor) {
      const key = keyOf(descriptor);
      if (!pipelines.has(key)) {
        if (!pending.has(key)) pending.set(key, device.createComputePipelineAsync(descriptor));
        pipelines.set(key, await pending.get(key)!);
      }
      return pipelines.get(key)!;
    }
  });
}
