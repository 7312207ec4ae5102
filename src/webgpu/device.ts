// A GPU device, what became of it, and its pipelines. Knows nothing of caches: it is handed names of shaders and numbers.

import { BackendError, disposedError } from '../backend.ts';
import { shaders } from './generated/shaders.ts';

// As the WebGPU specification has them; Node has no globals for them.
export const USAGE = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 } as const;
const MAP_READ = 1;
const COMPUTE = 4;
/** Workgroups along one dimension of a dispatch. */
const DISPATCH = 65535;
/** Read-back buffers that are kept for the next read, in bytes each. */
const KEPT_BYTES = 2 ** 20;

export type ShaderName = keyof typeof shaders;

/** A shader with its overrides: what one pipeline is made of. */
export interface Program {
  readonly name: ShaderName;
  readonly constants: Readonly<Record<string, number>>;
}

/** A range of a buffer. */
export type Range = readonly [buffer: GPUBuffer, offset: number, bytes: number];

// Layouts are spelled out, so that all pipelines of a shader take the same bind groups.
const BINDINGS: Record<ShaderName, readonly GPUBufferBindingType[]> = {
  write: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  encode: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  decode: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  attend: [
    'read-only-storage',
    'read-only-storage',
    'read-only-storage',
    'read-only-storage',
    'read-only-storage',
    'read-only-storage',
    'read-only-storage',
    'storage',
    'uniform'
  ],
  merge: ['read-only-storage', 'read-only-storage', 'storage']
};

export class Device {
  readonly gpu: GPUDevice;
  /** Why nothing that is read can be trusted any more. */
  lost: Error | undefined;
  readonly #shaders = new Map<ShaderName, { module: GPUShaderModule; bindings: GPUBindGroupLayout; layout: GPUPipelineLayout }>();
  readonly #pipelines = new Map<string, GPUComputePipeline>();
  readonly #readBuffers: GPUBuffer[] = [];

  constructor(gpu: GPUDevice) {
    this.gpu = gpu;
    void gpu.lost.then(({ reason, message }) => {
      this.lost ??= new BackendError('webgpu', `lost its device (${reason}): ${message}`);
    });
  }

  /** Lets go of what it keeps; and of the GPU's device, if that is to end with it. */
  release(own: boolean): void {
    this.lost = disposedError();
    for (const buffer of this.#readBuffers.splice(0)) buffer.destroy();
    if (own) this.gpu.destroy();
  }

  /** Compiles side by side, and without blocking, what `pipeline` would compile one by one. */
  async prepare(programs: readonly Program[]): Promise<void> {
    await Promise.all(
      programs.map(async program => {
        const key = keyOf(program);
        if (!this.#pipelines.has(key)) this.#pipelines.set(key, await this.gpu.createComputePipelineAsync(this.#descriptor(program)));
      })
    ).catch((cause: Error) => {
      throw this.lost ?? new BackendError('webgpu', `expected its shaders to compile, got: ${cause.message}`, cause);
    });
  }

  pipeline(program: Program): GPUComputePipeline {
    const key = keyOf(program);
    let pipeline = this.#pipelines.get(key);
    if (!pipeline) {
      this.gpu.pushErrorScope('validation');
      this.#pipelines.set(key, (pipeline = this.gpu.createComputePipeline(this.#descriptor(program))));
      // Whoever reads next will meet it; a device that is lost meanwhile says so itself.
      this.gpu.popErrorScope().then(
        error => {
          if (error) this.lost ??= new BackendError('webgpu', `expected its shaders to compile, got: ${error.message}`, error);
        },
        () => {}
      );
    }
    return pipeline;
  }

  bind(name: ShaderName, buffers: readonly GPUBuffer[]): GPUBindGroup {
    return this.gpu.createBindGroup({
      label: name,
      layout: this.#shader(name).bindings,
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
    });
  }

  submit(record: (encoder: GPUCommandEncoder) => void): void {
    const encoder = this.gpu.createCommandEncoder();
    record(encoder);
    this.gpu.queue.submit([encoder.finish()]);
  }

  /** Records copies into one buffer that can be mapped; the function that is returned waits for its bytes, once submitted. */
  readBack(encoder: GPUCommandEncoder, ranges: readonly Range[]): () => Promise<ArrayBuffer> {
    const bytes = ranges.reduce((sum, range) => sum + range[2], 0);
    const size = 2 ** Math.ceil(Math.log2(Math.max(bytes, 256)));
    const kept = this.#readBuffers.findIndex(buffer => buffer.size === size);
    const target =
      kept >= 0
        ? this.#readBuffers.splice(kept, 1)[0]!
        : this.gpu.createBuffer({ label: 'read back', size, usage: USAGE.MAP_READ | USAGE.COPY_DST });
    let at = 0;
    for (const [buffer, offset, count] of ranges) {
      encoder.copyBufferToBuffer(buffer, offset, target, at, count);
      at += count;
    }
    return async () => {
      let copy: ArrayBuffer;
      try {
        await target.mapAsync(MAP_READ, 0, bytes);
        copy = target.getMappedRange(0, bytes).slice(0);
        target.unmap(); // Deno maps a buffer of a device that is lost, and then refuses to unmap it
      } catch (cause) {
        throw this.lost ?? new BackendError('webgpu', `expected its device to finish, got: ${(cause as Error).message}`, cause);
      }
      if (size <= KEPT_BYTES && !this.lost) this.#readBuffers.push(target);
      else target.destroy();
      return copy;
    };
  }

  #descriptor(program: Program): GPUComputePipelineDescriptor {
    const { module, layout } = this.#shader(program.name);
    return { label: program.name, layout, compute: { module, entryPoint: program.name, constants: program.constants } };
  }

  #shader(name: ShaderName): { module: GPUShaderModule; bindings: GPUBindGroupLayout; layout: GPUPipelineLayout } {
    let shader = this.#shaders.get(name);
    if (!shader) {
      const bindings = this.gpu.createBindGroupLayout({
        label: name,
        entries: BINDINGS[name].map((type, binding) => ({ binding, visibility: COMPUTE, buffer: { type } }))
      });
      const module = this.gpu.createShaderModule({ label: name, code: shaders[name] });
      const layout = this.gpu.createPipelineLayout({ label: name, bindGroupLayouts: [bindings] });
      this.#shaders.set(name, (shader = { module, bindings, layout }));
    }
    return shader;
  }
}

function keyOf({ name, constants }: Program): string {
  return `${name} ${JSON.stringify(constants)}`;
}

/** `count` workgroups along x, and along y where x does not reach. */
export function dispatch(pass: GPUComputePassEncoder, count: number, z: number): void {
  const y = Math.ceil(count / DISPATCH);
  pass.dispatchWorkgroups(Math.ceil(count / y), y, z);
}
