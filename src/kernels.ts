/**
 * The verbs one by one, over a window of 64 tokens of one head: for engines with a cache of their own, and for
 * microbenchmarks. Every call copies in and out; `KVCache` does not.
 *
 * @module nsnquant/kernels
 */

import type { BackendName } from './backend.ts';
import { checkLength, checkOneOf, checkOptions, kind, plural } from './check.ts';
import { type CodecName, codecs } from './format/codec.ts';
import { typedArrayName } from './format/half.ts';
import { type BlockLayout, blockLayout, hadamardSize, type Rope, WINDOW } from './format/layout.ts';
import { checkFloat32Array, checkFloats } from './input.ts';
import * as reference from './reference/reference.ts';
import { type CacheShape, cacheShape } from './shape.ts';
import { WasmMemory } from './wasm/memory.ts';
import { checkWasmOptions, openModule, type WasmOptions } from './wasm/open.ts';

/** What `openKernels` takes. */
export interface KernelOptions extends WasmOptions {
  /** Channels of a head: a multiple of 8 from 32 to 512. */
  readonly headDim: number;
  /** Codec of the blocks. */
  readonly codec: CodecName;
  /** For keys that carry RoPE: the mean is taken before it. */
  readonly rope?: Rope;
  /** Insist on a backend. Default `wasm`. */
  readonly prefer?: Exclude<BackendName, 'webgpu'>;
}

const KERNEL_OPTIONS = ['headDim', 'codec', 'rope', 'prefer', 'variant', 'module'] as const satisfies readonly (keyof KernelOptions)[];

/** Shapes: x, y f32 [64, headDim] row-major; a block is the bytes of one head and side in a page (src/format/layout.ts). */
export interface Verbs {
  /** Which backend runs them. */
  readonly name: BackendName;
  /** Which of its forms. */
  readonly variant: string;
  /** x ← x / s1, in place. Returns s1 f32 [64], in 4 bits, dequantized. */
  normalize(x: Float32Array): Float32Array;
  /** x ← x − RoPEᵤ(o), in place. Returns o f32 [headDim], in 4 bits, dequantized. */
  shift(x: Float32Array): Float32Array;
  /** x ← x / s2, in place. Returns s2 f32 [64], before the scale adjustment. */
  normalizeAgain(x: Float32Array): Float32Array;
  /** x ← H·x for every token, in place. */
  hadamard(x: Float32Array): void;
  /** Codes of every group of channels, |y| ≤ 23: u8 [64, headDim / channels]. */
  quantize(y: Float32Array): Uint8Array;
  /** The block that stands for x. */
  encode(x: Float32Array): Uint8Array;
  /** The tokens that a block stands for: f32 [64, headDim]. */
  decode(block: Uint8Array): Float32Array;
  /** Logits of 1 to 4 queries, f32 [heads, headDim] with the query scale in: f32 [heads, 64]. */
  scores(queries: Float32Array, block: Uint8Array): Float32Array;
  /** Weighted sums for 1 to 4 heads' weights, f32 [heads, 64]: f32 [heads, headDim]. */
  mix(weights: Float32Array, block: Uint8Array): Float32Array;
}

/**
 * Opens the verbs for one head dimension and codec.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run what was asked for
 *
 * @example
 * const kernels = await openKernels({ headDim: 128, codec: 'nsn2' });
 * const block = kernels.encode(tokens);                 // 2,304 bytes for 64 × 128 numbers
 * const logits = kernels.scores(query, block);
 */
export async function openKernels(options: KernelOptions): Promise<Verbs> {
  checkOptions('options', options, KERNEL_OPTIONS);
  const { headDim, codec, rope, prefer = 'wasm', module } = options;
  checkOneOf('codec', codec, Object.keys(codecs));
  checkOneOf('prefer', prefer, ['wasm', 'reference']);
  checkWasmOptions(options);
  if (module !== undefined && prefer !== 'wasm') throw new RangeError(`"prefer" expected wasm (a module is given), got ${prefer}`);
  const shape = cacheShape({
    layers: 1,
    kvHeads: 1,
    queryHeads: 4,
    headDim,
    capacity: WINDOW,
    keys: codec,
    values: codec,
    sinks: 0,
    sequences: 1,
    ...(rope !== undefined && { rope })
  });
  if (prefer === 'reference') return new ReferenceVerbs(shape);
  const opened = await openModule(options);
  return new WasmVerbs(new WasmMemory(opened.module, shape), shape, opened.variant);
}

/** Checks shared by both forms. */
abstract class CheckedVerbs {
  protected readonly headDim: number;
  protected readonly layout: BlockLayout;
  protected readonly shape: CacheShape;

  constructor(shape: CacheShape) {
    this.shape = shape;
    this.headDim = shape.headDim;
    this.layout = blockLayout(shape.pages[0]!.keys.codec, shape.headDim);
  }

  protected checkWindow(name: string, x: Float32Array): void {
    checkFloats(name, x, WINDOW * this.headDim, `${plural(WINDOW, 'token')} × ${this.headDim}`);
  }

  protected checkCoded(name: string, y: Float32Array): void {
    this.checkWindow(name, y);
    const at = y.findIndex(value => Math.abs(value) > 23);
    if (at >= 0) throw new RangeError(`"${name}[${at}]" expected number from −23 to 23 (‖y‖ = √headDim), got ${y[at]}`);
  }

  protected checkBlock(block: Uint8Array): void {
    if (typedArrayName(block) !== 'Uint8Array') throw new TypeError(`"block" expected Uint8Array, got ${kind(block)}`);
    checkLength('block', block.length, this.layout.bytes, `${plural(WINDOW, 'token')} × ${this.headDim} in ${this.layout.codec.name}`);
  }

  protected headsOf(name: string, x: Float32Array, width: number): number {
    checkFloat32Array(name, x);
    const heads = x.length / width;
    if (![1, 2, 3, 4].includes(heads))
      throw new RangeError(`"${name}" expected length ${width} to ${4 * width} (1 to 4 heads × ${width}), got ${x.length}`);
    checkFloats(name, x, x.length, '');
    return heads;
  }
}

class WasmVerbs extends CheckedVerbs implements Verbs {
  readonly name = 'wasm';
  readonly variant: string;
  readonly #memory: WasmMemory;
  readonly #side: number;
  /** Addresses of the one page there is, whose block serves as scratch too. */
  readonly #block: number;

  constructor(memory: WasmMemory, shape: CacheShape, variant: string) {
    super(shape);
    this.variant = variant;
    this.#memory = memory;
    this.#side = memory.sides.get(shape.pages[0]!.keys.codec)!;
    this.#block = memory.pages[0]!;
  }

  normalize(x: Float32Array): Float32Array {
    const { kernels, tile, row } = this.#memory;
    this.#load('x', x);
    kernels.norms(tile, this.headDim, row);
    kernels.rtn4(row, WINDOW, this.#block + this.layout.s1, this.#block + this.layout.scales, true);
    kernels.divide(tile, this.headDim, row);
    this.#unload(x);
    return this.#floats(row, WINDOW);
  }

  shift(x: Float32Array): Float32Array {
    const { kernels, tile, row, shapes } = this.#memory;
    this.#load('x', x);
    kernels.mean(shapes, tile, row, this.#block + this.layout.o, this.#block + this.layout.scales + 4, true);
    kernels.addMean(shapes, tile, row, -1, true);
    this.#unload(x);
    return this.#floats(row, this.headDim);
  }

  normalizeAgain(x: Float32Array): Float32Array {
    const { kernels, tile, row } = this.#memory;
    this.#load('x', x);
    kernels.norms(tile, this.headDim, row);
    kernels.divide(tile, this.headDim, row);
    this.#unload(x);
    return this.#floats(row, WINDOW);
  }

  hadamard(x: Float32Array): void {
    const n = hadamardSize(this.headDim);
    this.#load('x', x);
    this.#memory.kernels.hadamard(this.#memory.tile, this.headDim, WINDOW * 4, n, 1 / Math.sqrt(n));
    this.#unload(x);
  }

  quantize(y: Float32Array): Uint8Array {
    const { kernels, tile, row, u8 } = this.#memory;
    this.checkCoded('y', y);
    this.#load('y', y);
    kernels.quantize(this.#side, tile, this.headDim, this.#block, row, row + WINDOW * 4);
    const perRow = this.headDim / this.layout.codec.channels;
    const codes = new Uint8Array(WINDOW * perRow);
    for (let t = 0; t < WINDOW; t++) {
      const at = this.#block + t * this.layout.rowBytes;
      codes.set(u8.subarray(at, at + perRow), t * perRow);
    }
    return codes;
  }

  encode(x: Float32Array): Uint8Array {
    const { kernels, tile, shapes, u8 } = this.#memory;
    this.#load('x', x);
    u8.fill(0, this.#block, this.#block + this.layout.bytes);
    kernels.encode(shapes, this.#side, tile, this.#block, true);
    return u8.slice(this.#block, this.#block + this.layout.bytes);
  }

  decode(block: Uint8Array): Float32Array {
    const { kernels, tile, shapes } = this.#memory;
    this.#loadBlock(block);
    kernels.decode(shapes, this.#side, this.#block, tile, true);
    const x = new Float32Array(WINDOW * this.headDim);
    this.#unload(x);
    return x;
  }

  scores(queries: Float32Array, block: Uint8Array): Float32Array {
    const { kernels, shapes, input, output } = this.#memory;
    const heads = this.headsOf('queries', queries, this.headDim);
    this.#loadBlock(block);
    this.#interleave(queries, heads, this.headDim);
    kernels.scores(shapes, input, this.#block, output);
    return this.#deinterleave(heads, WINDOW);
  }

  mix(weights: Float32Array, block: Uint8Array): Float32Array {
    const { kernels, shapes, input, output } = this.#memory;
    const heads = this.headsOf('weights', weights, WINDOW);
    this.#loadBlock(block);
    this.#interleave(weights, heads, WINDOW);
    kernels.mix(shapes, input, this.#block, output);
    return this.#deinterleave(heads, this.headDim);
  }

  #load(name: string, x: Float32Array): void {
    const { kernels, f32, input, tile } = this.#memory;
    this.checkWindow(name, x);
    f32.set(x, input / 4);
    kernels.tileFromRows(input, WINDOW, this.headDim * 4, this.headDim, tile);
  }

  #unload(x: Float32Array): void {
    const { kernels, f32, output, tile } = this.#memory;
    kernels.rowsFromTile(tile, WINDOW, this.headDim * 4, this.headDim, output);
    x.set(f32.subarray(output / 4, output / 4 + x.length));
  }

  #loadBlock(block: Uint8Array): void {
    this.checkBlock(block);
    this.#memory.u8.set(block, this.#block);
  }

  #floats(at: number, count: number): Float32Array {
    return this.#memory.f32.slice(at / 4, at / 4 + count);
  }

  /** [heads, width] to lanes, [width, 4]. */
  #interleave(x: Float32Array, heads: number, width: number): void {
    const { f32, input } = this.#memory;
    f32.fill(0, input / 4, input / 4 + 4 * width);
    for (let head = 0; head < heads; head++) {
      for (let i = 0; i < width; i++) f32[input / 4 + 4 * i + head] = x[head * width + i]!;
    }
  }

  #deinterleave(heads: number, width: number): Float32Array {
    const { f32, output } = this.#memory;
    return Float32Array.from({ length: heads * width }, (_, i) => f32[output / 4 + 4 * (i % width) + Math.floor(i / width)]!);
  }
}

class ReferenceVerbs extends CheckedVerbs implements Verbs {
  readonly name = 'reference';
  readonly variant = 'f64';

  normalize(x: Float32Array): Float32Array {
    return this.#inPlace(x, rows => Float32Array.from(reference.normalize(rows, this.headDim).s1));
  }

  shift(x: Float32Array): Float32Array {
    return this.#inPlace(x, rows => Float32Array.from(reference.shift(rows, this.headDim, this.shape.rope).o));
  }

  normalizeAgain(x: Float32Array): Float32Array {
    return this.#inPlace(x, rows => Float32Array.from(reference.normalizeAgain(rows, this.headDim)));
  }

  hadamard(x: Float32Array): void {
    this.#inPlace(x, rows => reference.hadamard(rows, this.headDim));
  }

  quantize(y: Float32Array): Uint8Array {
    this.checkCoded('y', y);
    return Uint8Array.from(reference.quantize(Float64Array.from(y), this.#quantizer));
  }

  encode(x: Float32Array): Uint8Array {
    this.checkWindow('x', x);
    return reference.pack(reference.encode(x, this.headDim, this.#quantizer, this.shape.rope), this.layout.codec);
  }

  decode(block: Uint8Array): Float32Array {
    return Float32Array.from(reference.decode(this.#unpack(block), this.#quantizer, this.shape.rope));
  }

  scores(queries: Float32Array, block: Uint8Array): Float32Array {
    return this.#perHead(
      queries,
      this.headsOf('queries', queries, this.headDim),
      WINDOW,
      (query, window) => reference.scores(query, window, this.#quantizer, this.shape.rope),
      block
    );
  }

  mix(weights: Float32Array, block: Uint8Array): Float32Array {
    return this.#perHead(
      weights,
      this.headsOf('weights', weights, WINDOW),
      this.headDim,
      (row, window) => reference.mix(row, window, this.#quantizer),
      block
    );
  }

  get #quantizer(): reference.Quantizer {
    return reference.codecQuantizer(this.layout.codec);
  }

  #unpack(block: Uint8Array): reference.CodedWindow {
    this.checkBlock(block);
    return reference.unpack(block, this.layout.codec, this.headDim);
  }

  #inPlace<T>(x: Float32Array, verb: (rows: Float64Array) => T): T {
    this.checkWindow('x', x);
    const rows = Float64Array.from(x);
    const result = verb(rows);
    x.set(rows);
    return result;
  }

  #perHead(
    x: Float32Array,
    heads: number,
    width: number,
    verb: (row: Float32Array, window: reference.CodedWindow) => Float64Array,
    block: Uint8Array
  ): Float32Array {
    const window = this.#unpack(block);
    const out = new Float32Array(heads * width);
    for (let head = 0; head < heads; head++) {
      out.set(verb(x.subarray((head * x.length) / heads, ((head + 1) * x.length) / heads), window), head * width);
    }
    return out;
  }
}
