// The verbs one by one, by the kernels: in a memory of one page, whose block of keys serves as scratch too.

import { hadamardSize, WINDOW } from '../format/layout.ts';
import type { CacheShape } from '../shape.ts';
import type { Verbs } from '../verbs.ts';
import { WasmMemory } from './memory.ts';

/** Lanes of the kernels that read queries and weights. */
const LANES = 4;

/** The verbs for a shape's keys. They check nothing. */
export function wasmVerbs(module: WebAssembly.Module, variant: string, shape: CacheShape): Verbs {
  const { headDim } = shape;
  const { codec, rowBytes, s1, scales, o, bytes } = shape.pages[0]!.keys;
  const { kernels, shapes, sides, tile, scratch, input, output, pages, u8, f32 } = new WasmMemory(module, shape);
  const layer = shapes[0]!;
  const side = sides.get(codec)!;
  const block = pages[0]!;

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
        kernels.rtn4(scratch, WINDOW, block + s1, block + scales, true);
        kernels.divide(tile, headDim, scratch);
      }),
    shift: x =>
      inPlace(x, headDim, () => {
        kernels.mean(layer, tile, scratch, block + o, block + scales + 4, true);
        kernels.addMean(layer, tile, scratch, -1, true);
      }),
    normalizeAgain: x =>
      inPlace(x, WINDOW, () => {
        kernels.norms(tile, headDim, scratch);
        kernels.divide(tile, headDim, scratch);
      }),
    hadamard: x => {
      const n = hadamardSize(headDim);
      inPlace(x, 0, () => kernels.hadamard(tile, headDim, WINDOW * 4, n, 1 / Math.sqrt(n)));
    },
    quantize: y => {
      load(y);
      kernels.quantize(side, tile, headDim, block, scratch, scratch + WINDOW * 4);
      const perRow = headDim / codec.channels;
      return Uint8Array.from({ length: WINDOW * perRow }, (_, i) => u8[block + Math.floor(i / perRow) * rowBytes + (i % perRow)]!);
    },
    encode: x => {
      load(x);
      u8.fill(0, block, block + bytes);
      kernels.encode(layer, side, tile, block, true);
      return u8.slice(block, block + bytes);
    },
    decode: coded => {
      u8.set(coded, block);
      kernels.decode(layer, side, block, tile, true);
      const x = new Float32Array(WINDOW * headDim);
      unload(x);
      return x;
    },
    scores: (queries, coded) => {
      u8.set(coded, block);
      return perHead(queries, headDim, WINDOW, () => kernels.scores(layer, input, block, output));
    },
    mix: (weights, coded) => {
      u8.set(coded, block);
      return perHead(weights, WINDOW, headDim, () => kernels.mix(layer, input, block, output));
    }
  };
}
