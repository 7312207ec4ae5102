// What a layer no longer holds of what came, and what cannot be asked without it. Numbers only.

import { type PageTable, piecesOf, type Range } from './backend.ts';
import { WINDOW } from './format/layout.ts';
import { type CacheShape, windowsBehind } from './shape.ts';

/** Why pages of windows that were coded are not there. */
export interface Gone {
  /** The first windows, given back as they were behind a sliding window; any other was evicted. */
  readonly dropped: number;
  /** Queries of the positions before this one saw all that they should: Infinity while nothing that is seen was evicted. */
  readonly whole: number;
}

type Table = PageTable & Gone;
type Shape = Pick<CacheShape, 'layers' | 'sinks'>;
/** Windows that are there, of those that were coded. */
type Held = Pick<PageTable, 'pageCount' | 'coded'> & { readonly windows: ArrayLike<number> };

/** The positions that a layer holds, in ranges as long as can be. */
export function rangesOf({ sinks }: Shape, table: PageTable): Range[] {
  const ranges: Range[] = [];
  for (const { position, tokens } of piecesOf(table, sinks)) {
    const last = ranges.at(-1);
    if (last?.to === position) ranges[ranges.length - 1] = { from: last.from, to: position + tokens };
    else ranges.push({ from: position, to: position + tokens });
  }
  return ranges;
}

/** Newest tokens of a layer that may be asked about: they are held, and so is what its window shows them. */
export function answerable({ sinks, layers }: Shape, layer: number, table: Table): number {
  const { length, dropped } = table;
  let most = length;
  if (dropped > 0) most = Math.min(most, Math.max(0, length + 1 - sinks - dropped * WINDOW - layers[layer]!.window));
  const window = unbroken(table);
  return window > dropped ? Math.min(most, length - sinks - window * WINDOW) : most;
}

/** `whole`, once a layer's tokens from `length` on are gone, or some before it. */
export function wholeBefore(shape: Shape, layer: number, table: Held & Pick<Gone, 'whole'>, length: number): number {
  if (table.whole < length) return table.whole;
  return unbroken(table) > windowsBehind({ ...shape, recent: 0 }, layer, length) ? length : Infinity;
}

/** Refuses a crop to `length` where the tokens before it are gone. */
export function checkCrop({ sinks, layers }: Shape, layer: number, table: Table, length: number): void {
  const { dropped, coded, windows, pageCount } = table;
  if (length <= sinks) return;
  const least = sinks + dropped * WINDOW + layers[layer]!.window - 1;
  if (dropped > 0 && length < least) {
    throw new RangeError(
      `"length" expected at least ${least} or at most ${sinks} (layer ${layer} has given back what is behind its window), got ${length}`
    );
  }
  const cut = Math.floor((length - sinks) / WINDOW);
  if (cut >= coded || length === sinks + cut * WINDOW || windows.subarray(0, pageCount).includes(cut)) return;
  throw new RangeError(`"length" expected a position that layer ${layer} holds (others were evicted), got ${length}`);
}

/** The first coded window from which on all are there. */
function unbroken({ windows, pageCount, coded }: Held): number {
  if (pageCount === coded) return 0; // of nearly every table; the way back takes long in a long context
  let [window, n] = [coded, pageCount];
  while (n > 0 && windows[n - 1] === window - 1) [window, n] = [window - 1, n - 1];
  return window;
}
