// Reads saved files, pages and blocks by the drawing at the top of src/format/layout.ts. Must not use the package's own layout: that
// is what it checks.

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
      shape: [count, bytes],
      data_offsets: [begin]
    } = header[name];
    return Array.from({ length: count }, (_, n) =>
      file.subarray(8 + headerBytes + begin + n * bytes, 8 + headerBytes + begin + (n + 1) * bytes)
    );
  };
  const layers = Array.from({ length: Number(metadata.layers) }, (_, layer) => ({
    pages: rows(`layers.${layer}.pages`),
    raws: rows(`layers.${layer}.raw`),
    sinks: rows(`layers.${layer}.sinks`)
  }));
  return { metadata, header, layers };
}

/** The same file with other metadata or tensors: for files that must be refused. */
export function rewritten(file: Uint8Array, change: (header: any) => void): Uint8Array {
  const headerBytes = Number(new DataView(file.buffer, file.byteOffset).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)));
  change(header);
  const json = new TextEncoder().encode(JSON.stringify(header));
  const out = new Uint8Array(8 + json.length + file.length - 8 - headerBytes);
  new DataView(out.buffer).setBigUint64(0, BigInt(json.length), true);
  out.set(json, 8);
  out.set(file.subarray(8 + headerBytes), 8 + json.length);
  return out;
}

/** The codecs of a cache's layer, keys first. */
export function codecsOf(cache: Pick<KVCache, 'shape'>, layer: number): readonly [keys: Codec, values: Codec] {
  const page = cache.shape.pages[layer]!;
  return [codecs[page.keys.codec.name], codecs[page.values.codec.name]];
}
