// A cache's memory, which grows: what was granted stays where it is, but views of it do not stay valid. Only `reserve` and `prepareCall`
// make it grow.

import { BackendError, everything, type Needs } from '../backend.ts';
import type { Codebook } from '../format/codec.ts';
import { align, type BlockLayout, QUARTER, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { ropeTables, ropeText } from '../rope.ts';
import type { CacheShape } from '../shape.ts';
import { type Kernels, SHAPE, struct } from './abi.ts';
import { Arena } from './arena.ts';
import { type Call, type CallPlaces, Calls } from './call.ts';
import { PlacedGrids } from './cells.ts';
import { kernelsOf, sizesOf } from './instance.ts';
import { placeCodebook, placeSide } from './sides.ts';

const WASM_PAGE = 65536;
/** Addresses of 32 bits; the last page is left so that sizes fit too. */
const MEMORY_LIMIT = WASM_PAGE * 65535;

/** Bytes of what a sequence has learned of a layer (learned.ts draws them). */
export function recordBytes({ kvHeads, headDim }: Pick<LayerShape, 'kvHeads' | 'headDim'>): number {
  const pairs = (kvHeads * headDim) / 2;
  return align(24 * pairs + 4 * pairs + pairs, 16);
}

/** By how much of itself a memory grows at least: what lies idle is less than that, or 64 KB, and 600 MB are reached in some 1,200 steps. */
const GROWTH = 1 / 256;
/** Memory that is asked for, and who has it then. */
interface Want {
  readonly bytes: number;
  readonly grant: (at: number) => unknown;
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
  /**
   * Where tokens lie on their way between slots or pages and arrays: a window's keys and values in f32, and one of both once more. It is
   * the tables' memory, so that what was there must be cleared (`clearWindow`).
   */
  readonly window: number;
  /** Where a window's keys or values are made into rows of another type or order. */
  readonly windowRows: number;
  /** Where a call of attend is laid out. */
  call!: CallPlaces;
  readonly #windowEnd: number;
  readonly #grids: PlacedGrids;
  readonly #shape: CacheShape;
  readonly #memory: WebAssembly.Memory;
  #arena: Arena;
  readonly #calls: Calls;
  /** The last call. */
  #asked: Call = { tokens: 0, pages: 0, raws: 0 };
  /** What there is room for. */
  #room!: Call;
  /** Addresses by number; of a slot one for every quarter that it has, of sinks one. */
  readonly #slots = new Map<number, readonly number[]>();
  /** Slots that have more quarters than they need, from the next grant on: how many those are. */
  readonly #spare = new Map<number, number>();
  readonly #pages: readonly number[][];
  readonly #records: readonly number[][];

  /** @param more  codebooks that are used besides those of the shape */
  constructor(module: WebAssembly.Module, shape: CacheShape, more: readonly Codebook[] = []) {
    const { layers } = shape;
    this.#shape = shape;
    this.#pages = layers.map(() => []);
    this.#records = layers.map(() => []);
    const blocks = layers.flatMap(({ page }) => [page.keys, page.values]);
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    const stages = blocks.flatMap(block => block.segments).flatMap(segment => segment.stages);

    const sizes = sizesOf(module);

    this.window = sizes.tablesBegin();
    this.windowRows = this.window + most(({ kvHeads, headDim, valueDim }) => 4 * WINDOW * kvHeads * (headDim + valueDim));
    this.#windowEnd = this.windowRows + most(({ kvHeads, headDim, valueDim }) => 4 * WINDOW * kvHeads * Math.max(headDim, valueDim));
    const used = new Set([...stages.map(stage => stage.codebook), ...more]);
    this.#grids = new PlacedGrids(used, module, sizes.bucketsBegin());
    const tablesEnd = sizes.tablesEnd(Math.max(...blocks.map(block => block.rowBytes)));
    const arena = new Arena(Math.max(tablesEnd, this.#windowEnd, this.#grids.end));
    this.#arena = arena;
    const unused = align(sizes.staticEnd(), 16); // an arena deals in whole 16 bytes
    arena.give(unused, sizes.tablesBegin() - unused);
    const constants: { readonly at: number; readonly bytes: Uint8Array }[] = [];
    const constant = (data: ArrayBufferView): number => {
      const at = arena.take(data.byteLength);
      constants.push({ at, bytes: new Uint8Array(data.buffer, data.byteOffset, data.byteLength) });
      return at;
    };
    const books = new Map([...used].map(book => [book, placeCodebook(book, this.#grids, constant)]));
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

    const basisPairs = Math.max(...[...tablesOf.values()].map(tables => tables.basisPairs));
    const keySegments = most(({ page }) => page.keys.segments.length);
    const [headDim, valueDim] = [most(layer => layer.headDim), most(layer => layer.valueDim)];
    this.tile = arena.take(sizes.tileBytes(Math.max(headDim, valueDim)));
    this.scratch = arena.take(sizes.scratchBytes(headDim, valueDim, basisPairs, keySegments));
    this.#calls = new Calls(shape, sizes);
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
          states: 0
        })
      );
    });

    const all = this.#bytesAtCapacity();
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
    const call = shape.reserve ? this.#calls.largest : this.#calls.first;
    const grown = this.#arena.copy();
    const at = grown.take(this.#calls.bytes(call));
    this.#growTo(grown);
    this.#layOut(call, at);
  }

  get bytes(): number {
    return this.#memory.buffer.byteLength;
  }

  /** Query tokens of one call of attend at most. */
  get callTokens(): number {
    return this.#calls.tokens;
  }

  /** Query tokens that `input` and `output` hold now. */
  get roomTokens(): number {
    return this.#room.tokens;
  }

  page(layer: number, page: number): number {
    return this.#pages[layer]![page]!;
  }

  /** Where the quarters of a slot are that it has, or sinks. */
  slot(slot: number): readonly number[] {
    return this.#slots.get(slot)!;
  }

  /** What a sequence has learned of a layer whose keys are balanced (learned.ts). */
  record(layer: number, sequence: number): number {
    return this.#records[layer]![sequence]!;
  }

  /** Memory for all of this, or a BackendError and for nothing. */
  reserve({ pages = new Map(), slots = new Map(), sequences = [], idle = () => [] }: Needs): void {
    const { layers, rawSlots, sinks, sinkBytes } = this.#shape;
    const wants: Want[] = [];
    const want = (list: number[], n: number, bytes: number): void => {
      if (list[n] === undefined) wants.push({ bytes, grant: at => (list[n] = at) });
    };
    const wantSlot = (slot: number, bytes: number, quarters: number): void => {
      const grant = (at: number): unknown => this.#slots.set(slot, [...(this.#slots.get(slot) ?? []), at]);
      for (let n = this.#slots.get(slot)?.length ?? 0; n < quarters; n++) wants.push({ bytes, grant });
    };
    for (const [layer, numbers] of pages) for (const page of numbers) want(this.#pages[layer]!, page, layers[layer]!.page.bytes);
    for (const [slot, tokens] of slots) wantSlot(slot, this.#quarterBytes, Math.ceil(tokens / QUARTER));
    for (const sequence of sequences) {
      layers.forEach((heads, layer) => {
        if (sinks > 0) wantSlot(rawSlots + sequence * layers.length + layer, sinkBytes, 1);
        if (heads.page.keys.balanced) want(this.#records[layer]!, sequence, recordBytes(heads));
      });
    }
    if (wants.length > 0)
      this.#grant(
        wants,
        [...this.#spare].filter(([slot]) => !slots.has(slot)),
        idle
      );
    for (const [slot, tokens] of slots) {
      const quarters = Math.ceil(tokens / QUARTER);
      if (slot < rawSlots && this.slot(slot).length > quarters) this.#spare.set(slot, quarters);
      else this.#spare.delete(slot);
    }
  }

  /**
   * What slots have to spare goes first, so that pages come to lie beside each other, and raw windows in the rest: kept until memory would
   * have to grow, it left 4 % of a memory in gaps. Where it would grow all the same, idle slots give what they have, and the room for
   * calls what the last one did not need.
   */
  #grant(wants: readonly Want[], spare: readonly (readonly [slot: number, quarters: number])[], idle: () => readonly number[]): void {
    const without = (given: typeof spare): Arena => {
      const arena = this.#arena.copy();
      for (const [slot, quarters] of given) for (const at of this.slot(slot).slice(quarters)) arena.give(at, this.#quarterBytes);
      return arena;
    };
    let smaller: { readonly room: Call; readonly at: number } | undefined;
    let given = spare;
    let arena = without(given);
    let places = wants.map(({ bytes }) => arena.take(bytes));
    if (arena.end > this.bytes && !this.#shape.reserve) {
      const unused = new Set(idle().filter(slot => this.#slots.has(slot)));
      given = [...spare.filter(([slot]) => !unused.has(slot)), ...[...unused].map(slot => [slot, 0] as const)];
      arena = without(given);
      const room = this.#calls.grown(this.#calls.first, this.#asked);
      const less = this.#calls.bytes(room) < this.#calls.bytes(this.#room);
      if (less) this.#giveRoom(arena);
      places = wants.map(({ bytes }) => arena.take(bytes));
      if (less) smaller = { room, at: arena.take(this.#calls.bytes(room)) };
    }
    const unused = this.#arena.end;
    this.#growTo(arena);
    if (smaller) this.#layOut(smaller.room, smaller.at);
    for (const [slot, quarters] of given) {
      this.#slots.set(slot, this.slot(slot).slice(0, quarters));
      this.#spare.delete(slot);
    }
    wants.forEach(({ bytes, grant }, n) => {
      const at = places[n]!;
      if (at < unused) this.u8.fill(0, at, at + bytes); // encoders write no padding, which is 0
      grant(at);
    });
  }

  /** Tokens of a slot that lie together, as in a raw page of so many. */
  together(slot: number): number {
    return slot < this.#shape.rawSlots ? QUARTER : this.#shape.sinks;
  }

  /** Bytes that they take. */
  togetherBytes(slot: number): number {
    return slot < this.#shape.rawSlots ? this.#quarterBytes : this.#shape.sinkBytes;
  }

  get #quarterBytes(): number {
    return this.#shape.rawSlotBytes / (WINDOW / QUARTER);
  }

  /** Tables are as attention wants them again, after bytes were written from `window` on: so many, or any. */
  clearWindow(bytes = this.#windowEnd - this.window): void {
    if (this.window + bytes > this.kernels.bucketsBegin()) this.u8.fill(0, this.kernels.bucketsBegin(), this.window + bytes);
  }

  /** Grids are where codebooks say, until `clearGrids`: what codes tokens reads them. They lie in the tables' memory. */
  bringGrids(): void {
    this.#grids.bring(this.u8);
  }

  clearGrids(): void {
    this.clearWindow(this.#grids.end - this.window);
  }

  /** Room for a call of attend, whose tokens may be more than `callTokens`; or a BackendError. */
  prepareCall(call: Call): void {
    this.#asked = call;
    const room = this.#calls.grown(this.#room, call);
    if (room === this.#room) return;
    const arena = this.#arena.copy();
    this.#giveRoom(arena);
    const at = arena.take(this.#calls.bytes(room));
    this.#growTo(arena);
    this.#layOut(room, at);
  }

  #giveRoom(arena: Arena): void {
    arena.give(this.call.input, this.#calls.bytes(this.#room)); // a room begins with the input
  }

  #layOut(room: Call, at: number): void {
    this.#room = room;
    this.call = this.#calls.places(room, at);
    for (const shape of this.shapes) this.u32[shape / 4 + Object.keys(SHAPE).indexOf('states')] = this.call.states;
  }

  /** All that it may ever need. */
  #bytesAtCapacity(): number {
    const { layers, sequences, pageCounts, rawSlots, rawSlotBytes, sinkSlots, sinkBytes } = this.#shape;
    const perLayer = (heads: LayerShape, layer: number): number =>
      pageCounts[layer]! * align(heads.page.bytes, 16) + (heads.page.keys.balanced ? sequences * recordBytes(heads) : 0);
    const raw = rawSlots * rawSlotBytes + sinkSlots * align(sinkBytes, 16);
    return layers.reduce(
      (sum, heads, layer) => sum + perLayer(heads, layer),
      this.#arena.end + this.#calls.bytes(this.#calls.largest) + raw
    );
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
