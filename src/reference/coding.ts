// How a side is coded, by the reference: what a block's layout stands for, and the helpers that run over its segments.

import type { ChannelOrder } from '../format/balance.ts';
import type { Codebook } from '../format/codec.ts';
import type { BlockLayout, Rope } from '../format/layout.ts';
import type { CodedWindow } from './coded.ts';

/** Anything a quantizer must be: `codebookQuantizer` gives that of a codebook, bench/llm has the paper's own 2-bit form. */
export interface Quantizer {
  /** Channels per code. */
  readonly channels: number;
  /** The code of `channels` numbers of y, from `at`. */
  quantize(y: Float64Array, at: number): number;
  /** Writes the codeword of a code to `out`, from `at`. */
  decode(code: number, out: Float64Array, at: number): void;
}

/** Channels that are transformed, normalized and quantized together, by quantizers that refine one another. */
export interface QuantizedSegment {
  /** How many, the next in their order. */
  readonly channels: number;
  /** Quantizers, and what their codewords are multiplied by. */
  readonly stages: readonly {
    /** What finds a code for the residual. */
    readonly quantizer: Quantizer;
    /** What its codewords are multiplied by. */
    readonly scale: number;
  }[];
}

/** How the tokens of one head and side are coded. */
export interface Coding {
  /** What the channels are cut into; those beyond the last are dropped. */
  readonly segments: readonly QuantizedSegment[];
  /** Bits of a channel of the mean. */
  readonly meanBits: 4 | 8;
  /** How keys were rotated, if their mean is to be taken before. */
  readonly rope?: Rope | undefined;
  /** The order and scales of a balance; without one channels stay as they are. */
  readonly order?: ChannelOrder | undefined;
}

/** The coding that a block's layout stands for. */
export function codingOf({ segments, meanBits }: BlockLayout, rope?: Rope, order?: ChannelOrder): Coding {
  const quantized = segments.map(({ channels, stages }) => ({
    channels,
    stages: stages.map(({ codebook, scale }) => ({ quantizer: codebookQuantizer(codebook), scale }))
  }));
  return { segments: quantized, meanBits, rope, order };
}

/** The quantizer of a codebook: the EUCLIDEAN nearest codeword, argmax(y·C − ‖C‖²/2), the lowest code among equals. */
export function codebookQuantizer({ channels, codewords }: Codebook): Quantizer {
  return {
    channels,
    quantize(y, at) {
      let best = -Infinity;
      let code = 0;
      for (let c = 0; c < 256; c++) {
        let score = 0;
        for (let k = 0; k < channels; k++) {
          const e = codewords[c * channels + k]!;
          score += e * (y[at + k]! - e / 2);
        }
        if (score > best) {
          best = score;
          code = c;
        }
      }
      return code;
    },
    decode(code, out, at) {
      for (let k = 0; k < channels; k++) out[at + k] = codewords[code * channels + k]!;
    }
  };
}

/** @internal x's rows in the order of a coding, times what `factor` makes of a scale. */
export function inOrder(x: Float64Array, headDim: number, { order }: Coding, factor: (scale: number) => number): Float64Array {
  if (!order) return x;
  const { channels, scales } = order;
  return x.map((_, i) => x[i - (i % headDim) + channels[i % headDim]!]! * factor(scales[i % headDim]!));
}

/** @internal The inverse, for what was scaled. */
export function outOfOrder(y: Float64Array, headDim: number, { order }: Coding): Float64Array {
  if (!order) return y;
  const x = new Float64Array(y.length);
  y.forEach((value, i) => {
    x[i - (i % headDim) + order.channels[i % headDim]!] = value / order.scales[i % headDim]!;
  });
  return x;
}

/** @internal What `visit` makes of every segment, of which it is told the first channel and the number. */
export function eachSegment<T>({ segments }: Coding, visit: (segment: QuantizedSegment, from: number, n: number) => T): T[] {
  let from = 0;
  return segments.map((segment, n) => {
    from += segment.channels;
    return visit(segment, from - segment.channels, n);
  });
}

/** @internal A copy of `count` channels of every row. */
export function columnsOf(x: Float64Array, headDim: number, from: number, count: number): Float64Array {
  return Float64Array.from({ length: (x.length / headDim) * count }, (_, i) => x[Math.floor(i / count) * headDim + from + (i % count)]!);
}

/** @internal The codewords of a window's segment, all stages together: f64 [tokens, channels]. */
export function codewords({ codes, tokens }: CodedWindow, { segments }: Coding, n: number): Float64Array {
  const perStage = segments.map(({ channels, stages }) => stages.map(({ quantizer }) => channels / quantizer.channels));
  let column = perStage
    .slice(0, n)
    .flat()
    .reduce((sum, columns) => sum + columns, 0);
  const perToken = codes.length / tokens;
  const { channels, stages } = segments[n]!;
  const out = new Float64Array(tokens * channels);
  stages.forEach(({ quantizer, scale }, stage) => {
    const columns = perStage[n]![stage]!;
    const chosen = Uint16Array.from(
      { length: tokens * columns },
      (_, i) => codes[Math.floor(i / columns) * perToken + column + (i % columns)]!
    );
    addCodewords(chosen, quantizer, scale, out);
    column += columns;
  });
  return out;
}

/** @internal out += scale · the codewords of codes. */
export function addCodewords(codes: Uint16Array, quantizer: Quantizer, scale: number, out: Float64Array): void {
  const codeword = new Float64Array(quantizer.channels);
  codes.forEach((code, j) => {
    quantizer.decode(code, codeword, 0);
    codeword.forEach((value, k) => {
      out[j * quantizer.channels + k]! += scale * value;
    });
  });
}
