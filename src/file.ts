// A sequence as bytes: a safetensors file of its sinks, pages and raw windows. Its header says what they mean (header.ts).

import type { Dump } from './backend.ts';
import { plural } from './check.ts';
import type { CodecName } from './format/codec.ts';
import { isFiniteHalf } from './format/half.ts';
import { checkPage, FORMAT, type Heads, type Rope, rawOffset, WINDOW } from './format/layout.ts';
import type { Gone } from './gone.ts';
import {
  type FileData,
  type FileShape,
  fieldsOf,
  type Header,
  readHeader,
  tensorsOf,
  windowsOf,
  writeChecksum,
  writeHeader
} from './header.ts';
import { type CacheShape, completeRaw } from './shape.ts';

/** @internal A layer's bytes. It has a balance where it has pages of balanced keys, and energies where it has still to learn from them. */
export interface LayerContents extends Dump, Gone {
  /** Windows that were coded. */
  readonly coded: number;
  /** The numbers of those that have pages still. */
  readonly windows: readonly number[];
  /** The position up to which queries were counted in the energies; 0 without. */
  readonly counted: number;
}

/** @internal */
export interface FileContents extends Pick<Header, 'length' | 'metadata'> {
  readonly layers: readonly LayerContents[];
}

/** What a saved sequence says of one layer: options of the cache that it was saved from. */
export interface SavedLayer {
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** Channels of a head's keys. */
  readonly headDim: number;
  /** Channels of a head's values. */
  readonly valueDim: number;
  /** Codec of the keys. */
  readonly keys: CodecName;
  /** Codec of the values. */
  readonly values: CodecName;
  /** How keys were rotated, where that was known. */
  readonly rope: Rope | 'none';
  /** Its sliding window, where it has one. */
  readonly window?: number;
}

/** What a saved sequence says of itself: all that a cache must have to restore it, and the application's own words. */
export interface SavedSequence {
  /** Version of the format. */
  readonly format: number;
  /** Tokens. */
  readonly length: number;
  /** Every layer: with heads of queries beside it, what the option `layers` takes. */
  readonly layers: readonly SavedLayer[];
  /** First tokens that are raw. */
  readonly sinks: number;
  /** Whether keys are balanced: whether the option `balance` was another than `'off'`. */
  readonly balanced: boolean;
  /** What `save` was given to keep beside the tokens. */
  readonly metadata: Readonly<Record<string, string>>;
  /** Bytes of the file. */
  readonly bytes: number;
}

/**
 * Frequencies of a file and of a cache are the same if they differ by less than this share. Math.pow differs in its last bits from
 * engine to engine (1e-16), and frequencies made in f32 differ from those in f64 (1e-7). Pages need them for the mean of a window
 * alone, over 31.5 tokens either way: a millionth turns it by 3e-5 radians, and its 8 bits leave a hundred times that. Other models,
 * and other scalings of RoPE, are off by a hundredth and more.
 */
const SAME_FREQUENCY = 1e-6;

/**
 * @internal The bytes of a file but for its checksum, and what they say. Raw windows are cleared beyond their tokens: what lies there may
 * be another conversation's.
 */
export function layOut(shape: CacheShape, { length, metadata, layers }: FileContents): FileData & { readonly file: Uint8Array } {
  const header: Header = {
    shape,
    length,
    metadata,
    coded: layers.map(({ coded }) => coded),
    windows: layers.map(({ windows }) => windows),
    dropped: layers.map(({ dropped }) => dropped),
    whole: layers.map(({ whole }) => whole),
    counted: layers.map(({ counted }) => counted)
  };
  const head = writeHeader(header);
  const file = new Uint8Array(head.length + tensorsOf(header).at(-1)!.end);
  file.set(head);
  let at = head.length;
  for (const [layer, { sinks, pages, coded, raws, balance, energies }] of layers.entries()) {
    const heads = shape.layers[layer]!;
    raws.forEach((raw, n) => clearBeyond(raw, heads, length - shape.sinks - (coded + n) * WINDOW, WINDOW));
    if (sinks) clearBeyond(sinks, heads, length, shape.sinks);
    for (const row of [sinks, ...pages, ...raws, balance, energies].filter(bytes => bytes !== undefined)) {
      file.set(row, at);
      at += row.length;
    }
  }
  return { header, file, data: file.subarray(head.length) };
}

/** @internal The bytes of a file. */
export function writeFile(shape: CacheShape, contents: FileContents): Uint8Array {
  const { file } = layOut(shape, contents);
  writeChecksum(file);
  return file;
}

/**
 * @internal The inverse of writeFile, for a cache of the same shape: capacity and sequences may differ, and `recent` may be larger.
 *
 * @throws {RangeError} naming the first thing that differs from what the shape needs
 */
export function readFile(shape: CacheShape, file: Uint8Array): FileContents {
  const read = readHeader(file);
  checkShape(shape, read.header.shape);
  return readContents(shape, read);
}

/**
 * @internal What a file of this shape holds. All of it is checked but the header.
 *
 * @throws {RangeError} naming the first thing that a cache could not have written
 */
export function readContents(shape: CacheShape, { header, data }: FileData): FileContents {
  const { length, metadata, counted } = header;
  const complete = Math.floor(windowsOf(length, shape.sinks));
  const tensors = tensorsOf(header).values();
  const rows = (): Uint8Array[] => {
    const { begin, rows, rowBytes } = tensors.next().value!;
    return Array.from({ length: rows }, (_, n) => data.subarray(begin + n * rowBytes, begin + (n + 1) * rowBytes));
  };
  const layers = shape.layers.map(({ page }, layer): LayerContents => {
    const [[sinks], pages, raws, [balance], [energies]] = [rows(), rows(), rows(), rows(), rows()] as const; // in the order of a file
    const [coded, windows] = [header.coded[layer]!, header.windows[layer]!];
    const [dropped, whole] = [header.dropped[layer]!, header.whole[layer]!];
    const uncoded = complete - coded;
    const most = completeRaw(page.keys.balanced && coded === 0, shape.recent);
    if (uncoded > most) {
      throw new RangeError(
        `file expected at most ${plural(most, 'complete raw window')} in layer ${layer} (option "recent"), got ${uncoded}`
      );
    }
    for (const bytes of pages) checkPage(bytes, page);
    for (const bytes of sinks ? [sinks, ...raws] : raws) checkHalves(bytes, layer);
    if (energies) checkEnergies(energies, layer);
    return { pages, windows, coded, dropped, whole, raws, sinks, balance, energies, counted: counted[layer]! };
  });
  return { length, metadata, layers };
}

/**
 * What a saved sequence says of itself, for an application to look at before a cache restores it. The whole file's checksum and header
 * are checked; the contents of pages are for `cache.restore` to check.
 *
 * @param bytes  what `Sequence.save` made
 * @throws {TypeError}  if it is no Uint8Array
 * @throws {RangeError} if it is of another format, damaged, or no file of a sequence
 *
 * @example
 * const saved = await chat.save({ metadata: { model: 'smollm2-135m', tokens: '1 73 4093' } });
 * const { length, metadata } = inspect(saved);
 * if (metadata['model'] === 'smollm2-135m') console.log(cache.restore(saved).length === length); // true
 */
export function inspect(bytes: Uint8Array): SavedSequence {
  const {
    header: { shape, length, metadata }
  } = readHeader(bytes);
  const { layers, sinks } = shape;
  const saved = layers.map(({ kvHeads, headDim, valueDim, rope, window, page: { keys, values } }): SavedLayer => {
    const heads = { kvHeads, headDim, valueDim, keys: keys.codec.name, values: values.codec.name, rope: rope ?? ('none' as const) };
    return Object.freeze(window === Infinity ? heads : { ...heads, window });
  });
  return Object.freeze({
    format: FORMAT,
    length,
    layers: Object.freeze(saved),
    sinks,
    balanced: layers[0]!.page.keys.balanced,
    metadata,
    bytes: bytes.length
  });
}

/** Refuses a file of another shape by the first field that differs. */
function checkShape(shape: FileShape, file: FileShape): void {
  const [{ ropes: _, rope: __, ...expected }, got] = [fieldsOf(shape), fieldsOf(file)];
  for (const [field, text] of Object.entries(expected)) {
    if (text !== got[field]) throw new RangeError(`file expected ${field} ${text}, got ${got[field]}`);
  }
  shape.layers.forEach(({ rope }, layer) => checkRope(layer, rope, file.layers[layer]!.rope));
}

function checkRope(layer: number, expected: Rope | undefined, got: Rope | undefined): void {
  const same = (what: string, a: unknown, b: unknown): void => {
    if (a !== b) throw new RangeError(`file expected rope of layer ${layer} ${what}${a}, got ${b}`);
  };
  same('', expected ? 'known' : 'unknown', got ? 'known' : 'unknown');
  if (!expected || !got) return;
  same('interleaved ', expected.interleaved, got.interleaved);
  same('of pairs ', expected.invFreq.length, got.invFreq.length);
  for (let pair = 0; pair < expected.invFreq.length; pair++) {
    const [a, b] = [expected.invFreq[pair]!, got.invFreq[pair]!];
    if (Math.abs(a - b) > SAME_FREQUENCY * Math.max(Math.abs(a), Math.abs(b))) same(`invFreq[${pair}] `, a, b);
  }
}

/** Raw tokens are checked when they are appended; those of a file come from anywhere. */
function checkHalves(bytes: Uint8Array, layer: number): void {
  for (let i = 1; i < bytes.length; i += 2) {
    if (!isFiniteHalf(bytes[i]! << 8)) throw new RangeError(`file expected finite raw tokens in layer ${layer}, got infinity or NaN`);
  }
}

/** Sums of squares, none of them infinite. */
function checkEnergies(bytes: Uint8Array, layer: number): void {
  for (const energy of new Float32Array(new Uint8Array(bytes).buffer)) {
    if (!(energy >= 0 && energy < Infinity)) throw new RangeError(`file expected energies in layer ${layer} from 0, finite, got ${energy}`);
  }
}

function clearBeyond(bytes: Uint8Array, heads: Heads, tokens: number, capacity: number): void {
  for (let head = 0; head < heads.kvHeads; head++) {
    for (const side of [0, 1] as const) {
      const from = rawOffset(heads, capacity, head, side, Math.min(tokens, capacity));
      bytes.fill(0, 2 * from, 2 * rawOffset(heads, capacity, head, side, capacity));
    }
  }
}

/** @internal A layer without the pages of its first `behind` windows, which no query will see. */
export function withoutBehind(contents: LayerContents, behind: number): LayerContents {
  const { coded, windows, pages } = contents;
  const dropped = Math.max(contents.dropped, Math.min(behind, coded));
  const first = windows.findIndex(window => window >= dropped);
  const from = first < 0 ? windows.length : first;
  return { ...contents, dropped, windows: windows.slice(from), pages: pages.slice(from) };
}
