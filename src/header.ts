// The header of a sequence's file: what its tensors mean, and where each lies. docs/format.md says it in words.
//
// There is one way to write a header. Whoever reads one takes from it what differs from file to file, writes it again, and compares:
// what is there twice, overlaps, leaves a gap, is unknown or of another type cannot come out the same.

import { checkRecord, kind, plural } from './check.ts';
import { crc32 } from './format/checksum.ts';
import { type Codebook, codebooks } from './format/codec.ts';
import { typedArrayName } from './format/half.ts';
import { FORMAT, type Rope, WINDOW } from './format/layout.ts';
import { wholeBefore } from './gone.ts';
import { CAPACITY_MOST, type LayerOptions } from './layer.ts';
import { ropeText } from './rope.ts';
import { type CacheShape, shapeWithoutSize, windowsBehind } from './shape.ts';

/** @internal What gives pages and positions their meaning. */
export type FileShape = Pick<CacheShape, 'layers' | 'sinks'>;

/** @internal The application's own words, frozen. */
export type Metadata = Readonly<Record<string, string>>;

/** @internal All that a header says. */
export interface Header {
  readonly shape: FileShape;
  /** Tokens, the same in every layer. */
  readonly length: number;
  /** Of every layer how many windows were coded; the others are raw. */
  readonly coded: readonly number[];
  /** Of every layer the numbers of the coded windows that it has still. */
  readonly windows: readonly (readonly number[])[];
  /** Of every layer the first windows, which are gone as they were behind its sliding window; others that are gone were evicted. */
  readonly dropped: readonly number[];
  /** Of every layer the positions before something was evicted that the next would have seen; Infinity where nothing was. */
  readonly whole: readonly number[];
  /** Of every layer, the position up to which queries were counted for what is still to be learned; else 0. */
  readonly counted: readonly number[];
  /** The application's own words. */
  readonly metadata: Metadata;
}

/** @internal What a file says, and the data of its tensors. */
export interface FileData {
  readonly header: Header;
  readonly data: Uint8Array;
}

/** @internal Where rows of one kind lie. */
export interface Tensor {
  readonly name: string;
  readonly rows: number;
  readonly rowBytes: number;
  /** Offsets in the data, which follow the header. */
  readonly begin: number;
  readonly end: number;
  /** What the header has under the name. */
  readonly entry: object;
}

/** The application's words have this before their names, so that they are never taken for the format's own. */
const PREFIX = 'app.';
/** Characters of the application's words as JSON; three bytes each leave room below HEADER_MOST. */
const METADATA_MOST = 2 ** 24;
/** Bytes of a header at most: what safetensors itself reads. */
const HEADER_MOST = 100_000_000;

const ELEMENT_BYTES = { U8: 1, F16: 2, F32: 4 } as const;

const CHECKSUM_BEGIN = '{"__metadata__":{"checksum":"';
/** Where the digits of the checksum are, in bytes of the file. */
const CHECKSUM_AT = 8 + CHECKSUM_BEGIN.length;
const NO_CHECKSUM = '00000000';

/** @internal The application's words, copied and checked. */
export function checkMetadata(metadata: unknown): Metadata {
  checkRecord('metadata', metadata);
  const entries = Object.entries(metadata);
  for (const [name, text] of entries) {
    if (name === '') throw new RangeError('"metadata" expected names of at least 1 character, got an empty one');
    if (typeof text !== 'string') throw new TypeError(`"metadata.${name}" expected string, got ${kind(text)}`);
  }
  const copy = Object.freeze(Object.fromEntries(entries));
  const { length } = JSON.stringify(copy);
  if (length > METADATA_MOST) throw new RangeError(`"metadata" expected at most ${METADATA_MOST} characters as JSON, got ${length}`);
  return copy;
}

/** @internal What must be equal for a file to be read, as text, and what a reader needs besides. */
export function fieldsOf({ layers, sinks }: FileShape): Record<string, string> {
  const pages = layers.map(({ page }) => page);
  const stages = pages.flatMap(({ keys, values }) => [...keys.segments, ...values.segments]).flatMap(segment => segment.stages);
  const used = Object.values(codebooks).filter(codebook => stages.some(stage => stage.codebook === codebook));
  const digits = ({ checksum }: Codebook): string => checksum.toString(16).padStart(8, '0');
  return {
    layers: String(layers.length),
    heads: layers.map(({ kvHeads, headDim, valueDim }) => `${kvHeads}×${headDim}/${valueDim}`).join(' '),
    sinks: String(sinks),
    codecs: pages.map(({ keys, values }) => `${keys.codec.name}/${values.codec.name}`).join(' '),
    window: layers.map(({ window }) => (window === Infinity ? 'all' : window)).join(' '),
    balance: pages.some(({ keys }) => keys.balanced) ? 'on' : 'off',
    codebooks: used.map(codebook => `${codebook.channels}:${digits(codebook)}`).join(' '),
    ...ropeFields(layers)
  };
}

/** Every rotation once, in the order of the first layers that have them, and every layer's number among them. */
function ropeFields(layers: FileShape['layers']): Record<string, string> {
  const texts = layers.map(({ rope }) => ropeText(rope));
  const ropes = [...new Set(texts)];
  return { ropes: `[${ropes.join(',')}]`, rope: texts.map(text => ropes.indexOf(text)).join(' ') };
}

/** The format's own metadata, in their order, without the checksum, which comes before them. */
function metadataOf({ shape, length, coded, windows, dropped, whole, counted }: Header): Record<string, string> {
  return {
    format: String(FORMAT),
    ...fieldsOf(shape),
    length: String(length),
    coded: coded.join(' '),
    windows: windows.map(rangesOf).join(' '),
    dropped: dropped.join(' '),
    whole: whole.map(positions => (positions === Infinity ? 'all' : positions)).join(' '),
    counted: counted.join(' ')
  };
}

/** Ascending numbers as ranges: `0-3,7-9`; `-` for none. */
function rangesOf(numbers: readonly number[]): string {
  const ranges: string[] = [];
  for (let n = 0, first = 0; n < numbers.length; n++) {
    if (numbers[n + 1] === numbers[n]! + 1) continue;
    ranges.push(`${numbers[first]}-${numbers[n]}`);
    first = n + 1;
  }
  return ranges.join(',') || '-';
}

/** @internal Every tensor of a file in its order: layer by layer, tokens as they follow each other, then what was learned of them. */
export function tensorsOf({ shape, length, coded, windows, counted }: Header): Tensor[] {
  const { layers, sinks } = shape;
  const tensors: Tensor[] = [];
  let end = 0;
  layers.forEach(({ kvHeads, headDim, valueDim, page }, layer) => {
    const add = (name: string, dtype: keyof typeof ELEMENT_BYTES, rows: number, ...row: number[]): void => {
      const rowBytes = row.reduce((a, b) => a * b, ELEMENT_BYTES[dtype]);
      const begin = end;
      end += rows * rowBytes;
      tensors.push({
        name: `layers.${layer}.${name}`,
        rows,
        rowBytes,
        begin,
        end,
        entry: { dtype, shape: [rows, ...row], data_offsets: [begin, end] }
      });
    };
    add('sinks', 'F16', Number(sinks > 0 && length > 0), kvHeads, sinks * (headDim + valueDim));
    add('pages', 'U8', windows[layer]!.length, page.bytes);
    add('raw', 'F16', Math.ceil(windowsOf(length, sinks)) - coded[layer]!, kvHeads, WINDOW * (headDim + valueDim));
    add('balance', 'U8', Number(page.keys.balanced && coded[layer]! > 0), kvHeads, headDim / 2);
    add('energies', 'F32', Number(counted[layer]! > 0), kvHeads, headDim / 2);
  });
  return tensors;
}

/** @internal Windows that tokens fill, the last in part. */
export function windowsOf(length: number, sinks: number): number {
  return Math.max(0, length - sinks) / WINDOW;
}

/** @internal The bytes before the data, with this checksum: the header's length and the header, padded to 8 bytes. */
export function writeHeader(header: Header, checksum = NO_CHECKSUM): Uint8Array {
  const own = Object.entries(header.metadata).map(([name, text]) => [PREFIX + name, text] as const);
  const json = JSON.stringify({
    __metadata__: { checksum, ...metadataOf(header), ...Object.fromEntries(own) },
    ...Object.fromEntries(tensorsOf(header).map(({ name, entry }) => [name, entry] as const))
  });
  const text = new TextEncoder().encode(json);
  const bytes = new Uint8Array(8 + Math.ceil(text.length / 8) * 8).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(bytes.length - 8), true);
  bytes.set(text, 8);
  return bytes;
}

/** @internal Puts the checksum into a file that was written without. */
export function writeChecksum(file: Uint8Array): void {
  file.set(new TextEncoder().encode(checksumOf(file)), CHECKSUM_AT);
}

/** Of the whole file, as if its own digits were zeros. */
function checksumOf(file: Uint8Array): string {
  const before = crc32(file.subarray(0, CHECKSUM_AT));
  const zeros = crc32(new TextEncoder().encode(NO_CHECKSUM), before);
  const all = crc32(file.subarray(CHECKSUM_AT + NO_CHECKSUM.length), zeros);
  return all.toString(16).padStart(8, '0');
}

/**
 * @internal What a file says, and where its data begins. Nothing is believed before the checksum of all of it was found right, and
 * then only what a cache could have written.
 */
export function readHeader(file: Uint8Array): FileData {
  if (typedArrayName(file) !== 'Uint8Array') throw new TypeError(`"bytes" expected Uint8Array, got ${kind(file)}`);
  const { json, end } = parse(file);
  const metadata = record(json['__metadata__']);
  const { format } = metadata;
  if (format === '1') throw new RangeError(`file expected format ${FORMAT}, got 1, which nsnquant 0.1 wrote: it must be made again`);
  if (format !== String(FORMAT)) throw new RangeError(`file expected format ${FORMAT}, got ${shown(format)}`);
  const checksum = checksumOf(file);
  if (metadata['checksum'] !== checksum) {
    throw new RangeError(
      `file expected checksum ${checksum} (of all its bytes), got ${shown(metadata['checksum'])}: it is damaged or cut off`
    );
  }
  const header = headerOf(metadata, file.length);
  refuseOthers('metadata', metadata, { checksum, ...metadataOf(header) }, name => name.length > PREFIX.length && name.startsWith(PREFIX));
  const tensors = tensorsOf(header);
  refuseOthers('tensor', json, { __metadata__: metadata, ...Object.fromEntries(tensors.map(({ name, entry }) => [name, entry])) });
  const expected = writeHeader(header, checksum);
  if (expected.some((byte, at) => byte !== file[at])) {
    throw new RangeError('file expected its header as save() writes it, got other text (a name twice, another order, white space)');
  }
  const bytes = end + tensors.at(-1)!.end;
  if (file.length !== bytes) throw new RangeError(`file expected ${bytes} bytes, got ${file.length}`);
  return { header, data: file.subarray(end) };
}

/** The header as JSON has it, and where it ends. */
function parse(file: Uint8Array): { readonly json: Record<string, unknown>; readonly end: number } {
  const length = file.length < 8 ? 0 : Number(new DataView(file.buffer, file.byteOffset, file.byteLength).getBigUint64(0, true));
  if (length < 2 || length > Math.min(file.length - 8, HEADER_MOST)) throw new RangeError('file expected a safetensors header, got none');
  const end = 8 + length;
  let json: unknown;
  try {
    json = JSON.parse(new TextDecoder().decode(file.subarray(8, end)));
    JSON.stringify(json); // engines parse deeper nests than they write, as comparing and messages do
  } catch (cause) {
    throw new RangeError('file expected a safetensors header, got no JSON', { cause });
  }
  if (typeof json !== 'object' || json === null) throw new RangeError('file expected a safetensors header, got no JSON object');
  return { json: json as Record<string, unknown>, end };
}

/** What differs from file to file. Anything else in it is the caller's to compare. */
function headerOf(metadata: Record<string, unknown>, bytes: number): Header {
  const shape = shapeOf(metadata);
  const length = Number(textOf(metadata, 'length'));
  if (!(Number.isInteger(length) && length >= 0 && length <= CAPACITY_MOST)) {
    throw new RangeError(`file expected length an integer from 0 to ${CAPACITY_MOST}, got ${textOf(metadata, 'length')}`);
  }
  const { layers } = shape;
  // A page is 64 tokens, so that a window which is not complete is raw.
  const complete = Math.floor(windowsOf(length, shape.sinks));
  const coded = integersOf(metadata, 'coded', layers.length, complete);
  const ranges = textOf(metadata, 'windows').split(' ');
  if (ranges.length !== layers.length) {
    throw new RangeError(`file expected windows of ${plural(layers.length, 'layer')}, got ${shown(metadata['windows'])}`);
  }
  let left = bytes; // for pages of all layers: a few words of a header name billions
  const windows = layers.map(({ page }, layer) => {
    const held = windowsIn(ranges[layer]!, coded[layer]!, left / page.bytes);
    left -= held.length * page.bytes;
    return held;
  });
  // What a cache could not have written there is another number when it is written again, and the header is compared.
  const dropped = integersOf(metadata, 'dropped', layers.length, complete).map((count, layer) =>
    Math.min(count, coded[layer]!, windows[layer]![0] ?? complete, windowsBehind({ ...shape, recent: 0 }, layer, length))
  );
  const whole = integersOf(metadata, 'whole', layers.length, length, 'all').map((positions, layer) => {
    const held = { windows: windows[layer]!, pageCount: windows[layer]!.length, coded: coded[layer]! };
    return wholeBefore(shape, layer, { ...held, whole: positions }, length);
  });
  const own = Object.keys(metadata).filter(name => name.startsWith(PREFIX));
  const words = Object.fromEntries(own.map(name => [name.slice(PREFIX.length), textOf(metadata, name)]));
  // Only a layer that has still to learn counts.
  const learns = (layer: number): boolean => layers[layer]!.page.keys.balanced && coded[layer] === 0;
  const counted = integersOf(metadata, 'counted', layers.length, length).map((position, layer) => (learns(layer) ? position : 0));
  return { shape, length, coded, windows, dropped, whole, counted, metadata: Object.freeze(words) };
}

/** An integer for every layer, with a space between two; or the word that stands for Infinity. */
function integersOf(metadata: Record<string, unknown>, field: string, layers: number, most: number, infinity?: string): number[] {
  const text = textOf(metadata, field);
  const words = text.split(' ');
  const integers = words.map(word => (word === infinity ? Infinity : Number(word)));
  const isKnown = (integer: number, n: number): boolean =>
    words[n] === infinity || (Number.isInteger(integer) && integer >= 0 && integer <= most);
  if (words.length !== layers || !integers.every(isKnown)) {
    const or = infinity === undefined ? '' : ` or ${infinity}`;
    throw new RangeError(`file expected ${field} ${plural(layers, 'integer')} from 0 to ${most}${or}, got ${shown(text)}`);
  }
  return integers;
}

/** The numbers of windows in ranges, each below `coded` and above all before it, and no more than there is room for pages. */
function windowsIn(ranges: string, coded: number, pages: number): number[] {
  const windows: number[] = [];
  if (ranges === '-') return windows;
  for (const range of ranges.split(',')) {
    const [first = NaN, last = NaN] = range.split('-').map(Number);
    if (!(Number.isInteger(first) && first > (windows.at(-1) ?? -1) && last >= first && last < coded)) {
      throw new RangeError(`file expected windows in ascending ranges below ${coded} (those that were coded), got ${shown(ranges)}`);
    }
    if (windows.length + last - first >= pages)
      throw new RangeError(
        `file expected at most ${Math.floor(pages)} windows of a layer (what the file has room for), got ${shown(ranges)}`
      );
    for (let window = first; window <= last; window++) windows.push(window);
  }
  return windows;
}

/** The shape that metadata tell, which a cache must be able to have. */
function shapeOf(metadata: Record<string, unknown>): FileShape {
  const list = (field: string, separator: string | RegExp): string[][] =>
    textOf(metadata, field)
      .split(' ')
      .map(text => text.split(separator));
  const heads = list('heads', /[×/]/);
  const codecs = list('codecs', '/');
  const rope = list('rope', ' ');
  const window = list('window', ' ');
  const [sinks, balance, rotations] = [textOf(metadata, 'sinks'), textOf(metadata, 'balance'), textOf(metadata, 'ropes')];
  try {
    const ropes = JSON.parse(rotations) as Record<string, Rope | null>;
    const layers = heads.map(([kvHeads, headDim, valueDim], layer) => {
      const [keys, values] = codecs[layer] ?? [];
      const options: Record<keyof StoredOptions, unknown> = {
        kvHeads: Number(kvHeads),
        queryHeads: Number(kvHeads),
        headDim: Number(headDim),
        valueDim: Number(valueDim),
        keys,
        values,
        rope: ropes[String(rope[layer])] ?? 'none',
        window: String(window[layer]) === 'all' ? undefined : Number(window[layer])
      };
      return options as StoredOptions;
    });
    return shapeWithoutSize({ layers, sinks: Number(sinks), balance: balance === 'off' ? 'off' : 'learn' });
  } catch (cause) {
    throw new RangeError(`file expected the shape of a cache, got another: ${(cause as Error).message}`, { cause });
  }
}

/** What a file says of a layer. */
type StoredOptions = Required<
  Pick<LayerOptions, 'kvHeads' | 'queryHeads' | 'headDim' | 'valueDim' | 'keys' | 'values' | 'rope' | 'window'>
>;

function textOf(metadata: Record<string, unknown>, field: string): string {
  const text = metadata[field];
  if (typeof text !== 'string') throw new RangeError(`file expected ${field} as text, got ${text === undefined ? 'none' : kind(text)}`);
  return text;
}

/** Refuses, by its name, what is not there, is otherwise, or has no place among these. */
function refuseOthers(
  what: string,
  found: Record<string, unknown>,
  expected: Record<string, unknown>,
  isFree = (_name: string) => false
): void {
  for (const [name, value] of Object.entries(expected)) {
    if (JSON.stringify(found[name]) === JSON.stringify(value)) continue;
    throw new RangeError(`file expected ${name} ${shown(value)}, got ${shown(found[name])}`);
  }
  for (const name of Object.keys(found)) {
    if (Object.hasOwn(expected, name) || isFree(name)) continue;
    throw new RangeError(`file expected no ${what} but those that docs/format.md names, got ${shown(name)}`);
  }
}

/** What JSON has under a name, as an object: an empty one where it is none. */
function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

/** What JSON has, for a message: text as it is, anything else as JSON, not too much of it. */
function shown(value: unknown): string {
  const text = typeof value === 'string' ? value : (JSON.stringify(value) ?? 'none');
  return text.length > 200 ? `${text.slice(0, 200)}…` : text;
}
