// What calls on a sequence may be told.

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
