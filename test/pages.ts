// Reads saved files by the words of docs/format.md, pages and blocks by the drawing at the top of src/format/layout.ts. Must not use
// the package's own layout: that is what it checks.

import type { Codec, KVCache } from 'nsnquant';
import { floatValue, halfValue } from './half.ts';

/** One group of rounding: value = code · scale + min. */
export interface Group {
  readonly scale: number;
  readonly min: number;
  readonly codes: Uint8Array;
  /** The largest code. */
  readonly most: 15 | 255;
}

export type Side = 'keys' | 'values';

/** Codes of one codebook over the channels of a segment. */
export interface Stage {
  /** Channels of a codeword. */
  readonly channels: 8 | 4 | 2;
  /** What codewords are multiplied by. */
  readonly scale: number;
  /** Where in a row its codes begin. */
  readonly column: number;
  readonly columns: number;
}

/** Channels that are transformed, normalized and coded together. */
export interface Segment {
  /** The first of them. */
  readonly channel: number;
  readonly channels: number;
  readonly stages: readonly Stage[];
}

type Section = readonly [begin: number, end: number];

/** What one head's keys or values are cut into, and where a block's sections begin and end, drawn anew. */
export interface Sections {
  readonly headDim: number;
  readonly segments: readonly Segment[];
  /** The largest code of a channel's mean. */
  readonly meanMost: 15 | 255;
  /** Codes of a token. */
  readonly perRow: number;
  /** Bytes that they take, padding counted. */
  readonly rowBytes: number;
  readonly codes: Section;
  readonly s2: Section;
  readonly s1: Section;
  readonly o: Section;
  readonly scales: Section;
  readonly exponents: Section;
  /** A whole number of words. */
  readonly bytes: number;
}

/** One head and side of a page: 64 tokens. */
export interface Block {
  readonly at: Sections;
  readonly codes: Uint8Array; // [64, perRow]
  readonly s1: Group; // of the 64 tokens
  readonly s2: Float64Array; // [segments, 64]
  readonly o: readonly Group[]; // of every 32 channels
}

const up = (bytes: number, to: number) => bytes + ((to - (bytes % to)) % to);

/** Plain coding: codewords of how many channels, and their scales. Three bits are two codewords, the second of what the first left. */
const PLAIN = {
  1: [[8, 1]],
  2: [[4, 1]],
  3: [
    [4, 1],
    [8, 5 / 16]
  ],
  4: [[2, 1]]
} as const;

/** Columns of two, four and eight channels of balanced keys, the finest first. */
function balancedColumns(bits: number, headDim: number): [twos: number, fours: number, eights: number] {
  const columns = (headDim * bits) / 8;
  if (bits === 4) return [columns, 0, 0];
  if (bits === 3) return [(2 * columns) / 3, columns / 3, 0];
  // Pairs of columns: one of eight channels for every 64 of the head, and at least one; twice as many of two.
  const pairs = Math.max(1, Math.round(headDim / 64));
  if (bits === 2) return [4 * pairs, columns - 6 * pairs, 2 * pairs];
  // One bit: of eight columns, which may be seven, two of two channels; of four, which may be two, two of four channels.
  const twos = 2 * Math.floor((columns + 1) / 8);
  const fours = 2 * Math.floor((columns + 2) / 4);
  return [twos, fours, columns - twos - fours];
}

function segmentsOf(bits: 1 | 2 | 3 | 4, headDim: number, balanced: boolean): Segment[] {
  if (!balanced) {
    let column = 0;
    const stages = PLAIN[bits].map(([channels, scale]): Stage => {
      const columns = headDim / channels;
      column += columns;
      return { channels, scale, column: column - columns, columns };
    });
    return [{ channel: 0, channels: headDim, stages }];
  }
  const segments: Segment[] = [];
  let [channel, column] = [0, 0];
  balancedColumns(bits, headDim).forEach((columns, n) => {
    if (columns === 0) return;
    const channels = ([2, 4, 8] as const)[n]!;
    segments.push({ channel, channels: channels * columns, stages: [{ channels, scale: 1, column, columns }] });
    channel += channels * columns;
    column += columns;
  });
  return segments;
}

export function sectionsOf({ bits }: Pick<Codec, 'bits'>, headDim: number, side: Side, balanced: boolean): Sections {
  const segments = segmentsOf(bits, headDim, balanced);
  const perRow = segments.flatMap(({ stages }) => stages).reduce((sum, { columns }) => sum + columns, 0);
  const rowBytes = up(perRow, 4);
  let end = 0;
  const next = (bytes: number): Section => [end, (end += bytes)];
  const codes = next(64 * rowBytes);
  const s2 = next(64 * segments.length);
  const s1 = next(32);
  const o = next(side === 'keys' ? headDim : headDim / 2);
  const scales = next(4 + 4 * Math.ceil(headDim / 32));
  const exponents = next(segments.length);
  const meanMost = side === 'keys' ? 255 : 15;
  return { headDim, segments, meanMost, perRow, rowBytes, codes, s2, s1, o, scales, exponents, bytes: up(end, 4) };
}

/** Every byte of a block that no section has. */
export function paddingOf({ perRow, rowBytes, exponents, bytes }: Sections): number[] {
  const padding: number[] = [];
  for (let t = 0; t < 64; t++) {
    for (let i = perRow; i < rowBytes; i++) padding.push(t * rowBytes + i);
  }
  for (let at = exponents[1]; at < bytes; at++) padding.push(at);
  return padding;
}

export function readBlock(bytes: Uint8Array, at: Sections): Block {
  const { headDim, perRow, rowBytes, meanMost } = at;
  const halfAt = (offset: number) => halfValue(bytes[offset]! + 256 * bytes[offset + 1]!);
  const nibbleAt = (offset: number, i: number) => (i % 2 ? bytes[offset + (i - 1) / 2]! >> 4 : bytes[offset + i / 2]! % 16);
  const group = (n: number, most: 15 | 255, begin: number, count: number): Group => ({
    scale: halfAt(at.scales[0] + 4 * n),
    min: halfAt(at.scales[0] + 4 * n + 2),
    codes: Uint8Array.from({ length: count }, (_, i) => (most === 255 ? bytes[begin + i]! : nibbleAt(begin, i))),
    most
  });
  return {
    at,
    codes: Uint8Array.from({ length: 64 * perRow }, (_, n) => bytes[Math.floor(n / perRow) * rowBytes + (n % perRow)]!),
    s2: Float64Array.from({ length: at.s2[1] - at.s2[0] }, (_, n) => {
      const code = bytes[at.s2[0] + n]!;
      return code === 0 ? 0 : floatValue(32 * bytes[at.exponents[0] + Math.floor(n / 64)]! + code);
    }),
    s1: group(0, 15, at.s1[0], 64),
    o: Array.from({ length: Math.ceil(headDim / 32) }, (_, n) =>
      group(n + 1, meanMost, at.o[0] + (meanMost === 255 ? 32 : 16) * n, Math.min(32, headDim - 32 * n))
    )
  };
}

export const groupValues = ({ scale, min, codes }: Pick<Group, 'scale' | 'min' | 'codes'>) =>
  Float64Array.from(codes, code => code * scale + min);

/** s1 of 64 tokens, dequantized. */
export const normsOf = (block: Pick<Block, 's1'>) => groupValues(block.s1);

/** o of all channels, dequantized. */
export const meanOf = (block: Pick<Block, 'o'>) => Float64Array.from(block.o.flatMap(group => Array.from(groupValues(group))));

/** The block of a head and side in a page. */
export function blockOf(
  page: Uint8Array,
  head: number,
  side: 0 | 1,
  [keys, values]: readonly [keys: Sections, values: Sections]
): Uint8Array {
  const at = head * (keys.bytes + values.bytes) + (side ? keys.bytes : 0);
  return page.subarray(at, at + (side ? values : keys).bytes);
}

/** What a cache's layer has for keys and for values. */
export function sidesOf({ shape }: Pick<KVCache, 'shape'>, layer: number): readonly [keys: Sections, values: Sections] {
  const { headDim, valueDim, page } = shape.layers[layer]!;
  return [sectionsOf(page.keys.codec, headDim, 'keys', shape.balance !== 'off'), sectionsOf(page.values.codec, valueDim, 'values', false)];
}

export interface SavedLayer {
  readonly pages: readonly Uint8Array[];
  readonly raws: readonly Uint8Array[];
  readonly sinks: readonly Uint8Array[];
  /** u8 [kvHeads, headDim / 2], where it was learned. */
  readonly balance: Uint8Array | undefined;
  /** [kvHeads, headDim / 2], where it is still being learned. */
  readonly energies: Float32Array | undefined;
}

export interface Saved {
  readonly metadata: Readonly<Record<string, string>>;
  readonly header: Readonly<Record<string, { dtype: string; shape: number[]; data_offsets: [number, number] }>>;
  readonly layers: readonly SavedLayer[];
}

/** A file of `Sequence.save`, as any reader of safetensors would see it. */
export function readSaved(file: Uint8Array): Saved {
  const headerBytes = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const { __metadata__: metadata, ...header } = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)));
  const rows = (name: string): Uint8Array[] => {
    const {
      shape: [count],
      data_offsets: [begin, end]
    } = header[name];
    const data = file.subarray(8 + headerBytes + begin, 8 + headerBytes + end);
    const bytes = data.length / count;
    return Array.from({ length: count }, (_, n) => data.subarray(n * bytes, (n + 1) * bytes));
  };
  /** All of a tensor; none where the file lacks it. */
  const whole = (name: string): Uint8Array | undefined => {
    if (!(name in header)) return undefined;
    const [begin, end] = header[name].data_offsets;
    return begin === end ? undefined : file.subarray(8 + headerBytes + begin, 8 + headerBytes + end);
  };
  const layers = Array.from({ length: Number(metadata.layers) }, (_, layer) => {
    const energies = whole(`layers.${layer}.energies`);
    return {
      pages: rows(`layers.${layer}.pages`),
      raws: rows(`layers.${layer}.raw`),
      sinks: rows(`layers.${layer}.sinks`),
      balance: whole(`layers.${layer}.balance`),
      energies: energies && new Float32Array(energies.slice().buffer)
    };
  });
  return { metadata, header, layers };
}

/** Where a file's data begins. */
export const dataOf = (file: Uint8Array) => 8 + Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));

/** A file of this header text, padded to 8 bytes, and data; its checksum is right. */
export function fileOf(text: string, data: Uint8Array): Uint8Array {
  const json = new TextEncoder().encode(text);
  const file = new Uint8Array(8 + up(json.length, 8) + data.length).fill(0x20);
  new DataView(file.buffer).setBigUint64(0, BigInt(up(json.length, 8)), true);
  file.set(json, 8);
  file.set(data, file.length - data.length);
  return withChecksum(file);
}

/** A copy with its header changed; its checksum is right. */
export function withHeader(file: Uint8Array, change: (header: any) => void): Uint8Array {
  const at = dataOf(file);
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, at)));
  change(header);
  return fileOf(JSON.stringify(header), file.subarray(at));
}

const beforeDigits = new TextEncoder().encode('{"__metadata__":{"checksum":"');
const digitsAt = 8 + beforeDigits.length;

const crcOfByte = Int32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0xedb88320 : 0);
  return crc;
});

/** CRC-32, byte by byte, of the file with eight zeros for the digits of its checksum. */
export function checksumOf(file: Uint8Array): string {
  let crc = 0xffffffff;
  for (let at = 0; at < file.length; at++) {
    const byte = at >= digitsAt && at < digitsAt + 8 ? '0'.charCodeAt(0) : file[at]!;
    crc = (crc >>> 8) ^ crcOfByte[(crc ^ byte) & 255]!;
  }
  return (~crc >>> 0).toString(16).padStart(8, '0');
}

/** A copy whose checksum is right, where there is one: what a hostile file has. */
export function withChecksum(file: Uint8Array): Uint8Array {
  const copy = file.slice();
  if (beforeDigits.every((byte, n) => file[8 + n] === byte) && file.length >= digitsAt + 8) {
    copy.set(new TextEncoder().encode(checksumOf(file)), digitsAt);
  }
  return copy;
}
