// A layer's options, checked and completed, and what follows from them: the attention of a model, layer by layer.

import { checkInteger, checkOneOf, checkOptions, kind } from './check.ts';
import { type Codec, type CodecName, codecs } from './format/codec.ts';
import { typedArrayName } from './format/half.ts';
import { type PageLayout, pageLayout, type Rope } from './format/layout.ts';

/**
 * One layer's attention, and how its keys and values are kept. `'none'` is for a layer without what stands beside the list of layers for
 * all others.
 */
export interface LayerOptions {
  /** Heads of keys and values, 1 to 1,024. */
  readonly kvHeads?: number;
  /** Heads of queries: a multiple of `kvHeads`, up to 128 times as many. */
  readonly queryHeads?: number;
  /** Channels of a head's keys and queries: a multiple of 8 from 32 to 576. */
  readonly headDim?: number;
  /** Channels of a head's values and results: likewise. Default `headDim`. */
  readonly valueDim?: number;
  /** Codec of the keys. Default `nsn3`. */
  readonly keys?: CodecName;
  /** Codec of the values. Default `nsn3`. */
  readonly values?: CodecName;
  /**
   * How keys were rotated before they came; lets the channel mean be taken before RoPE (better; see the README).
   * `'none'`: not at all.
   */
  readonly rope?: Rope | 'none';
  /** Sliding window: positions that a query sees, its own among them, 1 to 2²⁴. Default: all. What lies behind it is given back. */
  readonly window?: number | 'none';
  /**
   * With a `window`: whether queries see the first `sinks` tokens too, however far behind. Default `false`, as models are trained. Beside a
   * list of layers it is for those that have one.
   */
  readonly keepSinks?: boolean;
  /** Caps logits: softcap · tanh(logit / softcap), after the scale. Above 0, at most 2³². Default: none. */
  readonly softcap?: number | 'none';
  /** ALiBi, a number from 0 to 256 for every query head: slope · (key position − query position) is added to logits. Default: none. */
  readonly slopes?: ArrayLike<number> | 'none';
  /** Sink logits, one for every query head: their exp is added to the softmax's denominator. Default: none. */
  readonly sinkLogits?: ArrayLike<number> | 'none';
}

/** @internal */
export const LAYER_OPTIONS = [
  'kvHeads',
  'queryHeads',
  'headDim',
  'valueDim',
  'keys',
  'values',
  'rope',
  'window',
  'keepSinks',
  'softcap',
  'slopes',
  'sinkLogits'
] as const satisfies readonly (keyof LayerOptions)[];
/** @internal A page's shape does not depend on queries. */
export type StoredLayer = Pick<LayerShape, 'kvHeads' | 'headDim' | 'valueDim' | 'rope' | 'window' | 'page'>;

const ROPE = ['invFreq', 'interleaved'] as const satisfies readonly (keyof Rope)[];

/** A layer's options, completed. */
export interface LayerShape {
  /** Heads of keys and values. */
  readonly kvHeads: number;
  /** Heads of queries. */
  readonly queryHeads: number;
  /** Channels of a head's keys and queries. */
  readonly headDim: number;
  /** Channels of a head's values and results. */
  readonly valueDim: number;
  /** How keys were rotated before they came, where that is known. */
  readonly rope: Rope | undefined;
  /** Positions that a query sees, its own among them; Infinity without a sliding window. */
  readonly window: number;
  /** Whether queries see sinks that are behind the window. */
  readonly keepSinks: boolean;
  /** What caps logits; 0 for none. */
  readonly softcap: number;
  /** Slopes of ALiBi, f32 [queryHeads]. */
  readonly slopes: Float32Array | undefined;
  /** Sink logits, f32 [queryHeads]. */
  readonly sinkLogits: Float32Array | undefined;
  /** How a coded page is laid out. */
  readonly page: PageLayout;
  /** Bytes of what a sequence learns: the balance of its keys and the energies of queries, where keys are balanced. */
  readonly learnedBytes: number;
}

/** Channels of a head at most: those of the latents of multi-head latent attention. */
const HEAD_DIM_MOST = 576;
const QUERY_HEADS_PER_KV_HEAD = 128;
/** Products of queries and keys are below 2⁴²; what is added to them, or caps them, stays below what hides a token. */
const LOGIT_MOST = 2 ** 32;
/** A slope times the largest distance is at most LOGIT_MOST. None is below 0: far keys would win by logits whose f32 has no fractions. */
const SLOPE_MOST = 2 ** 8;
/** @internal Positions at most. */
export const CAPACITY_MOST = 2 ** 24;

/**
 * @internal The shape of a layer.
 *
 * @param prefix    what comes before an option's name in messages
 * @param options   its own; what they lack is taken from `common`
 * @param balanced  whether keys are
 */
export function layerShape(prefix: string, options: LayerOptions, common: LayerOptions, balanced: boolean): LayerShape {
  const nameOf = (option: keyof LayerOptions): string => (options[option] === undefined ? option : prefix + option);
  const of = <Name extends keyof LayerOptions>(option: Name): LayerOptions[Name] =>
    options[option] === undefined ? common[option] : options[option];
  const integer = (option: 'kvHeads' | 'queryHeads' | 'headDim' | 'valueDim' | 'window', least: number, most: number): number => {
    const value = of(option);
    checkInteger(nameOf(option), value, least, most);
    return value;
  };
  const channels = (option: 'headDim' | 'valueDim'): number => {
    const value = integer(option, 32, HEAD_DIM_MOST);
    if (value % 8 === 0) return value;
    throw new RangeError(`"${nameOf(option)}" expected multiple of 8 from 32 to ${HEAD_DIM_MOST}, got ${value}`);
  };
  const kvHeads = integer('kvHeads', 1, 1024);
  const queryHeads = integer('queryHeads', kvHeads, QUERY_HEADS_PER_KV_HEAD * kvHeads);
  if (queryHeads % kvHeads !== 0) {
    throw new RangeError(`"${nameOf('queryHeads')}" expected multiple of kvHeads (${kvHeads}), got ${queryHeads}`);
  }
  const headDim = channels('headDim');
  const valueDim = of('valueDim') === undefined ? headDim : channels('valueDim');
  const codec = (side: 'keys' | 'values'): Codec => {
    const name = of(side) === undefined ? 'nsn3' : of(side)!;
    checkOneOf(nameOf(side), name, Object.keys(codecs));
    return codecs[name];
  };
  const keepSinks = of('keepSinks') === undefined ? false : of('keepSinks');
  if (typeof keepSinks !== 'boolean') throw new TypeError(`"${nameOf('keepSinks')}" expected boolean, got ${kind(keepSinks)}`);
  const given = <Name extends 'window' | 'softcap' | 'slopes' | 'sinkLogits'>(option: Name): unknown =>
    of(option) === 'none' ? undefined : of(option);
  const window = given('window') === undefined ? Infinity : integer('window', 1, CAPACITY_MOST);
  if (options.keepSinks && window === Infinity) {
    throw new RangeError(`"${nameOf('keepSinks')}" expected false (there is no window), got true`);
  }
  const softcap = given('softcap');
  if (softcap !== undefined) checkNumber(nameOf('softcap'), softcap, 2 ** -32, LOGIT_MOST);
  const heads = (option: 'slopes' | 'sinkLogits', least: number, most: number): Float32Array | undefined =>
    floats(nameOf(option), given(option), queryHeads, least, most);
  return Object.freeze({
    kvHeads,
    queryHeads,
    headDim,
    valueDim,
    rope: ropeOf(nameOf('rope'), of('rope'), headDim),
    window,
    keepSinks: keepSinks && window < Infinity,
    softcap: softcap ?? 0,
    slopes: heads('slopes', 0, SLOPE_MOST),
    sinkLogits: heads('sinkLogits', -LOGIT_MOST, LOGIT_MOST),
    page: pageLayout(codec('keys'), codec('values'), { kvHeads, headDim, valueDim }, balanced),
    learnedBytes: balanced ? kvHeads * (headDim / 2) * (1 + 4) : 0
  });
}

/** A number for every query head, copied. */
function floats(name: string, list: unknown, length: number, least: number, most: number): Float32Array | undefined {
  if (list === undefined) return undefined;
  checkNumbers(name, list);
  if (list.length !== length) throw new RangeError(`"${name}" expected length ${length} (query heads), got ${list.length}`);
  return Float32Array.from({ length }, (_, i) => {
    checkNumber(`${name}[${i}]`, list[i], least, most);
    return list[i]!;
  });
}

/** The rotation, copied: what the caller does with its array later is nothing to the cache. */
function ropeOf(name: string, rope: unknown, headDim: number): Rope | undefined {
  if (rope === undefined || rope === 'none') return undefined;
  checkOptions(name, rope, ROPE);
  const { invFreq, interleaved } = rope as { readonly [option in keyof Rope]: unknown };
  checkNumbers(`${name}.invFreq`, invFreq);
  const { length } = invFreq;
  checkInteger(`${name}.invFreq.length`, length, 1, headDim / 2);
  const copy = Float64Array.from({ length }, (_, i) => {
    const radians = invFreq[i];
    checkRadians(`${name}.invFreq[${i}]`, radians);
    return radians;
  });
  if (typeof interleaved !== 'boolean') throw new TypeError(`"${name}.interleaved" expected boolean, got ${kind(interleaved)}`);
  return Object.freeze({ invFreq: copy, interleaved });
}

function checkNumbers(name: string, list: unknown): asserts list is ArrayLike<number> {
  if (!Array.isArray(list) && typedArrayName(list) === undefined)
    throw new TypeError(`"${name}" expected array of numbers, got ${kind(list)}`);
}

function checkNumber(name: string, value: unknown, least: number, most: number): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected number, got ${kind(value)}`);
  if (!(value >= least && value <= most)) throw new RangeError(`"${name}" expected number from ${least} to ${most}, got ${value}`);
}

/** More than a whole turn a token is no frequency: it is a wavelength, or a base. */
function checkRadians(name: string, value: unknown): asserts value is number {
  if (typeof value !== 'number') throw new TypeError(`"${name}" expected number, got ${kind(value)}`);
  if (!(Math.abs(value) <= 2 * Math.PI)) throw new RangeError(`"${name}" expected number from −2π to 2π (radians per token), got ${value}`);
}
