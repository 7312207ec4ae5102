// Every verb on a window that stays in cache: the kernels alone, without the copies that `nsnquant/kernels` makes.

import { type Codec, type CodecName, codecs } from '../src/format/codec.ts';
import { type BlockLayout, blockLayout, hadamardSize, WINDOW } from '../src/format/layout.ts';
import * as reference from '../src/reference/reference.ts';
import { cacheShape } from '../src/shape.ts';
import { WasmMemory } from '../src/wasm/memory.ts';
import { openModule } from '../src/wasm/open.ts';
import { relativeL2 } from '../tools/numbers.ts';
import type { Context } from './context.ts';
import { invFreq, keysAndValues, normals } from './data.ts';
import { toMarkdown } from './table.ts';
import { race } from './timing.ts';

const HEADS = 4;

export async function verbsTable({ variant, quick, print, progress }: Context): Promise<void> {
  const { module } = await openModule({ variant });
  const rows: string[][] = [];
  for (const headDim of quick ? [64] : [64, 128]) {
    for (const codec of Object.keys(codecs) as CodecName[]) {
      progress(`verbs: ${codec}, headDim ${headDim}`);
      const window = new Window(module, codec, headDim);
      // What no codec changes is timed once.
      if (codec === 'nsn2') rows.push(...tileVerbs(window).map(verb => row(verb, 'any', window, quick)));
      rows.push(...codecVerbs(window).map(verb => row(verb, codec, window, quick)));
    }
  }
  print(
    '\n### Verbs\n\nns per token of one head, one side; scores and mix serve four query heads; GB/s of f32 tokens and of codes. ' +
      'Encode is that of f32 rows, as `nsnquant/kernels` gives them; a cache codes its own f16, which it transposes by vectors. ' +
      'Error: relative to the f64 reference on the same input; of quantize, the share of codes that differ (near ties).\n'
  );
  print(toMarkdown({ headers: ['verb', 'codec', 'headDim', 'ns/token', 'GB/s', 'x memcpy', 'error'], rows, textColumns: 2 }));
}

interface Verb {
  readonly name: string;
  /** Bytes of a token, read and written. */
  readonly bytes: number;
  prepare(): void;
  run(): void;
  /** After `run`: how far its result is from the reference. */
  error(): number;
}

function row({ name, bytes, prepare, run, error }: Verb, codec: string, { memory, headDim }: Window, quick: boolean): string[] {
  const { u8, output } = memory;
  prepare();
  run();
  const off = error();
  prepare();
  const copied = Math.round(bytes * WINDOW);
  const times = race(
    { verb: run, memcpy: () => u8.copyWithin(output, output + copied, output + 2 * copied) },
    quick ? { rounds: 1, seconds: 0.02 } : { rounds: 3, seconds: 0.1 }
  );
  const perToken = times['verb']! / WINDOW;
  return [
    name,
    codec,
    String(headDim),
    perToken.toFixed(1),
    (bytes / perToken).toFixed(2),
    (times['verb']! / times['memcpy']!).toFixed(0),
    off.toExponential(1)
  ];
}

/** A window of one head in the kernels' memory: tokens go in and out as rows, queries and weights as lanes of four heads. */
class Window {
  readonly headDim: number;
  readonly codec: Codec;
  readonly layout: BlockLayout;
  readonly memory: WasmMemory;
  /** Where the coded window is. */
  readonly block: number;
  readonly keys: Float32Array;
  /** Standard normal, as a window is before it is quantized. */
  readonly y: Float32Array;
  readonly queries: Float32Array;
  readonly weights: Float32Array;
  readonly rope: { readonly invFreq: Float32Array; readonly interleaved: boolean };

  constructor(module: WebAssembly.Module, name: CodecName, headDim: number) {
    this.headDim = headDim;
    this.codec = codecs[name];
    this.layout = blockLayout(this.codec, headDim);
    this.rope = { invFreq: invFreq(headDim), interleaved: false };
    const sizes = { layers: 1, kvHeads: 1, queryHeads: HEADS, headDim, capacity: WINDOW, sinks: 0, sequences: 1 };
    this.memory = new WasmMemory(module, cacheShape({ ...sizes, keys: name, values: name, rope: this.rope }));
    this.block = this.memory.pages[0]!;
    this.keys = keysAndValues(1, WINDOW, headDim).keys;
    const normal = normals(2);
    this.y = Float32Array.from({ length: WINDOW * headDim }, normal);
    this.queries = Float32Array.from({ length: HEADS * headDim }, () => normal() / Math.sqrt(headDim));
    this.weights = Float32Array.from({ length: HEADS * WINDOW }, () => Math.abs(normal()));
  }

  /** x into the tile. */
  load(x: Float32Array): void {
    const { f32, kernels, input, tile } = this.memory;
    f32.set(x, input / 4);
    kernels.tileFromRows(input, WINDOW, this.headDim * 4, this.headDim, tile);
  }

  /** The tile as rows. */
  unload(): Float32Array {
    const { f32, kernels, output, tile } = this.memory;
    kernels.rowsFromTile(tile, WINDOW, this.headDim * 4, this.headDim, output);
    return f32.slice(output / 4, output / 4 + WINDOW * this.headDim);
  }

  /** x [HEADS, width] into the input, the heads of an element side by side. */
  loadLanes(x: Float32Array, width: number): void {
    const { f32, input } = this.memory;
    for (let i = 0; i < x.length; i++) f32[input / 4 + HEADS * (i % width) + Math.floor(i / width)] = x[i]!;
  }

  unloadLanes(width: number): Float32Array {
    const { f32, output } = this.memory;
    return Float32Array.from({ length: HEADS * width }, (_, i) => f32[output / 4 + HEADS * (i % width) + Math.floor(i / width)]!);
  }

  loadKeys(): void {
    this.memory.f32.set(this.keys, this.memory.input / 4);
  }

  encode(): void {
    const { kernels, input, tile, shapes, sides } = this.memory;
    kernels.tileFromRows(input, WINDOW, this.headDim * 4, this.headDim, tile);
    kernels.encode(shapes[0]!, sides.get(this.codec)!, tile, this.block, true);
  }

  decode(): void {
    const { kernels, tile, shapes, sides } = this.memory;
    kernels.decode(shapes[0]!, sides.get(this.codec)!, this.block, tile, true);
  }

  /** What the reference reads in the coded window. */
  coded(): reference.CodedWindow {
    return reference.unpack(this.memory.u8.slice(this.block, this.block + this.layout.bytes), this.codec, this.headDim);
  }
}

/** Verbs over plain numbers. */
function tileVerbs(window: Window): Verb[] {
  const { headDim, layout, memory, block, keys, y, rope } = window;
  const { kernels, tile, scratch, shapes } = memory;
  const n = hadamardSize(headDim);
  const against = (x: Float32Array, verb: (exact: Float64Array) => void) => () => {
    const exact = Float64Array.from(x);
    verb(exact);
    return relativeL2(window.unload(), exact);
  };
  const bytes = 2 * headDim * 4;
  return [
    {
      name: 'normalize',
      bytes,
      prepare: () => window.load(keys),
      run() {
        kernels.norms(tile, headDim, scratch);
        kernels.rtn4(scratch, WINDOW, block + layout.s1, block + layout.scales, true);
        kernels.divide(tile, headDim, scratch);
      },
      error: against(keys, exact => void reference.normalize(exact, headDim))
    },
    {
      name: 'shift',
      bytes,
      prepare: () => window.load(keys),
      run() {
        kernels.mean(shapes[0]!, tile, scratch, block + layout.o, block + layout.scales + 4, true);
        kernels.addMean(shapes[0]!, tile, scratch, -1, true);
      },
      error: against(keys, exact => void reference.shift(exact, headDim, rope))
    },
    {
      name: 'hadamard',
      bytes,
      prepare: () => window.load(y),
      run: () => kernels.hadamard(tile, headDim, WINDOW * 4, n, 1 / Math.sqrt(n)),
      error: against(y, exact => reference.hadamard(exact, headDim))
    }
  ];
}

/** Verbs that write or read codes. */
function codecVerbs(window: Window): Verb[] {
  const { headDim, codec, layout, memory, block, keys, y, queries, weights, rope } = window;
  const { kernels, u8, tile, scratch, input, output, shapes, sides } = memory;
  const side = sides.get(codec)!;
  const quantizer = reference.codecQuantizer(codec);
  const tileBytes = headDim * 4;
  const codeBytes = layout.bytes / WINDOW;
  const encodeKeys = (): void => {
    window.loadKeys();
    window.encode();
  };
  const eachHead = (x: Float32Array, width: number, verb: (head: Float32Array) => ArrayLike<number>): number[] =>
    Array.from({ length: HEADS }, (_, head) => Array.from(verb(x.subarray(head * width, (head + 1) * width)))).flat();
  return [
    {
      name: 'quantize',
      bytes: tileBytes,
      prepare: () => window.load(y),
      run: () => kernels.quantize(side, tile, headDim, block, scratch, scratch + WINDOW * 4),
      error() {
        const exact = reference.quantize(Float64Array.from(y), quantizer);
        const perRow = headDim / codec.channels;
        const codeAt = (i: number) => u8[block + Math.floor(i / perRow) * layout.rowBytes + (i % perRow)];
        return exact.reduce((sum, code, i) => sum + Number(codeAt(i) !== code), 0) / exact.length;
      }
    },
    {
      name: 'encode',
      bytes: tileBytes,
      prepare: () => window.loadKeys(),
      run: () => window.encode(),
      error() {
        const exact = reference.decode(reference.encode(keys, headDim, quantizer, rope), quantizer, rope);
        window.decode();
        return relativeL2(window.unload(), exact);
      }
    },
    {
      name: 'decode',
      bytes: tileBytes + codeBytes,
      prepare: encodeKeys,
      run: () => window.decode(),
      error: () => relativeL2(window.unload(), reference.decode(window.coded(), quantizer, rope))
    },
    {
      name: 'scores',
      bytes: codeBytes,
      prepare() {
        encodeKeys();
        window.loadLanes(queries, headDim);
      },
      run: () => kernels.scores(shapes[0]!, input, block, output),
      error() {
        const coded = window.coded();
        const exact = eachHead(queries, headDim, query => reference.scores(query, coded, quantizer, rope));
        return relativeL2(window.unloadLanes(WINDOW), exact);
      }
    },
    {
      name: 'mix',
      bytes: codeBytes,
      prepare: encodeKeys,
      run() {
        window.loadLanes(weights, WINDOW); // mix leaves other numbers there
        kernels.mix(shapes[0]!, input, block, output);
      },
      error() {
        const coded = window.coded();
        const exact = eachHead(weights, WINDOW, weight => reference.mix(weight, coded, quantizer));
        return relativeL2(window.unloadLanes(headDim), exact);
      }
    }
  ];
}
