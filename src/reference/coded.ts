// A coded window, unpacked as the specification has it, and the bytes of a block that it is in a page (layout.ts draws them).

import { fromHalf, toHalf } from '../format/half.ts';
import { type BlockLayout, MEAN_GROUP, WINDOW } from '../format/layout.ts';

/** A coded window of one head: what a block of a page holds, unpacked. */
export interface CodedWindow {
  /** Tokens of the window, 64 in a page. */
  readonly tokens: number;
  /** Channels of a token. */
  readonly headDim: number;
  /** u16 [tokens, codes of a token]: segment by segment, stage by stage. */
  readonly codes: Uint16Array;
  /** [tokens], dequantized */
  readonly s1: Float64Array;
  /** [segments, tokens], dequantized */
  readonly s2: Float64Array;
  /** [headDim], dequantized */
  readonly o: Float64Array;
  /** 4-bit codes of s1. */
  readonly s1Group: RtnGroup;
  /** 8-bit codes of s2, one group a segment. */
  readonly s2Groups: readonly FloatGroup[];
  /** Codes of o, 32 channels a group. */
  readonly oGroups: readonly RtnGroup[];
}

/** One group of asymmetric rounding: value = code · scale + min. */
export interface RtnGroup {
  /** Rounded to f16. */
  readonly scale: number;
  /** Rounded to f16. */
  readonly min: number;
  /** One a number, 0 to 15 or 255. */
  readonly codes: Uint8Array;
}

/** One group of small floats, 3 bits of exponent and 5 of mantissa over a common exponent. */
export interface FloatGroup {
  /** Biased, as an f32 has it. */
  readonly exponent: number;
  /** (32 · exponent + code) << 18 are the bits of an f32; 0 is 0. */
  readonly codes: Uint8Array;
}

/** @internal The numbers that a group of small floats stands for. */
export function floatsOf({ exponent, codes }: FloatGroup): Float64Array {
  return Float64Array.from(new Float32Array(Uint32Array.from(codes, code => (code ? (32 * exponent + code) << 18 : 0)).buffer));
}

/** Pack a window of 64 tokens into the bytes of a block (layout.ts draws it). */
export function pack(window: CodedWindow, layout: BlockLayout): Uint8Array {
  const bytes = new Uint8Array(layout.bytes);
  const view = new DataView(bytes.buffer);
  const perRow = window.codes.length / WINDOW;
  window.codes.forEach((code, i) => {
    bytes[Math.floor(i / perRow) * layout.rowBytes + (i % perRow)] = code;
  });
  window.s2Groups.forEach(({ exponent, codes }, segment) => {
    bytes.set(codes, layout.s2 + segment * WINDOW);
    bytes[layout.exponents + segment] = exponent;
  });
  packNibbles(bytes, layout.s1, window.s1Group.codes);
  window.oGroups.forEach(({ codes }, g) => {
    if (layout.meanBits === 8) bytes.set(codes, layout.o + g * MEAN_GROUP);
    else packNibbles(bytes, layout.o + (g * MEAN_GROUP) / 2, codes);
  });
  [window.s1Group, ...window.oGroups].forEach(({ scale, min }, g) => {
    view.setUint16(layout.scales + 4 * g, toHalf(scale), true);
    view.setUint16(layout.scales + 4 * g + 2, toHalf(min), true);
  });
  return bytes;
}

/** The inverse of pack. */
export function unpack(bytes: Uint8Array, layout: BlockLayout, headDim: number): CodedWindow {
  const view = new DataView(bytes.buffer, bytes.byteOffset);
  const halfAt = (offset: number): number => fromHalf(view.getUint16(offset, true));
  const group = (index: number, codes: Uint8Array): RtnGroup => ({
    scale: halfAt(layout.scales + 4 * index),
    min: halfAt(layout.scales + 4 * index + 2),
    codes
  });
  const nibbles = (at: number, count: number): Uint8Array =>
    Uint8Array.from({ length: count }, (_, i) => (bytes[at + (i >> 1)]! >> (4 * (i & 1))) & 15);
  const { column, columns } = layout.segments.at(-1)!.stages.at(-1)!;
  const perRow = column + columns;
  const s2Groups = layout.segments.map((_, segment) => ({
    exponent: bytes[layout.exponents + segment]!,
    codes: bytes.slice(layout.s2 + segment * WINDOW, layout.s2 + (segment + 1) * WINDOW)
  }));
  const s1Group = group(0, nibbles(layout.s1, WINDOW));
  const oCodes = layout.meanBits === 8 ? bytes.slice(layout.o, layout.o + headDim) : nibbles(layout.o, headDim);
  const oGroups = Array.from({ length: Math.ceil(headDim / MEAN_GROUP) }, (_, g) =>
    group(g + 1, oCodes.slice(g * MEAN_GROUP, (g + 1) * MEAN_GROUP))
  );
  return {
    tokens: WINDOW,
    headDim,
    codes: Uint16Array.from({ length: WINDOW * perRow }, (_, i) => bytes[Math.floor(i / perRow) * layout.rowBytes + (i % perRow)]!),
    s1: valuesOf([s1Group]),
    s2: Float64Array.from(s2Groups.flatMap(floats => [...floatsOf(floats)])),
    o: valuesOf(oGroups),
    s1Group,
    s2Groups,
    oGroups
  };
}

/** @internal The numbers that groups stand for, one after another. */
export function valuesOf(groups: readonly RtnGroup[]): Float64Array {
  return Float64Array.from(groups.flatMap(({ scale, min, codes }) => Array.from(codes, code => code * scale + min)));
}

function packNibbles(bytes: Uint8Array, at: number, codes: Uint8Array): void {
  codes.forEach((code, i) => {
    bytes[at + (i >> 1)]! |= code << (4 * (i & 1));
  });
}
