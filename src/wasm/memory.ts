// A cache's memory: everything it will ever need is laid out when it is made. It never grows, so views of it stay valid.

import { instantiateSync } from '@assemblyscript/loader';
import { BackendError } from '../backend.ts';
import type { Codebook } from '../format/codec.ts';
import { align, type BlockLayout, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { ropeTables, ropeText } from '../rope.ts';
import type { CacheShape } from '../shape.ts';
import { type Kernels, SHAPE, struct } from './abi.ts';
import { placeCodebook, placeSide } from './sides.ts';

const WASM_PAGE = 65536;
/** Addresses of 32 bits; the last page is left so that sizes fit too. */
const MEMORY_LIMIT = WASM_PAGE * 65535;

/** Bytes of what a sequence has learned of a layer (learned.ts draws them). */
export function recordBytes({ kvHeads, headDim }: Pick<LayerShape, 'kvHeads' | 'headDim'>): number {
  const pairs = (kvHeads * headDim) / 2;
  return align(24 * pairs + 4 * pairs + pairs, 16);
}

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
  readonly shapes: readonly number[];
  /** `Codebook` of every one in use. */
  readonly books: ReadonlyMap<Codebook, number>;
  /** `Side` of every block. */
  readonly sides: ReadonlyMap<BlockLayout, number>;
  /** The first record (learned.ts) of every layer; 0 where keys are not balanced. */
  readonly learned: readonly number[];
  /** First page of every layer. */
  readonly pages: readonly number[];
  readonly raw: number;
  readonly tile: number;
  readonly scratch: number;
  readonly items: number;
  readonly pageNumbers: number;
  readonly pagePositions: number;
  readonly rawRecords: number;
  readonly input: number;
  readonly output: number;
  readonly denominators: number;
  /** Query tokens that `input`, `output` and `denominators` hold. */
  readonly callTokens: number;

  /** @param more  codebooks that are used besides those of the shape */
  constructor(module: WebAssembly.Module, shape: CacheShape, more: readonly Codebook[] = []) {
    const { layers, sequences } = shape;
    const blocks = layers.flatMap(({ page }) => [page.keys, page.values]);
    const most = (countOf: (layer: LayerShape) => number): number => Math.max(...layers.map(countOf));
    const stages = blocks.flatMap(block => block.segments).flatMap(segment => segment.stages);

    const sizes = sizesOf(module);

    const arena = new Arena(sizes.tablesEnd(Math.max(...blocks.map(block => block.rowBytes))));
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
    const states = arena.take(most(({ headDim, valueDim }) => sizes.statesBytes(headDim, valueDim)));
    this.callTokens = Math.max(Math.floor(sizes.callRows() / most(({ queryHeads, kvHeads }) => queryHeads / kvHeads)), sequences);
    const windowBytes = most(({ kvHeads, headDim, valueDim }) => 4 * WINDOW * kvHeads * (headDim + valueDim));
    const energyBytes = most(({ kvHeads, headDim }) => 2 * kvHeads * headDim);
    // Either holds queries or results: what the one is made into lies in the other.
    const callBytes = 4 * this.callTokens * most(({ queryHeads, headDim, valueDim }) => queryHeads * Math.max(headDim, valueDim));
    this.input = arena.take(Math.max(callBytes, windowBytes));
    this.output = arena.take(Math.max(callBytes, energyBytes));
    this.denominators = arena.take(8 * this.callTokens * most(({ queryHeads }) => queryHeads));
    this.items = arena.take(sizes.itemBytes() * this.callTokens);
    this.pageNumbers = arena.take(4 * sequences * Math.max(...shape.pageCounts));
    this.pagePositions = arena.take(4 * sequences * Math.max(...shape.pageCounts));
    this.rawRecords = arena.take(sizes.rawBytes() * (shape.rawSlots + this.callTokens));

    this.raw = arena.take(shape.rawSlots * shape.rawSlotBytes + shape.sinkSlots * shape.sinkBytes);
    this.pages = layers.map(({ page }, n) => arena.take(shape.pageCounts[n]! * page.bytes));
    this.learned = layers.map(layer => (layer.page.keys.balanced ? arena.take(sequences * recordBytes(layer)) : 0));
    const inBits = (logits: Float32Array | undefined): number => (logits ? constant(logits.map(x => x * Math.LOG2E)) : 0);
    this.shapes = layers.map(({ kvHeads, queryHeads, rope, window, softcap, slopes, sinkLogits, page }, layer) => {
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
          pageBytes: page.bytes,
          pages: this.pages[layer]!,
          tile: this.tile,
          scratch: this.scratch,
          scores,
          states
        })
      );
    });

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
    this.kernels = kernelsOf(module, memory);
    this.u8 = new Uint8Array(memory.buffer);
    this.u16 = new Uint16Array(memory.buffer);
    this.u32 = new Uint32Array(memory.buffer);
    this.f32 = new Float32Array(memory.buffer);
    for (const { at, bytes } of constants) this.u8.set(bytes, at);
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
