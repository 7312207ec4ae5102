// A cache's options, checked and completed, and the counts that follow from them. Shared by KVCache and plan().

import { checkInteger, checkLength, checkOptions, kind, plural } from './check.ts';
import { typedArrayName } from './format/half.ts';
import { rawBytes, WINDOW } from './format/layout.ts';
import { CAPACITY_MOST, LAYER_OPTIONS, type LayerOptions, type LayerShape, layerShape } from './layer.ts';

const LAYERS_MOST = 4096;

/** What `new KVCache` and `plan` take: the attention of a model, and how its keys and values are kept. */
export interface CacheOptions extends LayerOptions {
  /**
   * Layers of the model, 1 to 4,096. A number where all are alike; else a list of what is each layer's own, where the options beside it
   * stand for all others.
   */
  readonly layers: number | readonly LayerOptions[];
  /** Tokens over all sequences; what forks share counts once. */
  readonly capacity: number;
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
  /** Tokens of one append call at most: what the raw memory of a prompt is bounded by. Default `capacity`. */
  readonly maxAppend?: number;
  /**
   * Takes the memory for `capacity` tokens and all `sequences` at once, so that no later call can be refused for want of it. Default
   * false: memory is taken as it is needed.
   */
  readonly reserve?: boolean;
}

const CACHE_OPTIONS = [
  'layers',
  ...LAYER_OPTIONS,
  'capacity',
  'balance',
  'sinks',
  'recent',
  'sequences',
  'maxAppend',
  'reserve'
] as const satisfies readonly (keyof CacheOptions)[];

/** A cache's options without its size, which follows from what is timed. */
export type StepShape = Omit<CacheOptions, 'capacity' | 'sequences' | 'maxAppend'> & Partial<CacheOptions>;

/** The options of a cache, checked and completed, and the counts that follow from them: pages of a layer, raw slots of the whole cache. */
export interface CacheShape extends Required<Omit<CacheOptions, keyof LayerOptions | 'layers'>> {
  /** Every layer's own. */
  readonly layers: readonly LayerShape[];
  /** Pages of every layer at most: for `capacity` tokens, or what its window lets all sequences hold. */
  readonly pageCounts: readonly number[];
  /** Raw slots of 64 tokens, as large as any layer's. */
  readonly rawSlots: number;
  /** Bytes of such a slot. */
  readonly rawSlotBytes: number;
  /** Raw slots of `sinks` tokens: one for every sequence and layer. */
  readonly sinkSlots: number;
  /** Bytes of such a slot. */
  readonly sinkBytes: number;
}

/**
 * @internal The shape that options stand for.
 *
 * @throws {TypeError | RangeError} for options that are unknown, or of the wrong kind or value
 */
export function cacheShape(options: CacheOptions): CacheShape {
  checkOptions('options', options, CACHE_OPTIONS);
  const { capacity, sinks = 4, recent = 0, sequences = 4, maxAppend = capacity, reserve = false } = options;
  const balance = balanceOption(options);
  const layers = layersOf(options, balance !== 'off');
  checkProfile(balance, layers);
  checkInteger('capacity', capacity, 1, CAPACITY_MOST);
  checkInteger('sinks', sinks, 0, WINDOW);
  checkInteger('recent', recent, 0, 1024);
  checkInteger('sequences', sequences, 1, 65536);
  checkInteger('maxAppend', maxAppend, 1, capacity);
  if (typeof reserve !== 'boolean') throw new TypeError(`"reserve" expected boolean, got ${kind(reserve)}`);

  // A prompt's own tokens stay raw until the next call: room for the tokens that all sequences can hold raw at once.
  const staged = Math.min(sequences * Math.ceil(maxAppend / WINDOW), Math.ceil(capacity / WINDOW) + sequences);
  const slotBytes = (tokens: number): number => Math.max(...layers.map(layer => rawBytes(layer, tokens)));
  return Object.freeze({
    layers,
    capacity,
    balance: typeof balance === 'string' ? balance : new Uint8Array(balance), // a Buffer's slice() would be the caller's own memory
    sinks,
    recent,
    sequences,
    maxAppend,
    reserve,
    pageCounts: Object.freeze(
      layers.map(({ window }) => Math.min(Math.floor(capacity / WINDOW), sequences * pagesBehind(window, maxAppend, recent)))
    ),
    rawSlots: sequences * layers.length * baseSlots({ balance, recent }) + staged,
    rawSlotBytes: slotBytes(WINDOW),
    sinkSlots: sinks === 0 ? 0 : sequences * layers.length,
    sinkBytes: slotBytes(sinks)
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
  return cacheShape({ ...shape, capacity: 1, sequences: 1, maxAppend: 1, reserve: true });
}

/**
 * Pages that a sequence holds at most in a layer with a sliding window: of the windows that its oldest query may see, up to the end of
 * the append that it is of, all of which may be coded before it is asked; one more at either end; and those that are kept for crops.
 */
function pagesBehind(window: number, maxAppend: number, recent: number): number {
  return Math.ceil((window + maxAppend) / WINDOW) + 2 + recent;
}

/** @internal Windows that a layer's query at `position` does not see, nor any that comes after it, but the `recent` that are kept for crops. */
export function windowsBehind(
  { sinks, recent, layers }: Pick<CacheShape, 'sinks' | 'recent' | 'layers'>,
  layer: number,
  position: number
): number {
  return Math.max(0, Math.floor((position + 1 - layers[layer]!.window - sinks) / WINDOW) - recent);
}

/** @internal Complete windows of keys that a sequence learns from, which stay raw until it has them all. */
export const LEARNED_WINDOWS = 2;

/** @internal Complete windows that a layer of a sequence keeps raw: the newest, or while it has still to learn all but the last it needs. */
export function completeRaw(learns: boolean, recent: number): number {
  return learns ? Math.max(recent, LEARNED_WINDOWS - 1) : recent;
}

/** @internal How many of a layer's complete windows, of which `coded` are, may be coded besides. */
export function sealable({ balance, recent }: Pick<CacheShape, 'balance' | 'recent'>, complete: number, coded: number): number {
  const learns = balance === 'learn' && coded === 0;
  return learns && complete < LEARNED_WINDOWS ? 0 : Math.max(0, complete - recent - coded);
}

/** @internal Raw windows that a layer of a sequence may need whatever happens: those that are not to be sealed, and one that is partial. */
export function baseSlots({ balance, recent }: Pick<CacheShape, 'balance' | 'recent'>): number {
  return 1 + completeRaw(balance === 'learn', recent);
}

/** @internal Bytes of all coded pages, of all raw slots, and of all that sequences learn. */
export function tokenBytes(shape: CacheShape): { readonly pageBytes: number; readonly rawBytes: number; readonly learnedBytes: number } {
  const { layers, sequences, pageCounts, rawSlots, rawSlotBytes, sinkSlots, sinkBytes } = shape;
  return {
    pageBytes: layers.reduce((sum, { page }, n) => sum + pageCounts[n]! * page.bytes, 0),
    rawBytes: rawSlots * rawSlotBytes + sinkSlots * sinkBytes,
    learnedBytes: layers.reduce((sum, { learnedBytes }) => sum + sequences * learnedBytes, 0)
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

/** @internal Of a balance of all layers, u8 [layers, kvHeads, headDim / 2], that of one. */
export function ofLayer(balance: Uint8Array, layers: readonly LayerShape[], layer: number): Uint8Array {
  const at = balanceBytes(layers.slice(0, layer));
  return balance.subarray(at, at + balanceBytes([layers[layer]!]));
}

/** @internal Bytes of the balance of these layers. */
export function balanceBytes(layers: readonly LayerShape[]): number {
  return layers.reduce((sum, { kvHeads, headDim }) => sum + kvHeads * (headDim / 2), 0);
}

function layersOf(options: CacheOptions, balanced: boolean): readonly LayerShape[] {
  const { layers } = options;
  if (!Array.isArray(layers)) {
    checkInteger('layers', layers, 1, LAYERS_MOST);
    const layer = layerShape('', options, options, balanced);
    return Object.freeze(Array.from({ length: layers }, () => layer));
  }
  checkInteger('layers.length', layers.length, 1, LAYERS_MOST);
  const shapes = Array.from({ length: layers.length }, (_, n) => {
    const own: LayerOptions = layers[n];
    checkOptions(`layers[${n}]`, own, LAYER_OPTIONS);
    return layerShape(`layers[${n}].`, own, options, balanced);
  });
  if (options.keepSinks && shapes.every(({ window }) => window === Infinity)) {
    throw new RangeError('"keepSinks" expected false (no layer has a window), got true');
  }
  return Object.freeze(shapes);
}

/** What keys are balanced by. */
function balanceOption({ balance = 'learn' }: CacheOptions): 'learn' | 'off' | Uint8Array {
  if (balance === 'learn' || balance === 'off') return balance;
  const expected = '"balance" expected learn, off or Uint8Array';
  if (typeof balance === 'string') throw new RangeError(`${expected}, got ${balance}`);
  if (typedArrayName(balance) !== 'Uint8Array') throw new TypeError(`${expected}, got ${kind(balance)}`);
  return balance;
}

function checkProfile(balance: 'learn' | 'off' | Uint8Array, layers: readonly LayerShape[]): void {
  if (typeof balance === 'string') return;
  const { kvHeads, headDim } = layers[0]!;
  const alike = layers.every(layer => layer.kvHeads === kvHeads && layer.headDim === headDim);
  const each = `${plural(kvHeads, 'head')} × ${headDim / 2}`;
  const all = plural(layers.length, 'layer');
  checkLength('balance', balance.length, balanceBytes(layers), alike ? `${all} × ${each}` : `${all}, each KV heads × headDim / 2`);
}
