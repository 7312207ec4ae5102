// Every verb on a window that stays in cache: the kernels alone, without the copies that `nsnquant/kernels` makes.

import { channelOrder } from '../src/format/balance.ts';
import { type CodecName, codebooks, codecs } from '../src/format/codec.ts';
import { fromHalf, toHalf } from '../src/format/half.ts';
import { type BlockLayout, type PageLayout, QUARTER, WINDOW } from '../src/format/layout.ts';
import * as reference from '../src/reference/reference.ts';
import { cacheShape } from '../src/shape.ts';
import { Learned } from '../src/wasm/learned.ts';
import { WasmMemory } from '../src/wasm/memory.ts';
import { openModule } from '../src/wasm/open.ts';
import { relativeL2 } from '../tools/numbers.ts';
import type { Context } from './context.ts';
import { normals, profileOf, ropeOf, seededHead, seededQueries } from './data.ts';
import { toMarkdown } from './table.ts';
import { race } from './timing.ts';

const HEADS = 4;

export async function verbsTable({ variant, quick, print, progress }: Context): Promise<void> {
  const { module } = await openModule({ variant });
  const rows: string[][] = [];
  for (const headDim of quick ? [64] : [64, 128]) {
    for (const codec of Object.keys(codecs) as CodecName[]) {
      progress(`verbs: ${codec}, headDim ${headDim}`);
      const window = new Window(module, codec, headDim, true);
      const plain = new Window(module, codec, headDim, false);
      // What no codec changes is timed once.
      if (codec === 'nsn1') rows.push(...[...tileVerbs(window), ...quantizers(window)].map(verb => row(verb, 'any', window, quick)));
      rows.push(...pageVerbs(window).map(verb => row(verb, codec, window, quick)));
      rows.push(...pageVerbs(plain).map(verb => row(verb, `${codec} plain`, plain, quick)));
      rows.push(row(mixVerb(window), codec, window, quick));
    }
  }
  print(
    '\n### Verbs\n\nns per token of one head, one side; scores and mix serve four query heads; GB/s of tokens (f32, encode f16) and of codes. ' +
      'Encode: a raw page to a coded one, as a cache does it, keys and values halved; decode and scores: keys, balanced or plain; mix: values. ' +
      'Error: relative to the f64 reference on the same input; of quantize, the share of codes that differ (near ties).\n'
  );
  print(toMarkdown({ headers: ['verb', 'codec', 'headDim', 'ns/token', 'GB/s', 'x memcpy', 'error'], rows, textColumns: 2 }));
}

interface Verb {
  readonly name: string;
  /** Bytes of a token, read and written. */
  readonly bytes: number;
  /** Tokens of one head and side, in one run. */
  readonly tokens?: number;
  prepare(): void;
  run(): void;
  /** After `run`: how far its result is from the reference. */
  error(): number;
}

function row({ name, bytes, tokens = WINDOW, prepare, run, error }: Verb, codec: string, { headDim }: Window, quick: boolean): string[] {
  prepare();
  run();
  const off = error();
  prepare();
  const copied = Math.round(bytes * tokens);
  const memory = new Uint8Array(2 * copied);
  const times = race(
    { verb: run, memcpy: () => memory.copyWithin(0, copied) },
    quick ? { rounds: 1, seconds: 0.02 } : { rounds: 3, seconds: 0.1 }
  );
  const perToken = times['verb']! / tokens;
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
  readonly page: PageLayout;
  readonly memory: WasmMemory;
  /** Where the coded keys are. */
  readonly keysBlock: number;
  readonly valuesBlock: number;
  /** Of the keys' channels; 0 where they are plain. */
  readonly order: number;
  readonly coding: { readonly keys: reference.Coding; readonly values: reference.Coding };
  /** What f16 keeps: f32 [64, headDim]. */
  readonly keys: Float32Array;
  readonly values: Float32Array;
  /** Standard normal, as a window is before it is quantized. */
  readonly y: Float32Array;
  readonly queries: Float32Array;
  readonly weights: Float32Array;
  readonly rope: reference.Rope;

  constructor(module: WebAssembly.Module, codec: CodecName, headDim: number, balanced: boolean) {
    this.headDim = headDim;
    this.rope = ropeOf(headDim);
    const head = seededHead(1, 2 * WINDOW, headDim);
    const profile = profileOf([head], { layers: 1, kvHeads: 1 }, 0);
    const shape = cacheShape({
      layers: 1,
      kvHeads: 1,
      queryHeads: HEADS,
      headDim,
      capacity: WINDOW,
      keys: codec,
      values: codec,
      rope: this.rope,
      balance: balanced ? profile : 'off',
      sinks: 0,
      sequences: 1,
      reserve: true
    });
    this.page = shape.layers[0]!.page;
    this.memory = new WasmMemory(module, shape, Object.values(codebooks));
    this.keysBlock = this.memory.page(0, 0);
    this.valuesBlock = this.keysBlock + this.page.keys.bytes;
    this.order = this.memory.record(0, 0);
    if (balanced) new Learned(this.memory, shape, 0, 0).setBalance(profile);
    this.coding = {
      keys: reference.codingOf(this.page.keys, this.rope, balanced ? channelOrder(profile, headDim, this.rope) : undefined),
      values: reference.codingOf(this.page.values)
    };
    const kept = (x: Float32Array): Float32Array => x.slice(0, WINDOW * headDim).map(value => fromHalf(toHalf(value)));
    this.keys = kept(head.keys);
    this.values = kept(head.values);
    const normal = normals(2);
    this.y = Float32Array.from({ length: WINDOW * headDim }, normal);
    this.queries = seededQueries(3, [head], 1, 1, HEADS).map(x => x / Math.sqrt(headDim));
    this.weights = Float32Array.from({ length: HEADS * WINDOW }, () => Math.abs(normal()));
  }

  /** x into the tile. */
  load(x: Float32Array): void {
    const { f32, kernels, call, tile } = this.memory;
    f32.set(x, call.input / 4);
    kernels.tileFromRows(call.input, WINDOW, this.headDim * 4, this.headDim, tile);
  }

  /** The tile as rows. */
  unload(): Float32Array {
    const { f32, kernels, tile } = this.memory;
    const { output } = this.memory.call;
    kernels.rowsFromTile(tile, WINDOW, this.headDim * 4, this.headDim, output);
    return f32.slice(output / 4, output / 4 + WINDOW * this.headDim);
  }

  /** x [HEADS, width] into the input, the heads of an element side by side. */
  loadLanes(x: Float32Array, width: number): void {
    const { f32 } = this.memory;
    const { input } = this.memory.call;
    for (let i = 0; i < x.length; i++) f32[input / 4 + HEADS * (i % width) + Math.floor(i / width)] = x[i]!;
  }

  unloadLanes(width: number): Float32Array {
    const { f32 } = this.memory;
    const { output } = this.memory.call;
    return Float32Array.from({ length: HEADS * width }, (_, i) => f32[output / 4 + HEADS * (i % width) + Math.floor(i / width)]!);
  }

  /** Keys and values into a raw window. */
  loadRaw(): void {
    const { u16, u32 } = this.memory;
    const { rawAddresses } = this.memory.call;
    const elements = QUARTER * this.headDim;
    for (const [n, at] of this.memory.slot(0).entries()) {
      u16.set(Uint16Array.from(this.keys.subarray(n * elements, (n + 1) * elements), toHalf), at / 2);
      u16.set(Uint16Array.from(this.values.subarray(n * elements, (n + 1) * elements), toHalf), at / 2 + elements);
      u32[rawAddresses / 4 + n] = at;
    }
  }

  /** The raw window to the page, by grids that are there. */
  encode(): void {
    const { kernels, shapes } = this.memory;
    kernels.encodePage(shapes[0]!, this.order, this.memory.call.rawAddresses, this.keysBlock);
  }

  /** Keys and values to the page. */
  encodeAll(): void {
    this.loadRaw();
    this.memory.bringGrids();
    this.encode();
    this.memory.clearGrids();
  }

  decodeKeys(): void {
    const { kernels, tile, shapes, sides } = this.memory;
    kernels.decode(shapes[0]!, sides.get(this.page.keys)!, this.order, this.keysBlock, tile, true);
  }

  decodeValues(): void {
    const { kernels, tile, shapes, sides } = this.memory;
    kernels.decode(shapes[0]!, sides.get(this.page.values)!, 0, this.valuesBlock, tile, false);
  }

  /** What the reference reads in a coded block. */
  coded(block: number, layout: BlockLayout): reference.CodedWindow {
    return reference.unpack(this.memory.u8.slice(block, block + layout.bytes), layout, this.headDim);
  }
}

/** Verbs over plain numbers. */
function tileVerbs(window: Window): Verb[] {
  const { headDim, page, memory, keysBlock, keys, y, rope } = window;
  const { kernels, tile, scratch, shapes } = memory;
  const { s1, o, scales, meanBits } = page.keys;
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
        kernels.rtn(scratch, WINDOW, keysBlock + s1, keysBlock + scales, 4, true);
        kernels.divide(tile, headDim, scratch);
      },
      error: against(keys, exact => void reference.normalize(exact, headDim))
    },
    {
      name: 'shift',
      bytes,
      prepare: () => window.load(keys),
      run() {
        kernels.mean(shapes[0]!, tile, headDim, scratch, keysBlock + o, keysBlock + scales + 4, meanBits, true);
        kernels.addMean(shapes[0]!, tile, headDim, scratch, -1, true);
      },
      error: against(keys, exact => void reference.shift(exact, headDim, meanBits, rope))
    },
    {
      name: 'hadamard',
      bytes,
      prepare: () => window.load(y),
      run: () => kernels.hadamard(tile, headDim, WINDOW * 4),
      error: against(y, exact => reference.hadamard(exact, headDim))
    }
  ];
}

/** The nearest codeword in every codebook. */
function quantizers(window: Window): Verb[] {
  const { headDim, memory, y } = window;
  const { kernels, u8, books, tile, scratch } = memory;
  const { output } = memory.call;
  return Object.values(codebooks).map(book => {
    const columns = headDim / book.channels;
    return {
      name: `quantize, ${book.channels} channels`,
      bytes: headDim * 4,
      prepare() {
        window.load(y);
        memory.bringGrids();
      },
      run: () => kernels.quantize(books.get(book)!, tile, headDim, output, columns, scratch),
      error() {
        memory.clearGrids();
        const exact = reference.quantize(Float64Array.from(y), reference.codebookQuantizer(book));
        return exact.reduce((sum, code, i) => sum + Number(u8[output + i] !== code), 0) / exact.length;
      }
    };
  });
}

/** Verbs that write or read the codes of a page, of keys where it has both. */
function pageVerbs(window: Window): Verb[] {
  const { headDim, page, memory, keysBlock, order, keys, values, queries, coding } = window;
  const { kernels, shapes, sides } = memory;
  const { input, output } = memory.call;
  return [
    {
      name: 'encode',
      bytes: headDim * 2,
      tokens: 2 * WINDOW,
      prepare() {
        window.loadRaw();
        memory.bringGrids();
      },
      run: () => window.encode(),
      error() {
        memory.clearGrids();
        const exact = (x: Float32Array, of: reference.Coding): Float64Array => reference.decode(reference.encode(x, headDim, of), of);
        window.decodeKeys();
        const decodedKeys = window.unload();
        window.decodeValues();
        return relativeL2([...decodedKeys, ...window.unload()], [...exact(keys, coding.keys), ...exact(values, coding.values)]);
      }
    },
    {
      name: 'decode',
      bytes: headDim * 4 + page.keys.bytes / WINDOW,
      prepare: () => window.encodeAll(),
      run: () => window.decodeKeys(),
      error: () => relativeL2(window.unload(), reference.decode(window.coded(keysBlock, page.keys), coding.keys))
    },
    {
      name: 'scores',
      bytes: page.keys.bytes / WINDOW,
      prepare() {
        window.encodeAll();
        window.loadLanes(queries, headDim);
      },
      run: () => kernels.scores(shapes[0]!, sides.get(page.keys)!, order, input, keysBlock, output),
      error() {
        const coded = window.coded(keysBlock, page.keys);
        const exact = eachHead(queries, headDim, query => reference.scores(query, coded, coding.keys));
        return relativeL2(window.unloadLanes(WINDOW), exact);
      }
    }
  ];
}

/** The weighted sum of coded values. */
function mixVerb(window: Window): Verb {
  const { headDim, page, memory, valuesBlock, weights, coding } = window;
  const { kernels, shapes, sides } = memory;
  const { input, output } = memory.call;
  return {
    name: 'mix',
    bytes: page.values.bytes / WINDOW,
    prepare: () => window.encodeAll(),
    run() {
      window.loadLanes(weights, WINDOW); // mix leaves other numbers there
      kernels.mix(shapes[0]!, sides.get(page.values)!, 0, input, valuesBlock, output);
    },
    error() {
      const coded = window.coded(valuesBlock, page.values);
      return relativeL2(
        window.unloadLanes(headDim),
        eachHead(weights, WINDOW, weight => reference.mix(weight, coded, coding.values))
      );
    }
  };
}

/** What a verb makes of every head's row of x. */
function eachHead(x: Float32Array, width: number, verb: (head: Float32Array) => ArrayLike<number>): number[] {
  return Array.from({ length: HEADS }, (_, head) => Array.from(verb(x.subarray(head * width, (head + 1) * width)))).flat();
}
