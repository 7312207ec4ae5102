// A GPU device, what became of it, and its pipelines. Knows nothing of caches: it is handed names of shaders and numbers.

import { BackendError, disposedError } from '../backend.ts';
import { shaders } from './generated/shaders.ts';

// As the WebGPU specification has them; Node has no globals for them.
export const USAGE = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 } as const;
const COMPUTE = 4;
/** Workgroups along one dimension of a dispatch. */
const DISPATCH = 65535;

export type ShaderName = keyof typeof shaders;

/** A shader with its overrides: what one pipeline is made of. */
export interface Program {
  readonly name: ShaderName;
  readonly constants: Readonly<Record<string, number>>;
}

// Layouts are spelled out, so that all pipelines of a shader take the same bind groups.
const BINDINGS: Record<ShaderName, readonly GPUBufferBindingType[]> = {
  write: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  encode: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  decode: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
  energies: ['read-only-storage', 'read-only-storage', 'storage'],
  extract: ['read-only-storage', 'read-only-storage', 'storage'],
  learn: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage'],
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
  merge: ['read-only-storage', 'read-only-storage', 'read-only-storage', 'storage', 'storage']
};

export class Device {
  readonly gpu: GPUDevice;
  /** Why nothing that is read can be trusted any more. */
  lost: Error | undefined;
  readonly #shaders = new Map<ShaderName, { module: GPUShaderModule; bindings: GPUBindGroupLayout; layout: GPUPipelineLayout }>();
  readonly #pipelines = new Map<string, GPUComputePipeline>();

  constructor(gpu: GPUDevice) {
    this.gpu = gpu;
    void gpu.lost.then(({ reason, message }) => {
      this.lost ??= new BackendError('webgpu', `lost its device (${reason}): ${message}`);
    });
  }

  /** Every later read rejects. Destroys the GPU's device, if that is to end with it. */
  release(own: boolean): void {
    this.lost = disposedError();
    if (own) this.gpu.destroy();
  }

  /** Compiles side by side, and without blocking, what `pipeline` would compile one by one. */
  async prepare(programs: readonly Program[]): Promise<void> {
    // By key: layers of the same codecs have the same programs.
    const missing = new Map(programs.map(program => [keyOf(program), program]));
    for (const key of this.#pipelines.keys()) missing.delete(key);
    await Promise.all(
      Array.from(missing, async ([key, program]) => {
        this.#pipelines.set(key, await this.gpu.createComputePipelineAsync(this.#descriptor(program)));
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
      // The next read() rejects with it; a device that is lost meanwhile says so itself.
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

  /** Records one compute pass and submits it. */
  pass(label: string, record: (pass: GPUComputePassEncoder) => void): void {
    this.submit(encoder => {
      const pass = encoder.beginComputePass({ label });
      record(pass);
      pass.end();
    });
  }

  /** What `make` makes, and the error that the device has for it, should it refuse; a device that is lost has none. */
  attempt<T>(make: () => T): { made: T; refused: Promise<GPUError | null> } {
    this.gpu.pushErrorScope('out-of-memory');
    this.gpu.pushErrorScope('validation');
    const pop = (): Promise<GPUError | null> => this.gpu.popErrorScope().catch(() => null);
    try {
      const made = make();
      const errors = [pop(), pop()];
      return { made, refused: Promise.all(errors).then(([invalid, outOfMemory]) => invalid ?? outOfMemory ?? null) };
    } catch (error) {
      void Promise.all([pop(), pop()]); // the error on its way says more
      throw error;
    }
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

/** `count` workgroups along x, and along y where x does not reach; none where nothing is to be seen. */
export function dispatch(pass: GPUComputePassEncoder, count: number, z: number): void {
  if (count === 0) return;
  const y = Math.ceil(count / DISPATCH);
  pass.dispatchWorkgroups(Math.ceil(count / y), y, z);
}
