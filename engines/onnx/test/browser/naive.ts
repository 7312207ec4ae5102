// A sequence in buffers of a GPU, and attention by its definition: what a cut model on that GPU is compared with.
import type { LayerOptions } from 'nsnquant';
import type { KeyValues } from '../../src/index.ts';

const TOKENS = 64;

const shader = (queryHeads: number, kvHeads: number, channels: number) => `
@group(0) @binding(0) var<storage, read> queries: array<f32>;
@group(0) @binding(1) var<storage, read> keys: array<f32>;
@group(0) @binding(2) var<storage, read> values: array<f32>;
@group(0) @binding(3) var<storage, read_write> results: array<f32>;
@group(0) @binding(4) var<storage, read> past: array<u32>;

@compute @workgroup_size(1) fn main(@builtin(workgroup_id) row: vec3u) {
  let kvHead = row.x * ${kvHeads}u / ${queryHeads}u;
  let query = (row.y * ${queryHeads}u + row.x) * ${channels}u;
  var sum = 0.0;
  for (var c = 0u; c < ${channels}u; c++) { results[query + c] = 0.0; }
  for (var token = 0u; token <= past[0] + row.y; token++) {
    let key = (token * ${kvHeads}u + kvHead) * ${channels}u;
    var logit = 0.0;
    for (var c = 0u; c < ${channels}u; c++) { logit += queries[query + c] * keys[key + c]; }
    let weight = exp(logit * ${1 / Math.sqrt(channels)});
    sum += weight;
    for (var c = 0u; c < ${channels}u; c++) { results[query + c] += weight * values[key + c]; }
  }
  for (var c = 0u; c < ${channels}u; c++) { results[query + c] /= sum; }
}`;

interface Range {
  readonly buffer: GPUBuffer;
  readonly offset: number;
  readonly tokens: number;
}

export class GpuSequence implements KeyValues {
  readonly #device: GPUDevice;
  readonly #layers: { readonly keys: GPUBuffer; readonly values: GPUBuffer; length: number }[];
  readonly #queries: GPUBuffer;
  readonly #results: GPUBuffer;
  readonly #past: GPUBuffer;
  readonly #pipeline: GPUComputePipeline;
  readonly #sizes: Required<Pick<LayerOptions, 'queryHeads' | 'kvHeads' | 'headDim'>>;

  constructor(device: GPUDevice, layers: readonly LayerOptions[]) {
    const { queryHeads, kvHeads, headDim } = (this.#sizes = layers[0] as Required<LayerOptions>);
    const bufferOf = (elements: number) => device.createBuffer({ size: 4 * elements, usage: 128 | 8 | 4 });
    this.#device = device;
    this.#layers = layers.map(() => ({
      keys: bufferOf(TOKENS * kvHeads * headDim),
      values: bufferOf(TOKENS * kvHeads * headDim),
      length: 0
    }));
    this.#queries = bufferOf(TOKENS * queryHeads * headDim);
    this.#results = bufferOf(TOKENS * queryHeads * headDim);
    this.#past = bufferOf(1);
    const module = device.createShaderModule({ code: shader(queryHeads, kvHeads, headDim) });
    this.#pipeline = device.createComputePipeline({ layout: 'auto', compute: { module } });
  }

  get length(): number {
    return Math.min(...this.#layers.map(({ length }) => length));
  }

  append = ((layer: number, keys: Range, values: Range) => {
    const of = this.#layers[layer]!;
    const width = 4 * this.#sizes.kvHeads * this.#sizes.headDim;
    const encoder = this.#device.createCommandEncoder();
    encoder.copyBufferToBuffer(keys.buffer, keys.offset, of.keys, of.length * width, keys.tokens * width);
    encoder.copyBufferToBuffer(values.buffer, values.offset, of.values, of.length * width, values.tokens * width);
    this.#device.queue.submit([encoder.finish()]);
    of.length += keys.tokens;
  }) as KeyValues['append'];

  attend = ((layer: number, { buffer, offset, tokens }: Range, { out }: { out: Range }) => {
    const { keys, values, length } = this.#layers[layer]!;
    const bytes = 4 * tokens * this.#sizes.queryHeads * this.#sizes.headDim;
    this.#device.queue.writeBuffer(this.#past, 0, Uint32Array.of(length - tokens));
    const encoder = this.#device.createCommandEncoder();
    encoder.copyBufferToBuffer(buffer, offset, this.#queries, 0, bytes);
    const pass = encoder.beginComputePass();
    pass.setPipeline(this.#pipeline);
    const entries = [this.#queries, keys, values, this.#results, this.#past].map((buffer, binding) => ({ binding, resource: { buffer } }));
    pass.setBindGroup(0, this.#device.createBindGroup({ layout: this.#pipeline.getBindGroupLayout(0), entries }));
    pass.dispatchWorkgroups(this.#sizes.queryHeads, tokens);
    pass.end();
    encoder.copyBufferToBuffer(this.#results, 0, out.buffer, out.offset, bytes);
    this.#device.queue.submit([encoder.finish()]);
  }) as unknown as KeyValues['attend'];

  crop(length: number): void {
    for (const layer of this.#layers) layer.length = Math.min(layer.length, length);
  }
}
