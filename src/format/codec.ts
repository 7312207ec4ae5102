// Codecs: which codewords a byte chooses from, and at which rates the channels of a head are coded. Plain frozen data.

import { codebooks as data } from './codebook.ts';
import { fromHalf } from './half.ts';

/** Names of codecs: bits per channel, but for the metadata. */
export type CodecName = 'nsn1' | 'nsn2' | 'nsn3' | 'nsn4';

/** 256 codewords, one of which a byte stands for. */
export interface Codebook {
  /** Channels of a codeword: 8, 4 or 2. */
  readonly channels: 8 | 4 | 2;
  /** f32 [256, channels], exactly the f16 values that were stored. Codeword c + 128 is the negation of codeword c. */
  readonly codewords: Float32Array;
  /** Checksum of the codewords' f16 bytes; part of the format. */
  readonly checksum: number;
}

/**
 * The codebooks by their channels: 8 (1 bit a channel), 4 (2 bits) and 2 (4 bits).
 *
 * @example
 * codebooks[4].codewords.length;   // 1024: 256 codewords of 4 channels
 */
export const codebooks: Readonly<Record<8 | 4 | 2, Codebook>> = /* @__PURE__ */ Object.freeze({
  8: /* @__PURE__ */ codebook(8),
  4: /* @__PURE__ */ codebook(4),
  2: /* @__PURE__ */ codebook(2)
});

/** Codes of one codebook over all channels of a segment. What stages say is added up: a later one refines what came before. */
export interface Stage {
  /** Where its codes choose from. */
  readonly codebook: Codebook;
  /** What its codewords are multiplied by. */
  readonly scale: number;
}

/** Channels that have a Hadamard transform, a second norm and a rate of their own. */
export interface Segment {
  /** How many, the next in their order. */
  readonly channels: number;
  /** What codes them, one after another. */
  readonly stages: readonly Stage[];
}

/** A rate, and how keys and values are coded at it. */
export interface Codec {
  /** Its name in the options of a cache. */
  readonly name: CodecName;
  /** Bits per channel of the codes alone; the metadata of a page adds 0.24 to 0.44 at 128 and 64 channels. */
  readonly bits: 1 | 2 | 3 | 4;
}

/**
 * The codecs by name: `nsn1`, `nsn2`, `nsn3` and `nsn4`, of 1 to 4 bits a channel.
 *
 * @example
 * codecs.nsn2.bits;   // 2
 */
export const codecs: Readonly<Record<CodecName, Codec>> = /* @__PURE__ */ Object.freeze({
  nsn1: /* @__PURE__ */ Object.freeze({ name: 'nsn1', bits: 1 }),
  nsn2: /* @__PURE__ */ Object.freeze({ name: 'nsn2', bits: 2 }),
  nsn3: /* @__PURE__ */ Object.freeze({ name: 'nsn3', bits: 3 }),
  nsn4: /* @__PURE__ */ Object.freeze({ name: 'nsn4', bits: 4 })
});

/**
 * Plain coding: one segment of all channels. At 3 bits 8 channels take three bytes: a codeword of 4 channels each, then one of 8 for
 * what is left of both, times its scale: about the root of what 4 channels err by (0.0962). Mean squared error of Gaussian channels
 * 0.0314; halves at 4 and 2 bits have 0.052, the codeword of 8 channels first 0.0323.
 *
 * Not worth it: a codebook trained on what is left (0.0306, 5.5 KB); overlapping codewords, a trellis of 4 states (10 % off the error at
 * 2 bits, 18 % at 4, for four searches and a Viterbi pass). Unrealized gain: two first codewords tried for either half, 0.0286 for three
 * more searches, which takes 9 to 13 % off the KL divergence that values of 3 bits cost SmolLM2-135M.
 */
const PLAIN: Readonly<Record<CodecName, readonly (readonly [channels: 8 | 4 | 2, scale: number])[]>> = {
  nsn1: [[8, 1]],
  nsn2: [[4, 1]],
  nsn3: [
    [4, 1],
    [8, 0.3125]
  ],
  nsn4: [[2, 1]]
};

/**
 * @internal The segments of a head's values, or of keys that are not balanced.
 *
 * @param headDim  a multiple of 8
 */
export function plainSegments({ name }: Codec, headDim: number): readonly Segment[] {
  const stages = PLAIN[name].map(([channels, scale]) => Object.freeze({ codebook: codebooks[channels], scale }));
  return Object.freeze([Object.freeze({ channels: headDim, stages: Object.freeze(stages) })]);
}

/**
 * @internal The segments of a head's balanced keys, the channels that weigh most first; those that are left are dropped. Shares of a
 * head of 64 channels, by bytes of codes (channels), and the mean KL divergence of attention on recorded keys of SmolLM2-135M:
 *
 *   nsn1   2 (4) · 4 (16) · 2 (16)     0.066    2 · 3 · 3: 0.072, 4 · 4 · 0: 0.074, 0 · 8 · 0: 0.075, 0 · 4 · 4: 0.077
 *   nsn2   4 (8) · 10 (40) · 2 (16)    0.0196   6 · 9 · 1: 0.0214, 4 · 12 · 0: 0.0213, 8 · 4 · 4: 0.0223, 8 · 8 · 0: 0.0271
 *   nsn3   16 (32) · 8 (32)            0.0057   with three bytes for 8 channels in between: 0.0055, for all: 0.0079
 *   nsn4   32 (64)                     0.0022
 *
 * Each begins at an even byte (the last alone may have an odd number of them), so that two columns of codes share a scale in a kernel's pass.
 */
export function balancedSegments({ name }: Codec, headDim: number): readonly Segment[] {
  const bytes = headDim / 8;
  const columns = { 2: 0, 4: 0, 8: 0 };
  if (name === 'nsn1') {
    columns[2] = 2 * Math.floor((bytes + 1) / 8);
    columns[4] = 2 * Math.round(bytes / 4);
    columns[8] = bytes - columns[2] - columns[4];
  } else if (name === 'nsn2') {
    columns[8] = Math.max(2, 2 * Math.round(headDim / 64));
    columns[2] = 2 * columns[8];
    columns[4] = 2 * bytes - 3 * columns[8];
  } else if (name === 'nsn3') {
    columns[2] = 2 * bytes;
    columns[4] = bytes;
  } else {
    columns[2] = 4 * bytes;
  }
  const segments = ([2, 4, 8] as const)
    .filter(channels => columns[channels] > 0)
    .map(channels =>
      Object.freeze({
        channels: channels * columns[channels],
        stages: Object.freeze([Object.freeze({ codebook: codebooks[channels], scale: 1 })])
      })
    );
  return Object.freeze(segments);
}

/** @internal f32 [256]: ‖C‖²/2, by which the nearest codeword is found. */
export function halfNormsOf({ channels, codewords }: Codebook): Float32Array {
  return Float32Array.from({ length: 256 }, (_, c) => {
    let sum = 0;
    for (let k = 0; k < channels; k++) sum += codewords[c * channels + k]! ** 2;
    return sum / 2;
  });
}

function codebook(channels: 8 | 4 | 2): Codebook {
  const { checksum, base64 } = data[channels];
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  return Object.freeze({ channels, codewords: Float32Array.from(new Uint16Array(bytes.buffer), fromHalf), checksum });
}
