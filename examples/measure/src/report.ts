// What a measurement comes to, as the page shows it and as the JSON file has it.
import type { WasmVariant } from 'nsnquant';
import type { MethodName, ModelName, Place } from './methods.ts';

/** What `format` says in every file; a change that a reader must know of takes another number. */
export const FORMAT = 'nsnquant-measure-1';

/** One method at one context in one place. */
export interface Cell {
  readonly place: Place;
  readonly tokens: number;
  readonly method: MethodName;
  readonly result: Measured | Failed | Missing;
}

export interface Measured {
  readonly kind: 'measured';
  /** Of one layer's attention, one token: the median of the samples, and the least. */
  readonly milliseconds: number;
  readonly leastMilliseconds: number;
  readonly samples: number;
  /** Layers, each with memory of its own, that one sample goes through, and how often it does. */
  readonly layers: number;
  readonly walks: number;
  /** That attention reads in one layer. */
  readonly bytes: number;
  /** Relative (L2) error against exact attention in f64 over the numbers before they were coded. */
  readonly error: number;
  /** Which of the dense kernel's forms was the fastest. */
  readonly form?: string;
}

/** It ran, and computed wrongly. */
export interface Failed {
  readonly kind: 'failed';
  readonly reason: string;
}

/** It could not be run. */
export interface Missing {
  readonly kind: 'missing';
  readonly reason: string;
}

/** A GPU by its own words. */
export interface Gpu {
  readonly vendor: string;
  readonly architecture: string;
  readonly device: string;
  readonly description: string;
  /** A CPU that acts as a GPU. */
  readonly software: boolean;
  /** `timestamp-query`, or `wall clock` over many dispatches. */
  readonly clock: 'timestamp-query' | 'wall clock';
}

export interface Facts {
  /** The binary that runs, or why none does. */
  readonly wasm: { readonly variant: WasmVariant } | { readonly missing: string };
  readonly gpu: Gpu | { readonly missing: string };
}

export interface Report {
  readonly format: typeof FORMAT;
  /** Of nsnquant, and the commit that the page was built from. */
  readonly version: string;
  readonly commit: string;
  /** ISO 8601. */
  readonly date: string;
  readonly seconds: number;
  /** Whether it was stopped before its end. */
  readonly stopped: boolean;
  /** Whether the page was hidden for a while: browsers slow such pages down. */
  readonly hidden: boolean;
  readonly model: ModelName;
  /** By the name that a person gave it, if any. */
  readonly device: string;
  readonly browser: Browser;
  readonly facts: Facts;
  readonly cells: readonly Cell[];
}

export interface Browser {
  readonly userAgent: string;
  /** What browsers of the Chromium family say besides: brands, platform, model. */
  readonly hints?: Readonly<Record<string, unknown>>;
  readonly cores: number;
  readonly gibibytes?: number;
  /** Whether clocks are fine: pages that are isolated from others have finer ones. */
  readonly isolated: boolean;
}
