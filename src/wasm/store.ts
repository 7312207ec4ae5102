// The CPU backend: a store in one WebAssembly.Memory, over which kernels compiled from assembly/ run.

import { type Dump, heldTokens, type Output, outputOf, type PageTable, type Run, type Store, type Tokens, type Write } from '../backend.ts';
import { balanceOf, ofHead } from '../format/balance.ts';
import { type Data, isHalf, wordsOf } from '../format/half.ts';
import { type Heads, rawBytes, rawOffset, WINDOW } from '../format/layout.ts';
import { type CacheShape, slotBytes, slotTokens } from '../shape.ts';
import { ITEM, RAW, writeStruct } from './abi.ts';
import { Learned } from './learned.ts';
import { recordBytes, WasmMemory } from './memory.ts';

/**
 * Rows (query tokens × query heads per KV head) from which the SIMD binaries decode pages for all of them. At headDim 64 and 2,048
 * tokens that is 0.99 (nsn2), 1.17 (nsn4 and nsn2), 1.4 times (nsn4) as fast as looking codes up; of 48 rows 0.75, 0.86, 1.04; of
 * 255 rows 1.23, 1.5, 1.8. With nsn1 on both sides it is never faster (0.7; 0.99).
 */
const PROMPT_ROWS = 96;

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

  write(layer: number, writes: readonly Write[]): void {
    for (const { keys, values, runs } of writes) {
      for (const run of runs) this.#writeRun(layer, run, keys as Data, values as Data);
    }
  }

  #writeRun(layer: number, { slot, at, from, tokens }: Run, keys: Data, values: Data): void {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    const capacity = slotTokens(this.#shape, slot);
    for (const [side, data] of [keys, values].entries()) {
      const channels = side === 0 ? headDim : valueDim;
      const perToken = kvHeads * channels;
      const half = isHalf(data);
      const view = half ? this.#memory.u16 : this.#memory.f32;
      view.set(wordsOf(data).subarray(from * perToken, (from + tokens) * perToken), this.#memory.input / view.BYTES_PER_ELEMENT);
      const to = this.#slot(slot) + 2 * rawOffset(heads, capacity, 0, side as 0 | 1, at);
      this.#memory.kernels.writeRows(this.#memory.input, half, tokens, kvHeads, channels, to, headBytes(heads, capacity));
    }
  }

  copySlot(from: number, to: number): void {
    this.#memory.u8.copyWithin(this.#slot(to), this.#slot(from), this.#slot(from) + slotBytes(this.#shape, from));
  }

  setSlot(slot: number, bytes: Uint8Array): void {
    this.#memory.u8.set(bytes, this.#slot(slot));
  }

  encode(layer: number, slots: readonly number[], pages: readonly number[], sequences: readonly number[]): void {
    for (let n = 0; n < slots.length; n++) {
      const orders = this.#orders(layer, sequences[n]!);
      this.#memory.kernels.encodePage(this.#layer(layer), orders, this.#slot(slots[n]!), this.#page(layer, pages[n]!));
    }
  }

  decode(layer: number, page: number, slot: number, sequence: number): void {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    const rows = this.#decodePage(layer, page, sequence);
    for (const side of [0, 1] as const) {
      const to = this.#slot(slot) + 2 * rawOffset(heads, WINDOW, 0, side, 0);
      this.#memory.kernels.writeRows(rows[side], false, WINDOW, kvHeads, side === 0 ? headDim : valueDim, to, headBytes(heads, WINDOW));
    }
  }

  addEnergies(layer: number, sequence: number, query: Float32Array, first: number, count: number): void {
    const { kernels, f32, input, callTokens } = this.#memory;
    const { queryHeads, headDim } = this.#shape.layers[layer]!;
    const perToken = queryHeads * headDim;
    const energies = this.#learned(layer, sequence).energies.byteOffset;
    for (let from = first; from < first + count; from += callTokens) {
      const tokens = Math.min(callTokens, first + count - from);
      f32.set(query.subarray(from * perToken, (from + tokens) * perToken), input / 4);
      kernels.addQueryEnergies(this.#layer(layer), input, tokens, energies);
    }
  }

  learn(layer: number, sequence: number, slots: readonly number[]): void {
    const { kvHeads, headDim } = this.#shape.layers[layer]!;
    const { kernels, f32, output } = this.#memory;
    const learned = this.#learned(layer, sequence);
    const keys = f32.subarray(output / 4, output / 4 + learned.energies.length).fill(0);
    for (const slot of slots) kernels.addKeyEnergies(this.#layer(layer), this.#slot(slot), output);
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

  async read(layer: number, table: PageTable): Promise<Tokens> {
    const { sinks } = this.#shape;
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    const { kernels, input, f32 } = this.#memory;
    const [perKey, perValue] = [kvHeads * headDim, kvHeads * valueDim];
    const held = heldTokens(table, this.#shape.sinks);
    const tokens = { keys: new Float32Array(held * perKey), values: new Float32Array(held * perValue) };
    const addSlot = (slot: number, at: number, count: number): void => {
      for (const [side, out] of [tokens.keys, tokens.values].entries()) {
        const channels = side === 0 ? headDim : valueDim;
        const capacity = slotTokens(this.#shape, slot);
        const from = this.#slot(slot) + 2 * rawOffset(heads, capacity, 0, side as 0 | 1, 0);
        kernels.readRows(from, headBytes(heads, capacity), count, kvHeads, channels, input);
        out.set(f32.subarray(input / 4, input / 4 + count * kvHeads * channels), at * kvHeads * channels);
      }
    };
    if (sinks > 0 && held > 0) addSlot(table.sinkSlot, 0, Math.min(held, sinks));
    for (let n = 0; n < table.pageCount; n++) {
      const [keys, values] = this.#decodePage(layer, table.pages[n]!, table.sequence);
      tokens.keys.set(f32.subarray(keys / 4, values / 4), (sinks + n * WINDOW) * perKey);
      tokens.values.set(f32.subarray(values / 4, values / 4 + WINDOW * perValue), (sinks + n * WINDOW) * perValue);
    }
    for (let n = 0; n < table.rawCount; n++) {
      const at = sinks + (table.pageCount + n) * WINDOW;
      addSlot(table.raws[n]!, at, Math.min(WINDOW, held - at));
    }
    return tokens;
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const { u8 } = this.#memory;
    const heads = this.#shape.layers[layer]!;
    const learned = heads.page.keys.balanced ? this.#learned(layer, table.sequence) : undefined;
    const slot = (number: number): Uint8Array =>
      u8.slice(this.#slot(number), this.#slot(number) + rawBytes(heads, slotTokens(this.#shape, number)));
    return {
      pages: Array.from(table.pages.subarray(0, table.pageCount), page =>
        u8.slice(this.#page(layer, page), this.#page(layer, page) + heads.page.bytes)
      ),
      raws: Array.from(table.raws.subarray(0, table.rawCount), slot),
      sinks: this.#shape.sinks > 0 && table.length > 0 ? slot(table.sinkSlot) : undefined,
      balance: learned?.balance.slice(),
      energies: learned && new Uint8Array(learned.energies.slice().buffer)
    };
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    this.#memory.u8.set(bytes, this.#page(layer, page));
  }

  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly Float32Array[],
    scale: number,
    out: Float32Array,
    lse?: Float32Array
  ): Output {
    const { queryHeads, kvHeads, headDim, valueDim, page } = this.#shape.layers[layer]!;
    const { f32, output, denominators } = this.#memory;
    const perToken = queryHeads * headDim;
    const rowsPerToken = queryHeads / kvHeads;
    const { keys, values } = page;
    const call = { items: 0, tokens: 0, pages: 0, raws: 0, done: 0 };
    const flush = (): void => {
      this.#memory.kernels.attend(this.#layer(layer), this.#memory.items, call.items, scale * Math.LOG2E);
      const perOut = queryHeads * valueDim;
      out.set(f32.subarray(output / 4, output / 4 + call.tokens * perOut), call.done * perOut);
      for (let i = 0; lse && i < call.tokens * queryHeads; i++) {
        lse[call.done * queryHeads + i] = Math.LN2 * (f32[denominators / 4 + 2 * i]! + Math.log2(f32[denominators / 4 + 2 * i + 1]!));
      }
      call.done += call.tokens;
      call.items = call.tokens = call.pages = call.raws = 0;
    };
    for (let n = 0; n < tables.length; n++) {
      const table = tables[n]!;
      const query = queries[n]!;
      const tokens = query.length / perToken;
      const decoded = tokens * rowsPerToken >= PROMPT_ROWS && keys.codec.bits + values.codec.bits > 2;
      // Equal parts: a short last one would decode all pages for a few rows.
      const most = Math.ceil(tokens / Math.ceil(tokens / this.#memory.callTokens));
      for (let from = 0; from < tokens; ) {
        const count = Math.min(tokens - from, most, this.#memory.callTokens - call.tokens);
        f32.set(query.subarray(from * perToken, (from + count) * perToken), this.#memory.input / 4 + call.tokens * perToken);
        this.#addItem(call, layer, table, count, table.length - tokens + from, decoded);
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

  /** Writes an item and the page numbers and raw runs it points at. */
  #addItem(
    call: { items: number; tokens: number; pages: number; raws: number },
    layer: number,
    table: PageTable,
    tokens: number,
    position: number,
    decoded: boolean
  ): void {
    const { sinks } = this.#shape;
    const { queryHeads, headDim, valueDim, keepSinks } = this.#shape.layers[layer]!;
    const firstRow = call.tokens * queryHeads;
    const sinkTokens = Math.min(table.length, sinks);
    const rawBytes = this.#memory.kernels.rawBytes();
    const rawRecords = this.#memory.rawRecords + rawBytes * call.raws;
    const pageNumbers = this.#memory.pageNumbers + 4 * call.pages;
    const pagePositions = this.#memory.pagePositions + 4 * call.pages;
    const words = this.#memory.u32;

    for (let i = 0; i < table.pageCount; i++) {
      words[pageNumbers / 4 + i] = table.pages[i]!;
      words[pagePositions / 4 + i] = sinks + WINDOW * table.windows[i]!;
    }
    let rawCount = 0;
    const addRaw = (slot: number, tokens: number, position: number, kept: boolean): void => {
      const at = (rawRecords + rawBytes * rawCount++) / 4;
      const run = { address: this.#slot(slot), capacity: slotTokens(this.#shape, slot), tokens, position, kept: Number(kept) };
      writeStruct(this.#memory, at, RAW, run);
    };
    if (sinkTokens > 0) addRaw(table.sinkSlot, sinkTokens, 0, keepSinks);
    for (let i = 0; i < table.rawCount; i++) {
      const at = sinks + WINDOW * (table.coded + i);
      addRaw(table.raws[i]!, Math.min(WINDOW, table.length - at), at, false);
    }
    const item = (this.#memory.items + this.#memory.kernels.itemBytes() * call.items) / 4;
    writeStruct(this.#memory, item, ITEM, {
      queries: this.#memory.input + 4 * firstRow * headDim,
      out: this.#memory.output + 4 * firstRow * valueDim,
      denominators: this.#memory.denominators + 8 * firstRow,
      tokens,
      position,
      pages: pageNumbers,
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

  /** Decodes a page into the input region; addresses of its keys, f32 [64, kvHeads, headDim], and values, f32 [64, kvHeads, valueDim]. */
  #decodePage(layer: number, page: number, sequence: number): [keys: number, values: number] {
    const { kernels, input } = this.#memory;
    const { kvHeads, headDim } = this.#shape.layers[layer]!;
    const values = input + 4 * WINDOW * kvHeads * headDim;
    kernels.decodePage(this.#layer(layer), this.#orders(layer, sequence), this.#page(layer, page), input, values);
    return [input, values];
  }

  /** Where keys are balanced. */
  #learned(layer: number, sequence: number): Learned {
    return new Learned(this.#memory, this.#shape, layer, sequence);
  }

  /** The order of every head's keys, which a sequence has learned; 0 where keys are not balanced. */
  #orders(layer: number, sequence: number): number {
    const first = this.#memory.learned[layer]!;
    return first && first + sequence * recordBytes(this.#shape.layers[layer]!);
  }

  #layer(layer: number): number {
    return this.#memory.shapes[layer]!;
  }

  #page(layer: number, page: number): number {
    return this.#memory.pages[layer]! + page * this.#shape.layers[layer]!.page.bytes;
  }

  #slot(slot: number): number {
    const { rawSlots, rawSlotBytes, sinkBytes } = this.#shape;
    return this.#memory.raw + (slot < rawSlots ? slot * rawSlotBytes : rawSlots * rawSlotBytes + (slot - rawSlots) * sinkBytes);
  }
}

/** Bytes of a head in a raw slot of `tokens` tokens. */
function headBytes({ headDim, valueDim }: Heads, tokens: number): number {
  return 2 * tokens * (headDim + valueDim);
}
