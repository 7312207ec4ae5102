// What calls on sequences and batches may be told.

import type { Tokens } from './backend.ts';
import { checkOneOf, checkOptions } from './check.ts';
import type { GpuTarget, Target } from './input.ts';
import { LAYOUTS, type Layout } from './rows.ts';

/** What `append` may be told. */
export interface AppendOptions {
  /** Of keys and values. Default `tokens-first`. */
  readonly layout?: Layout;
}

/** @internal */
export const APPEND_OPTIONS = ['layout'] as const satisfies readonly (keyof AppendOptions)[];

/** What `attend` may be told. */
export interface AttendOptions<Out extends Target = Target> {
  /** Multiplies every logit: above 0, at most 2³². Default 1/√headDim. */
  readonly scale?: number;
  /**
   * Where the result goes; a new Float32Array by default. Hand one in to allocate nothing while decoding, or a GPUBuffer's range. It may
   * take the place of the queries where a row of it has as many bytes as a row of theirs, of `headDim`; else it must not overlap them:
   * long prompts are answered in parts.
   */
  readonly out?: Out;
  /**
   * Receives the natural logarithm of the softmax's denominator, Σ exp(logit) with that of a sink logit: f32 [tokens, queryHeads],
   * sequences one after another; −Infinity where nothing was seen. An array is filled once `read` has resolved. It must overlap neither
   * queries nor results. By it attention over other keys can be merged with this, exactly: of two results each counts with exp(its lse) /
   * (the sum of both).
   */
  readonly lse?: Float32Array | GpuTarget;
  /** Of queries and results; of a batch each sequence's own. Default `tokens-first`. */
  readonly layout?: Layout;
}

/** @internal */
export const ATTEND_OPTIONS = ['scale', 'out', 'lse', 'layout'] as const satisfies readonly (keyof AttendOptions)[];

/** What `decode` may be told. */
export interface DecodeOptions<Keys extends Target = Target, Values extends Target = Target> {
  /** The first position. Default 0. */
  readonly from?: number;
  /** The first beyond. Default: all that came. */
  readonly to?: number;
  /** Where tokens go: as many as the layer holds of these positions; one must not overlap the other. Default: new Float32Arrays. */
  readonly out?: Tokens<Keys, Values>;
  /** Of keys and values. Default `tokens-first`. */
  readonly layout?: Layout;
}

/** @internal */
export const DECODE_OPTIONS = ['from', 'to', 'out', 'layout'] as const satisfies readonly (keyof DecodeOptions)[];

/** What `mass` may be told. */
export interface MassOptions {
  /** Multiplies every logit: above 0, at most 2³². Default 1/√headDim. */
  readonly scale?: number;
}

/** @internal */
export const MASS_OPTIONS = ['scale'] as const satisfies readonly (keyof MassOptions)[];

/** What `evict` is told. */
export interface EvictOptions {
  /** The first position that may go. */
  readonly from: number;
  /** The first that may not. */
  readonly to: number;
  /** One layer; by default all. */
  readonly layer?: number;
}

/** @internal */
export const EVICT_OPTIONS = ['from', 'to', 'layer'] as const satisfies readonly (keyof EvictOptions)[];

/** What `save` may be told. */
export interface SaveOptions {
  /** The application's own words, such as the model's name or the tokens' numbers. Default: those that the sequence was restored with. */
  readonly metadata?: Readonly<Record<string, string>>;
}

/** @internal */
export const SAVE_OPTIONS = ['metadata'] as const satisfies readonly (keyof SaveOptions)[];

/** @internal The layout in options, of which these are known. */
export function layoutOf(options: { readonly layout?: Layout }, known: readonly string[]): Layout {
  checkOptions('options', options, known);
  const { layout = 'tokens-first' } = options;
  checkOneOf('layout', layout, LAYOUTS);
  return layout;
}
