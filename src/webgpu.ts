// The GPU backend: a store in GPUBuffers, kernels of shaders/. Every verb is queued when its call returns; only reading
// waits. Pages and raw places lie in chunks no larger than the device can bind, and nothing straddles two chunks.

import { BackendError, type Backend, type Dump, type Output, type PageTable, type Store, type Tokens } from './backend.ts';
import { codecs, type CodecName } from './codec.ts';
import { shaders } from './generated/shaders.ts';
import { fromHalf, isFloat16Array, toHalf, type Data } from './half.ts';
import { hadamardSize, HEADER_BYTES, pageHeader, rawOffset, WINDOW, type BlockLayout, type PageLayout } from './layout.ts';
import { ropeTables } from './rope.ts';
import type { CacheShape } from './shape.ts';

// As the WebGPU specification has them; Node has no globals for them.
const USAGE = { MAP_READ: 1, COPY_SRC: 4, COPY_DST: 8, UNIFORM: 64, STORAGE: 128 } as const;
const MAP_READ = 1;
const STORAGE = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;

/** Query rows of one workgroup: the lanes of a vec4f. */
const ROWS = 4;
/** Query tokens of one call at most, unless there are more sequences; longer prompts take several calls. */
const CALL_TOKENS = 128;
/** Workgroups that a call is split into where there is work for them: a few for every core of a large GPU. */
const WORKGROUPS = 1024;
/** Windows of one workgroup at least, so that its two Hadamard transforms are paid back. */
const SPAN_WINDOWS = 4;
/** Elements of an encoder's or decoder's tile of tokens: 8 KiB of the 16 KiB that every device has. */
const TILE_ELEMENTS = 2048;
/** Workgroups along one dimension of a dispatch. */
const DISPATCH = 65535;
/** Page numbers need half the bytes of a vec4u each at most; the header is two vec4u. */
const VEC4 = 4;

/** A device, and its adapter in words. */
export interface Found {
  readonly device: GPUDevice;
  readonly description: string;
}

/** Requests a device, or takes the one given. */
export async function findDevice(given?: GPUDevice): Promise<Found> {
  if (given) return { device: given, description: describe(given.adapterInfo) };
  const gpu = await findGpu();
  const adapter = await gpu.requestAdapter({ powerPreference: 'high-performance' });
  if (!adapter) throw new BackendError('webgpu', 'expected an adapter, got none');
  const { maxStorageBufferBindingSize, maxBufferSize } = adapter.limits;
  // Larger chunks mean fewer dispatches; all other limits are the defaults.
  const requiredLimits = { maxStorageBufferBindingSize, maxBufferSize };
  const device = await adapter.requestDevice({ label: 'nsnquant', requiredLimits }).catch((cause: Error) => {
    throw new BackendError('webgpu', `expected a device, got: ${cause.message}`, cause);
  });
  return { device, description: describe(adapter.info) };
}

/** The GPU of a page, a worker, or Deno; in Node that of the optional package `webgpu`. */
async function findGpu(): Promise<GPU> {
  const scope = globalThis as { navigator?: { gpu?: GPU }; process?: { versions?: Record<string, string> } };
  if (scope.navigator?.gpu) return scope.navigator.gpu;
  const versions = scope.process?.versions;
  if (!versions?.['node'] || versions['bun'] || versions['deno']) throw new BackendError('webgpu', 'expected navigator.gpu, which this engine lacks');
  const name = 'webgpu';   // in a variable, so that no bundler resolves it: the package is for Node alone
  try {
    const dawn = (await import(name)) as { create(options: string[]): GPU };
    return dawnGpu ??= dawn.create([]);
  } catch (cause) {
    throw new BackendError('webgpu', `expected the package "webgpu", which did not load: ${(cause as Error).message.split('\n')[0]}`, cause);
  }
}

/** Kept: Dawn lives as long as this reference does (README of `webgpu`). Node 20 ends all the same. */
let dawnGpu: GPU | undefined;

function describe(info: GPUAdapterInfo | undefined): string {
  const { vendor = '', architecture = '', description = '' } = info ?? {};
  return [vendor, architecture, description].filter(part => part !== '').join(' ') || 'unnamed adapter';
}

/** A backend on a device. Does not test it: open.ts does, before anyone sees it. */
export function webGpuBackend({ device, description }: Found, reason: string): Backend {
  const state = new Device(device);
  return { name: 'webgpu', variant: 'baseline', reason: `${reason}; adapter ${description}`, createStore: shape => new WebGpuStore(state, shape) };
}

/** A device, what became of it, and its pipelines by shader and overrides. */
class Device {
  readonly gpu: GPUDevice;
  lost: BackendError | undefined;
  readonly #modules = new Map<string, GPUShaderModule>();
  readonly #pipelines = new Map<string, GPUComputePipeline>();

  constructor(gpu: GPUDevice) {
    this.gpu = gpu;
    void gpu.lost.then(({ reason, message }) => {
      this.lost = new BackendError('webgpu', `lost its device (${reason}): ${message}`);
    });
  }

  pipeline(name: keyof typeof shaders, constants: Record<string, number>): GPUComputePipeline {
    const key = `${name} ${JSON.stringify(constants)}`;
    let pipeline = this.#pipelines.get(key);
    if (!pipeline) {
      let module = this.#modules.get(name);
      if (!module) this.#modules.set(name, module = this.gpu.createShaderModule({ label: name, code: shaders[name] }));
      pipeline = this.gpu.createComputePipeline({ label: name, layout: 'auto', compute: { module, entryPoint: name, constants } });
      this.#pipelines.set(key, pipeline);
    }
    return pipeline;
  }

  bind(pipeline: GPUComputePipeline, ...buffers: GPUBuffer[]): GPUBindGroup {
    return this.gpu.createBindGroup({
      layout: pipeline.getBindGroupLayout(0),
      entries: buffers.map((buffer, binding) => ({ binding, resource: { buffer } }))
    });
  }
}

/** Things of one or more sizes, in chunks that can be bound. */
class Arena {
  readonly chunks: GPUBuffer[] = [];
  readonly chunkOf: Uint32Array;
  readonly offsetOf: Float64Array;

  constructor(sizes: { count: number; bytes: number }[], limit: number, create: (bytes: number) => GPUBuffer) {
    const total = sizes.reduce((sum, { count }) => sum + count, 0);
    this.chunkOf = new Uint32Array(total);
    this.offsetOf = new Float64Array(total);
    let n = 0;
    let chunk = 0;
    let used = 0;
    for (const { count, bytes } of sizes) {
      if (count > 0 && bytes > limit) throw new BackendError('webgpu', `expected at most ${limit} bytes for one page (the device's limit), got ${bytes}`);
      for (let i = 0; i < count; i++, n++) {
        if (used + bytes > limit) {
          this.chunks.push(create(used));
          chunk++;
          used = 0;
        }
        this.chunkOf[n] = chunk;
        this.offsetOf[n] = used;
        used += bytes;
      }
    }
    if (used > 0 || this.chunks.length === 0) this.chunks.push(create(Math.max(used, 16)));
  }

  chunk(n: number): GPUBuffer {
    return this.chunks[this.chunkOf[n]!]!;
  }
}

/** What one layer's kernels need, shared by layers of equal codecs. */
interface LayerPipelines {
  readonly encode: readonly [keys: GPUComputePipeline, values: GPUComputePipeline];
  readonly decode: readonly [keys: GPUComputePipeline, values: GPUComputePipeline];
  readonly attend: GPUComputePipeline;
}

interface Layer {
  readonly page: PageLayout;
  readonly pages: Arena;
  readonly pipelines: LayerPipelines;
  readonly work: GPUBuffer;
  /** What `work` holds, so that only what changed is sent. */
  readonly shadow: Uint32Array;
  /** Of attend, one for every group of chunks; and of merge. */
  readonly bindings: { readonly attend: readonly GPUBindGroup[]; readonly merge: GPUBindGroup };
}

interface Item {
  readonly table: PageTable;
  readonly tokens: number;
  readonly position: number;
}

class WebGpuStore implements Store {
  bytes = 0;
  /** Rejects if the device had no memory for this store. */
  readonly ready: Promise<void>;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #layers: readonly Layer[];
  readonly #raw: Arena;
  readonly #constants: GPUBuffer;
  readonly #buffers: GPUBuffer[] = [];
  readonly #params: GPUBuffer;
  readonly #groupParams: readonly GPUBuffer[];
  readonly #input: readonly [keys: GPUBuffer, values: GPUBuffer];
  readonly #rows: readonly [keys: GPUBuffer, values: GPUBuffer];
  readonly #copy: GPUBuffer;
  readonly #queries: GPUBuffer;
  readonly #output: GPUBuffer;
  readonly #partials: GPUBuffer;
  readonly #merge: GPUComputePipeline;
  readonly #callTokens: number;
  readonly #maxSpans: number;
  readonly #chunkGroups: number;
  readonly #sections: { readonly items: number; readonly blocks: number; readonly spans: number; readonly raws: number; readonly pages: number };
  readonly #next: Uint32Array;
  readonly #readBuffers: GPUBuffer[] = [];
  #failure: BackendError | undefined;

  constructor(device: Device, shape: CacheShape) {
    if (device.lost) throw device.lost;
    this.#device = device;
    this.#shape = shape;
    const { gpu } = device;
    const { headDim, kvHeads, queryHeads } = shape;
    const limit = Math.floor(Math.min(gpu.limits.maxStorageBufferBindingSize, gpu.limits.maxBufferSize) / 16) * 16;
    const create = (label: string, bytes: number, usage: number = STORAGE): GPUBuffer => {
      const size = Math.ceil(bytes / 16) * 16;
      if (size > limit) throw new BackendError('webgpu', `expected at most ${limit} bytes for ${label} (the device's limit), got ${size}`);
      this.bytes += size;
      const buffer = gpu.createBuffer({ label, size, usage });
      this.#buffers.push(buffer);
      return buffer;
    };
    gpu.pushErrorScope('out-of-memory');
    gpu.pushErrorScope('validation');
    try {
      this.#raw = new Arena([
        { count: shape.rawPages, bytes: shape.rawPageBytes },
        { count: shape.sinkPlaces, bytes: shape.sinkBytes }
      ], limit, bytes => create('raw places', bytes));
      const arenas = shape.pages.map(page => new Arena([{ count: shape.pagesPerLayer, bytes: page.bytes }], limit, bytes => create('pages', bytes)));
      this.#chunkGroups = Math.ceil(Math.max(this.#raw.chunks.length, ...arenas.map(arena => arena.chunks.length)) / 2);

      // A call's room: as many spans as fit the device, down to one token a call.
      const rowBlocks = Math.ceil(queryHeads / kvHeads / ROWS);
      const slotBytes = 16 * (2 + headDim) * kvHeads * this.#chunkGroups;
      let callTokens = Math.max(CALL_TOKENS, shape.sequences);
      let extra = Math.ceil(WORKGROUPS / kvHeads);
      const spans = (): number => 2 * callTokens * rowBlocks + extra;
      while (extra > 0 && spans() * slotBytes > limit) extra = Math.floor(extra / 2);
      while (callTokens > 1 && Math.max(spans() * slotBytes, 4 * callTokens * queryHeads * headDim) > limit) callTokens = Math.ceil(callTokens / 2);
      this.#callTokens = callTokens;
      this.#maxSpans = spans();

      const blocks = callTokens * rowBlocks;
      const raws = shape.rawPages + Math.min(shape.sinkPlaces, callTokens);
      const items = 2;
      this.#sections = {
        items,
        blocks: items + callTokens,
        spans: items + callTokens + blocks,
        raws: items + callTokens + blocks + this.#maxSpans,
        pages: items + callTokens + blocks + this.#maxSpans + raws
      };
      const workWords = VEC4 * this.#sections.pages + Math.ceil(shape.sequences * shape.pagesPerLayer / VEC4) * VEC4 + VEC4;
      this.#next = new Uint32Array(workWords);

      const constants = new Constants(shape);
      this.#constants = create('constants', constants.words.byteLength);
      gpu.queue.writeBuffer(this.#constants, 0, constants.words);
      this.#params = create('params', 32, USAGE.UNIFORM | USAGE.COPY_DST);
      this.#groupParams = Array.from({ length: this.#chunkGroups }, (_, group) => {
        const buffer = create('chunk group', 16, USAGE.UNIFORM | USAGE.COPY_DST);
        gpu.queue.writeBuffer(buffer, 0, Uint32Array.of(group, 0, 0, 0));
        return buffer;
      });
      const windowBytes = WINDOW * kvHeads * headDim * 4;
      this.#input = [create('keys', windowBytes), create('values', windowBytes)];
      this.#rows = [create('decoded keys', windowBytes), create('decoded values', windowBytes)];
      this.#copy = create('copy', Math.max(shape.rawPageBytes, shape.sinkBytes));
      this.#queries = create('queries', 4 * callTokens * queryHeads * headDim);
      this.#output = create('output', 4 * callTokens * queryHeads * headDim);
      this.#partials = create('partials', this.#maxSpans * slotBytes);
      this.#merge = device.pipeline('merge', { HEAD_DIM: headDim, KV_HEADS: kvHeads, GROUP: queryHeads / kvHeads, CHUNK_GROUPS: this.#chunkGroups });

      const shared = new Map<string, LayerPipelines>();
      this.#layers = shape.pages.map((page, layer) => {
        const pages = arenas[layer]!;
        const key = `${page.keys.codec.name}/${page.values.codec.name}`;
        let pipelines = shared.get(key);
        if (!pipelines) shared.set(key, pipelines = this.#pipelines(page, constants, limit));
        const work = create('work', 4 * workWords);
        const { attend } = pipelines;
        const chunk = (arena: Arena, n: number): GPUBuffer => arena.chunks[Math.min(n, arena.chunks.length - 1)]!;
        const bindings = {
          attend: this.#groupParams.map((params, g) => device.bind(attend,
            chunk(pages, 2 * g), chunk(pages, 2 * g + 1), chunk(this.#raw, 2 * g), chunk(this.#raw, 2 * g + 1),
            this.#constants, work, this.#queries, this.#partials, params)),
          merge: device.bind(this.#merge, work, this.#partials, this.#output)
        };
        return { page, pages, pipelines, work, shadow: new Uint32Array(workWords), bindings };
      });
    } catch (error) {
      for (const buffer of this.#buffers) buffer.destroy();
      for (let scope = 0; scope < 2; scope++) gpu.popErrorScope().catch(() => {});
      throw error;
    }
    const failed = (error: GPUError | null): void => {
      if (error) this.#failure ??= new BackendError('webgpu', `expected ${this.bytes} bytes for capacity ${shape.capacity}, got: ${error.message}`, error);
    };
    const settled = Promise.all([gpu.popErrorScope().then(failed, () => {}), gpu.popErrorScope().then(failed, () => {})]);
    this.ready = settled.then(() => this.#check());
    this.ready.catch(() => {});   // whoever reads will meet it
  }

  write(place: number, at: number, keys: Data, values: Data, from: number, tokens: number): void {
    const perToken = this.#shape.kvHeads * this.#shape.headDim;
    let half = false;
    for (const [side, data] of [keys, values].entries()) {
      const rows = data instanceof Float32Array || data instanceof Uint16Array
        ? data
        : isFloat16Array(data) ? new Uint16Array(data.buffer as ArrayBuffer, data.byteOffset, data.length) : data;
      half = !(rows instanceof Float32Array);
      const { queue } = this.#device.gpu;
      queue.writeBuffer(this.#input[side]!, 0, rows.subarray(from * perToken, (from + tokens) * perToken) as Uint16Array<ArrayBuffer>);
      // Keys and values may be of different kinds: each side is written by its own.
      if (side === 0 && isHalf(values) !== half) this.#launchWrite(place, at, this.#input, tokens, half);
    }
    this.#launchWrite(place, at, this.#input, tokens, half, isHalf(keys) !== isHalf(values) ? 'values' : 'both');
  }

  copyPlace(from: number, to: number): void {
    const bytes = this.#placeBytes(from);
    this.#submit(encoder => {
      encoder.copyBufferToBuffer(this.#raw.chunk(from), this.#raw.offsetOf[from]!, this.#copy, 0, bytes);
      encoder.copyBufferToBuffer(this.#copy, 0, this.#raw.chunk(to), this.#raw.offsetOf[to]!, bytes);
    });
  }

  setPlace(place: number, bytes: Uint8Array): void {
    this.#device.gpu.queue.writeBuffer(this.#raw.chunk(place), this.#raw.offsetOf[place]!, bytes as Uint8Array<ArrayBuffer>);
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    const { pages } = this.#layers[layer]!;
    this.#device.gpu.queue.writeBuffer(pages.chunk(page), pages.offsetOf[page]!, bytes as Uint8Array<ArrayBuffer>);
  }

  encode(layer: number, place: number, page: number): void {
    const { pages, pipelines } = this.#layers[layer]!;
    this.#setParams(this.#raw.offsetOf[place]! / 4, pages.offsetOf[page]! / 4);
    this.#submit(encoder => {
      const pass = encoder.beginComputePass({ label: 'encode' });
      for (const pipeline of pipelines.encode) {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, this.#device.bind(pipeline, this.#raw.chunk(place), this.#constants, pages.chunk(page), this.#params));
        pass.dispatchWorkgroups(this.#shape.kvHeads);
      }
      pass.end();
    });
  }

  decode(layer: number, page: number, place: number): void {
    this.#decodePage(layer, page);
    this.#launchWrite(place, 0, this.#rows, WINDOW, false);
  }

  async read(layer: number, table: PageTable): Promise<Tokens> {
    const { sinks, kvHeads, headDim } = this.#shape;
    const perToken = kvHeads * headDim;
    const length = table.length;
    const { pageCount, rawCount } = table;
    const windowBytes = WINDOW * perToken * 4;
    const decoded = Array.from({ length: pageCount }, (_, n) => {
      this.#decodePage(layer, table.pages[n]!);
      return this.#copyOut([[this.#rows[0], 0, windowBytes], [this.#rows[1], 0, windowBytes]]);
    });
    const places = [...(sinks > 0 && length > 0 ? [table.sinkPlace] : []), ...table.raws.subarray(0, rawCount)];
    const raw = places.map(place => this.#copyOut([[this.#raw.chunk(place), this.#raw.offsetOf[place]!, this.#placeBytes(place)]]));

    const tokens = { keys: new Float32Array(length * perToken), values: new Float32Array(length * perToken) };
    for (const [n, copy] of decoded.entries()) {
      const rows = new Float32Array(await copy());
      tokens.keys.set(rows.subarray(0, rows.length / 2), (sinks + n * WINDOW) * perToken);
      tokens.values.set(rows.subarray(rows.length / 2), (sinks + n * WINDOW) * perToken);
    }
    let at = 0;
    for (const [n, copy] of raw.entries()) {
      const halves = new Uint16Array(await copy());
      const capacity = this.#placeTokens(places[n]!);
      if (n === 0 && places[0] !== table.sinkPlace) at = pageCount * WINDOW;
      else if (n === 1 && places[0] === table.sinkPlace) at = sinks + pageCount * WINDOW;
      for (const [side, out] of [tokens.keys, tokens.values].entries()) {
        for (let head = 0; head < kvHeads; head++) {
          for (let t = 0; t < Math.min(capacity, length - at); t++) {
            const from = rawOffset(capacity, headDim, head, side as 0 | 1, t);
            for (let i = 0; i < headDim; i++) out[((at + t) * kvHeads + head) * headDim + i] = fromHalf(halves[from + i]!);
          }
        }
      }
      at += capacity;
    }
    return tokens;
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { page, pages } = this.#layers[layer]!;
    const place = (number: number): (() => Promise<ArrayBuffer>) =>
      this.#copyOut([[this.#raw.chunk(number), this.#raw.offsetOf[number]!, this.#placeBytes(number)]]);
    const copies = Array.from(table.pages.subarray(0, table.pageCount), number => this.#copyOut([[pages.chunk(number), pages.offsetOf[number]!, page.bytes]]));
    const raws = Array.from(table.raws.subarray(0, table.rawCount), place);
    const sinks = this.#shape.sinks > 0 && table.length > 0 ? place(table.sinkPlace) : undefined;
    const bytes = async (list: (() => Promise<ArrayBuffer>)[]): Promise<Uint8Array[]> => {
      const all: Uint8Array[] = [];
      for (const copy of list) all.push(new Uint8Array(await copy()));
      return all;
    };
    return { pages: await bytes(copies), raws: await bytes(raws), sinks: sinks && new Uint8Array(await sinks()) };
  }

  attend(layer: number, tables: readonly PageTable[], queries: readonly Float32Array[], scale: number, out: Float32Array): Output {
    const perToken = this.#shape.queryHeads * this.#shape.headDim;
    const copies: (() => Promise<ArrayBuffer>)[] = [];
    let items: Item[] = [];
    let used = 0;
    const flush = (): void => {
      this.#launch(layer, items, scale);
      copies.push(this.#copyOut([[this.#output, 0, used * perToken * 4]]));
      items = [];
      used = 0;
    };
    tables.forEach((table, n) => {
      const query = queries[n]!;
      const tokens = query.length / perToken;
      for (let from = 0; from < tokens;) {
        const count = Math.min(tokens - from, this.#callTokens - used);
        this.#device.gpu.queue.writeBuffer(this.#queries, 4 * used * perToken, query.subarray(from * perToken, (from + count) * perToken) as Float32Array<ArrayBuffer>);
        items.push({ table, tokens: count, position: table.length - tokens + from });
        from += count;
        used += count;
        if (used === this.#callTokens) flush();
      }
    });
    if (used > 0) flush();
    let result: Promise<Float32Array> | undefined;
    const collect = async (): Promise<Float32Array> => {
      let at = 0;
      for (const copy of copies) {
        const part = new Float32Array(await copy());
        out.set(part, at);
        at += part.length;
      }
      return out;
    };
    return { read: () => result ??= collect() };
  }

  dispose(): void {
    for (const buffer of [...this.#buffers, ...this.#readBuffers]) buffer.destroy();
  }

  #pipelines(page: PageLayout, constants: Constants, limit: number): LayerPipelines {
    const { headDim, kvHeads, queryHeads, sinks, rope } = this.#shape;
    const n = hadamardSize(headDim);
    const pairs = rope?.invFreq.length ?? 0;
    const transform = { N: n, SCALE: Math.fround(1 / Math.sqrt(n)), PAIR_STEP: rope?.interleaved ? 2 : 1, PAIR_OFFSET: rope?.interleaved ? 1 : pairs };
    const headWords = (page.keys.bytes + page.values.bytes) / 4;
    const tile = Math.min(WINDOW, 2 ** Math.floor(Math.log2(TILE_ELEMENTS / headDim)));
    const block = (side: 0 | 1): number => (HEADER_BYTES + side * page.keys.bytes) / 4;
    const of = (layout: BlockLayout): Record<string, number> => ({
      CHANNELS: layout.codec.channels,
      ROW_WORDS: layout.rowBytes / 4,
      S2: layout.s2 / 4,
      S1: layout.s1 / 4,
      SCALES: layout.scales / 4,
      O: layout.o / 4,
      BOOK: constants.books.get(layout.codec.name)!
    });
    const prefixed = (prefix: string, fields: Record<string, number>): Record<string, number> =>
      Object.fromEntries(Object.entries(fields).map(([name, value]) => [`${prefix}_${name}`, value]));
    const side = (number: 0 | 1): Record<string, number> => ({
      HEAD_DIM: headDim,
      ...of(number === 0 ? page.keys : page.values),
      BLOCK: block(number),
      HEAD_WORDS: headWords,
      TABLES: constants.tables,
      PAIRS: number === 0 ? pairs : 0,
      ...transform,
      TILE: tile
    });
    const encode = (number: 0 | 1): GPUComputePipeline =>
      this.#device.pipeline('encode', { ...side(number), SIDE: number, HEADER: constants.headers.get(page)! });
    const decode = (number: 0 | 1): GPUComputePipeline => this.#device.pipeline('decode', { ...side(number), KV_HEADS: kvHeads });
    const attend = this.#device.pipeline('attend', {
      HEAD_DIM: headDim,
      KV_HEADS: kvHeads,
      GROUP: queryHeads / kvHeads,
      SINKS: sinks,
      PAGE_WORDS: page.bytes / 4,
      PAGES_PER_CHUNK: Math.max(1, Math.floor(limit / page.bytes)),
      CHUNK_GROUPS: this.#chunkGroups,
      HEAD_WORDS: headWords,
      KEY_BLOCK: block(0),
      ...prefixed('KEY', of(page.keys)),
      VALUE_BLOCK: block(1),
      ...prefixed('VALUE', of(page.values)),
      TABLES: constants.tables,
      PAIRS: pairs,
      ...transform,
      PADDED: Math.max(headDim, page.keys.rowBytes * page.keys.codec.channels)
    });
    return { encode: [encode(0), encode(1)], decode: [decode(0), decode(1)], attend };
  }

  /** One dispatch of attend for every group of chunks, and one of merge. */
  #launch(layer: number, items: readonly Item[], scale: number): void {
    const { kvHeads } = this.#shape;
    const { spans, blocks } = this.#plan(layer, items, scale);
    const { pipelines, bindings } = this.#layers[layer]!;
    this.#submit(encoder => {
      const pass = encoder.beginComputePass({ label: 'attend' });
      pass.setPipeline(pipelines.attend);
      for (const group of bindings.attend) {
        pass.setBindGroup(0, group);
        dispatch(pass, spans, kvHeads);
      }
      pass.setPipeline(this.#merge);
      pass.setBindGroup(0, bindings.merge);
      dispatch(pass, blocks, kvHeads);
      pass.end();
    });
  }

  /** Writes what attend.wgsl and merge.wgsl read as `work`, and sends what changed. */
  #plan(layer: number, items: readonly Item[], scale: number): { spans: number; blocks: number } {
    const { sinks, queryHeads, kvHeads } = this.#shape;
    const group = queryHeads / kvHeads;
    const at = this.#sections;
    const words = this.#next;
    const { shadow, work } = this.#layers[layer]!;
    let raws = 0;
    let numbers = 0;
    let tokens = 0;
    let windows = 0;
    let blocks = 0;
    const lists = new Map<PageTable, { page: number; raw: number; raws: number }>();
    for (const { table, tokens: count } of items) {
      let list = lists.get(table);
      if (!list) {
        lists.set(table, list = { page: numbers, raw: raws, raws: 0 });
        for (let i = 0; i < table.pageCount; i++) words[VEC4 * at.pages + numbers++] = table.pages[i]!;
        const addRaw = (place: number, position: number): void => {
          const capacity = this.#placeTokens(place);
          words.set([
            this.#raw.offsetOf[place]! / 4, this.#raw.chunkOf[place]!, capacity * 65536 + Math.min(capacity, table.length - position), position
          ], VEC4 * (at.raws + raws++));
        };
        if (sinks > 0) addRaw(table.sinkPlace, 0);
        for (let i = 0; i < table.rawCount; i++) addRaw(table.raws[i]!, sinks + WINDOW * (table.pageCount + i));
        list.raws = raws - list.raw;
      }
      const itemBlocks = Math.ceil(count * group / ROWS);
      blocks += itemBlocks;
      windows += itemBlocks * (table.pageCount + list.raws);
    }
    // Each block has at most one span of either kind more than its share.
    const perSpan = Math.max(SPAN_WINDOWS, Math.ceil(windows / Math.max(1, this.#maxSpans - 2 * blocks)));

    let spans = 0;
    let block = 0;
    items.forEach(({ table, tokens: count, position }, item) => {
      const list = lists.get(table)!;
      words.set([tokens, count, position, list.page], VEC4 * (at.items + item));
      tokens += count;
      for (let row = 0; row < count * group; row += ROWS) {
        const first = spans;
        const add = (from: number, to: number, coded: number): void => {
          for (; from < to; from += perSpan) {
            words.set([item, row, from, Math.min(from + perSpan, to) + coded * 2 ** 31], VEC4 * (at.spans + spans++));
          }
        };
        add(0, table.pageCount, 1);
        add(list.raw, list.raw + list.raws, 0);
        words.set([item, row, first, spans - first], VEC4 * (at.blocks + block++));
      }
    });
    words.set([bits(scale * Math.LOG2E), spans, at.spans, at.items, blocks, at.blocks, at.raws, at.pages], 0);

    // Page numbers change once in 64 tokens: only what differs is sent, the front and the page numbers apart.
    this.#upload(work, shadow, 0, VEC4 * (at.raws + raws));
    this.#upload(work, shadow, VEC4 * at.pages, VEC4 * at.pages + numbers);
    return { spans, blocks };
  }

  #upload(buffer: GPUBuffer, shadow: Uint32Array, from: number, to: number): void {
    const words = this.#next;
    while (from < to && words[from] === shadow[from]) from++;
    while (to > from && words[to - 1] === shadow[to - 1]) to--;
    if (from === to) return;
    shadow.set(words.subarray(from, to), from);
    this.#device.gpu.queue.writeBuffer(buffer, 4 * from, shadow as Uint32Array<ArrayBuffer>, from, to - from);
  }

  #launchWrite(place: number, at: number, input: readonly [GPUBuffer, GPUBuffer], tokens: number, half: boolean, side: 'both' | 'values' = 'both'): void {
    const { headDim, kvHeads } = this.#shape;
    const pipeline = this.#device.pipeline('write', { HEAD_DIM: headDim, KV_HEADS: kvHeads, HALF: half ? 1 : 0, FIRST_SIDE: side === 'values' ? 1 : 0 });
    this.#setParams(tokens, this.#raw.offsetOf[place]! / 4, at, this.#placeTokens(place));
    const group = this.#device.bind(pipeline, input[0], input[1], this.#raw.chunk(place), this.#params);
    this.#submit(encoder => {
      const pass = encoder.beginComputePass({ label: 'write' });
      pass.setPipeline(pipeline);
      pass.setBindGroup(0, group);
      dispatch(pass, Math.ceil(tokens * kvHeads * headDim / 64));
      pass.end();
    });
  }

  /** Decodes a page into `#rows`. */
  #decodePage(layer: number, page: number): void {
    const { pages, pipelines } = this.#layers[layer]!;
    const tile = Math.min(WINDOW, 2 ** Math.floor(Math.log2(TILE_ELEMENTS / this.#shape.headDim)));
    this.#setParams(pages.offsetOf[page]! / 4);
    this.#submit(encoder => {
      const pass = encoder.beginComputePass({ label: 'decode' });
      pipelines.decode.forEach((pipeline, side) => {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, this.#device.bind(pipeline, pages.chunk(page), this.#constants, this.#rows[side]!, this.#params));
        pass.dispatchWorkgroups(this.#shape.kvHeads, WINDOW / tile);
      });
      pass.end();
    });
  }

  #setParams(...words: number[]): void {
    this.#device.gpu.queue.writeBuffer(this.#params, 0, Uint32Array.from(words));
  }

  #submit(record: (encoder: GPUCommandEncoder) => void): void {
    const encoder = this.#device.gpu.createCommandEncoder();
    record(encoder);
    this.#device.gpu.queue.submit([encoder.finish()]);
  }

  /** Queues copies into one buffer that can be mapped; the function that is returned waits for its bytes. */
  #copyOut(parts: readonly (readonly [from: GPUBuffer, offset: number, bytes: number])[]): () => Promise<ArrayBuffer> {
    const { gpu } = this.#device;
    const size = parts.reduce((sum, [, , bytes]) => sum + bytes, 0);
    const free = this.#readBuffers.findIndex(buffer => buffer.size === size);
    const target = free >= 0
      ? this.#readBuffers.splice(free, 1)[0]!
      : gpu.createBuffer({ label: 'read', size, usage: USAGE.MAP_READ | USAGE.COPY_DST });
    this.#submit(encoder => {
      let at = 0;
      for (const [from, offset, bytes] of parts) {
        encoder.copyBufferToBuffer(from, offset, target, at, bytes);
        at += bytes;
      }
    });
    return async () => {
      try {
        await target.mapAsync(MAP_READ);
      } catch (cause) {
        throw this.#device.lost ?? new BackendError('webgpu', 'expected its device to finish, which failed', cause);
      }
      await this.#check();
      const bytes = target.getMappedRange().slice(0);
      target.unmap();
      this.#readBuffers.push(target);
      return bytes;
    };
  }

  async #check(): Promise<void> {
    if (this.#failure) throw this.#failure;
    if (this.#device.lost) throw this.#device.lost;
  }

  #placeTokens(place: number): number {
    return place < this.#shape.rawPages ? WINDOW : this.#shape.sinks;
  }

  #placeBytes(place: number): number {
    return place < this.#shape.rawPages ? this.#shape.rawPageBytes : this.#shape.sinkBytes;
  }
}

/** Codebooks, RoPE's angles and page headers, one after another; offsets in words. */
class Constants {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly books = new Map<CodecName, number>();
  readonly headers = new Map<PageLayout, number>();
  readonly tables: number;

  constructor(shape: CacheShape) {
    const words: number[] = [];
    for (const codec of Object.values(codecs)) {
      this.books.set(codec.name, words.length);
      for (let i = 0; i < 128 * codec.channels; i += 2) words.push(toHalf(codec.codebook[i]!) + toHalf(codec.codebook[i + 1]!) * 65536);
    }
    this.tables = words.length;
    const { cos, sin } = ropeTables(shape.rope);
    for (const table of [cos, sin]) for (const word of new Uint32Array(table.buffer)) words.push(word);
    for (const page of shape.pages) {
      this.headers.set(page, words.length);
      words.push(...new Uint32Array(pageHeader(page).buffer));
    }
    this.words = Uint32Array.from(words);
  }
}

function isHalf(data: Data): boolean {
  return !(data instanceof Float32Array);
}

function bits(x: number): number {
  return new Uint32Array(Float32Array.of(x).buffer)[0]!;
}

/** `count` workgroups along x, and along y where x does not reach. */
function dispatch(pass: GPUComputePassEncoder, count: number, z = 1): void {
  const y = Math.ceil(count / DISPATCH);
  pass.dispatchWorkgroups(Math.ceil(count / y), y, z);
}
