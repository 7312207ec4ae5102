// Watches what is queued on a device: counts dispatches, submissions and bytes, notes pipelines, and times compute passes by
// timestamps where the device has them. Changes nothing of what is queued.

/** What was queued since the last `reset`. */
export interface Counts {
  dispatches: number;
  workgroups: number;
  submits: number;
  /** Bytes of `writeBuffer`. */
  uploaded: number;
  /** Bytes copied from buffer to buffer. */
  copied: number;
}

export interface Pipeline {
  readonly name: string;
  readonly code: string;
  readonly constants: Readonly<Record<string, number>>;
}

/** How long queued work took. What is of the GPU is undefined where there are no timestamps. */
export interface Timed {
  readonly wallNs: number;
  /** The sum of its compute passes. */
  readonly gpuNs: number | undefined;
  /** From the begin of its first compute pass to the end of its last: browsers round each timestamp, to 0.1 ms and more. */
  readonly spanNs: number | undefined;
}

/** Timestamps of one query set: two for every pass. */
const TIMESTAMPS = 4096;
const USAGE = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, QUERY_RESOLVE: 512 } as const;

export class Watch {
  /** The device to hand to whoever is to be watched. */
  readonly device: GPUDevice;
  readonly counts: Counts = { dispatches: 0, workgroups: 0, submits: 0, uploaded: 0, copied: 0 };
  /** In the order of their creation. */
  readonly pipelines: Pipeline[] = [];
  readonly #device: GPUDevice;
  readonly #code = new WeakMap<GPUShaderModule, string>();
  readonly #queries: { readonly set: GPUQuerySet; readonly resolved: GPUBuffer; readonly read: GPUBuffer } | undefined;
  #passes = 0;
  #timing = false;

  constructor(device: GPUDevice) {
    this.#device = device;
    if (device.features.has('timestamp-query')) {
      const size = 8 * TIMESTAMPS;
      this.#queries = {
        set: device.createQuerySet({ type: 'timestamp', count: TIMESTAMPS }),
        resolved: device.createBuffer({ label: 'timestamps', size, usage: USAGE.QUERY_RESOLVE | USAGE.COPY_SRC }),
        read: device.createBuffer({ label: 'timestamps read', size, usage: USAGE.COPY_DST | USAGE.MAP_READ })
      };
    }
    this.device = this.#watched();
  }

  get timestamps(): boolean {
    return this.#queries !== undefined;
  }

  reset(): void {
    Object.assign(this.counts, { dispatches: 0, workgroups: 0, submits: 0, uploaded: 0, copied: 0 });
  }

  /** Queues work and waits until it is done. */
  async time(queue: () => void): Promise<Timed> {
    await this.#device.queue.onSubmittedWorkDone();
    this.#passes = 0;
    this.#timing = this.#queries !== undefined;
    const start = performance.now();
    try {
      queue();
    } finally {
      this.#timing = false;
    }
    await this.#device.queue.onSubmittedWorkDone();
    const wallNs = (performance.now() - start) * 1e6;
    return { wallNs, ...(this.#queries ? await this.#passTimes() : { gpuNs: undefined, spanNs: undefined }) };
  }

  async #passTimes(): Promise<{ gpuNs: number; spanNs: number }> {
    const { set, resolved, read } = this.#queries!;
    const encoder = this.#device.createCommandEncoder();
    encoder.resolveQuerySet(set, 0, 2 * this.#passes, resolved, 0);
    encoder.copyBufferToBuffer(resolved, 0, read, 0, 16 * this.#passes);
    this.#device.queue.submit([encoder.finish()]);
    await read.mapAsync(USAGE.MAP_READ);
    const stamps = new BigUint64Array(read.getMappedRange(), 0, 2 * this.#passes);
    let gpuNs = 0;
    for (let n = 0; n < stamps.length; n += 2) gpuNs += Number(stamps[n + 1]! - stamps[n]!);
    const spanNs = stamps.length === 0 ? 0 : Number(stamps.at(-1)! - stamps[0]!);
    read.unmap();
    return { gpuNs, spanNs };
  }

  #watched(): GPUDevice {
    const { counts } = this;
    const device = this.#device;
    const { queue } = device;
    const watchedQueue = altered(queue, {
      submit: buffers => {
        counts.submits++;
        queue.submit(buffers);
      },
      writeBuffer: (buffer: GPUBuffer, offset: number, data: ArrayBufferView<ArrayBuffer> | ArrayBuffer, from?: number, size?: number) => {
        const elementBytes = 'BYTES_PER_ELEMENT' in data ? Number(data.BYTES_PER_ELEMENT) : 1;
        counts.uploaded += size === undefined ? data.byteLength - (from ?? 0) * elementBytes : size * elementBytes;
        queue.writeBuffer(buffer, offset, data, from, size);
      }
    });
    const note = ({ compute, label }: GPUComputePipelineDescriptor): void => {
      const code = this.#code.get(compute.module);
      if (code === undefined) throw new Error('a pipeline of a module that was not watched');
      this.pipelines.push({ name: compute.entryPoint ?? label ?? '', code, constants: { ...compute.constants } });
    };
    return altered(device, {
      queue: watchedQueue,
      createShaderModule: descriptor => {
        const module = device.createShaderModule(descriptor);
        this.#code.set(module, descriptor.code);
        return module;
      },
      createComputePipeline: descriptor => {
        note(descriptor);
        return device.createComputePipeline(descriptor);
      },
      createComputePipelineAsync: descriptor => {
        note(descriptor);
        return device.createComputePipelineAsync(descriptor);
      },
      createCommandEncoder: descriptor => this.#watchedEncoder(device.createCommandEncoder(descriptor))
    });
  }

  #watchedEncoder(encoder: GPUCommandEncoder): GPUCommandEncoder {
    const { counts } = this;
    return altered(encoder, {
      copyBufferToBuffer: (...args: unknown[]) => {
        const [source, second] = args as [GPUBuffer, unknown];
        const bytes = (typeof second === 'number' ? args[4] : args[2]) as number | undefined;
        counts.copied += bytes ?? source.size - (typeof second === 'number' ? second : 0);
        (encoder.copyBufferToBuffer as (...args: unknown[]) => void)(...args);
      },
      beginComputePass: descriptor => {
        const pass = encoder.beginComputePass(this.#timing ? { ...descriptor, timestampWrites: this.#stamp() } : descriptor);
        return altered(pass, {
          dispatchWorkgroups: (x, y = 1, z = 1) => {
            counts.dispatches++;
            counts.workgroups += x * y * z;
            pass.dispatchWorkgroups(x, y, z);
          },
          dispatchWorkgroupsIndirect: () => {
            throw new Error('indirect dispatches cannot be counted');
          }
        });
      }
    });
  }

  #stamp(): GPUComputePassTimestampWrites {
    const at = 2 * this.#passes++;
    if (at + 2 > TIMESTAMPS) throw new RangeError(`expected at most ${TIMESTAMPS / 2} compute passes at a time, got more`);
    return { querySet: this.#queries!.set, beginningOfPassWriteIndex: at, endOfPassWriteIndex: at + 1 };
  }
}

/** An object that does some things differently. */
function altered<T extends object>(target: T, changes: Partial<T>): T {
  return new Proxy(target, {
    get(_, key) {
      if (key in changes) return Reflect.get(changes, key);
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === 'function' ? value.bind(target) : value;
    }
  });
}
