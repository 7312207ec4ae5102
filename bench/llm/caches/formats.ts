// The formats that nsnquant is compared with, each a round trip over one head's window. Exact rather than fast.
import { type Format, f32, half, q4_0, q8_0, withHadamard } from '../../baselines/ggml.ts';
import { WINDOW } from './cache.ts';
import { kvarn } from './kvarn.ts';
import { transformed } from './transformed.ts';
import { trellis2 } from './trellis.ts';

export type Side = 'keys' | 'values';

export interface WindowFormat {
  readonly name: string;
  /** Nothing is ever coded: f32 throughout. */
  readonly raw?: true;
  /** Tokens that are coded together. */
  readonly window: number;
  /** Bytes of one head's window, scales included. */
  windowBytes(headDim: number, side: Side): number;
  /** Bytes of tables that decoding needs, once for all. */
  readonly tableBytes: number;
  /** x ← decoded(encoded(x)), f32 [window, headDim] in place. */
  roundTrip(x: Float32Array, headDim: number, side: Side): void;
}

/** A format that codes every token by itself. */
function tokenwise(format: Format): WindowFormat {
  return {
    name: format.name,
    window: WINDOW,
    windowBytes: headDim => WINDOW * format.headBytes(headDim),
    tableBytes: 0,
    roundTrip(x, headDim) {
      for (let at = 0; at < x.length; at += headDim) format.roundTrip(x.subarray(at, at + headDim));
    }
  };
}

/**
 * KIVI (Liu et al., arXiv 2402.02750) at 2 bits, groups of 32: keys per channel over 32 tokens, values per token over 32
 * channels; asymmetric, scale and minimum as f16. Unlike the paper's, its raw tail is the window that every format here has.
 */
const kivi2: WindowFormat = {
  name: 'kivi2',
  window: WINDOW,
  windowBytes: headDim => (WINDOW * headDim * 2) / 8 + ((WINDOW * headDim) / 32) * 4,
  tableBytes: 0,
  roundTrip(x, headDim, side) {
    if (side === 'values') {
      for (let at = 0; at < x.length; at += 32) round2(x, at, 1);
      return;
    }
    for (let begin = 0; begin < WINDOW; begin += 32) {
      for (let channel = 0; channel < headDim; channel++) round2(x, begin * headDim + channel, headDim);
    }
  }
};

/** 32 elements, `stride` apart: code = round((x − min) / scale), scale = (max − min) / 3. */
function round2(x: Float32Array, at: number, stride: number): void {
  let low = Infinity;
  let high = -Infinity;
  for (let i = 0, p = at; i < 32; i++, p += stride) {
    low = Math.min(low, x[p]!);
    high = Math.max(high, x[p]!);
  }
  const min = half(low);
  const scale = half((high - low) / 3);
  for (let i = 0, p = at; i < 32; i++, p += stride) {
    const code = scale === 0 ? 0 : Math.max(0, Math.min(3, Math.round((x[p]! - min) / scale)));
    x[p] = code * scale + min;
  }
}

/** Positive half of the levels that quantize N(0, 1) with the least squared error (Max 1960, table I). */
const lloydMax: Readonly<Record<number, readonly number[]>> = {
  2: [0.4528, 1.51],
  3: [0.2451, 0.756, 1.344, 2.152],
  4: [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]
};

/**
 * After TurboQuant (Zandieh et al., arXiv 2504.19874): one f16 norm per token, a rotation (Hadamard here), every channel by
 * the scalar quantizer that is best for a normal distribution.
 */
function turbo(bits: number): WindowFormat {
  const levels = lloydMax[bits]!;
  const edges = levels.slice(1).map((level, i) => (level + levels[i]!) / 2);
  return {
    name: `turbo${bits}`,
    window: WINDOW,
    windowBytes: headDim => WINDOW * ((headDim * bits) / 8 + 2),
    tableBytes: 2 * 2 ** bits,
    roundTrip(x, headDim) {
      transformed(x, headDim, y => {
        for (let row = 0; row < y.length; row += headDim) {
          let sum = 0;
          for (let i = row; i < row + headDim; i++) sum += y[i]! * y[i]!;
          const exact = Math.sqrt(sum / headDim);
          const norm = half(exact);
          for (let i = row; i < row + headDim; i++) {
            const magnitude = exact === 0 ? 0 : Math.abs(y[i]!) / exact;
            let code = 0;
            while (code < edges.length && magnitude > edges[code]!) code++;
            y[i] = Math.sign(y[i]!) * levels[code]! * norm;
          }
        }
      });
    }
  };
}

export const raw: WindowFormat = {
  name: 'raw',
  raw: true,
  window: WINDOW,
  windowBytes: headDim => WINDOW * f32.headBytes(headDim),
  tableBytes: 0,
  roundTrip() {}
};

/** By name. */
export const formats: ReadonlyMap<string, WindowFormat> = new Map(
  [
    raw,
    tokenwise(q8_0),
    tokenwise(q4_0),
    tokenwise(withHadamard(q4_0)),
    kivi2,
    turbo(2),
    turbo(3),
    turbo(4),
    trellis2,
    kvarn('kvarn2', 2, WINDOW),
    kvarn('kvarn4', 4, WINDOW),
    kvarn('kvarn2_g128', 2, 128),
    kvarn('kvarn4_g128', 4, 128)
  ].map(format => [format.name, format])
);
