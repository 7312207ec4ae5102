// Every verb on a window that stays in cache: the kernels alone, without the copies that `nsnquant/kernels` makes.

import { type CodecName, codecs } from '../src/format/codec.ts';
import { blockLayout, hadamardSize, WINDOW } from '../src/format/layout.ts';
import * as reference from '../src/reference/reference.ts';
import { cacheShape } from '../src/shape.ts';
import { openModule } from '../src/wasm/open.ts';
import { WasmMemory } from '../src/wasm/store.ts';
import type { Context } from './context.ts';
import { invFreq, keysAndValues, normals, relativeError } from './data.ts';
import { toMarkdown } from './table.ts';
import { race } from './timing.ts';

const HEADS = 4;

export async function verbsTable({ variant, quick, print, progress }: Context): Promise<void> {
  const { module } = await openModule(variant);
  const rows: string[][] = [];
  for (const headDim of quick ? [64] : [64, 128]) {
    for (const codec of Object.keys(codecs) as CodecName[]) {
      progress(`verbs: ${codec}, headDim ${headDim}`);
      rows.push(...verbRows(module, codec, headDim, quick));
    }
  }
  print(
    '\n### Verbs\n\nns per token of one head, one side; scores and mix serve four query heads; GB/s of f32 tokens and of codes. ' +
      'Error: relative to the f64 reference on the same input; of quantize, the share of codes that differ (near ties).\n'
  );
  print(toMarkdown({ headers: ['verb', 'codec', 'headDim', 'ns/token', 'GB/s', 'x memcpy', 'error'], rows, textColumns: 2 }));
}

function verbRows(module: WebAssembly.Module, name: CodecName, headDim: number, quick: boolean): string[][] {
  const codec = codecs[name];
  const rope = { invFreq: invFreq(headDim), interleaved: false };
  const shape = cacheShape({
    layers: 1,
    kvHeads: 1,
    queryHeads: HEADS,
    headDim,
    capacity: WINDOW,
    keys: name,
    values: name,
    rope,
    sinks: 0,
    sequences: 1
  });
  const memory = new WasmMemory(module, shape);
  const { kernels, f32, u8, tile, row, input, output, shapes } = memory;
  const layout = blockLayout(codec, headDim);
  const side = memory.sides.get(codec)!;
  const block = memory.pages[0]!;
  const n = hadamardSize(headDim);
  const quantizer = reference.codecQuantizer(codec);

  const { keys } = keysAndValues(1, WINDOW, headDim);
  const normal = normals(2);
  const y = Float32Array.from({ length: WINDOW * headDim }, normal);
  const q = Float32Array.from({ length: HEADS * headDim }, () => normal() / Math.sqrt(headDim));
  const weights = Float32Array.from({ length: HEADS * WINDOW }, () => Math.abs(normal()));
  const load = (x: Float32Array): void => {
    f32.set(x, input / 4);
    kernels.tileFromRows(input, WINDOW, headDim * 4, headDim, tile);
  };
  const unload = (): Float32Array => {
    kernels.rowsFromTile(tile, WINDOW, headDim * 4, headDim, output);
    return f32.slice(output / 4, output / 4 + WINDOW * headDim);
  };
  const lanes = (x: Float32Array, width: number): void => {
    for (let i = 0; i < x.length; i++) f32[input / 4 + HEADS * (i % width) + Math.floor(i / width)] = x[i]!;
  };
  const unlanes = (width: number): Float32Array =>
    Float32Array.from({ length: HEADS * width }, (_, i) => f32[output / 4 + HEADS * (i % width) + Math.floor(i / width)]!);

  const normalize = (): void => {
    kernels.norms(tile, headDim, row);
    kernels.rtn4(row, WINDOW, block + layout.s1, block + layout.scales, true);
    kernels.divide(tile, headDim, row);
  };
  const shift = (): void => {
    kernels.mean(shapes, tile, row, block + layout.o, block + layout.scales + 4, true);
    kernels.addMean(shapes, tile, row, -1, true);
  };
  const hadamard = (): void => kernels.hadamard(tile, headDim, WINDOW * 4, n, 1 / Math.sqrt(n));
  const quantize = (): void => kernels.quantize(side, tile, headDim, block, row, row + WINDOW * 4);
  const encode = (): void => {
    kernels.tileFromRows(input, WINDOW, headDim * 4, headDim, tile);
    kernels.encode(shapes, side, tile, block, true);
  };
  const decode = (): void => kernels.decode(shapes, side, block, tile, true);

  const verbs: [string, number, () => void, () => void, () => number][] = [];
  const f64 = (x: Float32Array): Float64Array => Float64Array.from(x);
  const tileBytes = headDim * 4;
  const codeBytes = layout.bytes / WINDOW;
  if (name === 'nsn2') {
    verbs.push(
      [
        'normalize',
        2 * tileBytes,
        normalize,
        () => load(keys),
        () => {
          const exact = f64(keys);
          reference.normalize(exact, headDim);
          return relativeError(unload(), exact);
        }
      ],
      [
        'shift',
        2 * tileBytes,
        shift,
        () => load(keys),
        () => {
          const exact = f64(keys);
          reference.shift(exact, headDim, rope);
          return relativeError(unload(), exact);
        }
      ],
      [
        'hadamard',
        2 * tileBytes,
        hadamard,
        () => load(y),
        () => {
          const exact = f64(y);
          reference.hadamard(exact, headDim);
          return relativeError(unload(), exact);
        }
      ]
    );
  }
  verbs.push(
    [
      'quantize',
      tileBytes,
      quantize,
      () => load(y),
      () => {
        const exact = reference.quantize(f64(y), quantizer);
        const perRow = headDim / codec.channels;
        return (
          exact.reduce((sum, code, i) => sum + Number(u8[block + Math.floor(i / perRow) * layout.rowBytes + (i % perRow)] !== code), 0) /
          exact.length
        );
      }
    ],
    [
      'encode',
      tileBytes,
      encode,
      () => f32.set(keys, input / 4),
      () => {
        const exact = reference.decode(reference.encode(keys, headDim, quantizer, rope), quantizer, rope);
        decode();
        return relativeError(unload(), exact);
      }
    ],
    [
      'decode',
      tileBytes + codeBytes,
      decode,
      () => {
        f32.set(keys, input / 4);
        encode();
      },
      () => {
        const exact = reference.decode(reference.unpack(u8.slice(block, block + layout.bytes), codec, headDim), quantizer, rope);
        return relativeError(unload(), exact);
      }
    ],
    [
      'scores',
      codeBytes,
      () => kernels.scores(shapes, input, block, output),
      () => {
        f32.set(keys, input / 4);
        encode();
        lanes(q, headDim);
      },
      () => {
        const window = reference.unpack(u8.slice(block, block + layout.bytes), codec, headDim);
        const exact = Array.from({ length: HEADS }, (_, head) =>
          Array.from(reference.scores(q.subarray(head * headDim, (head + 1) * headDim), window, quantizer, rope))
        );
        return relativeError(unlanes(WINDOW), exact.flat());
      }
    ],
    [
      'mix',
      codeBytes,
      () => {
        lanes(weights, WINDOW);
        kernels.mix(shapes, input, block, output);
      },
      () => {
        f32.set(keys, input / 4);
        encode();
        lanes(weights, WINDOW);
      },
      () => {
        const window = reference.unpack(u8.slice(block, block + layout.bytes), codec, headDim);
        const exact = Array.from({ length: HEADS }, (_, head) =>
          Array.from(reference.mix(weights.subarray(head * WINDOW, (head + 1) * WINDOW), window, quantizer))
        );
        return relativeError(unlanes(headDim), exact.flat());
      }
    ]
  );

  return verbs.map(([verb, bytes, run, prepare, check]) => {
    prepare();
    run();
    const error = check();
    prepare();
    const copied = Math.round(bytes * WINDOW);
    const times = race(
      { verb: run, memcpy: () => u8.copyWithin(output, output + copied, output + 2 * copied) },
      quick ? { rounds: 1, seconds: 0.02 } : { rounds: 3, seconds: 0.1 }
    );
    const perToken = times['verb']! / WINDOW;
    return [
      verb,
      verbs.length > 5 && ['normalize', 'shift', 'hadamard'].includes(verb) ? 'any' : name,
      String(headDim),
      perToken.toFixed(1),
      (bytes / perToken).toFixed(2),
      (times['verb']! / times['memcpy']!).toFixed(0),
      error.toExponential(1)
    ];
  });
}
