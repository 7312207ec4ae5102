// The CPU backend: a store in one WebAssembly.Memory, kernels compiled from assembly/. Everything a cache will ever need is
// laid out when it is made; the memory never grows, so views of it stay valid.

import { instantiateSync } from '@assemblyscript/loader';
import {
  BackendError,
  type Dump,
  type Output,
  outputOf,
  type PageTable,
  type Run,
  type Store,
  type Tokens,
  type Write
} from '../backend.ts';
import type { Codec } from '../format/codec.ts';
import { type Data, isHalf, wordsOf } from '../format/half.ts';
import { type BlockLayout, blockLayout, hadamardSize, pageHeader, rawOffset, WINDOW } from '../format/layout.ts';
import { ropeTables } from '../rope.ts';
import type { CacheShape } from '../shape.ts';
import { gridOf } from './cells.ts';

/** Exports of assembly/index.ts; addresses are numbers. */
export interface Kernels extends Record<string, unknown> {
  addMean(shape: number, x: number, o: number, sign: number, rotate: boolean): void;
  attend(shape: number, items: number, count: number, scale: number): void;
  encodePage(shape: number, raw: number, page: number): void;
  decode(shape: number, side: number, block: number, x: number, rotate: boolean): void;
  decodePage(shape: number, page: number, keys: number, values: number): void;
  divide(x: number, headDim: number, norms: number): void;
  encode(shape: number, side: number, x: number, block: number, rotate: boolean): void;
  hadamard(x: number, rows: number, rowBytes: number, n: number, scale: number): void;
  mean(shape: number, x: number, o: number, nibbles: number, scales: number, rotate: boolean): void;
  mix(shape: number, weights: number, block: number, out: number): void;
  norms(x: number, headDim: number, norms: number): void;
  quantize(side: number, y: number, headDim: number, codes: number, yy: number, yc: number): void;
  rowsFromTile(tile: number, tokens: number, rowBytes: number, headDim: number, rows: number): void;
  rtn4(x: number, count: number, nibbles: number, scales: number, keep: boolean): void;
  scores(shape: number, q: number, block: number, out: number): void;
  tileFromRows(rows: number, tokens: number, rowBytes: number, headDim: number, tile: number): void;
  writeRows(rows: number, half: boolean, tokens: number, kvHeads: number, headDim: number, to: number, capacity: number): void;
  readRows(from: number, capacity: number, tokens: number, kvHeads: number, headDim: number, rows: number): void;
}

const WASM_PAGE = 65536;
/** Addresses of 32 bits; the last page is left so that sizes fit too. */
const MEMORY_LIMIT = WASM_PAGE * 65535;

// As assembly/shape.ts and assembly/attend.ts have them.
const TABLES = 0x10000;
const TABLE_ROW = 0x2000;
const GROUP = 4;
const CHUNK_TOKENS = 32 * WINDOW;
const BLOCK_GROUPS = 64;
const ROW_BYTES = 32256;
const ITEM_WORDS = 10;
const RAW_WORDS = 4;

/**
 * Rows (query tokens × query heads per KV head) from which the SIMD binaries decode pages for all of them. At headDim 64 and 2,048
 * tokens that is 0.99 (nsn2), 1.17 (nsn4 and nsn2), 1.4 times (nsn4) as fast as looking codes up; of 48 rows 0.75, 0.86, 1.04; of
 * 255 rows 1.23, 1.5, 1.8. With nsn1 on both sides it is never faster (0.7; 0.99).
 */
const PROMPT_ROWS = 96;

/** Hands out addresses; all of a store's memory passes through here, so that `bytes` is the truth. */
class Arena {
  end: number;
  constructor(start: number) {
    this.end = start;
  }
  take(bytes: number): number {
    const at = this.end;
    this.end = Math.ceil((at + bytes) / 16) * 16;
    return at;
  }
}

/** A table that is copied into memory once the memory exists. */
interface Constant {
  readonly at: number;
  readonly bytes: Uint8Array;
}

/**
 * The memory of a cache, laid out and filled with tables; kernels over it; and where things are. Regions are addresses.
 */
export class WasmMemory {
  readonly bytes: number;
  readonly kernels: Kernels;
  readonly u8: Uint8Array;
  readonly u16: Uint16Array;
  readonly u32: Uint32Array;
  readonly f32: Float32Array;
  /** `Shape` of every layer. */
  readonly shapes: number;
  /** `Side` of every codec in use. */
  readonly sides: ReadonlyMap<Codec, number>;
  /** First page of every layer. */
  readonly pages: readonly number[];
  readonly raw: number;
  readonly tile: number;
  readonly row: number;
  readonly items: number;
  readonly pageNumbers: number;
  readonly rawRecords: number;
  readonly input: number;
  readonly output: number;
  /** Query tokens that `input` and `output` hold. */
  readonly callTokens: number;

  constructor(module: WebAssembly.Module, shape: CacheShape) {
    const { headDim, kvHeads, queryHeads } = shape;
    const used = [...new Set(shape.pages.flatMap(page => [page.keys, page.values]).map(block => block.codec))];
    const blocks = used.map(codec => blockLayout(codec, headDim));

    const arena = new Arena(TABLES + Math.max(...blocks.map(block => block.rowBytes)) * TABLE_ROW);
    const constants: Constant[] = [];
    const constant = (data: ArrayBufferView): number => {
      const at = arena.take(data.byteLength);
      constants.push({ at, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) });
      return at;
    };
    this.sides = new Map(blocks.map(block => [block.codec, constant(sideStruct(block, constant))]));
    const rope = ropeTables(shape.rope);
    const cos = constant(rope.cos);
    const sin = constant(rope.sin);
    const powers = constant(rope.powers);
    const basis = constant(rope.basis);

    this.tile = arena.take(2 * headDim * WINDOW * 4);
    this.row = arena.take(ROW_BYTES);
    const scores = arena.take(CHUNK_TOKENS * GROUP * 4);
    const states = arena.take((BLOCK_GROUPS + 1) * (64 + 40 * headDim));
    this.callTokens = Math.max(Math.floor((BLOCK_GROUPS * GROUP) / (queryHeads / kvHeads)), shape.sequences);
    this.input = arena.take(4 * headDim * Math.max(this.callTokens * queryHeads, 2 * WINDOW * kvHeads));
    this.output = arena.take(4 * headDim * this.callTokens * queryHeads);
    this.items = arena.take(4 * ITEM_WORDS * this.callTokens);
    this.pageNumbers = arena.take(4 * shape.sequences * shape.pagesPerLayer);
    this.rawRecords = arena.take(4 * RAW_WORDS * (shape.rawPages + this.callTokens));

    this.raw = arena.take(shape.rawPages * shape.rawPageBytes + shape.sinkSlots * shape.sinkBytes);
    this.pages = shape.pages.map(page => arena.take(shape.pagesPerLayer * page.bytes));
    const n = hadamardSize(headDim);
    this.shapes = arena.end;
    shape.pages.forEach((page, layer) =>
      constant(
        struct(
          headDim,
          kvHeads,
          queryHeads / kvHeads,
          n,
          new Float32Array([1 / Math.sqrt(n)]),
          rope.pairs,
          shape.rope?.interleaved ? 8 : 4,
          shape.rope?.interleaved ? 4 : rope.pairs * 4,
          cos,
          sin,
          rope.trigPairs,
          rope.tier2,
          rope.tier3,
          powers,
          rope.basisPairs,
          basis,
          this.sides.get(page.keys.codec)!,
          this.sides.get(page.values.codec)!,
          page.bytes,
          this.pages[layer]!,
          this.tile,
          this.row,
          scores,
          states
        )
      )
    );

    const pages = Math.ceil(arena.end / WASM_PAGE);
    if (pages * WASM_PAGE > MEMORY_LIMIT) {
      throw new BackendError(
        'wasm',
        `expected at most ${MEMORY_LIMIT} bytes (32-bit addresses) for capacity ${shape.capacity}, got ${arena.end}`
      );
    }
    let memory: WebAssembly.Memory;
    try {
      memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    } catch (cause) {
      throw new BackendError(
        'wasm',
        `expected ${pages * WASM_PAGE} bytes for capacity ${shape.capacity}, got: ${(cause as Error).message}`,
        cause
      );
    }
    this.bytes = pages * WASM_PAGE;
    this.kernels = instantiateSync<Kernels>(module, { env: { memory } }).exports;
    this.u8 = new Uint8Array(memory.buffer);
    this.u16 = new Uint16Array(memory.buffer);
    this.u32 = new Uint32Array(memory.buffer);
    this.f32 = new Float32Array(memory.buffer);
    for (const { at, bytes } of constants) this.u8.set(bytes, at);
  }
}

export class WasmStore implements Store {
  readonly takesBuffers = false;
  readonly #shape: CacheShape;
  readonly #memory: WasmMemory;

  constructor(module: WebAssembly.Module, shape: CacheShape) {
    this.#shape = shape;
    this.#memory = new WasmMemory(module, shape);
    shape.pages.forEach((page, layer) => {
      const header = pageHeader(page);
      for (let n = 0; n < shape.pagesPerLayer; n++) this.#memory.u8.set(header, this.#page(layer, n));
    });
  }

  get bytes(): number {
    return this.#memory.bytes;
  }

  write(writes: readonly Write[]): void {
    for (const { keys, values, runs } of writes) {
      for (const run of runs) this.#writeRun(run, keys as Data, values as Data);
    }
  }

  #writeRun({ slot, at, from, tokens }: Run, keys: Data, values: Data): void {
    const { kvHeads, headDim } = this.#shape;
    const capacity = this.#slotTokens(slot);
    const perToken = kvHeads * headDim;
    for (const [side, data] of [keys, values].entries()) {
      const half = isHalf(data);
      const view = half ? this.#memory.u16 : this.#memory.f32;
      view.set(wordsOf(data).subarray(from * perToken, (from + tokens) * perToken), this.#memory.input / view.BYTES_PER_ELEMENT);
      const to = this.#slot(slot) + 2 * rawOffset(capacity, headDim, 0, side as 0 | 1, at);
      this.#memory.kernels.writeRows(this.#memory.input, half, tokens, kvHeads, headDim, to, capacity);
    }
  }

  copySlot(from: number, to: number): void {
    this.#memory.u8.copyWithin(this.#slot(to), this.#slot(from), this.#slot(from) + this.#slotBytes(from));
  }

  setSlot(slot: number, bytes: Uint8Array): void {
    this.#memory.u8.set(bytes, this.#slot(slot));
  }

  encode(layer: number, slots: readonly number[], pages: readonly number[]): void {
    for (let n = 0; n < slots.length; n++) {
      this.#memory.kernels.encodePage(this.#struct(layer), this.#slot(slots[n]!), this.#page(layer, pages[n]!));
    }
  }

  decode(layer: number, page: number, slot: number): void {
    const { kvHeads, headDim } = this.#shape;
    const rows = this.#decodePage(layer, page);
    for (const side of [0, 1] as const) {
      const to = this.#slot(slot) + 2 * rawOffset(WINDOW, headDim, 0, side, 0);
      this.#memory.kernels.writeRows(rows[side], false, WINDOW, kvHeads, headDim, to, WINDOW);
    }
  }

  async read(layer: number, table: PageTable): Promise<Tokens> {
    const { sinks, kvHeads, headDim } = this.#shape;
    const { kernels, input, f32 } = this.#memory;
    const perToken = kvHeads * headDim;
    const tokens = { keys: new Float32Array(table.length * perToken), values: new Float32Array(table.length * perToken) };
    const addSlot = (slot: number, at: number, count: number): void => {
      for (const [side, out] of [tokens.keys, tokens.values].entries()) {
        const capacity = this.#slotTokens(slot);
        const from = this.#slot(slot) + 2 * rawOffset(capacity, headDim, 0, side as 0 | 1, 0);
        kernels.readRows(from, capacity, count, kvHeads, headDim, input);
        out.set(f32.subarray(input / 4, input / 4 + count * perToken), at * perToken);
      }
    };
    if (sinks > 0 && table.length > 0) addSlot(table.sinkSlot, 0, Math.min(table.length, sinks));
    for (let n = 0; n < table.pageCount; n++) {
      const [keys, values] = this.#decodePage(layer, table.pages[n]!);
      tokens.keys.set(f32.subarray(keys / 4, values / 4), (sinks + n * WINDOW) * perToken);
      tokens.values.set(f32.subarray(values / 4, values / 4 + WINDOW * perToken), (sinks + n * WINDOW) * perToken);
    }
    for (let n = 0; n < table.rawCount; n++) {
      const at = sinks + (table.pageCount + n) * WINDOW;
      addSlot(table.raws[n]!, at, Math.min(WINDOW, table.length - at));
    }
    return tokens;
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { u8 } = this.#memory;
    const slot = (number: number): Uint8Array => u8.slice(this.#slot(number), this.#slot(number) + this.#slotBytes(number));
    return {
      pages: Array.from(table.pages.subarray(0, table.pageCount), page =>
        u8.slice(this.#page(layer, page), this.#page(layer, page) + this.#shape.pages[layer]!.bytes)
      ),
      raws: Array.from(table.raws.subarray(0, table.rawCount), slot),
      sinks: this.#shape.sinks > 0 && table.length > 0 ? slot(table.sinkSlot) : undefined
    };
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    this.#memory.u8.set(bytes, this.#page(layer, page));
  }

  attend(layer: number, tables: readonly PageTable[], queries: readonly Float32Array[], scale: number, out: Float32Array): Output {
    const { queryHeads, kvHeads, headDim, pages } = this.#shape;
    const perToken = queryHeads * headDim;
    const rowsPerToken = queryHeads / kvHeads;
    const { keys, values } = pages[layer]!;
    const call = { items: 0, tokens: 0, pages: 0, raws: 0, done: 0 };
    const flush = (): void => {
      this.#memory.kernels.attend(this.#struct(layer), this.#memory.items, call.items, scale * Math.LOG2E);
      out.set(this.#memory.f32.subarray(this.#memory.output / 4, this.#memory.output / 4 + call.tokens * perToken), call.done * perToken);
      call.done += call.tokens;
      call.items = call.tokens = call.pages = call.raws = 0;
    };
    for (let n = 0; n < tables.length; n++) {
      const table = tables[n]!;
      const query = queries[n]!;
      const tokens = query.length / perToken;
      const decoded = tokens * rowsPerToken >= PROMPT_ROWS && keys.codec.channels + values.codec.channels < 16;
      // Equal parts: a short last one would decode all pages for a few rows.
      const most = Math.ceil(tokens / Math.ceil(tokens / this.#memory.callTokens));
      for (let from = 0; from < tokens; ) {
        const count = Math.min(tokens - from, most, this.#memory.callTokens - call.tokens);
        this.#memory.f32.set(query.subarray(from * perToken, (from + count) * perToken), this.#memory.input / 4 + call.tokens * perToken);
        this.#addItem(call, table, count, table.length - tokens + from, decoded);
        from += count;
        // A sequence is in a call once: there is room for its page numbers once.
        if (from < tokens || call.tokens === this.#memory.callTokens) flush();
      }
    }
    if (call.items > 0) flush();
    return outputOf(out);
  }

  dispose(): void {
    // The memory goes with the last reference to this store; there is nothing to hand back.
  }

  /** Writes an Item (assembly/attend.ts) and the page numbers and raw runs it points at. */
  #addItem(
    call: { items: number; tokens: number; pages: number; raws: number },
    table: PageTable,
    tokens: number,
    position: number,
    decoded: boolean
  ): void {
    const { sinks, queryHeads, headDim } = this.#shape;
    const tokenBytes = 4 * call.tokens * queryHeads * headDim;
    const sinkTokens = Math.min(table.length, sinks);
    const rawRecords = this.#memory.rawRecords + 4 * RAW_WORDS * call.raws;
    const pageNumbers = this.#memory.pageNumbers + 4 * call.pages;
    const words = this.#memory.u32;

    for (let i = 0; i < table.pageCount; i++) words[pageNumbers / 4 + i] = table.pages[i]!;
    let raw = rawRecords / 4;
    const addRaw = (slot: number, count: number, at: number): void => {
      words[raw++] = this.#slot(slot);
      words[raw++] = this.#slotTokens(slot);
      words[raw++] = count;
      words[raw++] = at;
    };
    if (sinkTokens > 0) addRaw(table.sinkSlot, sinkTokens, 0);
    for (let i = 0; i < table.rawCount; i++) {
      const at = sinks + WINDOW * (table.pageCount + i);
      addRaw(table.raws[i]!, Math.min(WINDOW, table.length - at), at);
    }

    let item = this.#memory.items / 4 + ITEM_WORDS * call.items;
    words[item++] = this.#memory.input + tokenBytes;
    words[item++] = this.#memory.output + tokenBytes;
    words[item++] = tokens;
    words[item++] = position;
    words[item++] = pageNumbers;
    words[item++] = table.pageCount;
    words[item++] = sinks;
    words[item++] = rawRecords;
    words[item++] = (raw - rawRecords / 4) / RAW_WORDS;
    words[item++] = Number(decoded);
    call.items++;
    call.tokens += tokens;
    call.pages += table.pageCount;
    call.raws += (raw - rawRecords / 4) / RAW_WORDS;
  }

  /** Decodes a page into the input region; addresses of its keys and values, f32 [64, kvHeads, headDim]. */
  #decodePage(layer: number, page: number): [keys: number, values: number] {
    const { kernels, input } = this.#memory;
    const values = input + 4 * WINDOW * this.#shape.kvHeads * this.#shape.headDim;
    kernels.decodePage(this.#struct(layer), this.#page(layer, page), input, values);
    return [input, values];
  }

  #struct(layer: number): number {
    return this.#memory.shapes + layer * SHAPE_BYTES;
  }

  #page(layer: number, page: number): number {
    return this.#memory.pages[layer]! + page * this.#shape.pages[layer]!.bytes;
  }

  #slot(slot: number): number {
    const { rawPages, rawPageBytes, sinkBytes } = this.#shape;
    return this.#memory.raw + (slot < rawPages ? slot * rawPageBytes : rawPages * rawPageBytes + (slot - rawPages) * sinkBytes);
  }

  #slotTokens(slot: number): number {
    return slot < this.#shape.rawPages ? WINDOW : this.#shape.sinks;
  }

  #slotBytes(slot: number): number {
    return slot < this.#shape.rawPages ? this.#shape.rawPageBytes : this.#shape.sinkBytes;
  }
}

/** Words of `Shape` in assembly/shape.ts. */
const SHAPE_BYTES = 4 * 24;

/** A struct of u32 fields; an f32 field is given as a Float32Array of one. */
function struct(...fields: (number | Float32Array)[]): Uint32Array {
  return Uint32Array.from(fields, field => (typeof field === 'number' ? field : new Uint32Array(field.buffer)[0]!));
}

/** `Side` in assembly/shape.ts, and the tables it points at. */
function sideStruct({ codec, rowBytes, s2, s1, scales, o }: BlockLayout, constant: (data: ArrayBufferView) => number): Uint32Array {
  const grid = codec.channels === 8 ? undefined : gridOf(codec);
  return struct(
    codec.channels,
    rowBytes,
    s2,
    s1,
    scales,
    o,
    constant(codec.codebook),
    constant(halfNormsOf(codec)),
    grid ? 0 : constant(roundedOf(codec)),
    new Float32Array([grid ? 0 : marginOf(codec)]),
    grid ? constant(grid.bytes) : 0,
    grid?.cells ?? 0,
    new Float32Array([grid?.scale ?? 0])
  );
}

/** f32 [256]: ‖C‖²/2 */
function halfNormsOf({ channels, codebook }: Codec): Float32Array {
  return Float32Array.from({ length: 256 }, (_, c) => {
    let sum = 0;
    for (let k = 0; k < channels; k++) sum += codebook[c * channels + k]! ** 2;
    return sum / 2;
  });
}

/** i16 [4, 128, 2] codewords · 2¹², then i32 [128] ‖C‖²/2 · 2²⁴: the half of 256 codewords of 8 channels that the rest negates. */
function roundedOf(codec: Codec): Uint8Array {
  const pairs = Int16Array.from({ length: 1024 }, (_, i) => {
    const codeword = (i >> 1) % 128;
    const channel = 2 * (i >> 8) + (i & 1);
    return Math.round(codec.codebook[codeword * 8 + channel]! * 2 ** 12);
  });
  const halfNorms = Int32Array.from(halfNormsOf(codec).subarray(0, 128), x => Math.round(x * 2 ** 24));
  const bytes = new Uint8Array(pairs.byteLength + halfNorms.byteLength);
  bytes.set(new Uint8Array(pairs.buffer));
  bytes.set(new Uint8Array(halfNorms.buffer), pairs.byteLength);
  return bytes;
}

/** The largest ‖C‖₁, and ½: 2¹¹ units of a rounded score are more than f32 is off by. */
function marginOf({ channels, codebook }: Codec): number {
  let largest = 0;
  for (let at = 0; at < codebook.length; at += channels) {
    largest = Math.max(
      largest,
      codebook.subarray(at, at + channels).reduce((sum, x) => sum + Math.abs(x), 0)
    );
  }
  return largest + 0.5;
}
