// One attention of a call: keys and values into the sequences, queries answered by them. In arrays, or in buffers of a GPU, where
// nothing passes through JavaScript.

import type { AttendOptions } from 'nsnquant';
import type { Tensor } from 'onnxruntime-common';
import type { Attention } from './attention.ts';
import type { KeyValues } from './model.ts';
import type { Device, OnnxRuntime } from './runtime.ts';

/** Tokens of a call: how many every sequence has, one after another in a row. */
export interface Batch {
  readonly sequences: readonly KeyValues[];
  readonly counts: readonly number[];
}

/** What an attention gives, [1, tokens, ...]. */
export interface Attended {
  readonly tensor: Tensor;
  /** Gives its memory back. */
  free(): void;
}

export type Attend = (layer: number, attention: Attention, values: ReadonlyMap<string, Tensor>, batch: Batch) => Promise<Attended>;

type Floats = Float32Array | Uint16Array;

export function attendInArrays({ Tensor }: OnnxRuntime): Attend {
  return async (layer, attention, values, batch) => {
    const { query, key, value, queryHeads, kvHeads, headDim, valueDim } = attention;
    const [queries, keys, results] = [query, key, value].map(name => values.get(name)!.data as Floats) as [Floats, Floats, Floats];
    const type = values.get(query)!.type as 'float32' | 'float16';
    const dims = dimsOf(attention, batch);
    const length = dims.reduce((product, size) => product * size, 1);
    const data = type === 'float16' ? new Uint16Array(length) : new Float32Array(length);
    const outputs = eachOf(batch, (sequence, from, to) => {
      const of = (floats: Floats, width: number): Floats => floats.subarray(from * width, to * width);
      sequence.append(layer, of(keys, kvHeads * headDim), of(results, kvHeads * valueDim));
      return sequence.attend(layer, of(queries, queryHeads * headDim), { ...scaleOf(attention), out: of(data, queryHeads * valueDim) });
    });
    await Promise.all(outputs.map(output => output.read()));
    return { tensor: new Tensor(type, data as Float32Array, dims), free: () => {} };
  };
}

const STORAGE_COPY = 128 | 8 | 4;

export function attendInBuffers({ Tensor }: OnnxRuntime, device: Device): Attend {
  return async (layer, attention, values, batch) => {
    const { query, key, value, queryHeads, kvHeads, headDim, valueDim } = attention;
    const type = values.get(query)!.type as 'float32' | 'float16';
    const [format, bytes] = type === 'float16' ? (['f16', 2] as const) : (['f32', 4] as const);
    const dims = dimsOf(attention, batch);
    const size = dims.reduce((product, size) => product * size, bytes);
    const buffer = device.createBuffer({ size, usage: STORAGE_COPY });
    eachOf(batch, (sequence, from, to) => {
      const of = (name: string, width: number) => {
        return { buffer: values.get(name)!.gpuBuffer as never, offset: from * width * bytes, tokens: to - from, format };
      };
      sequence.append(layer, of(key, kvHeads * headDim), of(value, kvHeads * valueDim));
      const out = { buffer, offset: from * queryHeads * valueDim * bytes, format };
      sequence.attend(layer, of(query, queryHeads * headDim), { ...scaleOf(attention), out });
    });
    // What the engine submits from here on finds the results in the buffer.
    return { tensor: Tensor.fromGpuBuffer(buffer as never, { dataType: type, dims }), free: () => buffer.destroy() };
  };
}

function dimsOf({ queryHeads, valueDim, apart }: Attention, { counts }: Batch): number[] {
  const tokens = counts.reduce((sum, count) => sum + count, 0);
  return [1, tokens, ...(apart ? [queryHeads, valueDim] : [queryHeads * valueDim])];
}

function scaleOf({ scale }: Attention): Pick<AttendOptions, 'scale'> {
  return scale === undefined ? {} : { scale };
}

function eachOf<Result>({ sequences, counts }: Batch, run: (sequence: KeyValues, from: number, to: number) => Result): Result[] {
  let to = 0;
  return sequences.map((sequence, n) => {
    const from = to;
    to += counts[n]!;
    return run(sequence, from, to);
  });
}
