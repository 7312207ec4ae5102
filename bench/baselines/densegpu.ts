// The baselines of the WebGPU table: attention over dense keys and values in f32 and f16, by shaders of our own (dense.wgsl), and the
// bandwidth of the device. Never part of the package.

import { toHalf } from '../../src/format/half.ts';
import type { Head } from '../data.ts';
import { shaders } from './shaders.ts';

export type Kind = 'f32' | 'f16';

export const elementBytes = { f32: 4, f16: 2 } as const;

export interface DenseShape {
  readonly sequences: number;
  readonly tokens: number;
  readonly kvHeads: number;
  /** Query heads of one KV head, up to 4. */
  readonly group: number;
  /** 64 or 128. */
  readonly headDim: number;
  readonly layers: number;
}

/** How a call is cut: tokens of one workgroup, in tiles of 64, and its threads. None is the best in every shape: time them all. */
export interface Form {
  readonly spanTiles: number;
  readonly threads: number;
}

const USAGE = { COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 } as const;
const TILE = 64;
/** Partial results of one call at most; shorter spans than that allows would be slow besides. */
const PARTIAL_BYTES = 2 ** 28;

/** Sequences whose keys, or values, one binding holds. */
interface Chunk {
  readonly first: number;
  readonly count: number;
  readonly keys: GPUBuffer;
  readonly values: GPUBuffer;
}

/** Keys and values of every layer on a device, and attention over them. */
export class Dense {
  readonly kind: Kind;
  /** Bytes of keys and values that attention reads in one layer. */
  readonly layerBytes: number;
  readonly forms: readonly Form[];
  readonly shape: DenseShape;
  readonly #device: GPUDevice;
  readonly #layers: readonly (readonly Chunk[])[];
  readonly #queries: GPUBuffer;
  readonly #partials: GPUBuffer;
  readonly #output: GPUBuffer;
  readonly #read: GPUBuffer;
  readonly #pipelines = new Map<number, GPUComputePipeline>();
  readonly #merge: GPUComputePipeline;
  readonly #bindings = new Map<string, Bindings>();
  readonly #buffers: GPUBuffer[] = [];

  /**
   * @param heads  keys and values of KV head h of every sequence and layer are those of heads[h % heads.length]
   * @throws {RangeError} if the device's limits or its memory do not hold them
   */
  static async create(device: GPUDevice, kind: Kind, shape: DenseShape, heads: readonly Head[]): Promise<Dense> {
    device.pushErrorScope('validation');
    device.pushErrorScope('out-of-memory');
    let dense: Dense | undefined;
    let refusal: unknown;
    try {
      dense = new Dense(device, kind, shape, heads);
    } catch (error) {
      refusal = error;
    }
    const errors = [await device.popErrorScope(), await device.popErrorScope()];
    const error = errors.find(error => error !== null);
    if (dense && !error && !refusal) return dense;
    dense?.dispose();
    throw (
      refusal ??
      new RangeError(
        `${kind} expected memory for ${shape.sequences} × ${shape.tokens} tokens: ${error!.message || error!.constructor.name}`
      )
    );
  }

  private constructor(device: GPUDevice, kind: Kind, shape: DenseShape, heads: readonly Head[]) {
    const { sequences, tokens, kvHeads, group, headDim, layers } = shape;
    this.kind = kind;
    this.#device = device;
    this.shape = shape;
    const headBytes = tokens * headDim * elementBytes[kind];
    const sequenceBytes = kvHeads * headBytes;
    this.layerBytes = 2 * sequences * sequenceBytes;
    const limit = Math.min(device.limits.maxStorageBufferBindingSize, device.limits.maxBufferSize);
    const perChunk = Math.min(sequences, Math.floor(limit / sequenceBytes));
    if (perChunk === 0)
      throw new RangeError(`${kind} expected at most ${limit} bytes for one sequence's keys (the device's limit), got ${sequenceBytes}`);
    const tiles = Math.ceil(tokens / TILE);
    const partialBytes = (spanTiles: number): number => 16 * (2 + headDim) * sequences * kvHeads * Math.ceil(tiles / spanTiles);
    const spans = [1, 2, 4, 8, 16, 32]
      .filter(n => n === 1 || n < 2 * tiles)
      .filter((n, at, all) => partialBytes(n) <= Math.min(limit, PARTIAL_BYTES) || at === all.length - 1);
    this.forms = [128, 256].flatMap(threads => spans.map(spanTiles => ({ spanTiles, threads })));

    const outputBytes = 4 * sequences * kvHeads * group * headDim;
    this.#queries = this.#create('dense queries', outputBytes, USAGE.STORAGE | USAGE.COPY_DST);
    this.#output = this.#create('dense output', outputBytes, USAGE.STORAGE | USAGE.COPY_SRC);
    this.#read = this.#create('dense read', outputBytes, USAGE.COPY_DST | 1);
    this.#partials = this.#create('dense partials', partialBytes(spans[0]!), USAGE.STORAGE);
    this.#merge = this.#pipeline('densemerge', { WG: (group * headDim) / 4 });
    this.#layers = Array.from({ length: layers }, () =>
      Array.from({ length: Math.ceil(sequences / perChunk) }, (_, n) => {
        const count = Math.min(perChunk, sequences - n * perChunk);
        const buffer = (label: string): GPUBuffer => this.#create(label, count * sequenceBytes, USAGE.STORAGE | USAGE.COPY_DST);
        return { first: n * perChunk, count, keys: buffer('dense keys'), values: buffer('dense values') };
      })
    );
    this.#fill(heads, headBytes);
  }

  /**
   * Queues attention of one token a sequence in one layer.
   *
   * @param queries  f32 [sequences, KV heads · group, headDim], scaled by log₂ e / √headDim
   */
  attend(layer: number, queries: Float32Array<ArrayBuffer>, form: Form): void {
    const { sequences, kvHeads } = this.shape;
    this.#device.queue.writeBuffer(this.#queries, 0, queries);
    const { attend, merge, spans } = this.#bind(layer, form);
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass({ label: 'dense' });
    pass.setPipeline(this.#attendPipeline(form.threads));
    for (const { group, count } of attend) {
      pass.setBindGroup(0, group);
      pass.dispatchWorkgroups(spans, kvHeads, count);
    }
    pass.setPipeline(this.#merge);
    pass.setBindGroup(0, merge);
    pass.dispatchWorkgroups(kvHeads, sequences);
    pass.end();
    encoder.copyBufferToBuffer(this.#output, 0, this.#read, 0, this.#read.size);
    this.#device.queue.submit([encoder.finish()]);
  }

  /** The newest call's result: f32 [sequences, KV heads · group, headDim]. */
  async read(): Promise<Float32Array> {
    await this.#read.mapAsync(1);
    const out = new Float32Array(this.#read.getMappedRange().slice(0));
    this.#read.unmap();
    return out;
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }

  #create(label: string, size: number, usage: number): GPUBuffer {
    const buffer = this.#device.createBuffer({ label, size, usage });
    this.#buffers.push(buffer);
    return buffer;
  }

  #pipeline(name: 'dense' | 'densemerge', constants: Record<string, number>): GPUComputePipeline {
    const { headDim, kvHeads, group } = this.shape;
    const module = this.#device.createShaderModule({ label: name, code: shaders[name] });
    return this.#device.createComputePipeline({
      label: name,
      layout: 'auto',
      compute: { module, entryPoint: name, constants: { HEAD_DIM: headDim, KV_HEADS: kvHeads, GROUP: group, ...constants } }
    });
  }

  #attendPipeline(threads: number): GPUComputePipeline {
    let pipeline = this.#pipelines.get(threads);
    if (!pipeline) {
      pipeline = this.#pipeline('dense', { HALF: Number(this.kind === 'f16'), WG: threads });
      this.#pipelines.set(threads, pipeline);
    }
    return pipeline;
  }

  #bind(layer: number, { spanTiles, threads }: Form): Bindings {
    const key = `${layer} ${spanTiles} ${threads}`;
    let bindings = this.#bindings.get(key);
    if (bindings) return bindings;
    const device = this.#device;
    const { tokens } = this.shape;
    const spans = Math.ceil(tokens / TILE / spanTiles);
    const uniform = (...words: number[]): GPUBuffer => {
      const buffer = this.#create('dense params', 16, USAGE.UNIFORM | USAGE.COPY_DST);
      device.queue.writeBuffer(buffer, 0, Uint32Array.of(...words, ...new Array<number>(4 - words.length).fill(0)));
      return buffer;
    };
    const bind = (pipeline: GPUComputePipeline, ...buffers: GPUBuffer[]): GPUBindGroup =>
      device.createBindGroup({
        layout: pipeline.getBindGroupLayout(0),
        entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
      });
    const attend = this.#layers[layer]!.map(({ first, count, keys, values }) => ({
      count,
      group: bind(this.#attendPipeline(threads), this.#queries, keys, values, this.#partials, uniform(tokens, spanTiles, first))
    }));
    bindings = { attend, merge: bind(this.#merge, this.#partials, this.#output, uniform(spans)), spans };
    this.#bindings.set(key, bindings);
    return bindings;
  }

  /** Uploads each distinct head once; the device copies it to every sequence and layer. */
  #fill(heads: readonly Head[], headBytes: number): void {
    const { kvHeads } = this.shape;
    const staging = this.#device.createBuffer({ label: 'dense fill', size: headBytes, usage: USAGE.COPY_SRC | USAGE.COPY_DST });
    for (const [n, head] of heads.entries()) {
      for (const side of ['keys', 'values'] as const) {
        this.#device.queue.writeBuffer(
          staging,
          0,
          this.kind === 'f32' ? (head[side] as Float32Array<ArrayBuffer>) : Uint16Array.from(head[side], toHalf)
        );
        const encoder = this.#device.createCommandEncoder();
        for (const chunk of this.#layers.flat()) {
          for (let row = 0; row < chunk.count * kvHeads; row++) {
            if ((row % kvHeads) % heads.length === n) encoder.copyBufferToBuffer(staging, 0, chunk[side], row * headBytes, headBytes);
          }
        }
        this.#device.queue.submit([encoder.finish()]);
      }
    }
    staging.destroy();
  }
}

interface Bindings {
  readonly attend: readonly { readonly group: GPUBindGroup; readonly count: number }[];
  readonly merge: GPUBindGroup;
  readonly spans: number;
}

/** A buffer larger than any cache: reading it is the floor under attention, and leaves nothing of its keys and values in a cache. */
export class Bandwidth {
  readonly bytes: number;
  /** Workgroups side by side: time them all. */
  readonly forms = [256, 1024, 4096];
  readonly #device: GPUDevice;
  readonly #pipeline: GPUComputePipeline;
  readonly #group: GPUBindGroup;
  readonly #buffers: readonly GPUBuffer[];

  constructor(device: GPUDevice, bytes: number) {
    this.#device = device;
    this.bytes = Math.min(bytes, device.limits.maxStorageBufferBindingSize);
    const module = device.createShaderModule({ label: 'bandwidth', code: shaders.bandwidth });
    this.#pipeline = device.createComputePipeline({ label: 'bandwidth', layout: 'auto', compute: { module, entryPoint: 'bandwidth' } });
    this.#buffers = [this.bytes, 16 * 256 * Math.max(...this.forms)].map(size =>
      device.createBuffer({ label: 'bandwidth', size, usage: USAGE.STORAGE })
    );
    this.#group = device.createBindGroup({
      layout: this.#pipeline.getBindGroupLayout(0),
      entries: this.#buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
    });
  }

  read(workgroups: number): void {
    const encoder = this.#device.createCommandEncoder();
    const pass = encoder.beginComputePass({ label: 'bandwidth' });
    pass.setPipeline(this.#pipeline);
    pass.setBindGroup(0, this.#group);
    pass.dispatchWorkgroups(workgroups);
    pass.end();
    this.#device.queue.submit([encoder.finish()]);
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }
}
