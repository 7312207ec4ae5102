// The CPU backend: a store in one WebAssembly.Memory, over which kernels compiled from assembly/ run.

import {
  type Dump,
  type Needs,
  type Output,
  outputOf,
  type PageTable,
  type Piece,
  type Run,
  type Store,
  type Tokens,
  type Write
} from '../backend.ts';
import { balanceOf, ofHead } from '../format/balance.ts';
import { type Data, isHalf } from '../format/half.ts';
import { rawBytes, WINDOW } from '../format/layout.ts';
import type { Target } from '../input.ts';
import { type Layout, type Rows, stridesOf } from '../rows.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import { ITEM, RAW, writeStruct } from './abi.ts';
import { Learned } from './learned.ts';
import { recordBytes, WasmMemory } from './memory.ts';
import { addressesOf, copyToSlot, eachRun, eachStretch, rowsAt } from './raws.ts';
import { arrayAt, copyRows, fromToken, load, type Placed, saveRows } from './rows.ts';

/**
 * Rows (query tokens × query heads per KV head) from which the SIMD binaries decode pages for all of them. At headDim 64 and 2,048
 * tokens that is 0.99 (nsn2), 1.17 (nsn4 and nsn2), 1.4 times (nsn4) as fast as looking codes up; of 48 rows 0.75, 0.86, 1.04; of
 * 255 rows 1.23, 1.5, 1.8. With nsn1 on both sides it is never faster (0.7; 0.99).
 */
const PROMPT_ROWS = 96;

/** What is written so far of a call of the kernel. */
interface Call {
  items: number;
  tokens: number;
  pages: number;
  raws: number;
}

/** Tokens of a sequence's query in a call: their first row there, and the first row of the sequence in what is asked for. */
interface Part {
  readonly rows: Rows;
  readonly from: number;
  readonly tokens: number;
  readonly firstRow: number;
  readonly toRow: number;
}

/** Whether tokens of an array are as the kernels have them: f32, a token's heads side by side. */
function isPlain(data: Data, layout: Layout, tokens: number): boolean {
  return !isHalf(data) && (layout === 'tokens-first' || tokens === 1);
}

export class WasmStore implements Store {
  readonly takesBuffers = false;
  readonly #shape: CacheShape;
  readonly #memory: WasmMemory;

  constructor(module: WebAssembly.Module, shape: CacheShape) {
    this.#shape = shape;
    this.#memory = new WasmMemory(module, shape);
  }

  get bytes(): number {
    return this.#memory.bytes;
  }

  reserve(needs: Needs): void {
    this.#memory.reserve(needs);
  }

  write(layer: number, writes: readonly Write[]): void {
    for (const { keys, values, layout, runs } of writes) {
      for (const run of runs) this.#writeRun(layer, run, keys as Data, values as Data, layout);
    }
  }

  #writeRun(layer: number, { slot, at, from, tokens }: Run, keys: Data, values: Data, layout: Layout): void {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    for (const [side, data] of [keys, values].entries()) {
      const channels = side === 0 ? headDim : valueDim;
      const rows = { layout, tokens: data.length / (kvHeads * channels), heads: kvHeads };
      const staged = load(this.#memory, data, rows, channels, from, tokens, this.#memory.window);
      copyToSlot(this.#memory, heads, staged, slot, side, at, tokens);
      this.#memory.clearWindow(4 * tokens * kvHeads * channels);
    }
  }

  copySlot(from: number, to: number): void {
    const [source, target] = [this.#memory.slot(from), this.#memory.slot(to)];
    const bytes = this.#memory.togetherBytes(from);
    for (let n = 0; n < Math.min(source.length, target.length); n++) this.#memory.u8.copyWithin(target[n]!, source[n]!, source[n]! + bytes);
  }

  setSlot(layer: number, slot: number, bytes: Uint8Array): void {
    eachRun(this.#memory, this.#shape, layer, slot, (at, offset, length) =>
      this.#memory.u8.set(bytes.subarray(offset, offset + length), at)
    );
  }

  encode(layer: number, slots: readonly number[], pages: readonly number[], sequences: readonly number[]): void {
    this.#memory.bringGrids();
    for (let n = 0; n < slots.length; n++) {
      const orders = this.#orders(layer, sequences[n]!);
      const raw = addressesOf(this.#memory, slots[n]!);
      this.#memory.kernels.encodePage(this.#layer(layer), orders, raw, this.#memory.page(layer, pages[n]!));
    }
    this.#memory.clearGrids();
  }

  decode(layer: number, page: number, slot: number, sequence: number): void {
    const window = this.#decodePage(layer, page, sequence);
    const heads = this.#shape.layers[layer]!;
    for (const side of [0, 1] as const) copyToSlot(this.#memory, heads, window[side], slot, side, 0, WINDOW);
    this.#memory.clearWindow();
  }

  addEnergies(layer: number, sequence: number, query: Data, layout: Layout, first: number, count: number): void {
    const { kernels, call, roomTokens } = this.#memory;
    const { queryHeads, headDim } = this.#shape.layers[layer]!;
    const rows = { layout, tokens: query.length / (queryHeads * headDim), heads: queryHeads };
    const energies = this.#learned(layer, sequence).energies.byteOffset;
    for (let from = first; from < first + count; from += roomTokens) {
      const tokens = Math.min(roomTokens, first + count - from);
      this.#loadQueries(query, rows, headDim, from, tokens, call.input);
      kernels.addQueryEnergies(this.#layer(layer), call.input, tokens, energies);
    }
  }

  learn(layer: number, sequence: number, slots: readonly number[]): void {
    const { kvHeads, headDim } = this.#shape.layers[layer]!;
    const { kernels, f32, call } = this.#memory;
    const { output } = call;
    const learned = this.#learned(layer, sequence);
    const keys = f32.subarray(output / 4, output / 4 + learned.energies.length).fill(0);
    for (const slot of slots) kernels.addKeyEnergies(this.#layer(layer), addressesOf(this.#memory, slot), output);
    const balance = new Uint8Array(learned.balance.length);
    for (let head = 0; head < kvHeads; head++) {
      const queries = ofHead(learned.energies, head, headDim);
      ofHead(balance, head, headDim).set(balanceOf(ofHead(keys, head, headDim), queries));
    }
    learned.setBalance(balance);
  }

  setBalance(layer: number, sequence: number, balance: Uint8Array): void {
    this.#learned(layer, sequence).setBalance(balance);
  }

  setEnergies(layer: number, sequence: number, energies?: Uint8Array): void {
    const to = this.#learned(layer, sequence).energies;
    if (energies) new Uint8Array(to.buffer, to.byteOffset, to.byteLength).set(energies);
    else to.fill(0);
  }

  copyBalance(layer: number, from: number, to: number): void {
    const source = this.#orders(layer, from);
    this.#memory.u8.copyWithin(this.#orders(layer, to), source, source + recordBytes(this.#shape.layers[layer]!));
  }

  async read(layer: number, sequence: number, pieces: readonly Piece[], out: Tokens<Target, Target>, layout: Layout): Promise<void> {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    for (const { coded, number, at, tokens, first } of pieces) {
      const window = coded ? this.#decodePage(layer, number, sequence) : undefined;
      for (const [side, data] of [out.keys as Data, out.values as Data].entries()) {
        const channels = side === 0 ? headDim : valueDim;
        const rows = { layout, tokens: data.length / (kvHeads * channels), heads: kvHeads };
        const save = (from: Placed, token: number, count: number): void =>
          saveRows(this.#memory, from, this.#memory.windowRows, data, 0, rows, channels, first + token, count);
        if (window) save(fromToken(window[side]!, at), 0, tokens);
        else {
          eachStretch(this.#memory, number, at, tokens, (token, count) =>
            save(rowsAt(this.#memory, heads, number, side, at + token), token, count)
          );
        }
      }
    }
    this.#memory.clearWindow();
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { u8 } = this.#memory;
    const heads = this.#shape.layers[layer]!;
    const learned = heads.page.keys.balanced ? this.#learned(layer, table.sequence) : undefined;
    const slot = (number: number): Uint8Array => {
      const bytes = new Uint8Array(rawBytes(heads, slotTokens(this.#shape, number)));
      eachRun(this.#memory, this.#shape, layer, number, (at, offset, length) => bytes.set(u8.subarray(at, at + length), offset));
      return bytes;
    };
    return {
      pages: Array.from(table.pages.subarray(0, table.pageCount), page =>
        u8.slice(this.#memory.page(layer, page), this.#memory.page(layer, page) + heads.page.bytes)
      ),
      raws: Array.from(table.raws.subarray(0, table.rawCount), slot),
      sinks: this.#shape.sinks > 0 && table.length > 0 ? slot(table.sinkSlot) : undefined,
      balance: learned?.balance.slice(),
      energies: learned && new Uint8Array(learned.energies.slice().buffer)
    };
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    this.#memory.u8.set(bytes, this.#memory.page(layer, page));
  }

  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly Data[],
    layout: Layout,
    scale: number,
    out: Data,
    lse?: Float32Array,
    granted?: () => void
  ): Output<Data> {
    const { queryHeads, kvHeads, headDim, valueDim, page } = this.#shape.layers[layer]!;
    this.#memory.prepareCall({
      tokens: queries.reduce((sum, query) => sum + query.length, 0) / (queryHeads * headDim),
      pages: tables.reduce((sum, { pageCount }) => sum + pageCount, 0),
      raws: tables.reduce((sum, { rawCount }) => sum + 1 + rawCount, 0)
    });
    granted?.();
    const { callTokens, kernels } = this.#memory;
    const { input, items } = this.#memory.call;
    const rowsPerToken = queryHeads / kvHeads;
    const { keys, values } = page;
    const call: Call = { items: 0, tokens: 0, pages: 0, raws: 0 };
    let parts: Part[] = [];
    const flush = (): void => {
      kernels.attend(this.#layer(layer), items, call.items, scale * Math.LOG2E);
      for (const part of parts) this.#saveResults(part, valueDim, out, lse);
      parts = [];
      call.items = call.tokens = call.pages = call.raws = 0;
    };
    let toRow = 0;
    for (let n = 0; n < tables.length; n++) {
      const table = tables[n]!;
      const query = queries[n]!;
      const rows = { layout, tokens: query.length / (queryHeads * headDim), heads: queryHeads };
      // Equal parts, each in one call: a short one would decode all pages for a few rows. No two of a sequence fit in a call, in which
      // there is room for its pages once.
      const most = Math.ceil(rows.tokens / Math.ceil(rows.tokens / callTokens));
      const decoded = most * rowsPerToken >= PROMPT_ROWS && keys.codec.bits + values.codec.bits > 2;
      for (let from = 0; from < rows.tokens; from += most) {
        const tokens = Math.min(rows.tokens - from, most);
        if (call.tokens + tokens > callTokens) flush();
        const firstRow = call.tokens * queryHeads;
        this.#loadQueries(query, rows, headDim, from, tokens, input + 4 * firstRow * headDim);
        this.#addItem(call, layer, table, tokens, table.length - rows.tokens + from, decoded);
        parts.push({ rows, from, tokens, firstRow, toRow });
      }
      toRow += rows.tokens * queryHeads;
    }
    if (call.items > 0) flush();
    return outputOf(out);
  }

  dispose(): void {
    // The memory goes with the last reference to this store; there is nothing to hand back.
  }

  /** Writes an item and the page addresses and raw runs it points at. */
  #addItem(call: Call, layer: number, table: PageTable, tokens: number, position: number, decoded: boolean): void {
    const { sinks } = this.#shape;
    const { queryHeads, headDim, valueDim, keepSinks } = this.#shape.layers[layer]!;
    const firstRow = call.tokens * queryHeads;
    const sinkTokens = Math.min(table.length, sinks);
    const rawBytes = this.#memory.kernels.rawBytes();
    const rawRecords = this.#memory.call.rawRecords + rawBytes * call.raws;
    const pageAddresses = this.#memory.call.pageAddresses + 4 * call.pages;
    const pagePositions = this.#memory.call.pagePositions + 4 * call.pages;
    const words = this.#memory.u32;

    for (let i = 0; i < table.pageCount; i++) {
      words[pageAddresses / 4 + i] = this.#memory.page(layer, table.pages[i]!);
      words[pagePositions / 4 + i] = sinks + WINDOW * table.windows[i]!;
    }
    let rawCount = 0;
    const addRaw = (slot: number, tokens: number, position: number, kept: boolean): void => {
      const number = call.raws + rawCount++;
      const addresses = addressesOf(this.#memory, slot, number);
      const run = { addresses, capacity: this.#memory.together(slot), tokens, position, kept: Number(kept) };
      writeStruct(this.#memory, (this.#memory.call.rawRecords + rawBytes * number) / 4, RAW, run);
    };
    if (sinkTokens > 0) addRaw(table.sinkSlot, sinkTokens, 0, keepSinks);
    for (let i = 0; i < table.rawCount; i++) {
      const at = sinks + WINDOW * (table.coded + i);
      addRaw(table.raws[i]!, Math.min(WINDOW, table.length - at), at, false);
    }
    const item = (this.#memory.call.items + this.#memory.kernels.itemBytes() * call.items) / 4;
    writeStruct(this.#memory, item, ITEM, {
      queries: this.#memory.call.input + 4 * firstRow * headDim,
      out: this.#memory.call.output + 4 * firstRow * valueDim,
      denominators: this.#memory.call.denominators + 8 * firstRow,
      tokens,
      position,
      pages: pageAddresses,
      positions: pagePositions,
      pageCount: table.pageCount,
      orders: this.#orders(layer, table.sequence),
      raws: rawRecords,
      rawCount,
      decoded: Number(decoded)
    });
    call.items++;
    call.tokens += tokens;
    call.pages += table.pageCount;
    call.raws += rawCount;
  }

  /** Decodes a page into the window's region: keys f32 [64, kvHeads, headDim] and values f32 [64, kvHeads, valueDim]. */
  #decodePage(layer: number, page: number, sequence: number): readonly [keys: Placed, values: Placed] {
    const { kernels, window } = this.#memory;
    const { kvHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    const rows: Rows = { layout: 'tokens-first', tokens: WINDOW, heads: kvHeads };
    const values = window + 4 * WINDOW * kvHeads * headDim;
    kernels.decodePage(this.#layer(layer), this.#orders(layer, sequence), this.#memory.page(layer, page), window, values);
    return [arrayAt(window, false, rows, headDim), arrayAt(values, false, rows, valueDim)];
  }

  /** Some tokens of queries to an address, as kernels take them: f32 [tokens, queryHeads, headDim]. */
  #loadQueries(query: Data, rows: Rows, headDim: number, from: number, tokens: number, address: number): void {
    const { heads } = rows;
    if (isPlain(query, rows.layout, tokens)) load(this.#memory, query, rows, headDim, from, tokens, address);
    else {
      const staged = load(this.#memory, query, rows, headDim, from, tokens, this.#memory.call.output);
      copyRows(this.#memory, staged, arrayAt(address, false, { layout: 'tokens-first', tokens, heads }, headDim), tokens, heads, headDim);
    }
  }

  /** What a part of a call came to, into the arrays it is asked for in. */
  #saveResults({ rows, from, tokens, firstRow, toRow }: Part, valueDim: number, out: Data, lse: Float32Array | undefined): void {
    const { f32 } = this.#memory;
    const { input, output, denominators } = this.#memory.call;
    const { heads } = rows;
    const results = arrayAt(output + 4 * firstRow * valueDim, false, { layout: 'tokens-first', tokens, heads }, valueDim);
    // Over the queries, where they must be others: those of this call have been answered.
    saveRows(this.#memory, results, input, out, toRow, rows, valueDim, from, tokens);
    if (!lse) return;
    const { tokenRows, headRows } = stridesOf(rows);
    for (let t = 0, at = denominators / 4 + 2 * firstRow; t < tokens; t++) {
      for (let head = 0; head < heads; head++, at += 2) {
        lse[toRow + (from + t) * tokenRows + head * headRows] = Math.LN2 * (f32[at]! + Math.log2(f32[at + 1]!));
      }
    }
  }

  /** Where keys are balanced. */
  #learned(layer: number, sequence: number): Learned {
    return new Learned(this.#memory, this.#shape, layer, sequence);
  }

  /** The order of every head's keys, which a sequence has learned; 0 where keys are not balanced. */
  #orders(layer: number, sequence: number): number {
    return this.#shape.layers[layer]!.page.keys.balanced ? this.#memory.record(layer, sequence) : 0;
  }

  #layer(layer: number): number {
    return this.#memory.shapes[layer]!;
  }
}
