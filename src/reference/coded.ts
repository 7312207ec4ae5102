// A coded window, unpacked as the specification has it, and the bytes of a block that it is in a page (layout.ts draws them).

import type { Codec } from '../format/codec.ts';
import { fromHalf, toHalf } from '../format/half.ts';
import { blockLayout, MEAN_GROUP, WINDOW } from '../format/layout.ts';

/** A coded window of one head: what a block of a page holds, unpacked. */
export interface CodedWindow {
  /** Tokens of the window, 64 in a page. */
  readonly tokens: number;
  /** Channels of a token. */
  readonly headDim: number;
  /** [tokens, headDim / channels] */
  readonly codes: Uint16Array;
  /** [tokens], dequantized */
  readonly s1: Float64Array;
  /** [tokens], rounded to f16 */
  readonly s2: Float64Array;
  /** [headDim], dequantized */
  readonly o: Float64Array;
  /** 4-bit codes of s1. */
  readonly s1Group: RtnGroup;
  /** 4-bit codes of o, 32 channels a group. */
  readonly oGroups: readonly RtnGroup[];
}

/** One group of asymmetric 4-bit rounding: value = code · scale + min. */
export interface RtnGroup {
  /** Rounded to f16. */
  readonly scale: number;
  /** Rounded to f16. */
  readonly min: number;
  /** One a number, 0 to 15: value = code · scale + min. */
  readonly codes: Uint8Array;
}

/** Pack a window of 64 tokens into the bytes of a block (layout.ts draws it). */
export function pack(window: CodedWindow, codec: Codec): Uint8Array {
  const layout = blockLayout(codec, window.headDim);
  const bytes = new Uint8Array(layout.bytes);
  const view = new DataView(bytes.buffer);
  const perRow = window.headDim / codec.channels;
  window.codes.forEach((code, i) => {
    bytes[Math.floor(i / perRow) * layout.rowBytes + (i % perRow)] = code;
  });
  window.s2.forEach((s2, t) => view.setUint16(layout.s2 + 2 * t, toHalf(s2), true));
  packNibbles(bytes, layout.s1, window.s1Group.codes);
  [window.s1Group, ...window.oGroups].forEach(({ scale, min }, g) => {
    view.setUint16(layout.scales + 4 * g, toHalf(scale), true);
    view.setUint16(layout.scales + 4 * g + 2, toHalf(min), true);
  });
  window.oGroups.forEach((group, g) => packNibbles(bytes, layout.o + (g * MEAN_GROUP) / 2, group.codes));
  return bytes;
}

/** The inverse of pack. */
export function unpack(bytes: Uint8Array, codec: Codec, headDim: number): CodedWindow {
  const layout = blockLayout(codec, headDim);
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const halfAt = (offset: number): number => fromHalf(view.getUint16(offset, true));
  const group = (index: number, nibbles: number, count: number): RtnGroup => ({
    scale: halfAt(layout.scales + 4 * index),
    min: halfAt(layout.scales + 4 * index + 2),
    codes: Uint8Array.from({ length: count }, (_, i) => (bytes[nibbles + (i >> 1)]! >> (4 * (i & 1))) & 15)
  });
  const perRow = headDim / codec.channels;
  const codes = Uint16Array.from({ length: WINDOW * perRow }, (_, i) => bytes[Math.floor(i / perRow) * layout.rowBytes + (i % perRow)]!);
  const s1Group = group(0, layout.s1, WINDOW);
  const oGroups: RtnGroup[] = [];
  for (let i = 0; i < headDim; i += MEAN_GROUP) {
    oGroups.push(group(oGroups.length + 1, layout.o + i / 2, Math.min(MEAN_GROUP, headDim - i)));
  }
  return {
    tokens: WINDOW,
    headDim,
    codes,
    s1: Float64Array.from(s1Group.codes, code => code * s1Group.scale + s1Group.min),
    s2: Float64Array.from({ length: WINDOW }, (_, t) => halfAt(layout.s2 + 2 * t)),
    o: Float64Array.from(oGroups.flatMap(({ scale, min, codes }) => Array.from(codes, code => code * scale + min))),
    s1Group,
    oGroups
  };
}

function packNibbles(bytes: Uint8Array, at: number, codes: Uint8Array): void {
  codes.forEach((code, i) => {
    bytes[at + (i >> 1)]! |= code << (4 * (i & 1));
  });
}
