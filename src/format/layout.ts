// Where every byte of a cache lies. The same bytes on every backend and in a file: little-endian, sections on 16 bytes, padding 0.
//
// A page is one window (64 tokens) of one layer, all KV heads:
//
//   ┌ header 16 ┬ head 0: keys │ values ┬ head 1: keys │ values ┬ …
//
//   header   u32 magic "NSNP" · u8 format · u8 keys' channels · u8 values' channels · u8 1 if RoPE was undone for the mean
//            · u16 headDim · u16 kvHeads · u32 keys' codebook checksum xor values'
//
// keys, values: one block each
//
//   codes    u8  [64, rowBytes]     token-major; rowBytes = headDim / channels, rounded up to 4
//   s2       f16 [64]               second norm with the scale adjustment
//   s1       u4  [64]               first norm; element i in byte i/2, even elements in the low nibble
//   scales   f16 [1 + groups, 2]    (scale, minimum) of s1, then of every 32 channels of o
//   o        u4  [headDim]          channel mean, packed as s1
//
// A raw page holds the same window before it is coded: f16 [kvHeads, 2 (keys, values), 64, headDim]. The sinks of one
// sequence and layer are a raw page of `sinks` tokens.

import type { Codec } from './codec.ts';
import { isFiniteHalf } from './half.ts';

/** @internal Tokens coded together. */
export const WINDOW = 64;
/** @internal Version of pages and files. */
export const FORMAT = 2;
/** @internal */
export const HEADER_BYTES = 16;
/** @internal Channels that share one scale and minimum of o. */
export const MEAN_GROUP = 32;

const MAGIC = 0x504e534e; // "NSNP", little-endian

/** Rotary position embedding, as keys carry it when they come. */
export interface Rope {
  /** Radians per token of each rotated pair, −2π to 2π; shorter than headDim/2 for partial rotary. */
  readonly invFreq: ArrayLike<number>;
  /** Pairs are (2i, 2i+1) when true, (i, i + invFreq.length) when false. */
  readonly interleaved: boolean;
}

/** Where the sections of one head's keys or values lie in a page, in bytes from their beginning. */
export interface BlockLayout {
  /** What codes them. */
  readonly codec: Codec;
  /** Bytes of one token's codes, padded. The codes are at 0. */
  readonly rowBytes: number;
  /** Second norms, f16 [64]. */
  readonly s2: number;
  /** First norms, u4 [64]. */
  readonly s1: number;
  /** Scale and minimum of s1, then of every 32 channels of o: f16 [1 + groups, 2]. */
  readonly scales: number;
  /** Channel mean, u4 [headDim]. */
  readonly o: number;
  /** Bytes of the whole block. */
  readonly bytes: number;
}

/** How a page of one layer is laid out: a header, then keys and values of every KV head. */
export interface PageLayout {
  /** Channels of a head. */
  readonly headDim: number;
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** Whether the mean of keys is taken before RoPE. */
  readonly rope: boolean;
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

/** @internal The Hadamard block: the largest power of two that divides the head dimension. */
export function hadamardSize(headDim: number): number {
  return headDim & -headDim;
}

/** @internal */
export function blockLayout(codec: Codec, headDim: number): BlockLayout {
  const rowBytes = align(headDim / codec.channels, 4);
  const s2 = WINDOW * rowBytes;
  const s1 = s2 + WINDOW * 2;
  const scales = s1 + WINDOW / 2;
  const o = scales + align(scalesBytes(headDim), 16);
  const bytes = o + align(headDim / 2, 16);
  return Object.freeze({ codec, rowBytes, s2, s1, scales, o, bytes });
}

/** @internal */
export function pageLayout(keys: Codec, values: Codec, kvHeads: number, headDim: number, rope: boolean): PageLayout {
  const keyBlock = blockLayout(keys, headDim);
  const valueBlock = blockLayout(values, headDim);
  const bytes = HEADER_BYTES + kvHeads * (keyBlock.bytes + valueBlock.bytes);
  return Object.freeze({ headDim, kvHeads, rope, keys: keyBlock, values: valueBlock, bytes });
}

/** @internal Offset of a head's block in its page. */
export function blockOffset(page: PageLayout, head: number, side: 'keys' | 'values'): number {
  return HEADER_BYTES + head * (page.keys.bytes + page.values.bytes) + (side === 'values' ? page.keys.bytes : 0);
}

/** @internal Bytes of a raw page of `tokens` tokens. */
export function rawBytes(kvHeads: number, headDim: number, tokens: number): number {
  return align(kvHeads * 2 * tokens * headDim * 2, 16);
}

/** @internal Element offset of one token's channels in a raw page of `tokens` tokens. */
export function rawOffset(tokens: number, headDim: number, head: number, side: 0 | 1, token: number): number {
  return ((head * 2 + side) * tokens + token) * headDim;
}

/** @internal */
export function pageHeader(page: PageLayout): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, MAGIC, true);
  view.setUint8(4, FORMAT);
  view.setUint8(5, page.keys.codec.channels);
  view.setUint8(6, page.values.codec.channels);
  view.setUint8(7, page.rope ? 1 : 0);
  view.setUint16(8, page.headDim, true);
  view.setUint16(10, page.kvHeads, true);
  view.setUint32(12, page.keys.codec.checksum ^ page.values.codec.checksum, true);
  return bytes;
}

/**
 * @internal Refuses a page that this layout cannot read, with the first field that differs, whose scales are infinite or no number, or
 * whose padding is not 0: encoders never write padding, so that what is there would stay in pages that others are written over.
 */
export function checkPage(bytes: Uint8Array, page: PageLayout): void {
  if (bytes.length !== page.bytes) throw new RangeError(`page expected ${page.bytes} bytes, got ${bytes.length}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const expect = (field: string, expected: number | string, got: number | string): void => {
    if (expected !== got) throw new RangeError(`page expected ${field} ${expected}, got ${got}`);
  };
  const codecOf = (channels: number): string => (channels ? `nsn${8 / channels}` : 'none');
  expect('magic', MAGIC, view.getUint32(0, true));
  expect('format', FORMAT, view.getUint8(4));
  expect('keys codec', page.keys.codec.name, codecOf(view.getUint8(5)));
  expect('values codec', page.values.codec.name, codecOf(view.getUint8(6)));
  expect('rope', page.rope ? 'known' : 'unknown', ['unknown', 'known'][view.getUint8(7)] ?? view.getUint8(7));
  expect('headDim', page.headDim, view.getUint16(8, true));
  expect('kvHeads', page.kvHeads, view.getUint16(10, true));
  expect('codebook checksum', (page.keys.codec.checksum ^ page.values.codec.checksum) >>> 0, view.getUint32(12, true));
  for (let head = 0; head < page.kvHeads; head++) {
    for (const side of ['keys', 'values'] as const) {
      const { s2, s1, scales, o } = page[side];
      const block = blockOffset(page, head, side);
      for (const [name, begin, end] of [
        ['s2', s2, s1],
        ['scales', scales, o]
      ] as const) {
        for (let at = block + begin; at < block + end; at += 2) {
          if (isFiniteHalf(view.getUint16(at, true))) continue;
          throw new RangeError(`page expected finite ${name} of ${side} of head ${head}, got infinity or NaN`);
        }
      }
      for (const [begin, end] of paddingOf(page[side], page.headDim)) {
        for (let at = block + begin; at < block + end; at++) {
          if (bytes[at] !== 0) throw new RangeError(`page expected zeros as padding of ${side} of head ${head}, got ${bytes[at]}`);
        }
      }
    }
  }
}

/** Where a block has no section's bytes: behind every token's codes, behind the scales and behind the mean. */
function paddingOf({ codec, rowBytes, scales, o, bytes }: BlockLayout, headDim: number): (readonly [begin: number, end: number])[] {
  const codes = headDim / codec.channels;
  const rows = codes === rowBytes ? [] : Array.from({ length: WINDOW }, (_, t) => [t * rowBytes + codes, (t + 1) * rowBytes] as const);
  return [...rows, [scales + scalesBytes(headDim), o], [o + headDim / 2, bytes]];
}

function scalesBytes(headDim: number): number {
  return 4 * (1 + Math.ceil(headDim / MEAN_GROUP));
}

/** @internal */
export function align(bytes: number, to: number): number {
  return Math.ceil(bytes / to) * to;
}
