// Constants of a graph as numbers: those few that a cache must be told, such as tables of rotations.

import { FLOAT, FLOAT16, type Read, type Tensor } from './graph.ts';

export interface Numbers {
  readonly data: Float32Array;
  readonly shape: readonly number[];
}

/** A tensor's numbers as f32; undefined where there is none, or its type is none of f32 and f16. */
export async function constantOf(tensor: Tensor | undefined, read: Read): Promise<Numbers | undefined> {
  if (!tensor || (tensor.type !== FLOAT && tensor.type !== FLOAT16)) return undefined;
  const aligned = (await read(tensor)).slice();
  const data = tensor.type === FLOAT ? new Float32Array(aligned.buffer) : Float32Array.from(new Uint16Array(aligned.buffer), fromHalf);
  return { data, shape: tensor.shape };
}

/** The number that the bits of an f16 stand for. */
export function fromHalf(half: number): number {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >> 10) & 31;
  const fraction = half & 1023;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  if (exponent === 31) return fraction ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}

/** The numbers of floats that ONNX Runtime gives: f16 as bits, or as Float16Array where the engine has it. */
export function numbersOf({ data, type }: { readonly data: unknown; readonly type: string }): ArrayLike<number> {
  return type === 'float16' && data instanceof Uint16Array ? Float32Array.from(data, fromHalf) : (data as ArrayLike<number>);
}
