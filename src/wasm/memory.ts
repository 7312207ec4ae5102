// A cache's memory, which grows: what was granted stays where it is, but views of it do not stay valid. Only `reserve` and `prepareCall`
// make it grow.

import { instantiateSync } from '@assemblyscript/loader';
import { BackendError, everything, type Needs } from '../backend.ts';
import type { Codebook } from '../format/codec.ts';
import { align, type BlockLayout, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { ropeTables, ropeText } from '../rope.ts';
import { type CacheShape, slotBytes } from '../shape.ts';
import { type Kernels, SHAPE, struct } from './abi.ts';
import { Arena } from './arena.ts';
import { placeCodebook, placeSide } from './sides.ts';

const WASM_PAGE = 65536;
/** Addresses of 32 bits; the last page is left so that sizes fit too. */
const MEMORY_LIMIT = WASM_PAGE * 65535;

/** Bytes of what a sequence has learned of a layer (learned.ts draws them). */
export function recordBytes({ kvHeads, headDim }: Pick<LayerShape, 'kvHeads' | 'headDim'>): number {
  const pairs = (kvHeads * headDim) / 2;
  return align(24 * pairs + 4 * pairs + pairs, 16);
}

/** By how much of itself a memory grows at least: what lies idle is less than that, and 600 MB are reached in some 150 steps. */
const GROWTH = 1 / 32;
/** What a call of attend is laid out for at first. */
const FIRST_CALL: Call = { tokens: 8, pages: 32, raws: 8 };

/** A call of attend: its query tokens; pages and raw runs of all its sequences. */
interface Call {
  readonly tokens: number;
  readonly pages: number;
  readonly raws: number;
}

/**
 * The memory of a cache, laid out and filled with tables; kernels over it; and where things are. Regions are addresses.
 */
export class WasmMemory {
  readonly kernels: Kernels;
  u8!: Uint8Array;
  u16!: Uint16Array;
  u32!: Uint32Array;
  f32!: Float32Array;
  /** `Shape` of every layer. */
  readonly shapes: readonly number[];
  /** `Codebook` of every one in use. */
  readonly books: ReadonlyMap<Codebook, number>;
  /** `Side` of every block. */
  readonly sides: ReadonlyMap<BlockLayout, number>;
  readonly tile: number;
  readonly scratch: number;
  /** Query tokens of one call of attend at most. */
  readonly callTokens: number;
  // What a call of attend is laid out in. Whatever its size, `input` holds a window's keys and values, and `output` energies of a layer.
  input = 0;
  output = 0;
  denominators = 0;
  items = 0;
  pageAddresses = 0;
  pagePositions = 0;
  rawRecords = 0;
  readonly #shape: CacheShape;
  readonly #memory: WebAssembly.Memory;
  #arena: Arena;
  #call: Call = { tokens: 0, pages: 0, raws: 0 };
  #callAt = 0;
  #callBytes = 0;
  /** Addresses by number. */
  readonly #slots = new Map<number, number>();
  readonly #pages: readonly number[][];
  readonly #records: readonly number[][];

  /** @param more  codebooks that are used besides those of the shape */
  constructor(module: WebAssembly.Module, shape: CacheShape, more: readonly Codebook[] = []) {
    const { layers, sequences } = shape;
    this.#shape = shape;
    this.#pages = layers.map(() => []);
    this.#records = layers.map(() => []);
    const blocks = layers.flatMap(({ page }) => [page.keys, page.values]);
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    const stages = blocks.flatMap(block => block.segments).flatMap(segment => segment.stages);

    const sizes = sizesOf(module);

    const arena = new Arena(sizes.tablesEnd(Math.max(...blocks.map(block => block.rowBytes))));
    this.#arena = arena;
    arena.give(sizes.staticEnd(), sizes.tablesBegin() - sizes.staticEnd());
    const constants: { readonly at: number; readonly bytes: Uint8Array }[] = [];
    const constant = (data: ArrayBufferView): number => {
      const at = arena.take(data.byteLength);
      constants.push({ at, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) });
      return at;
    };
    const used = new Set([...stages.map(stage => stage.codebook), ...more]);
    const books = new Map([...used].map(book => [book, placeCodebook(book, module, constant)]));
    this.books = new Map([...books].map(([book, { at }]) => [book, at]));
    const sides = new Map<string, number>();
    this.sides = new Map(
      layers.flatMap(({ page, headDim, valueDim }) =>
        [page.keys, page.values].map((block, n) => {
          const channels = n === 0 ? headDim : valueDim;
          const name = `${block.codec.name} ${block.meanBits} ${block.balanced} ${channels}`; // layers that are coded alike share a struct
          const side = sides.get(name) ?? placeSide(block, channels, books, constant);
          sides.set(name, side);
          return [block, side];
        })
      )
    );
    const ropes = new Map(layers.map(({ rope }) => [ropeText(rope), rope] as const));
    const tablesOf = new Map(
      [...ropes].map(([text, rope]) => {
        const { cos, sin, powers, basis, ...tables } = ropeTables(rope);
        return [text, { ...tables, cos: constant(cos), sin: constant(sin), powers: constant(powers), basis: constant(basis) }];
      })
    );

    this.tile = arena.take(most(({ headDim, valueDim }) => sizes.tileBytes(Math.max(headDim, valueDim))));
    this.scratch = arena.take(sizes.scratchBytes());
    const scores = arena.take(sizes.scoresBytes());
    this.callTokens = Math.max(Math.floor(sizes.callRows() / most(({ queryHeads, kvHeads }) => queryHeads / kvHeads)), sequences);
    const inBits = (logits: Float32Array | undefined): number => (logits ? constant(logits.map(x => x * Math.LOG2E)) : 0);
    this.shapes = layers.map(({ kvHeads, queryHeads, rope, window, softcap, slopes, sinkLogits, page }) => {
      const tables = tablesOf.get(ropeText(rope))!;
      return constant(
        struct(SHAPE, {
          kvHeads,
          queryHeadsPerKvHead: queryHeads / kvHeads,
          pairs: tables.pairs,
          pairStep: rope?.interleaved ? 8 : 4,
          pairOffset: rope?.interleaved ? 4 : tables.pairs * 4,
          cos: tables.cos,
          sin: tables.sin,
          trigPairs: tables.trigPairs,
          tier2: tables.tier2,
          tier3: tables.tier3,
          powers: tables.powers,
          basisPairs: tables.basisPairs,
          basis: tables.basis,
          keys: this.sides.get(page.keys)!,
          values: this.sides.get(page.values)!,
          window,
          softcap: softcap * Math.LOG2E,
          slopes: inBits(slopes),
          sinkLogits: inBits(sinkLogits),
          tile: this.tile,
          scratch: this.scratch,
          scores,
          states: 0
        })
      );
    });

    const all = this.#bytesAtCapacity(sizes);
    if (all > MEMORY_LIMIT) {
      throw new BackendError(
        'wasm',
        `expected at most ${MEMORY_LIMIT} bytes (32-bit addresses) for capacity ${shape.capacity}, got ${all}`
      );
    }
    try {
      this.#memory = new WebAssembly.Memory({ initial: Math.ceil(arena.end / WASM_PAGE) });
    } catch (cause) {
      throw new BackendError('wasm', `expected ${arena.end} bytes for capacity ${shape.capacity}, got: ${(cause as Error).message}`, cause);
    }
    this.kernels = kernelsOf(module, this.#memory);
    this.#refresh();
    for (const { at, bytes } of constants) this.u8.set(bytes, at);
    if (shape.reserve) this.reserve(everything(shape));
    this.prepareCall(shape.reserve ? this.#largestCall : FIRST_CALL);
  }

  get bytes(): number {
    return this.#memory.buffer.byteLength;
  }

  /** Query tokens that `input` and `output` hold now. */
  get roomTokens(): number {
    return this.#call.tokens;
  }

  page(layer: number, page: number): number {
    return this.#pages[layer]![page]!;
  }

  slot(slot: number): number {
    return this.#slots.get(slot)!;
  }

  /** What a sequence has learned of a layer whose keys are balanced (learned.ts). */
  record(layer: number, sequence: number): number {
    return this.#records[layer]![sequence]!;
  }

  /** Memory for all of this, or a BackendError and for nothing. */
  reserve({ pages = new Map(), slots = [], sequences = [], idle = () => [] }: Needs): void {
    const { layers, rawSlots, sinks } = this.#shape;
    const wants: { readonly bytes: number; readonly grant: (at: number) => void }[] = [];
    const want = (list: number[], n: number, bytes: number): void => {
      if (list[n] === undefined) wants.push({ bytes, grant: at => (list[n] = at) });
    };
    const wantSlot = (slot: number): void => {
      if (!this.#slots.has(slot)) wants.push({ bytes: slotBytes(this.#shape, slot), grant: at => this.#slots.set(slot, at) });
    };
    for (const [layer, numbers] of pages) for (const page of numbers) want(this.#pages[layer]!, page, layers[layer]!.page.bytes);
    slots.forEach(wantSlot);
    for (const sequence of sequences) {
      layers.forEach((heads, layer) => {
        if (sinks > 0) wantSlot(rawSlots + sequence * layers.length + layer);
        if (heads.page.keys.balanced) want(this.#records[layer]!, sequence, recordBytes(heads));
      });
    }
    if (wants.length === 0) return;

    let given: readonly number[] = [];
    let arena = this.#arena.copy();
    let places = wants.map(({ bytes }) => arena.take(bytes));
    if (arena.end > this.bytes) {
      given = idle().filter(slot => this.#slots.has(slot));
      arena = this.#arena.copy();
      for (const slot of given) arena.give(this.slot(slot), slotBytes(this.#shape, slot));
      places = wants.map(({ bytes }) => arena.take(bytes));
    }
    const unused = this.#arena.end;
    this.#growTo(arena);
    for (const slot of given) this.#slots.delete(slot);
    wants.forEach(({ bytes, grant }, n) => {
      const at = places[n]!;
      if (at < unused) this.u8.fill(0, at, at + bytes); // encoders write no padding, which is 0
      grant(at);
    });
  }

  /** Room for a call of attend, whose tokens may be more than `callTokens`; or a BackendError. */
  prepareCall({ tokens, pages, raws }: Call): void {
    const { tokens: roomTokens, pages: roomPages, raws: roomRaws } = this.#call;
    const least = Math.min(tokens, this.callTokens);
    if (least <= roomTokens && pages <= roomPages && raws <= roomRaws) return;
    const most = this.#largestCall;
    const larger = (need: number, room: number, most: number): number =>
      need <= room ? room : Math.min(2 ** Math.ceil(Math.log2(need)), most);
    const call = {
      tokens: larger(least, roomTokens, most.tokens),
      pages: larger(pages, roomPages, most.pages),
      raws: larger(raws, roomRaws, most.raws)
    };
    const arena = this.#arena.copy();
    if (this.#callBytes > 0) arena.give(this.#callAt, this.#callBytes);
    const parts = this.#callParts(this.kernels, call);
    const bytes = parts.reduce((sum, part) => sum + align(part, 16), 0);
    let at = arena.take(bytes);
    this.#growTo(arena);
    this.#call = call;
    this.#callAt = at;
    this.#callBytes = bytes;
    const next = (part: number): number => {
      at += align(part, 16);
      return at - align(part, 16);
    };
    this.input = next(parts[0]!);
    this.output = next(parts[1]!);
    this.denominators = next(parts[2]!);
    this.items = next(parts[3]!);
    const states = next(parts[4]!);
    this.pageAddresses = next(parts[5]!);
    this.pagePositions = next(parts[6]!);
    this.rawRecords = next(parts[7]!);
    for (const shape of this.shapes) this.u32[shape / 4 + Object.keys(SHAPE).indexOf('states')] = states;
  }

  /** A call of all sequences with all that they can hold. */
  get #largestCall(): Call {
    const { sequences, pageCounts, rawSlots } = this.#shape;
    return { tokens: this.callTokens, pages: sequences * Math.max(...pageCounts), raws: rawSlots + sequences };
  }

  /** Bytes of a call's parts, in the order of `prepareCall`. */
  #callParts(sizes: Kernels, { tokens, pages, raws }: Call): number[] {
    const { layers } = this.#shape;
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    const windowBytes = most(({ kvHeads, headDim, valueDim }) => 4 * WINDOW * kvHeads * (headDim + valueDim));
    const energyBytes = most(({ kvHeads, headDim }) => 2 * kvHeads * headDim);
    const sideBytes = most(({ kvHeads, headDim, valueDim }) => 4 * WINDOW * kvHeads * Math.max(headDim, valueDim));
    // Input or output holds queries or results: what the one is made into lies in the other.
    const callBytes = 4 * tokens * most(({ queryHeads, headDim, valueDim }) => queryHeads * Math.max(headDim, valueDim));
    // An even number of states: those of a prompt go by twos.
    const rows = Math.min(sizes.callRows(), align(tokens * most(({ queryHeads, kvHeads }) => queryHeads / kvHeads), 8));
    return [
      Math.max(callBytes, windowBytes),
      Math.max(callBytes, energyBytes, sideBytes), // a window that is decoded is made into f16, or heads first, here
      8 * tokens * most(({ queryHeads }) => queryHeads),
      sizes.itemBytes() * tokens,
      (most(({ headDim, valueDim }) => sizes.statesBytes(headDim, valueDim)) * rows) / sizes.callRows(),
      4 * pages,
      4 * pages,
      sizes.rawBytes() * raws
    ];
  }

  /** All that it may ever need. */
  #bytesAtCapacity(sizes: Kernels): number {
    const { layers, sequences, pageCounts, rawSlots, rawSlotBytes, sinkSlots, sinkBytes } = this.#shape;
    const call = this.#callParts(sizes, this.#largestCall).reduce((sum, part) => sum + align(part, 16), 0);
    const perLayer = (heads: LayerShape, layer: number): number =>
      pageCounts[layer]! * align(heads.page.bytes, 16) + (heads.page.keys.balanced ? sequences * recordBytes(heads) : 0);
    const raw = rawSlots * align(rawSlotBytes, 16) + sinkSlots * align(sinkBytes, 16);
    return layers.reduce((sum, heads, layer) => sum + perLayer(heads, layer), this.#arena.end + call + raw);
  }

  /** Grows to what an arena takes, which then is the memory's. */
  #growTo(arena: Arena): void {
    const more = Math.ceil((arena.end - this.bytes) / WASM_PAGE);
    if (more > 0) {
      const ample = Math.max(more, Math.min(Math.ceil((this.bytes / WASM_PAGE) * GROWTH), 65535 - this.bytes / WASM_PAGE));
      try {
        this.#memory.grow(this.#shape.reserve ? more : ample);
      } catch (cause) {
        throw new BackendError('wasm', `expected ${more * WASM_PAGE} bytes more, got: ${(cause as Error).message}`, cause);
      }
      this.#refresh();
    }
    this.#arena = arena;
  }

  /** Views of the memory as it is now. */
  #refresh(): void {
    const { buffer } = this.#memory;
    this.u8 = new Uint8Array(buffer);
    this.u16 = new Uint16Array(buffer);
    this.u32 = new Uint32Array(buffer);
    this.f32 = new Float32Array(buffer);
  }
}

/** By the section that tells a binary, not by module: Chromium holds some 180 memories in all, and each instance here has one. */
const measured = new Map<string, Kernels>();

/** An instance over one page, for its sizes: those of a memory must be known before the memory is made. */
function sizesOf(module: WebAssembly.Module): Kernels {
  const binary = String(new Uint8Array(WebAssembly.Module.customSections(module, 'nsnquant')[0]!));
  const kernels = measured.get(binary) ?? kernelsOf(module, new WebAssembly.Memory({ initial: 1 }));
  measured.set(binary, kernels);
  return kernels;
}

function kernelsOf(module: WebAssembly.Module, memory: WebAssembly.Memory): Kernels {
  return instantiateSync<Kernels>(module, { env: { memory } }).exports;
}
