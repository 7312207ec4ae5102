// The verbs one by one, by the kernels: in a memory of one page, whose block of keys serves as scratch too.

import { codebooks } from '../format/codec.ts';
import { WINDOW } from '../format/layout.ts';
import type { Verbs, VerbsShape } from '../verbs.ts';
import { Learned } from './learned.ts';
import { WasmMemory } from './memory.ts';

/** Lanes of the kernels that read queries and weights. */
const LANES = 4;

/** The verbs of one side. They check nothing. */
export function wasmVerbs(module: WebAssembly.Module, variant: string, { headDim, layout, balance, cache }: VerbsShape): Verbs {
  const { s1, scales, o, meanBits, bytes } = layout;
  const memory = new WasmMemory(module, cache, Object.values(codebooks));
  const { kernels, shapes, sides, books, tile, scratch, u8, f32 } = memory;
  const { input, output } = memory.call;
  const layer = shapes[0]!;
  const side = sides.get(layout)!;
  const block = memory.page(0, 0);
  const order = balance ? memory.record(0, 0) : 0;
  if (balance) new Learned(memory, cache, 0, 0).setBalance(balance);

  /** A window to a tile, which kernels work on. */
  function load(x: Float32Array): void {
    f32.set(x, input / 4);
    kernels.tileFromRows(input, WINDOW, headDim * 4, headDim, tile);
  }

  function unload(x: Float32Array): void {
    kernels.rowsFromTile(tile, WINDOW, headDim * 4, headDim, output);
    x.set(f32.subarray(output / 4, output / 4 + x.length));
  }

  /** A verb on x, in place, that leaves `count` numbers in the scratch memory. */
  function inPlace(x: Float32Array, count: number, verb: () => void): Float32Array {
    load(x);
    verb();
    unload(x);
    return f32.slice(scratch / 4, scratch / 4 + count);
  }

  /** A verb from rows [heads, width] to rows [heads, outWidth]; in memory heads are lanes: [width, LANES]. */
  function perHead(x: Float32Array, width: number, outWidth: number, verb: () => void): Float32Array {
    const heads = x.length / width;
    f32.fill(0, input / 4, input / 4 + LANES * width);
    for (let i = 0; i < x.length; i++) f32[input / 4 + LANES * (i % width) + Math.floor(i / width)] = x[i]!;
    verb();
    return Float32Array.from({ length: heads * outWidth }, (_, i) => f32[output / 4 + LANES * (i % outWidth) + Math.floor(i / outWidth)]!);
  }

  return {
    name: 'wasm',
    variant,
    normalize: x =>
      inPlace(x, WINDOW, () => {
        kernels.norms(tile, headDim, scratch);
        kernels.rtn(scratch, WINDOW, block + s1, block + scales, 4, true);
        kernels.divide(tile, headDim, scratch);
      }),
    shift: x =>
      inPlace(x, headDim, () => {
        kernels.mean(layer, tile, headDim, scratch, block + o, block + scales + 4, meanBits, true);
        kernels.addMean(layer, tile, headDim, scratch, -1, true);
      }),
    normalizeAgain: x =>
      inPlace(x, WINDOW, () => {
        kernels.norms(tile, headDim, scratch);
        kernels.divide(tile, headDim, scratch);
      }),
    hadamard: x => {
      inPlace(x, 0, () => kernels.hadamard(tile, headDim, WINDOW * 4));
    },
    quantize: (y, channels) => {
      load(y);
      const perRow = headDim / channels;
      memory.bringGrids();
      kernels.quantize(books.get(codebooks[channels])!, tile, headDim, output, perRow, scratch);
      memory.clearGrids();
      return u8.slice(output, output + WINDOW * perRow);
    },
    encode: x => {
      load(x);
      u8.fill(0, block, block + bytes);
      memory.bringGrids();
      kernels.encode(layer, side, order, tile, block, true);
      memory.clearGrids();
      return u8.slice(block, block + bytes);
    },
    decode: coded => {
      u8.set(coded, block);
      kernels.decode(layer, side, order, block, tile, true);
      const x = new Float32Array(WINDOW * headDim);
      unload(x);
      return x;
    },
    scores: (queries, coded) => {
      u8.set(coded, block);
      return perHead(queries, headDim, WINDOW, () => kernels.scores(layer, side, order, input, block, output));
    },
    mix: (weights, coded) => {
      u8.set(coded, block);
      return perHead(weights, WINDOW, headDim, () => kernels.mix(layer, side, order, input, block, output));
    }
  };
}
