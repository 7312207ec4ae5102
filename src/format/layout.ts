// Where every byte of a cache lies. The same bytes on every backend and in a file: little-endian, words of 4 bytes, padding 0.
//
// A page is one window (64 tokens) of one layer, all KV heads:
//
//   ┌ head 0: keys │ values ┬ head 1: keys │ values ┬ …
//
// keys, values: one block each
//
//   codes      u8  [64, rowBytes]         token-major; of every segment its stages' codes, one after another; rows end on words
//   s2         u8  [segments, 64]         second norms with the scale adjustment: (32 · exponent + s2) << 18 as the bits of an f32; 0 is 0
//   s1         u4  [64]                   first norms; element i in byte i/2, even elements in the low nibble
//   o          u8 or u4 [headDim]         channel mean: of keys a byte each, of values packed as s1
//   scales     f16 [1 + groups, 2]        (scale, minimum) of s1, then of every 32 channels of o
//   exponents  u8  [segments]             of s2
//
// A raw page holds the same window before it is coded: of every head keys f16 [64, headDim], then values f16 [64, valueDim]. The sinks of
// one sequence and layer are a raw page of `sinks` tokens.

import { balancedSegments, type Codec, plainSegments, type Segment, type Stage } from './codec.ts';
import { isFiniteHalf } from './half.ts';

/** @internal Tokens coded together. */
export const WINDOW = 64;
/** @internal Tokens by which a raw window gets memory. */
export const QUARTER = WINDOW / 4;
/** @internal Version of pages and files. */
export const FORMAT = 2;
/** @internal Channels that share one scale and minimum of o. */
export const MEAN_GROUP = 32;

/**
 * The largest exponent of second norms that is taken. Encoders write about 130 at most: what is normalized is shorter than 2¹⁰. With this
 * a token is shorter than 2⁵⁰ and a logit than 2¹⁰⁸, so that a file that lies makes nothing infinite.
 */
const EXPONENT_MOST = 140;

/** Rotary position embedding, as keys carry it when they come. */
export interface Rope {
  /** Radians per token of each rotated pair, −2π to 2π; shorter than headDim/2 for partial rotary. */
  readonly invFreq: ArrayLike<number>;
  /** Pairs are (2i, 2i+1) when true, (i, i + invFreq.length) when false. */
  readonly interleaved: boolean;
}

/** Columns of codes of one stage of a segment. */
export interface StageLayout extends Stage {
  /** Its first column: byte of a row. */
  readonly column: number;
  /** Its columns, one for `codebook.channels` channels of the segment. */
  readonly columns: number;
}

/** Where the codes of a segment lie. */
export interface SegmentLayout extends Segment {
  /** Its first channel, in the order of the block's channels. */
  readonly channel: number;
  /** Its codes, stage by stage. */
  readonly stages: readonly StageLayout[];
}

/** Where the sections of one head's keys or values lie in a page, in bytes from their beginning. */
export interface BlockLayout {
  /** What codes them. */
  readonly codec: Codec;
  /** Whether channels are ordered and scaled by what a sequence has learned. */
  readonly balanced: boolean;
  /** What the channels are cut into. Channels beyond the last are dropped. */
  readonly segments: readonly SegmentLayout[];
  /** Bits of a channel of the mean: 8 of keys, 4 of values. */
  readonly meanBits: 4 | 8;
  /** Bytes of one token's codes, padded. The codes are at 0. */
  readonly rowBytes: number;
  /** Second norms, u8 [segments, 64]. */
  readonly s2: number;
  /** First norms, u4 [64]. */
  readonly s1: number;
  /** Channel mean, u8 or u4 [headDim]. */
  readonly o: number;
  /** Scale and minimum of s1, then of every 32 channels of o: f16 [1 + groups, 2]. */
  readonly scales: number;
  /** Exponents of second norms, u8 [segments]. */
  readonly exponents: number;
  /** Bytes of the whole block. */
  readonly bytes: number;
}

/** Heads of one layer's keys and values, and their channels. */
export interface Heads {
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** Channels of a head's keys. */
  readonly headDim: number;
  /** Channels of a head's values. */
  readonly valueDim: number;
}

/** How a page of one layer is laid out: keys and values of every KV head. */
export interface PageLayout extends Heads {
  /** Sections of one head's keys. */
  readonly keys: BlockLayout;
  /** Sections of one head's values. */
  readonly values: BlockLayout;
  /** Bytes of the whole page. */
  readonly bytes: number;
}

/** @internal Channel of the partner and sign: RoPE by angle a maps (x[a], x[b]) to (x[a]·cos − x[b]·sin, x[b]·cos + x[a]·sin). */
export function ropePair(rope: Rope, pair: number): [a: number, b: number] {
  return rope.interleaved ? [2 * pair, 2 * pair + 1] : [pair, pair + rope.invFreq.length];
}

/**
 * @internal The two channels that share an energy: those that RoPE rotates together, so that scaling commutes with it; of the rest,
 * neighbors.
 */
export function channelPairs(headDim: number, rope: Rope | undefined): readonly (readonly [a: number, b: number])[] {
  const rotated = rope?.invFreq.length ?? 0;
  return Array.from({ length: headDim / 2 }, (_, pair) => (rope && pair < rotated ? ropePair(rope, pair) : [2 * pair, 2 * pair + 1]));
}

/** @internal The sizes of a segment's Hadamard transforms: the powers of two that its channels are the sum of, largest first. */
export function hadamardSizes(channels: number): number[] {
  const sizes: number[] = [];
  for (let rest = channels; rest > 0; rest -= sizes.at(-1)!) sizes.push(2 ** Math.floor(Math.log2(rest)));
  return sizes;
}

/** How one head's keys or values are cut into segments, and where the bytes of a window of them lie. */
export function blockLayout(codec: Codec, channels: number, side: 'keys' | 'values', balanced: boolean): BlockLayout {
  let channel = 0;
  let column = 0;
  const segments = (balanced ? balancedSegments(codec, channels) : plainSegments(codec, channels)).map(segment => {
    const stages = segment.stages.map(stage => {
      const columns = segment.channels / stage.codebook.channels;
      column += columns;
      return Object.freeze({ ...stage, column: column - columns, columns });
    });
    channel += segment.channels;
    return Object.freeze({ channel: channel - segment.channels, channels: segment.channels, stages: Object.freeze(stages) });
  });
  const meanBits = side === 'keys' ? 8 : 4;
  const rowBytes = align(column, 4);
  const s2 = WINDOW * rowBytes;
  const s1 = s2 + WINDOW * segments.length;
  const o = s1 + WINDOW / 2;
  const scales = o + (channels * meanBits) / 8;
  const exponents = scales + 4 * (1 + Math.ceil(channels / MEAN_GROUP));
  const bytes = align(exponents + segments.length, 4);
  return Object.freeze({ codec, balanced, segments: Object.freeze(segments), meanBits, rowBytes, s2, s1, o, scales, exponents, bytes });
}

/** @internal @param balanced  whether keys are */
export function pageLayout(keys: Codec, values: Codec, { kvHeads, headDim, valueDim }: Heads, balanced: boolean): PageLayout {
  const keyBlock = blockLayout(keys, headDim, 'keys', balanced);
  const valueBlock = blockLayout(values, valueDim, 'values', false);
  const bytes = kvHeads * (keyBlock.bytes + valueBlock.bytes);
  return Object.freeze({ kvHeads, headDim, valueDim, keys: keyBlock, values: valueBlock, bytes });
}

/** @internal Offset of a head's block in its page. */
export function blockOffset(page: PageLayout, head: number, side: 'keys' | 'values'): number {
  return head * (page.keys.bytes + page.values.bytes) + (side === 'values' ? page.keys.bytes : 0);
}

/** @internal Bytes of a raw page of `tokens` tokens. */
export function rawBytes({ kvHeads, headDim, valueDim }: Heads, tokens: number): number {
  return 2 * kvHeads * tokens * (headDim + valueDim);
}

/** @internal Element offset of one token's channels in a raw page of `tokens` tokens. */
export function rawOffset({ headDim, valueDim }: Heads, tokens: number, head: number, side: 0 | 1, token: number): number {
  return head * tokens * (headDim + valueDim) + (side === 0 ? token * headDim : tokens * headDim + token * valueDim);
}

/**
 * @internal Refuses a page of another size, whose scales are infinite or no number, or whose padding is not 0: encoders never write
 * padding, so that what is there would stay in pages that others are written over.
 */
export function checkPage(bytes: Uint8Array, page: PageLayout): void {
  if (bytes.length !== page.bytes) throw new RangeError(`page expected ${page.bytes} bytes, got ${bytes.length}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  for (let head = 0; head < page.kvHeads; head++) {
    for (const side of ['keys', 'values'] as const) {
      const { segments, scales, exponents } = page[side];
      const block = blockOffset(page, head, side);
      for (let at = block + scales; at < block + exponents; at += 2) {
        if (isFiniteHalf(view.getUint16(at, true))) continue;
        throw new RangeError(`page expected finite scales of ${side} of head ${head}, got infinity or NaN`);
      }
      for (let at = block + exponents; at < block + exponents + segments.length; at++) {
        if (bytes[at]! <= EXPONENT_MOST) continue;
        throw new RangeError(`page expected exponents of ${side} of head ${head} up to ${EXPONENT_MOST}, got ${bytes[at]}`);
      }
      for (const [begin, end] of paddingOf(page[side])) {
        for (let at = block + begin; at < block + end; at++) {
          if (bytes[at] !== 0) throw new RangeError(`page expected zeros as padding of ${side} of head ${head}, got ${bytes[at]}`);
        }
      }
    }
  }
}

/** Where a block has no section's bytes: behind every token's codes, and at its end. */
function paddingOf({ segments, rowBytes, exponents, bytes }: BlockLayout): (readonly [begin: number, end: number])[] {
  const { column, columns } = segments.at(-1)!.stages.at(-1)!;
  const codes = column + columns;
  const rows = codes === rowBytes ? [] : Array.from({ length: WINDOW }, (_, t) => [t * rowBytes + codes, (t + 1) * rowBytes] as const);
  return [...rows, [exponents + segments.length, bytes]];
}

/** @internal */
export function align(bytes: number, to: number): number {
  return Math.ceil(bytes / to) * to;
}
