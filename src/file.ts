// A sequence as bytes: a safetensors file of its pages and raw places, with what a reader must agree on in the metadata.

import type { Dump } from './backend.ts';
import { kind } from './check.ts';
import { typedArrayName } from './format/half.ts';
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

/** The bytes of a file. Raw places are cleared beyond their tokens: what lies there may be another conversation's. */
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
    add(`layers.${layer}.raw`, raws, shape.rawPageBytes);
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
  const metadata = (header['__metadata__'] ?? {}) as Record<string, string>;
  for (const [field, expected] of Object.entries(metadataOf(shape))) {
    if (metadata[field] !== expected) throw new RangeError(`file expected ${field} ${expected}, got ${metadata[field] ?? 'none'}`);
  }
  const length = Number(metadata['length']);
  if (!Number.isInteger(length) || length < 0) throw new RangeError(`file expected length an integer from 0, got ${metadata['length']}`);

  const windows = Math.ceil(Math.max(0, length - shape.sinks) / WINDOW);
  const rows = (name: string, rowBytes: number): Uint8Array[] => {
    const tensor = header[name];
    if (!tensor) throw new RangeError(`file expected tensor ${name}, got none`);
    const { dtype, shape: size, data_offsets: offsets } = tensor as Partial<Tensor>;
    if (!Array.isArray(size) || !Array.isArray(offsets))
      throw new RangeError(`file expected ${name} with shape and data_offsets, got none`);
    const [begin, end] = offsets as unknown as [number, number];
    const count = rowBytes === 0 ? 0 : (end - begin) / rowBytes;
    if (dtype !== 'U8' || size[0] !== count || size[1] !== rowBytes || !(begin >= 0)) {
      throw new RangeError(`file expected ${name} as U8 [n, ${rowBytes}], got ${dtype} [${size.join(', ')}]`);
    }
    if (end > data.length) throw new RangeError(`file expected ${end} bytes of tensors, got ${data.length}`);
    return Array.from({ length: count }, (_, n) => data.subarray(begin + n * rowBytes, begin + (n + 1) * rowBytes));
  };
  const layers = shape.pages.map((page, layer): Dump => {
    const pages = rows(`layers.${layer}.pages`, page.bytes);
    const raws = rows(`layers.${layer}.raw`, shape.rawPageBytes);
    const sinks = rows(`layers.${layer}.sinks`, shape.sinkBytes);
    for (const bytes of pages) checkPage(bytes, page);
    if (pages.length + raws.length !== windows) {
      throw new RangeError(`file expected ${windows} windows in layer ${layer} (${length} tokens), got ${pages.length + raws.length}`);
    }
    if (raws.length > shape.recent + 1) {
      throw new RangeError(`file expected at most ${shape.recent + 1} raw windows in layer ${layer} (option "recent"), got ${raws.length}`);
    }
    if (sinks.length !== Number(shape.sinks > 0 && length > 0)) {
      throw new RangeError(`file expected sinks in layer ${layer}, got ${sinks.length} of them`);
    }
    for (const bytes of [...raws, ...sinks]) checkHalves(bytes, layer);
    return { pages, raws, sinks: sinks[0] };
  });
  return { length, layers };
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
    if ((bytes[i]! & 0x7c) === 0x7c) throw new RangeError(`file expected finite raw tokens in layer ${layer}, got infinity or NaN`);
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
