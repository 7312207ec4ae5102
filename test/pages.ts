// Reads saved files by the words of docs/format.md, pages and blocks by the drawing at the top of src/format/layout.ts. Must not use
// the package's own layout: that is what it checks.

import { type Codec, codecs, type KVCache } from 'nsnquant';
import { halfValue } from './half.ts';

/** One group of 4-bit rounding: value = code · scale + min. */
export interface Group {
  readonly scale: number;
  readonly min: number;
  readonly codes: Uint8Array;
}

/** One head and side of a page: 64 tokens. */
export interface Block {
  readonly codes: Uint8Array; // [64, headDim / channels]
  readonly s1: Group; // of the 64 tokens
  readonly s2: Float64Array; // [64]
  readonly o: readonly Group[]; // of every 32 channels
}

/** Where a block's sections begin and end, drawn anew. */
export interface Sections {
  readonly rowBytes: number;
  readonly codes: readonly [begin: number, end: number];
  readonly s2: readonly [begin: number, end: number];
  readonly s1: readonly [begin: number, end: number];
  readonly scales: readonly [begin: number, end: number];
  readonly o: readonly [begin: number, end: number];
  /** A whole number of 16 bytes. */
  readonly bytes: number;
}

const up = (bytes: number, to: number) => bytes + ((to - (bytes % to)) % to);

export function sectionsOf({ channels }: Codec, headDim: number): Sections {
  const rowBytes = up(headDim / channels, 4);
  const codes = 64 * rowBytes;
  const s2 = up(codes, 16);
  const s1 = up(s2 + 128, 16);
  const scales = up(s1 + 32, 16);
  const groups = 1 + Math.ceil(headDim / 32);
  const o = up(scales + 4 * groups, 16);
  return {
    rowBytes,
    codes: [0, codes],
    s2: [s2, s2 + 128],
    s1: [s1, s1 + 32],
    scales: [scales, scales + 4 * groups],
    o: [o, o + headDim / 2],
    bytes: up(o + headDim / 2, 16)
  };
}

export function readBlock(bytes: Uint8Array, codec: Codec, headDim: number): Block {
  const at = sectionsOf(codec, headDim);
  const halfAt = (offset: number) => halfValue(bytes[offset]! + 256 * bytes[offset + 1]!);
  const nibbleAt = (offset: number, i: number) => (i % 2 ? bytes[offset + (i - 1) / 2]! >> 4 : bytes[offset + i / 2]! % 16);
  const group = (n: number, nibbles: number, count: number): Group => ({
    scale: halfAt(at.scales[0] + 4 * n),
    min: halfAt(at.scales[0] + 4 * n + 2),
    codes: Uint8Array.from({ length: count }, (_, i) => nibbleAt(nibbles, i))
  });
  const perRow = headDim / codec.channels;
  return {
    codes: Uint8Array.from({ length: 64 * perRow }, (_, n) => bytes[Math.floor(n / perRow) * at.rowBytes + (n % perRow)]!),
    s2: Float64Array.from({ length: 64 }, (_, t) => halfAt(at.s2[0] + 2 * t)),
    s1: group(0, at.s1[0], 64),
    o: Array.from({ length: Math.ceil(headDim / 32) }, (_, n) => group(n + 1, at.o[0] + 16 * n, Math.min(32, headDim - 32 * n)))
  };
}

export const groupValues = ({ scale, min, codes }: Group) => Float64Array.from(codes, code => code * scale + min);

/** s1 of 64 tokens, dequantized. */
export const normsOf = (block: Block) => groupValues(block.s1);

/** o of all channels, dequantized. */
export const meanOf = (block: Block) => Float64Array.from(block.o.flatMap(group => Array.from(groupValues(group))));

/** The block of a head and side in a page of `kvHeads` heads; `keys` and `values` are the codecs. */
export function blockOf(page: Uint8Array, head: number, side: 0 | 1, keys: Codec, values: Codec, headDim: number): Uint8Array {
  const keyBytes = sectionsOf(keys, headDim).bytes;
  const valueBytes = sectionsOf(values, headDim).bytes;
  const at = 16 + head * (keyBytes + valueBytes) + (side ? keyBytes : 0);
  return page.subarray(at, at + (side ? valueBytes : keyBytes));
}

export interface SavedLayer {
  readonly pages: readonly Uint8Array[];
  readonly raws: readonly Uint8Array[];
  readonly sinks: readonly Uint8Array[];
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
  const layers = Array.from({ length: Number(metadata.layers) }, (_, layer) => ({
    pages: rows(`layers.${layer}.pages`),
    raws: rows(`layers.${layer}.raw`),
    sinks: rows(`layers.${layer}.sinks`)
  }));
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

/** The codecs of a cache's layer, keys first. */
export function codecsOf(cache: Pick<KVCache, 'shape'>, layer: number): readonly [keys: Codec, values: Codec] {
  const page = cache.shape.pages[layer]!;
  return [codecs[page.keys.codec.name], codecs[page.values.codec.name]];
}
