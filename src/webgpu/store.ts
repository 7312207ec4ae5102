// The GPU backend: a store in GPUBuffers, kernels of shaders/. Every verb is queued when its call returns; only reading
// waits. Pages and raw places lie in chunks no larger than the device can bind; what a layer holds in many is read two a dispatch.

import {
  type Backend,
  BackendError,
  backendOf,
  type Dump,
  type Output,
  type PageTable,
  type Store,
  type Tokens,
  type Write
} from '../backend.ts';
import { fromHalf, isHalf, wordsOf } from '../format/half.ts';
import { rawOffset, WINDOW } from '../format/layout.ts';
import { type GpuTarget, type GpuTokens, type Input, isGpuTokens } from '../input.ts';
import type { CacheShape } from '../shape.ts';
import type { Found } from './adapter.ts';
import { Arena } from './chunks.ts';
import { Device, dispatch, type Program, type Range, type ShaderName, USAGE } from './device.ts';
import { Constants, type LayerPrograms, layerPrograms, mergeProgram, tileTokens, writeProgram } from './programs.ts';
import { blocksFor, type Item, type RawWindow, Work } from './schedule.ts';

const STORAGE = USAGE.STORAGE | USAGE.COPY_SRC | USAGE.COPY_DST;
/** Bytes of keys, and of values, that are staged on their way in or out: a window at least. */
const STAGED_BYTES = 2 ** 22;
/** Windows that one dispatch writes, codes or decodes at most. */
const JOBS = 1024;
/** Bytes that one reading copies at most. */
const READ_BYTES = 2 ** 25;

/** A backend on a device. Does not test it: open.ts does, before anyone sees it. */
export function webGpuBackend({ device, description, own }: Found, reason: string): Backend {
  const state = new Device(device);
  const prepare = async (shape: CacheShape): Promise<void> => {
    const constants = new Constants(shape);
    const layers = [...new Set(shape.pages)].map(page => layerPrograms(shape, page, constants));
    // Of attend's forms those for one token and for a long prompt.
    const forms = (attend: readonly Program[]): Program[] =>
      [...new Set([blocksFor([shape.queryHeads / shape.kvHeads], attend.length), attend.length])].map(blocks => attend[blocks - 1]!);
    await state.prepare([
      writeProgram(shape),
      mergeProgram(shape),
      ...layers.flatMap(({ encode, decode, attend }) => [...encode, ...decode, ...forms(attend)])
    ]);
  };
  return backendOf(
    {
      name: 'webgpu',
      variant: 'baseline',
      reason: `${reason}; adapter ${description}`,
      createStore: shape => new WebGpuStore(state, shape),
      prepare
    },
    () => state.release(own)
  );
}

interface Layer {
  readonly programs: LayerPrograms;
  readonly pages: Arena;
  readonly pageBytes: number;
  /** Where the page header lies among the constants, in words. */
  readonly header: number;
  readonly work: GPUBuffer;
  /** What `work` holds, so that only what changed is sent. */
  readonly sent: Uint32Array<ArrayBuffer>;
  /** Of attend, one for every pair of chunks; and of merge. */
  readonly attend: readonly GPUBindGroup[];
  readonly merge: GPUBindGroup;
}

class WebGpuStore implements Store {
  readonly takesBuffers = true;
  bytes = 0;
  readonly ready: Promise<void>;
  readonly #device: Device;
  readonly #shape: CacheShape;
  readonly #layers: readonly Layer[];
  readonly #raw: Arena;
  readonly #constants: GPUBuffer;
  readonly #buffers: GPUBuffer[] = [];
  readonly #bindings = new Map<string, GPUBindGroup>();
  readonly #staged: readonly [keys: GPUBuffer, values: GPUBuffer];
  readonly #stagedTokens: number;
  readonly #jobs: GPUBuffer;
  readonly #copy: GPUBuffer;
  readonly #queries: GPUBuffer;
  readonly #output: GPUBuffer;
  readonly #work: Work;
  readonly #write: Program;
  readonly #merge: Program;
  readonly #rawWindowOf: (place: number) => RawWindow;
  /** Set where the device had no memory for this store. */
  readonly #refusal: { error?: BackendError } = {};

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
      this.#raw = new Arena(
        [
          { count: shape.rawPages, bytes: shape.rawPageBytes },
          { count: shape.sinkSlots, bytes: shape.sinkBytes }
        ],
        limit,
        bytes => create('raw places', bytes)
      );
      const arenas = shape.pages.map(
        page => new Arena([{ count: shape.pagesPerLayer, bytes: page.bytes }], limit, bytes => create('pages', bytes))
      );
      const chunkGroups = Math.ceil(Math.max(this.#raw.chunks.length, ...arenas.map(arena => arena.chunks.length)) / 2);
      this.#rawWindowOf = place => ({
        offset: this.#raw.offsetOf[place]!,
        chunk: this.#raw.chunkOf[place]!,
        capacity: this.#placeTokens(place)
      });

      const constants = new Constants(shape);
      this.#constants = create('constants', constants.words.byteLength);
      gpu.queue.writeBuffer(this.#constants, 0, constants.words);
      const tokenBytes = 4 * kvHeads * headDim;
      this.#stagedTokens = Math.max(WINDOW, Math.floor(Math.min(STAGED_BYTES, limit) / tokenBytes));
      this.#staged = [create('staged keys', this.#stagedTokens * tokenBytes), create('staged values', this.#stagedTokens * tokenBytes)];
      this.#jobs = create('jobs', 32 * JOBS);
      this.#copy = create('copy', Math.max(shape.rawPageBytes, shape.sinkBytes));

      const slotBytes = 16 * (2 + headDim) * kvHeads * chunkGroups;
      this.#work = new Work(shape, slotBytes, limit);
      this.#queries = create('queries', 4 * this.#work.callTokens * queryHeads * headDim);
      this.#output = create('output', 4 * this.#work.callTokens * queryHeads * headDim);
      const partials = create('partials', this.#work.slots * slotBytes);
      const groupParams = Array.from({ length: chunkGroups }, (_, group) => {
        const buffer = create('chunk group', 16, USAGE.UNIFORM | USAGE.COPY_DST);
        gpu.queue.writeBuffer(buffer, 0, Uint32Array.of(group, 0, 0, 0));
        return buffer;
      });

      this.#write = writeProgram(shape);
      this.#merge = mergeProgram(shape);
      this.#layers = shape.pages.map((page, layer) => {
        const pages = arenas[layer]!;
        const sent = new Uint32Array(this.#work.words.length);
        const work = create('work', sent.byteLength);
        return {
          programs: layerPrograms(shape, page, constants),
          pages,
          pageBytes: page.bytes,
          header: constants.headers.get(page)!,
          work,
          sent,
          attend: groupParams.map((params, g) =>
            device.bind('attend', [
              pages.chunkAt(2 * g),
              pages.chunkAt(2 * g + 1),
              this.#raw.chunkAt(2 * g),
              this.#raw.chunkAt(2 * g + 1),
              this.#constants,
              work,
              this.#queries,
              partials,
              params
            ])
          ),
          merge: device.bind('merge', [work, partials, this.#output])
        };
      });
    } catch (error) {
      for (const buffer of this.#buffers) buffer.destroy();
      for (let scope = 0; scope < 2; scope++) gpu.popErrorScope().catch(() => {}); // the error on its way says more
      throw error;
    }
    const failed = (error: GPUError | null): void => {
      if (error)
        this.#refusal.error ??= new BackendError(
          'webgpu',
          `expected ${this.bytes} bytes for capacity ${shape.capacity}, got: ${error.message}`,
          error
        );
    };
    // A lost device rejects these, and whatever is read.
    const settled = Promise.all([gpu.popErrorScope().then(failed, () => {}), gpu.popErrorScope().then(failed, () => {})]);
    this.ready = settled.then(() => checkMemory(device, this.#refusal));
    this.ready.catch(() => {}); // whoever reads will meet it
  }

  write(writes: readonly Write[]): void {
    const perToken = this.#shape.kvHeads * this.#shape.headDim;
    let used = 0; // staged tokens
    let jobs: number[][] = [];
    let places: number[] = [];
    let copies: ((encoder: GPUCommandEncoder) => void)[] = [];
    const stage = (side: 0 | 1, input: Input, from: number, tokens: number): void => {
      const buffer = this.#staged[side];
      const to = used * perToken * 4;
      if (isGpuTokens(input)) {
        const unit = perToken * (input.format === 'f16' ? 2 : 4);
        const begin = (input.offset ?? 0) + from * unit;
        copies.push(encoder => encoder.copyBufferToBuffer(input.buffer, begin, buffer, to, tokens * unit));
      } else {
        const rows = wordsOf(input).subarray(from * perToken, (from + tokens) * perToken) as
          | Float32Array<ArrayBuffer>
          | Uint16Array<ArrayBuffer>;
        this.#device.gpu.queue.writeBuffer(buffer, to, rows);
      }
    };
    const flush = (): void => {
      this.#launchWrite(places, jobs, copies);
      used = 0;
      jobs = [];
      places = [];
      copies = [];
    };
    for (const { keys, values, runs } of writes) {
      const halves = Number(holdsHalves(keys)) + 2 * Number(holdsHalves(values));
      for (let n = 0; n < runs.length; ) {
        if (used + runs[n]!.tokens > this.#stagedTokens || jobs.length === JOBS) flush();
        const { from } = runs[n]!;
        const begin = used;
        let staged = 0;
        for (; n < runs.length && used + staged + runs[n]!.tokens <= this.#stagedTokens && jobs.length < JOBS; n++) {
          const { slot, at, tokens } = runs[n]!;
          // Rows of f16 lie at the beginning of the room for f32.
          const word = (half: boolean): number => begin * perToken + (staged * perToken) / (half ? 2 : 1);
          places.push(slot);
          jobs.push([word(holdsHalves(keys)), word(holdsHalves(values)), 0, tokens, at, this.#placeTokens(slot), halves, 0]);
          staged += tokens;
        }
        stage(0, keys, from, staged);
        stage(1, values, from, staged);
        used += staged;
      }
    }
    if (jobs.length > 0) flush();
  }

  copySlot(from: number, to: number): void {
    const bytes = this.#placeBytes(from);
    this.#device.submit(encoder => {
      encoder.copyBufferToBuffer(this.#raw.chunk(from), this.#raw.offsetOf[from]!, this.#copy, 0, bytes);
      encoder.copyBufferToBuffer(this.#copy, 0, this.#raw.chunk(to), this.#raw.offsetOf[to]!, bytes);
    });
  }

  setSlot(place: number, bytes: Uint8Array): void {
    this.#device.gpu.queue.writeBuffer(this.#raw.chunk(place), this.#raw.offsetOf[place]!, bytes as Uint8Array<ArrayBuffer>);
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    const { pages } = this.#layers[layer]!;
    this.#device.gpu.queue.writeBuffer(pages.chunk(page), pages.offsetOf[page]!, bytes as Uint8Array<ArrayBuffer>);
  }

  encode(layer: number, places: readonly number[], pages: readonly number[]): void {
    const { programs, pages: arena, header } = this.#layers[layer]!;
    for (const [placeChunk, pageChunk, numbers] of groups(places.length, n => [
      this.#raw.chunkOf[places[n]!]!,
      arena.chunkOf[pages[n]!]!
    ])) {
      this.#setJobs(numbers.flatMap(n => [this.#raw.offsetOf[places[n]!]! / 4, arena.offsetOf[pages[n]!]! / 4, header, 0]));
      const bindings = this.#bind(
        'encode',
        [this.#raw.chunks[placeChunk]!, this.#constants, this.#jobs, arena.chunks[pageChunk]!],
        layer,
        placeChunk,
        pageChunk
      );
      this.#pass('encode', pass => {
        pass.setBindGroup(0, bindings);
        for (const program of programs.encode) {
          pass.setPipeline(this.#device.pipeline(program));
          pass.dispatchWorkgroups(this.#shape.kvHeads, numbers.length);
        }
      });
    }
  }

  decode(layer: number, page: number, place: number): void {
    this.#decodePages(layer, [page]);
    this.#launchWrite([place], [[0, 0, 0, WINDOW, 0, WINDOW, 0, 0]]);
  }

  async read(layer: number, table: PageTable): Promise<Tokens> {
    const { sinks, kvHeads, headDim } = this.#shape;
    const perToken = kvHeads * headDim;
    const { length, pageCount } = table;
    // All is queued before the first is awaited: tokens are those of the time of the call.
    const decoded: { first: number; rows: () => Promise<ArrayBuffer> }[] = [];
    const windows = Math.min(Math.floor(this.#stagedTokens / WINDOW), JOBS);
    for (let first = 0; first < pageCount; first += windows) {
      const pages = Array.from(table.pages.subarray(first, Math.min(first + windows, pageCount)));
      this.#decodePages(layer, pages);
      const bytes = pages.length * WINDOW * perToken * 4;
      decoded.push({
        first,
        rows: this.#copyOut([
          [this.#staged[0], 0, bytes],
          [this.#staged[1], 0, bytes]
        ])
      });
    }
    const places = [
      ...(sinks > 0 && length > 0 ? [{ place: table.sinkSlot, at: 0 }] : []),
      ...Array.from(table.raws.subarray(0, table.rawCount), (place, n) => ({ place, at: sinks + (pageCount + n) * WINDOW }))
    ].map(({ place, at }) => ({ place, at, halves: this.#copyOut([this.#placeRange(place)]) }));

    const tokens = { keys: new Float32Array(length * perToken), values: new Float32Array(length * perToken) };
    for (const { first, rows } of decoded) {
      const both = new Float32Array(await rows());
      tokens.keys.set(both.subarray(0, both.length / 2), (sinks + first * WINDOW) * perToken);
      tokens.values.set(both.subarray(both.length / 2), (sinks + first * WINDOW) * perToken);
    }
    for (const { place, at, halves } of places) {
      const rows = new Uint16Array(await halves());
      const capacity = this.#placeTokens(place);
      for (const [side, out] of [tokens.keys, tokens.values].entries()) {
        for (let head = 0; head < kvHeads; head++) {
          for (let t = 0; t < Math.min(capacity, length - at); t++) {
            const from = rawOffset(capacity, headDim, head, side as 0 | 1, t);
            for (let i = 0; i < headDim; i++) out[((at + t) * kvHeads + head) * headDim + i] = fromHalf(rows[from + i]!);
          }
        }
      }
    }
    return tokens;
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { pages, pageBytes } = this.#layers[layer]!;
    const { pageCount, rawCount } = table;
    const ranges: Range[] = [
      ...Array.from(table.pages.subarray(0, pageCount), (page): Range => [pages.chunk(page), pages.offsetOf[page]!, pageBytes]),
      ...Array.from(table.raws.subarray(0, rawCount), place => this.#placeRange(place)),
      ...(this.#shape.sinks > 0 && table.length > 0 ? [this.#placeRange(table.sinkSlot)] : [])
    ];
    const copies: { count: number; bytes: () => Promise<ArrayBuffer> }[] = [];
    for (let n = 0; n < ranges.length; ) {
      const first = n;
      for (let bytes = 0; n < ranges.length && (n === first || bytes + ranges[n]![2] <= READ_BYTES); n++) bytes += ranges[n]![2];
      copies.push({ count: n - first, bytes: this.#copyOut(ranges.slice(first, n)) });
    }
    const parts: Uint8Array[] = [];
    for (const { count, bytes } of copies) {
      const all = new Uint8Array(await bytes());
      let at = 0;
      for (const end = parts.length + count; parts.length < end; ) {
        const size = ranges[parts.length]![2];
        parts.push(all.slice(at, (at += size)));
      }
    }
    return { pages: parts.slice(0, pageCount), raws: parts.slice(pageCount, pageCount + rawCount), sinks: parts[pageCount + rawCount] };
  }

  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly (Float32Array | GpuTokens)[],
    scale: number,
    out: Float32Array | GpuTarget
  ): Output {
    const tokenBytes = 4 * this.#shape.queryHeads * this.#shape.headDim;
    const target = ArrayBuffer.isView(out) ? undefined : out;
    const { callTokens } = this.#work;
    const parts: (() => Promise<ArrayBuffer>)[] = [];
    let items: Item[] = [];
    let copies: ((encoder: GPUCommandEncoder) => void)[] = [];
    let used = 0;
    let done = 0;
    const flush = (): void => {
      this.#launch(layer, items, scale, copies, encoder => {
        const bytes = used * tokenBytes;
        if (target) encoder.copyBufferToBuffer(this.#output, 0, target.buffer, (target.offset ?? 0) + done * tokenBytes, bytes);
        else parts.push(this.#device.readBack(encoder, [[this.#output, 0, bytes]]));
      });
      done += used;
      used = 0;
      items = [];
      copies = [];
    };
    tables.forEach((table, n) => {
      const query = queries[n]!;
      const tokens = isGpuTokens(query) ? query.tokens : query.byteLength / tokenBytes;
      for (let from = 0; from < tokens; ) {
        const count = Math.min(tokens - from, callTokens - used);
        const to = used * tokenBytes;
        if (isGpuTokens(query)) {
          const begin = (query.offset ?? 0) + from * tokenBytes;
          copies.push(encoder => encoder.copyBufferToBuffer(query.buffer, begin, this.#queries, to, count * tokenBytes));
        } else {
          const rows = query.subarray((from * tokenBytes) / 4, ((from + count) * tokenBytes) / 4) as Float32Array<ArrayBuffer>;
          this.#device.gpu.queue.writeBuffer(this.#queries, to, rows);
        }
        items.push({ table, tokens: count, position: table.length - tokens + from });
        from += count;
        used += count;
        if (used === callTokens) flush();
      }
    });
    if (used > 0) flush();
    return target
      ? outputIn(this.#device, this.#refusal, [target.buffer, target.offset ?? 0, done * tokenBytes])
      : outputOf(this.#device, this.#refusal, parts, out as Float32Array);
  }

  dispose(): void {
    for (const buffer of this.#buffers) buffer.destroy();
  }

  /** One dispatch of attend for every pair of chunks, and one of merge. */
  #launch(
    layer: number,
    items: readonly Item[],
    scale: number,
    copies: readonly ((encoder: GPUCommandEncoder) => void)[],
    finish: (encoder: GPUCommandEncoder) => void
  ): void {
    const { kvHeads } = this.#shape;
    const { programs, pages, pageBytes, attend, merge, work, sent } = this.#layers[layer]!;
    const pagesPerChunk = Math.max(1, Math.floor(pages.chunks[0]!.size / pageBytes));
    const plan = this.#work.plan(items, scale, programs.attend.length, attend.length, pagesPerChunk, this.#rawWindowOf);
    // Page numbers change once in 64 tokens: only what differs is sent, the front and the page numbers apart.
    this.#send(work, sent, 0, this.#work.used);
    this.#send(work, sent, this.#work.pages, this.#work.pages + this.#work.numbers);
    this.#device.submit(encoder => {
      for (const copy of copies) copy(encoder);
      const pass = encoder.beginComputePass({ label: 'attend' });
      pass.setPipeline(this.#device.pipeline(programs.attend[plan.blocks - 1]!));
      for (const bindings of attend) {
        pass.setBindGroup(0, bindings);
        dispatch(pass, plan.attendGroups, kvHeads);
      }
      pass.setPipeline(this.#device.pipeline(this.#merge));
      pass.setBindGroup(0, merge);
      dispatch(pass, plan.mergeGroups, kvHeads);
      pass.end();
      finish(encoder);
    });
  }

  #send(buffer: GPUBuffer, sent: Uint32Array<ArrayBuffer>, from: number, to: number): void {
    const { words } = this.#work;
    while (from < to && words[from] === sent[from]) from++;
    while (to > from && words[to - 1] === sent[to - 1]) to--;
    if (from === to) return;
    sent.set(words.subarray(from, to), from);
    this.#device.gpu.queue.writeBuffer(buffer, 4 * from, sent, from, to - from);
  }

  /** @param jobs  of write.wgsl, one for each place; where the place lies is filled in */
  #launchWrite(places: readonly number[], jobs: readonly number[][], copies: readonly ((encoder: GPUCommandEncoder) => void)[] = []): void {
    const { headDim, kvHeads } = this.#shape;
    const pipeline = this.#device.pipeline(this.#write);
    // What is staged is complete before the first of them reads it.
    if (copies.length > 0) this.#device.submit(encoder => copies.forEach(copy => copy(encoder)));
    for (const [chunk, , numbers] of groups(places.length, n => [this.#raw.chunkOf[places[n]!]!, 0])) {
      let most = 0;
      this.#setJobs(
        numbers.flatMap(n => {
          const job = jobs[n]!;
          job[2] = this.#raw.offsetOf[places[n]!]! / 4;
          most = Math.max(most, job[3]!);
          return job;
        })
      );
      const bindings = this.#bind('write', [...this.#staged, this.#jobs, this.#raw.chunks[chunk]!], chunk);
      this.#pass('write', pass => {
        pass.setPipeline(pipeline);
        pass.setBindGroup(0, bindings);
        pass.dispatchWorkgroups(Math.ceil((most * headDim) / 2 / 64), numbers.length, kvHeads);
      });
    }
  }

  /** Decodes pages into `#staged`, one after another. */
  #decodePages(layer: number, numbers: readonly number[]): void {
    const { pages, programs } = this.#layers[layer]!;
    const { kvHeads, headDim } = this.#shape;
    // A chunk at a time: what lies between two of a chunk is decoded by the next dispatch.
    for (let first = 0; first < numbers.length; ) {
      const chunk = pages.chunkOf[numbers[first]!]!;
      let end = first;
      while (end < numbers.length && pages.chunkOf[numbers[end]!] === chunk) end++;
      this.#setJobs(numbers.slice(first, end).flatMap((page, n) => [pages.offsetOf[page]! / 4, first + n, 0, 0]));
      this.#pass('decode', pass => {
        programs.decode.forEach((program, side) => {
          pass.setPipeline(this.#device.pipeline(program));
          pass.setBindGroup(
            0,
            this.#bind('decode', [pages.chunks[chunk]!, this.#constants, this.#jobs, this.#staged[side]!], layer, chunk, side)
          );
          pass.dispatchWorkgroups(kvHeads, WINDOW / tileTokens(headDim), end - first);
        });
      });
      first = end;
    }
  }

  #setJobs(words: number[]): void {
    this.#device.gpu.queue.writeBuffer(this.#jobs, 0, Uint32Array.from(words));
  }

  #pass(label: string, record: (pass: GPUComputePassEncoder) => void): void {
    this.#device.submit(encoder => {
      const pass = encoder.beginComputePass({ label });
      record(pass);
      pass.end();
    });
  }

  #bind(name: ShaderName, buffers: readonly GPUBuffer[], ...numbers: number[]): GPUBindGroup {
    const key = `${name} ${numbers.join(' ')}`;
    let bindings = this.#bindings.get(key);
    if (!bindings) this.#bindings.set(key, (bindings = this.#device.bind(name, buffers)));
    return bindings;
  }

  #copyOut(ranges: readonly Range[]): () => Promise<ArrayBuffer> {
    return copyOut(this.#device, this.#refusal, ranges);
  }

  #placeTokens(place: number): number {
    return place < this.#shape.rawPages ? WINDOW : this.#shape.sinks;
  }

  #placeBytes(place: number): number {
    return place < this.#shape.rawPages ? this.#shape.rawPageBytes : this.#shape.sinkBytes;
  }

  #placeRange(place: number): Range {
    return [this.#raw.chunk(place), this.#raw.offsetOf[place]!, this.#placeBytes(place)];
  }
}

/** Refuses what was read where the memory was, or the device is lost. */
function checkMemory(device: Device, refusal: { readonly error?: BackendError }): void {
  if (refusal.error) throw refusal.error;
  if (device.lost) throw device.lost;
}

/** Copies ranges as they are now; the function that is returned waits for them. */
function copyOut(device: Device, refusal: { readonly error?: BackendError }, ranges: readonly Range[]): () => Promise<ArrayBuffer> {
  let bytes!: () => Promise<ArrayBuffer>;
  device.submit(encoder => {
    bytes = device.readBack(encoder, ranges);
  });
  return async () => {
    const copy = await bytes();
    checkMemory(device, refusal);
    return copy;
  };
}

/**
 * Results on their way, in order. Built here and not by the store, whose variables a function of its own would keep: an Output may
 * outlive a cache, and must not keep the cache's memory.
 */
function outputOf(
  device: Device,
  refusal: { readonly error?: BackendError },
  parts: readonly (() => Promise<ArrayBuffer>)[],
  out: Float32Array
): Output {
  let result: Promise<Float32Array> | undefined;
  const collect = async (): Promise<Float32Array> => {
    let at = 0;
    for (const bytes of parts) {
      const part = new Float32Array(await bytes());
      checkMemory(device, refusal);
      out.set(part, at);
      at += part.length;
    }
    return out;
  };
  return { read: () => (result ??= collect()) };
}

/** Results in a GPUBuffer: what is there when they are first read. */
function outputIn(device: Device, refusal: { readonly error?: BackendError }, range: Range): Output {
  let result: Promise<Float32Array> | undefined;
  return { read: () => (result ??= copyOut(device, refusal, [range])().then(bytes => new Float32Array(bytes))) };
}

/** Numbers 0 to count − 1 by the pair of chunks that they lie in, JOBS of them at most. */
function groups(count: number, chunksOf: (n: number) => [number, number]): [number, number, number[]][] {
  const found = new Map<string, [number, number, number[]]>();
  const full: [number, number, number[]][] = [];
  for (let n = 0; n < count; n++) {
    const [a, b] = chunksOf(n);
    const key = `${a} ${b}`;
    let group = found.get(key);
    if (!group) found.set(key, (group = [a, b, []]));
    group[2].push(n);
    if (group[2].length === JOBS) {
      full.push(group);
      found.delete(key);
    }
  }
  return [...full, ...found.values()];
}

function holdsHalves(input: Input): boolean {
  return isGpuTokens(input) ? input.format === 'f16' : isHalf(input);
}
