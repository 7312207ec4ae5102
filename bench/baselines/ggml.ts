// The formats that inference engines keep a cache in today, as llama.cpp defines them: blocks of 32 channels, each with
// an f16 scale. Written for exactness, not for speed: every format is a round trip over the input. Must never be timed.
import { fromHalf, HALF_MAX, toHalf } from '../../src/format/half.ts';

export interface Format {
  name: string;
  /** Bytes of one head of one token, scales included. */
  headBytes(headDim: number): number;
  /** x ← decoded(encoded(x)) for one head of one token, in place. */
  roundTrip(x: Float32Array): void;
}

/** Channels that share a scale (QK8_0, QK4_0). The last block of a head is shorter where 32 does not divide it. */
const BLOCK = 32;
const SCALE_BYTES = 2;

export const f32: Format = {
  name: 'f32',
  headBytes: headDim => 4 * headDim,
  roundTrip() {}
};

/** 8 bits: scale = max|x| / 127, code = round(x / scale). */
export const q8_0: Format = {
  name: 'q8_0',
  headBytes: headDim => headDim + SCALE_BYTES * Math.ceil(headDim / BLOCK),
  roundTrip(x) {
    for (let begin = 0; begin < x.length; begin += BLOCK) {
      const block = x.subarray(begin, begin + BLOCK);
      // Codes come from the f32 scale, values from the stored f16 one.
      const scale = Math.fround(Math.abs(extreme(block)) / 127);
      const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
      const stored = half(scale);
      for (let i = 0; i < block.length; i++) {
        const quotient = Math.fround(block[i]! * inverse);
        const code = Math.sign(quotient) * Math.floor(Math.abs(quotient) + 0.5); // C's roundf: halves away from zero
        block[i] = code * stored;
      }
    }
  }
};

/** 4 bits: scale = (the element of largest magnitude, with its sign) / −8, code = min(15, floor(x / scale + 8.5)). */
export const q4_0: Format = {
  name: 'q4_0',
  headBytes: headDim => headDim / 2 + SCALE_BYTES * Math.ceil(headDim / BLOCK),
  roundTrip(x) {
    for (let begin = 0; begin < x.length; begin += BLOCK) {
      const block = x.subarray(begin, begin + BLOCK);
      const scale = Math.fround(extreme(block) / -8);
      const inverse = scale === 0 ? 0 : Math.fround(1 / scale);
      const stored = half(scale);
      for (let i = 0; i < block.length; i++) {
        const code = Math.min(15, Math.trunc(Math.fround(Math.fround(block[i]! * inverse) + 8.5)));
        block[i] = (code - 8) * stored;
      }
    }
  }
};

/**
 * A format behind an orthonormal Hadamard transform of each head. An engine transforms the query instead of turning keys
 * back; turning them back here gives the same logits, for H is symmetric and its own inverse.
 */
export function withHadamard(format: Format): Format {
  return {
    name: `${format.name}+hadamard`,
    headBytes: format.headBytes,
    roundTrip(x) {
      hadamard(x);
      format.roundTrip(x);
      hadamard(x);
    }
  };
}

/** x ← x · H / √n in place, in blocks of the largest power of two that divides the head dimension. */
function hadamard(x: Float32Array): void {
  const n = x.length & -x.length;
  const y = Float64Array.from(x);
  for (let stride = 1; stride < n; stride *= 2) {
    for (let i = 0; i < y.length; i++) {
      if (i & stride) continue;
      const a = y[i]!,
        b = y[i + stride]!;
      y[i] = a + b;
      y[i + stride] = a - b;
    }
  }
  const scale = 1 / Math.sqrt(n);
  for (let i = 0; i < x.length; i++) x[i] = y[i]! * scale;
}

/** The element of largest magnitude, with its sign; the first of equals. */
function extreme(block: Float32Array): number {
  let best = 0;
  for (const x of block) if (Math.abs(x) > Math.abs(best)) best = x;
  return best;
}

/** x as f16 stores it, at most f16's largest number. */
export function half(x: number): number {
  return fromHalf(toHalf(Math.max(-HALF_MAX, Math.min(HALF_MAX, x))));
}
