// The reference as a backend: the same pages, every verb in f64 by src/reference/reference.ts. For tests, and for reading along.

import {
  type Backend,
  BackendError,
  backendOf,
  type Dump,
  everything,
  type Needs,
  type Output,
  outputOf,
  type PageTable,
  type Piece,
  piecesOf,
  type Run,
  type Store,
  type Tokens,
  type Write
} from '../backend.ts';
import { balanceOf, channelOrder, ofHead } from '../format/balance.ts';
import { clampedHalf, type Data, floatsOf, fromHalf, isHalf, toHalf, wordsOf } from '../format/half.ts';
import { blockOffset, channelPairs, rawBytes, rawOffset, WINDOW } from '../format/layout.ts';
import type { Target } from '../input.ts';
import { type Layout, stridesOf } from '../rows.ts';
import { type CacheShape, slotBytes, slotTokens, tokenBytes } from '../shape.ts';
import { attend, type Coding, codingOf, decode, encode, keyEnergies, pack, unpack } from './reference.ts';

export function openReference(): Backend {
  return backendOf({
    name: 'reference',
    variant: 'f64',
    reason: 'it was asked for',
    createStore: shape => new ReferenceStore(shape)
  });
}

const SIDES = ['keys', 'values'] as const;
/** Bytes of a cache at most, as many as WebAssembly has. Every page and slot is an array of its own: billions would fill the heap. */
const MOST_BYTES = 2 ** 32;

/** What a sequence has learned of a layer. */
interface Learned {
  /** u8 [kvHeads, headDim / 2] */
  readonly balance: Uint8Array;
  /** f32 [kvHeads, headDim / 2] */
  readonly energies: Float32Array;
}

class ReferenceStore implements Store {
  readonly takesBuffers = false;
  bytes = 0;
  readonly #shape: CacheShape;
  readonly #pages: readonly Uint8Array[][];
  readonly #slots: Uint16Array[] = [];
  /** [layers][sequences] */
  readonly #learned: readonly Learned[][];

  constructor(shape: CacheShape) {
    this.#shape = shape;
    const { pageBytes, rawBytes, learnedBytes } = tokenBytes(shape);
    const bytes = pageBytes + rawBytes + learnedBytes;
    if (bytes > MOST_BYTES)
      throw new BackendError('reference', `expected at most ${MOST_BYTES} bytes for capacity ${shape.capacity}, got ${bytes}`);
    this.#pages = shape.layers.map(() => []);
    this.#learned = shape.layers.map(() => []);
    if (shape.reserve) this.reserve(everything(shape));
  }

  reserve({ pages = new Map(), slots = new Map(), sequences = [] }: Needs): void {
    const { layers, sinks, rawSlots } = this.#shape;
    const need = <T>(list: T[], n: number, bytes: number, make: () => T): void => {
      if (list[n] !== undefined) return;
      list[n] = make();
      this.bytes += bytes;
    };
    const needSlot = (slot: number): void => {
      const bytes = slotBytes(this.#shape, slot);
      need(this.#slots, slot, bytes, () => new Uint16Array(bytes / 2));
    };
    for (const [layer, numbers] of pages) {
      const { bytes } = layers[layer]!.page;
      for (const page of numbers) need(this.#pages[layer]!, page, bytes, () => new Uint8Array(bytes));
    }
    for (const slot of slots.keys()) needSlot(slot);
    for (const sequence of sequences) {
      layers.forEach(({ kvHeads, headDim, learnedBytes }, layer) => {
        const pairs = (kvHeads * headDim) / 2;
        if (sinks > 0) needSlot(rawSlots + sequence * layers.length + layer);
        need(this.#learned[layer]!, sequence, learnedBytes, () => ({ balance: new Uint8Array(pairs), energies: new Float32Array(pairs) }));
      });
    }
  }

  write(layer: number, writes: readonly Write[]): void {
    for (const { keys, values, layout, runs } of writes) {
      for (const run of runs) this.#writeRun(layer, run, keys as Data, values as Data, layout);
    }
  }

  #writeRun(layer: number, { slot, at, from, tokens }: Run, keys: Data, values: Data, layout: Layout): void {
    const heads = this.#shape.layers[layer]!;
    const { kvHeads, headDim, valueDim } = heads;
    [keys, values].forEach((data, side) => {
      const channels = side === 0 ? headDim : valueDim;
      const words = wordsOf(data);
      const rows = stridesOf({ layout, tokens: words.length / (kvHeads * channels), heads: kvHeads });
      const halfAt = isHalf(data) ? (i: number) => words[i]! : (i: number) => toHalf(words[i]!);
      for (let t = 0; t < tokens; t++) {
        for (let head = 0; head < kvHeads; head++) {
          const to = rawOffset(heads, slotTokens(this.#shape, slot), head, side as 0 | 1, at + t);
          const row = (from + t) * rows.tokenRows + head * rows.headRows;
          for (let i = 0; i < channels; i++) this.#slots[slot]![to + i] = halfAt(row * channels + i);
        }
      }
    });
  }

  copySlot(from: number, to: number): void {
    this.#slots[to]!.set(this.#slots[from]!);
  }

  setSlot(_layer: number, slot: number, bytes: Uint8Array): void {
    new Uint8Array(this.#slots[slot]!.buffer).set(bytes);
  }

  encode(layer: number, slots: readonly number[], pages: readonly number[], sequences: readonly number[]): void {
    slots.forEach((slot, n) => this.#encodePage(layer, slot, pages[n]!, sequences[n]!));
  }

  #encodePage(layer: number, slot: number, page: number, sequence: number): void {
    const { kvHeads, headDim, valueDim, page: layout } = this.#shape.layers[layer]!;
    for (let head = 0; head < kvHeads; head++) {
      SIDES.forEach((side, n) => {
        const rows = this.#rawRows(layer, slot, head, n as 0 | 1);
        const window = encode(rows, n === 0 ? headDim : valueDim, this.#coding(layer, sequence, head, side));
        this.#pages[layer]![page]!.set(pack(window, layout[side]), blockOffset(layout, head, side));
      });
    }
  }

  decode(layer: number, page: number, slot: number, sequence: number): void {
    const heads = this.#shape.layers[layer]!;
    for (let head = 0; head < heads.kvHeads; head++) {
      for (const side of [0, 1] as const) {
        const rows = this.#pageRows(layer, page, sequence, head, side);
        this.#slots[slot]!.set(Uint16Array.from(rows, clampedHalf), rawOffset(heads, WINDOW, head, side, 0));
      }
    }
  }

  addEnergies(layer: number, sequence: number, query: Data, layout: Layout, first: number, count: number): void {
    const { kvHeads, queryHeads, headDim, rope } = this.#shape.layers[layer]!;
    const { energies } = this.#learned[layer]![sequence]!;
    const pairs = channelPairs(headDim, rope);
    const floats = floatsOf(query);
    const { tokenRows, headRows } = stridesOf({ layout, tokens: query.length / (queryHeads * headDim), heads: queryHeads });
    for (let t = first; t < first + count; t++) {
      for (let h = 0; h < queryHeads; h++) {
        const head = Math.floor(h / (queryHeads / kvHeads));
        const at = (t * tokenRows + h * headRows) * headDim;
        pairs.forEach(([a, b], pair) => {
          energies[head * pairs.length + pair]! += floats[at + a]! ** 2 + floats[at + b]! ** 2;
        });
      }
    }
  }

  learn(layer: number, sequence: number, slots: readonly number[]): void {
    const { kvHeads, headDim, rope } = this.#shape.layers[layer]!;
    const { balance, energies } = this.#learned[layer]![sequence]!;
    for (let head = 0; head < kvHeads; head++) {
      const windows = slots.map(slot => this.#rawRows(layer, slot, head, 0));
      const queries = ofHead(energies, head, headDim);
      ofHead(balance, head, headDim).set(balanceOf(keyEnergies(windows, headDim, rope), queries));
    }
  }

  setBalance(layer: number, sequence: number, balance: Uint8Array): void {
    this.#learned[layer]![sequence]!.balance.set(balance);
  }

  setEnergies(layer: number, sequence: number, energies?: Uint8Array): void {
    const to = this.#learned[layer]![sequence]!.energies;
    if (energies) new Uint8Array(to.buffer).set(energies);
    else to.fill(0);
  }

  copyBalance(layer: number, from: number, to: number): void {
    const { balance, energies } = this.#learned[layer]![from]!;
    this.#learned[layer]![to]!.balance.set(balance);
    this.#learned[layer]![to]!.energies.set(energies);
  }

  async read(layer: number, sequence: number, pieces: readonly Piece[], out: Tokens<Target, Target>, layout: Layout): Promise<void> {
    const { kvHeads, headDim, valueDim } = this.#shape.layers[layer]!;
    for (const side of [0, 1] as const) {
      const data = out[SIDES[side]] as Data;
      const channels = side === 0 ? headDim : valueDim;
      const words = wordsOf(data);
      const rounded = isHalf(data) ? clampedHalf : (x: number) => x;
      const { tokenRows, headRows } = stridesOf({ layout, tokens: words.length / (kvHeads * channels), heads: kvHeads });
      for (const piece of pieces) {
        const { at, tokens, first } = piece;
        for (let head = 0; head < kvHeads; head++) {
          const rows = this.#windowRows(layer, sequence, piece, head, side);
          for (let t = 0; t < tokens; t++) {
            const row = (first + t) * tokenRows + head * headRows;
            for (let i = 0; i < channels; i++) words[row * channels + i] = rounded(rows[(at + t) * channels + i]!);
          }
        }
      }
    }
  }

  async dump(layer: number, table: PageTable): Promise<Dump> {
    const heads = this.#shape.layers[layer]!;
    const slot = (number: number): Uint8Array =>
      new Uint8Array(this.#slots[number]!.slice(0, rawBytes(heads, slotTokens(this.#shape, number)) / 2).buffer);
    const { balance, energies } = this.#learned[layer]![table.sequence]!;
    const { balanced } = heads.page.keys;
    return {
      pages: Array.from(table.pages.subarray(0, table.pageCount), page => this.#pages[layer]![page]!.slice()),
      raws: Array.from(table.raws.subarray(0, table.rawCount), slot),
      sinks: this.#shape.sinks > 0 && table.length > 0 ? slot(table.sinkSlot) : undefined,
      balance: balanced ? balance.slice() : undefined,
      energies: balanced ? new Uint8Array(energies.slice().buffer) : undefined
    };
  }

  setPage(layer: number, page: number, bytes: Uint8Array): void {
    this.#pages[layer]![page]!.set(bytes);
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
    granted?.();
    const { kvHeads, queryHeads, headDim, valueDim, window, keepSinks, softcap, slopes, sinkLogits } = this.#shape.layers[layer]!;
    const sinks = keepSinks ? this.#shape.sinks : 0;
    const words = wordsOf(out);
    const rounded = isHalf(out) ? clampedHalf : (x: number) => x;
    let firstRow = 0;
    tables.forEach((table, n) => {
      const pieces = piecesOf(table, this.#shape.sinks);
      const heads = Array.from({ length: kvHeads }, (_, head) =>
        SIDES.map((_, side) => this.#rows(layer, table.sequence, pieces, head, side as 0 | 1))
      );
      const positions = pieces.flatMap(({ position, tokens }) => Array.from({ length: tokens }, (_, n) => position + n));
      const query = floatsOf(queries[n]!);
      const tokens = query.length / (queryHeads * headDim);
      const { tokenRows, headRows } = stridesOf({ layout, tokens, heads: queryHeads });
      for (let t = 0; t < tokens; t++) {
        const position = table.length - tokens + t;
        for (let h = 0; h < queryHeads; h++) {
          const [keys, values] = heads[Math.floor(h / (queryHeads / kvHeads))]!;
          const row = t * tokenRows + h * headRows;
          const attended = attend(
            Float64Array.from(query.subarray(row * headDim, (row + 1) * headDim), x => x * scale),
            keys!,
            values!,
            { position, positions, window, sinks, softcap, slope: slopes?.[h] ?? 0, sinkLogit: sinkLogits?.[h] ?? -Infinity }
          );
          for (let i = 0; i < valueDim; i++) words[(firstRow + row) * valueDim + i] = rounded(attended.out[i]!);
          if (lse) lse[firstRow + row] = attended.lse;
        }
      }
      firstRow += tokens * queryHeads;
    });
    return outputOf(out);
  }

  dispose(): void {
    // Nothing outlives this object.
  }

  /** All of a layer's tokens of one head and side, f64 [tokens, channels]. */
  #rows(layer: number, sequence: number, pieces: readonly Piece[], head: number, side: 0 | 1): Float64Array {
    const channels = this.#shape.layers[layer]![side === 0 ? 'headDim' : 'valueDim'];
    const rows = new Float64Array(channels * pieces.reduce((sum, { tokens }) => sum + tokens, 0));
    for (const piece of pieces) {
      const window = this.#windowRows(layer, sequence, piece, head, side);
      rows.set(window.subarray(0, piece.tokens * channels), piece.first * channels);
    }
    return rows;
  }

  /** All tokens of the window or the sinks that a piece is of. */
  #windowRows(layer: number, sequence: number, { coded, number }: Piece, head: number, side: 0 | 1): Float64Array {
    return coded ? this.#pageRows(layer, number, sequence, head, side) : this.#rawRows(layer, number, head, side);
  }

  #rawRows(layer: number, slot: number, head: number, side: 0 | 1): Float64Array {
    const heads = this.#shape.layers[layer]!;
    const tokens = slotTokens(this.#shape, slot);
    const from = rawOffset(heads, tokens, head, side, 0);
    return Float64Array.from(this.#slots[slot]!.subarray(from, from + tokens * (side === 0 ? heads.headDim : heads.valueDim)), fromHalf);
  }

  #pageRows(layer: number, page: number, sequence: number, head: number, side: 0 | 1): Float64Array {
    const { headDim, valueDim, page: layout } = this.#shape.layers[layer]!;
    const block = layout[SIDES[side]];
    const at = blockOffset(layout, head, SIDES[side]);
    const window = unpack(this.#pages[layer]![page]!.subarray(at, at + block.bytes), block, side === 0 ? headDim : valueDim);
    return decode(window, this.#coding(layer, sequence, head, SIDES[side]));
  }

  #coding(layer: number, sequence: number, head: number, side: 'keys' | 'values'): Coding {
    const { headDim, page, rope } = this.#shape.layers[layer]!;
    const layout = page[side];
    if (side === 'values') return codingOf(layout);
    if (!layout.balanced) return codingOf(layout, rope);
    const { balance } = this.#learned[layer]![sequence]!;
    return codingOf(layout, rope, channelOrder(ofHead(balance, head, headDim), headDim, rope));
  }
}
