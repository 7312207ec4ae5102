// How many tokens raw slots hold, or are to hold: by that a store gives them memory. Numbers only.

import { QUARTER, WINDOW } from './format/layout.ts';
import type { PageTables } from './pagetable.ts';

/** A raw slot, and how many tokens it is to hold. */
export type Fill = readonly [slot: number, tokens: number];

const NONE: readonly never[] = [];

/** How many tokens each of the raw slots is to hold that `tokens` more tokens of a layer take. */
export function slotsFor(tables: PageTables, layer: number, sinks: number, tokens: number): readonly number[] {
  const { length, coded, rawCount } = tables.layers[layer]!;
  return windowsOf(length + tokens - sinks - WINDOW * (coded + rawCount));
}

/** The slot of a partial window that `tokens` more tokens need another quarter of, if they do, and how many it is to hold. */
export function growing(tables: PageTables, layer: number, sinks: number, tokens: number): readonly Fill[] {
  const { length, raws, rawCount } = tables.layers[layer]!;
  const at = Math.max(0, length - sinks) % WINDOW;
  const to = Math.min(WINDOW, at + tokens);
  return at > 0 && Math.ceil(at / QUARTER) < Math.ceil(to / QUARTER) ? [[raws[rawCount - 1]!, to]] : NONE;
}

/** The raw slots of a layer, and what they hold. */
export function holding(tables: PageTables, layer: number, sinks: number): readonly Fill[] {
  const { length, coded, raws } = tables.layers[layer]!;
  return windowsOf(length - sinks - WINDOW * coded).map((tokens, n): Fill => [raws[n]!, tokens]);
}

/** How many tokens each raw window of a layer holds that stays raw when the complete ones are sealed. */
export function staying(tables: PageTables, layer: number, sinks: number): readonly number[] {
  const { length, coded } = tables.layers[layer]!;
  return windowsOf(length - sinks - WINDOW * (coded + tables.completeWindows(layer)));
}

/**
 * What a cut through pages is decoded into: in layers without a raw window another slot, in others the first that they have.
 *
 * @param sealed  whether what is complete in a layer is coded before
 */
export function cutting(
  tables: PageTables,
  length: number,
  sealed: (layer: number) => boolean
): { readonly slots: readonly number[]; readonly growing: readonly Fill[] } {
  const first = tables.layers.flatMap(({ raws, rawCount }, layer) => {
    const complete = sealed(layer) ? tables.completeWindows(layer) : 0;
    return tables.cuts(layer, length, complete) ? [complete < rawCount ? raws[complete]! : undefined] : [];
  });
  return {
    slots: first.flatMap(slot => (slot === undefined ? [WINDOW] : [])),
    growing: first.flatMap(slot => (slot === undefined ? [] : [[slot, WINDOW] as const]))
  };
}

/** Tokens as windows: all whole but the last. */
function windowsOf(tokens: number): readonly number[] {
  if (tokens <= 0) return NONE; // of nearly every token
  return Array.from({ length: Math.ceil(tokens / WINDOW) }, (_, n) => Math.min(WINDOW, tokens - WINDOW * n));
}
