// What formats that round Hadamard-transformed tokens have in common.
import { hadamard } from 'nsnquant/reference';

/** x [tokens, headDim] is rounded by `round`, which is given it transformed; the transform is its own inverse. */
export function transformed(x: Float32Array, headDim: number, round: (y: Float64Array) => void): void {
  const y = Float64Array.from(x);
  hadamard(y, headDim);
  round(y);
  hadamard(y, headDim);
  x.set(y);
}
