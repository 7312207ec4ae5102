// A sequence as bytes: a safetensors file of its pages and raw windows, with what a reader must agree on in the metadata.

import type { Dump } from './backend.ts';
import { kind, plural } from './check.ts';
import { isFiniteHalf, typedArrayName } from './format/half.ts';
import { checkPage, FORMAT, rawOffset, WINDOW } from './format/layout.ts';
import type { CacheShape } from './shape.ts';

export interface FileContents {
  /** Tokens, the same in every layer. */
  readonly length: number;
  readonly layers: readonly Dump[];
}

interface Tensor {
  readonly dtype: 'U8';
  readonly shape: readonly [count: number, bytes: number];
  readonly data_offsets: readonly [begin: number, end: number];
}

/** What must be equal for a file to be read: everything that gives pages and positions their meaning. */
function metadataOf(shape: CacheShape): Record<string, string> {
  return {
    format: String(FORMAT),
    layers: String(shape.layers),
    kvHeads: String(shape.kvHeads),
    headDim: String(shape.headDim),
    sinks: String(shape.sinks),
    codecs: shape.pages.map(page => `${page.keys.codec.name}/${page.values.codec.name}`).join(' '),
    rope: shape.rope ? JSON.stringify({ invFreq: Array.from(shape.rope.invFreq), interleaved: shape.rope.interleaved }) : 'unknown'
  };
}

/** The bytes of a file. Raw windows are cleared beyond their tokens: what lies there may be another conversation's. */
export function writeFile(shape: CacheShape, { length, layers }: FileContents): Uint8Array {
  const header: Record<string, Tensor | Record<string, string>> = {
    __metadata__: { ...metadataOf(shape), length: String(length) }
  };
  const chunks: Uint8Array[] = [];
  let offset = 0;
  const add = (name: string, rows: readonly Uint8Array[], rowBytes: number): void => {
    const begin = offset;
    for (const row of rows) {
      chunks.push(row);
      offset += row.length;
    }
    header[name] = { dtype: 'U8', shape: [rows.length, rowBytes], data_offsets: [begin, offset] };
  };
  layers.forEach(({ pages, raws, sinks }, layer) => {
    raws.forEach((raw, n) => clearBeyond(raw, shape, length - shape.sinks - (pages.length + n) * WINDOW, WINDOW));
    if (sinks) clearBeyond(sinks, shape, length, shape.sinks);
    add(`layers.${layer}.pages`, pages, shape.pages[layer]!.bytes);
    add(`layers.${layer}.raw`, raws, shape.rawSlotBytes);
    add(`layers.${layer}.sinks`, sinks ? [sinks] : [], shape.sinkBytes);
  });

  const json = new TextEncoder().encode(JSON.stringify(header));
  const headerBytes = Math.ceil(json.length / 8) * 8;
  const file = new Uint8Array(8 + headerBytes + offset).fill(0x20, 8, 8 + headerBytes);
  new DataView(file.buffer).setBigUint64(0, BigInt(headerBytes), true);
  file.set(json, 8);
  let at = 8 + headerBytes;
  for (const chunk of chunks) {
    file.set(chunk, at);
    at += chunk.length;
  }
  return file;
}

/**
 * The inverse of writeFile, for a cache of the same shape (capacity, recent and sequences may differ).
 *
 * @throws {RangeError} naming the first thing that differs from what the shape needs
 */
export function readFile(shape: CacheShape, file: Uint8Array): FileContents {
  if (typedArrayName(file) !== 'Uint8Array') throw new TypeError(`"bytes" expected Uint8Array, got ${kind(file)}`);
  const { header, data } = parse(file);
  const metadata = record(header['__metadata__']);
  for (const [field, expected] of Object.entries(metadataOf(shape))) {
    if (metadata[field] !== expected) throw new RangeError(`file expected ${field} ${expected}, got ${shown(metadata[field])}`);
  }
  const length = Number(metadata['length']);
  if (!(length >= 0) || String(length) !== metadata['length'] || !Number.isSafeInteger(length)) {
    throw new RangeError(`file expected length an integer from 0, got ${shown(metadata['length'])}`);
  }
  const layers = shape.pages.map((_, layer) => readLayer(shape, header, data, length, layer));
  return { length, layers };
}

function readLayer(shape: CacheShape, header: Record<string, unknown>, data: Uint8Array, length: number, layer: number): Dump {
  const page = shape.pages[layer]!;
  const rows = (name: string, rowBytes: number): Uint8Array[] => readRows(header, data, `layers.${layer}.${name}`, rowBytes);
  const pages = rows('pages', page.bytes);
  const raws = rows('raw', shape.rawSlotBytes);
  const sinks = rows('sinks', shape.sinkBytes);
  for (const bytes of pages) checkPage(bytes, page);
  const windows = Math.max(0, length - shape.sinks) / WINDOW;
  if (pages.length + raws.length !== Math.ceil(windows)) {
    throw new RangeError(
      `file expected ${plural(Math.ceil(windows), 'window')} in layer ${layer} (${length} tokens), got ${pages.length + raws.length}`
    );
  }
  // A page is 64 tokens, so that a window which is not complete is raw.
  const complete = Math.floor(windows);
  if (pages.length > complete) {
    throw new RangeError(`file expected at most ${plural(complete, 'page')} in layer ${layer} (${length} tokens), got ${pages.length}`);
  }
  if (complete - pages.length > shape.recent) {
    throw new RangeError(
      `file expected at most ${plural(shape.recent, 'complete raw window')} in layer ${layer} (option "recent"), got ${complete - pages.length}`
    );
  }
  const expected = Number(shape.sinks > 0 && length > 0);
  if (sinks.length !== expected) {
    throw new RangeError(`file expected ${plural(expected, 'row')} of sinks in layer ${layer}, got ${sinks.length}`);
  }
  for (const bytes of [...raws, ...sinks]) checkHalves(bytes, layer);
  return { pages, raws, sinks: sinks[0] };
}

/** The rows of a tensor: as many bytes each as are asked for, whatever the header says. */
function readRows(header: Record<string, unknown>, data: Uint8Array, name: string, rowBytes: number): Uint8Array[] {
  if (!(name in header)) throw new RangeError(`file expected tensor ${name}, got none`);
  const { dtype, shape, data_offsets } = record(header[name]);
  if (!isIntegers(shape) || !isIntegers(data_offsets) || data_offsets.length !== 2) {
    throw new RangeError(`file expected ${name} with shape and data_offsets of integers, got ${shown(shape)} and ${shown(data_offsets)}`);
  }
  const [begin, end] = data_offsets as [number, number];
  const count = rowBytes === 0 ? 0 : (end - begin) / rowBytes;
  if (dtype !== 'U8' || shape.length !== 2 || shape[0] !== count || shape[1] !== rowBytes || begin > end) {
    throw new RangeError(`file expected ${name} as U8 [n, ${rowBytes}], got ${shown(dtype)} [${shape.join(', ')}]`);
  }
  if (end > data.length) throw new RangeError(`file expected ${end} bytes of tensors, got ${data.length}`);
  return Array.from({ length: count }, (_, n) => data.subarray(begin + n * rowBytes, begin + (n + 1) * rowBytes));
}

/** An array of integers from 0. */
function isIntegers(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(element => Number.isSafeInteger(element) && element >= 0);
}

/** What JSON has under a name, as an object: an empty one where it is none. */
function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

/** What JSON has, for a message. */
function shown(value: unknown): string {
  if (value === undefined) return 'none';
  return typeof value === 'object' ? kind(value) : String(value);
}

function parse(file: Uint8Array): { header: Record<string, unknown>; data: Uint8Array } {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const headerBytes = file.length < 8 ? -1 : Number(view.getBigUint64(0, true));
  if (headerBytes < 2 || headerBytes > file.length - 8) throw new RangeError('file expected a safetensors header, got none');
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder().decode(file.subarray(8, 8 + headerBytes)));
  } catch (cause) {
    throw new RangeError('file expected a safetensors header, got no JSON', { cause });
  }
  if (typeof header !== 'object' || header === null) throw new RangeError('file expected a safetensors header, got no JSON object');
  return { header: header as Record<string, unknown>, data: file.subarray(8 + headerBytes) };
}

/** Raw tokens are checked when they are appended; those of a file come from anywhere. */
function checkHalves(bytes: Uint8Array, layer: number): void {
  for (let i = 1; i < bytes.length; i += 2) {
    if (!isFiniteHalf(bytes[i]! << 8)) throw new RangeError(`file expected finite raw tokens in layer ${layer}, got infinity or NaN`);
  }
}

function clearBeyond(bytes: Uint8Array, { kvHeads, headDim }: CacheShape, tokens: number, capacity: number): void {
  for (let head = 0; head < kvHeads; head++) {
    for (const side of [0, 1] as const) {
      const from = rawOffset(capacity, headDim, head, side, Math.min(tokens, capacity));
      bytes.fill(0, 2 * from, 2 * rawOffset(capacity, headDim, head, side, capacity));
    }
  }
}
