// 4-bit weights as ONNX Runtime's MatMulNBits takes them, in blocks of 32: what a file has in 4 bits need not become f32.
//
// A weight is scale · (code − 8), exactly Q4_0. Q4_1 and Q4_K have minimums: scale · code + m = scale · (code − 8) + (m + 8 · scale), and the
// second term, equal for all of a block, is one product of the block's sums of x. With zero points in f32 one token takes 11 to 16 times as
// long instead. One thread of a Xeon, 576 × 1,536 and 2,048 × 4,096, with f32 accumulation: one token 0.54 and 0.44 of Gemm's time, 16 tokens
// 1.02 and 1.04, 128 tokens 1.10 and 1.00, 512 tokens 1.04 and 0.96. With integer accumulation (accuracy_level 4) one token takes 0.23 and
// 0.18, but 512 tokens 1.8 and 1.3 times as long, and products are off by 0.3 %.
import { half, sixBits, type TensorType } from './dequantize.ts';

/** Elements that share a scale. */
export const BLOCK = 32;

/** A matrix, row by row. */
export interface SmallWeights {
  /** u8 [blocks, 16]: two codes a byte, the earlier one in the low bits. */
  readonly codes: Uint8Array;
  /** f32 [blocks]. */
  readonly scales: Float32Array;
  /** f32 [blocks]: what is added to every weight of a block. */
  readonly offsets: Float32Array;
}

/** Code i of group `group` in the block at `at`, and the group's scale and minimum. */
interface Layout {
  code(view: DataView, at: number, group: number, i: number): number;
  ends(view: DataView, at: number, group: number): { readonly scale: number; readonly min: number };
}

const nibble = (view: DataView, at: number, i: number): number => (i < 16 ? view.getUint8(at + i) & 15 : view.getUint8(at + i - 16) >> 4);

const layouts: Readonly<Record<string, Layout>> = {
  Q4_0: {
    code: (view, at, _, i) => nibble(view, at + 2, i),
    ends(view, at) {
      const scale = half(view, at);
      return { scale, min: -8 * scale };
    }
  },
  Q4_1: {
    code: (view, at, _, i) => nibble(view, at + 4, i),
    ends: (view, at) => ({ scale: half(view, at), min: half(view, at + 2) })
  },
  Q4_K: {
    code: (view, at, group, i) => (view.getUint8(at + 16 + (group >> 1) * 32 + i) >> (group & 1 ? 4 : 0)) & 15,
    ends(view, at, group) {
      const { scale, min } = sixBits(view, at + 4, group);
      return { scale: half(view, at) * scale, min: -half(view, at + 2) * min };
    }
  }
};

export function isSmall({ name }: TensorType): boolean {
  return Object.hasOwn(layouts, name);
}

/** Whether such weights are all scale and code. */
export function hasOffsets({ name }: TensorType): boolean {
  return name !== 'Q4_0';
}

/** The same weights in another order. */
export function repack({ name, block, bytes }: TensorType, data: Uint8Array): SmallWeights {
  const { code, ends } = layouts[name]!;
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const groups = block / BLOCK;
  const count = (data.length / bytes) * groups;
  const codes = new Uint8Array(count * (BLOCK / 2));
  const scales = new Float32Array(count);
  const offsets = new Float32Array(count);
  for (let n = 0; n < count; n++) {
    const at = Math.floor(n / groups) * bytes;
    const group = n % groups;
    const { scale, min } = ends(view, at, group);
    scales[n] = scale;
    offsets[n] = min + 8 * scale;
    for (let i = 0; i < BLOCK; i += 2) {
      codes[n * 16 + i / 2] = code(view, at, group, i) | (code(view, at, group, i + 1) << 4);
    }
  }
  return { codes, scales, offsets };
}
