// A cache's options, checked and completed, and the counts that follow from them. Shared by KVCache and plan().

import { checkInteger, checkLength, checkOneOf, checkOptions, checkRecord, kind, plural } from './check.ts';
import { type Codec, type CodecName, codecs } from './format/codec.ts';
import { typedArrayName } from './format/half.ts';
import { type PageLayout, pageLayout, type Rope, rawBytes, WINDOW } from './format/layout.ts';

/** Codecs of one layer. */
export interface CodecPair {
  /** Default: that of the cache. */
  readonly keys?: CodecName;
  /** Default: that of the cache. */
  readonly values?: CodecName;
}

/** What `new KVCache` and `plan` take: the attention of a model, and how its keys and values are kept. */
export interface CacheOptions {
  /** Layers of the model, 1 to 4,096; all have the shape that follows. */
  readonly layers: number;
  /** Heads of keys and values, 1 to 1,024. */
  readonly kvHeads: number;
  /** Heads of queries: a multiple of `kvHeads`, up to 64 times as many. */
  readonly queryHeads: number;
  /** Channels of a head: a multiple of 8 from 32 to 512. */
  readonly headDim: number;
  /** Tokens over all sequences; what forks share counts once. */
  readonly capacity: number;
  /** Codec of the keys. Default `nsn3`. */
  readonly keys?: CodecName;
  /** Codec of the values. Default `nsn3`. */
  readonly values?: CodecName;
  /** Other codecs for single layers, by layer number. */
  readonly overrides?: Readonly<Record<number, CodecPair>>;
  /** How keys were rotated before they came; lets the channel mean be taken before RoPE (better; see the README). */
  readonly rope?: Rope;
  /**
   * How the channels of keys are balanced by what queries weigh. `'learn'`, the default: every sequence learns it, layer by layer, from
   * its first 128 tokens after the sinks, which stay raw until then, and the queries of the positions up to there. A profile, u8
   * [layers, kvHeads, headDim / 2], as `Sequence.balance()` gives it: for all sequences, which need not learn. `'off'`: plain coding,
   * the paper's recipe.
   */
  readonly balance?: 'learn' | 'off' | Uint8Array;
  /** First tokens of a sequence that stay raw, 0 to 64. Default 4; 0 is the paper. */
  readonly sinks?: number;
  /**
   * Newest complete windows that stay raw. Default 0. With 1, the newest 64 tokens can be cropped without loss in every layer, as
   * drafts are that a model rejects.
   */
  readonly recent?: number;
  /** Sequences that can be open at once. Default 4. */
  readonly sequences?: number;
  /** Tokens of one append call at most: what the raw memory of a prompt is reserved for. Default `capacity`. */
  readonly maxAppend?: number;
}

/** @internal Tokens of a cache at most. */
export const CAPACITY_MOST = 2 ** 24;

const CACHE_OPTIONS = [
  'layers',
  'kvHeads',
  'queryHeads',
  'headDim',
  'capacity',
  'keys',
  'values',
  'overrides',
  'rope',
  'balance',
  'sinks',
  'recent',
  'sequences',
  'maxAppend'
] as const satisfies readonly (keyof CacheOptions)[];
const OVERRIDE = ['keys', 'values'] as const;
const ROPE = ['invFreq', 'interleaved'] as const satisfies readonly (keyof Rope)[];

/** A cache's options without its size, which follows from what is timed. */
export type StepShape = Omit<CacheOptions, 'capacity' | 'sequences' | 'maxAppend'> & Partial<CacheOptions>;

/** The options of a cache, checked and completed, and the counts that follow from them: pages of a layer, raw slots of the whole cache. */
export interface CacheShape extends Required<Omit<CacheOptions, 'keys' | 'values' | 'overrides' | 'rope'>> {
  /** How keys were rotated before they came, where that is known. */
  readonly rope: Rope | undefined;
  /** Every layer's page layout. */
  readonly pages: readonly PageLayout[];
  /** Pages that a layer has for `capacity` tokens. */
  readonly pagesPerLayer: number;
  /** Raw slots of 64 tokens. */
  readonly rawSlots: number;
  /** Bytes of such a slot. */
  readonly rawSlotBytes: number;
  /** Raw slots of `sinks` tokens: one for every sequence and layer. */
  readonly sinkSlots: number;
  /** Bytes of such a slot. */
  readonly sinkBytes: number;
  /** Bytes of what a sequence learns of a layer: the balance of its keys and the energies of queries, where keys are balanced. */
  readonly learnedBytes: number;
}

/**
 * @internal The shape that options stand for.
 *
 * @throws {TypeError | RangeError} for options that are unknown, or of the wrong kind or value
 */
export function cacheShape(options: CacheOptions): CacheShape {
  checkOptions('options', options, CACHE_OPTIONS);
  const { layers, kvHeads, queryHeads, headDim, capacity, sinks = 4, recent = 0, sequences = 4, maxAppend = capacity } = options;
  checkInteger('layers', layers, 1, 4096);
  checkInteger('kvHeads', kvHeads, 1, 1024);
  checkInteger('queryHeads', queryHeads, kvHeads, 64 * kvHeads);
  if (queryHeads % kvHeads !== 0) {
    throw new RangeError(`"queryHeads" expected multiple of kvHeads (${kvHeads}), got ${queryHeads}`);
  }
  checkInteger('headDim', headDim, 32, 512);
  if (headDim % 8 !== 0) throw new RangeError(`"headDim" expected multiple of 8 from 32 to 512, got ${headDim}`);
  checkInteger('capacity', capacity, 1, CAPACITY_MOST);
  checkInteger('sinks', sinks, 0, WINDOW);
  checkInteger('recent', recent, 0, 1024);
  checkInteger('sequences', sequences, 1, 65536);
  checkInteger('maxAppend', maxAppend, 1, capacity);
  const layerCodecs = codecsOf(options, layers);
  const rope = ropeOf(options, headDim);
  const balance = balanceOption(options);
  const balanced = balance !== 'off';

  // A prompt's own tokens stay raw until the next call: room for the tokens that all sequences can hold raw at once.
  const staged = Math.min(sequences * Math.ceil(maxAppend / WINDOW), Math.ceil(capacity / WINDOW) + sequences);
  return Object.freeze({
    layers,
    kvHeads,
    queryHeads,
    headDim,
    capacity,
    rope,
    balance,
    sinks,
    recent,
    sequences,
    maxAppend,
    pages: Object.freeze(layerCodecs.map(({ keys, values }) => pageLayout(keys, values, kvHeads, headDim, balanced))),
    pagesPerLayer: Math.floor(capacity / WINDOW),
    rawSlots: sequences * layers * baseSlots({ balance, recent }) + staged,
    rawSlotBytes: rawBytes(kvHeads, headDim, WINDOW),
    sinkSlots: sinks === 0 ? 0 : sequences * layers,
    sinkBytes: rawBytes(kvHeads, headDim, sinks),
    learnedBytes: balanced ? kvHeads * (headDim / 2) * (1 + 4) : 0
  });
}

/**
 * @internal A copy of what a caller may change while it is still needed, checked. Inherited options and those behind getters become
 * its own.
 *
 * @throws {TypeError | RangeError} as `cacheShape` does
 */
export function stepShape(shape: StepShape): StepShape {
  checkOptions('shape', shape, CACHE_OPTIONS);
  const copy = Object.fromEntries(CACHE_OPTIONS.map(option => [option, shape[option]])) as unknown as StepShape;
  shapeWithoutSize(copy);
  return copy;
}

/** @internal The shape of the smallest size, on which no kernel depends. */
export function shapeWithoutSize(shape: StepShape): CacheShape {
  return cacheShape({ ...shape, capacity: 1, sequences: 1, maxAppend: 1 });
}

/** @internal Complete windows of keys that a sequence learns from, which stay raw until it has them all. */
export const LEARNED_WINDOWS = 2;

/** @internal Complete windows that a layer of a sequence keeps raw: the newest, or while it has still to learn all but the last it needs. */
export function completeRaw(learns: boolean, recent: number): number {
  return learns ? Math.max(recent, LEARNED_WINDOWS - 1) : recent;
}

/** @internal Raw windows that a layer of a sequence may need whatever happens: those that are not to be sealed, and one that is partial. */
export function baseSlots({ balance, recent }: Pick<CacheShape, 'balance' | 'recent'>): number {
  return 1 + completeRaw(balance === 'learn', recent);
}

/** @internal Bytes of all coded pages, of all raw slots, and of all that sequences learn. */
export function tokenBytes(shape: CacheShape): { readonly pageBytes: number; readonly rawBytes: number; readonly learnedBytes: number } {
  const { layers, sequences, pages, pagesPerLayer, rawSlots, rawSlotBytes, sinkSlots, sinkBytes } = shape;
  return {
    pageBytes: pages.reduce((sum, page) => sum + pagesPerLayer * page.bytes, 0),
    rawBytes: rawSlots * rawSlotBytes + sinkSlots * sinkBytes,
    learnedBytes: sequences * layers * shape.learnedBytes
  };
}

/** @internal Tokens that a raw slot holds: those of a window, or the sinks. */
export function slotTokens({ rawSlots, sinks }: CacheShape, slot: number): number {
  return slot < rawSlots ? WINDOW : sinks;
}

/** @internal Bytes of a raw slot. */
export function slotBytes({ rawSlots, rawSlotBytes, sinkBytes }: CacheShape, slot: number): number {
  return slot < rawSlots ? rawSlotBytes : sinkBytes;
}

interface LayerCodecs {
  readonly keys: Codec;
  readonly values: Codec;
}

/** Every layer's codecs. */
function codecsOf({ keys = 'nsn3', values = 'nsn3', overrides = {} }: CacheOptions, layers: number): readonly LayerCodecs[] {
  const all = Array.from({ length: layers }, () => ({ keys: codecOf('keys', keys), values: codecOf('values', values) }));
  if (!Array.isArray(overrides)) checkRecord('overrides', overrides); // an array has layer numbers for its keys too
  for (const [layer, override] of Object.entries(overrides)) {
    const number = Number(layer);
    if (String(number) !== layer || !(number in all)) {
      throw new RangeError(`"overrides" expected layer numbers from 0 to ${layers - 1}, got ${layer}`);
    }
    if (override === undefined) continue;
    const name = `overrides[${layer}]`;
    checkOptions(name, override, OVERRIDE);
    const { keys: layerKeys = keys, values: layerValues = values } = override;
    all[number] = { keys: codecOf(`${name}.keys`, layerKeys), values: codecOf(`${name}.values`, layerValues) };
  }
  return all;
}

function codecOf(name: string, codec: CodecName): Codec {
  checkOneOf(name, codec, Object.keys(codecs));
  return codecs[codec];
}

/** What keys are balanced by; a profile is copied. */
function balanceOption({ balance = 'learn', layers, kvHeads, headDim }: CacheOptions): 'learn' | 'off' | Uint8Array {
  if (balance === 'learn' || balance === 'off') return balance;
  const expected = '"balance" expected learn, off or Uint8Array';
  if (typeof balance === 'string') throw new RangeError(`${expected}, got ${balance}`);
  if (typedArrayName(balance) !== 'Uint8Array') throw new TypeError(`${expected}, got ${kind(balance)}`);
  const pairs = headDim / 2;
  checkLength('balance', balance.length, layers * kvHeads * pairs, `${plural(layers, 'layer')} × ${plural(kvHeads, 'head')} × ${pairs}`);
  return new Uint8Array(balance); // a Buffer's slice() would be the caller's own memory
}

/** The rotation, copied: what the caller does with its array later is nothing to the cache. */
function ropeOf({ rope }: CacheOptions, headDim: number): Rope | undefined {
  if (rope === undefined) return undefined;
  checkOptions('rope', rope, ROPE);
  const { invFreq, interleaved } = rope;
  if (!Array.isArray(invFreq) && typedArrayName(invFreq) === undefined) {
    throw new TypeError(`"rope.invFreq" expected array of numbers, got ${kind(invFreq)}`);
  }
  const { length } = invFreq;
  checkInteger('rope.invFreq.length', length, 1, headDim / 2);
  const copy = Float64Array.from({ length }, (_, i) => {
    const radians = invFreq[i];
    checkRadians(`rope.invFreq[${i}]`, radians);
    return radians;
  });
  if (typeof interleaved !== 'boolean') throw new TypeError(`"rope.interleaved" expected boolean, got ${kind(interleaved)}`);
  return Object.freeze({ invFreq: copy, interleaved });
}

/** More than a whole turn a token is no frequency: it is a wavelength, or a base. */
function checkRadians(name: string, value: unknown): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected number, got ${kind(value)}`);
  if (!(Math.abs(value) <= 2 * Math.PI)) throw new RangeError(`"${name}" expected number from −2π to 2π (radians per token), got ${value}`);
}
