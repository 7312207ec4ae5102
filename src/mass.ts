// How much of a layer's attention goes to each of its windows: what policies of eviction ask.

import { type Output, type PageTable, type Piece, piecesOf, type Range, type Store } from './backend.ts';
import type { Data } from './format/half.ts';
import { WINDOW } from './format/layout.ts';
import type { CacheShape } from './shape.ts';

/** The share of attention that positions of one window have. */
export interface Mass extends Range {
  /** From 0 to 1: the mean over query tokens and heads. Those of all windows and of sink logits add up to 1. */
  readonly mass: number;
}

/**
 * @internal The mass of sinks, every page and every raw window: by the logarithms of their own denominators, each beside the sinks, which
 * every table has. No kernel but `attend` is needed; a window takes as long as a context of one.
 */
export async function attentionMass(
  store: Store,
  shape: CacheShape,
  layer: number,
  table: PageTable,
  query: Data,
  scale: number
): Promise<Mass[]> {
  const { sinks, sequences, layers } = shape;
  const { queryHeads, headDim, valueDim, sinkLogits } = layers[layer]!;
  const rows = query.length / headDim;
  const none = { ...table, pageCount: 0, rawCount: 0 };
  const alone = ({ coded, number, position }: Piece): PageTable => {
    const [numbers, window] = [Uint32Array.of(number), (position - sinks) / WINDOW];
    if (position < sinks) return none;
    return coded
      ? { ...none, pages: numbers, windows: Uint32Array.of(window), pageCount: 1 }
      : { ...none, raws: numbers, rawCount: 1, coded: window };
  };
  /** Natural logarithms of denominators, of every table's rows. A call takes no more tables than there may be sequences. */
  const denominators = async (tables: readonly PageTable[]): Promise<Float32Array> => {
    const all = new Float32Array(tables.length * rows);
    const results = new Float32Array(Math.min(tables.length, sequences) * rows * valueDim); // of every call, and of no interest
    // All are queued before the first is awaited: by then a slot or a page may have become another's.
    const outputs: Output<Data>[] = [];
    for (let first = 0; first < tables.length; first += sequences) {
      const some = tables.slice(first, first + sequences);
      const queries = some.map(() => query);
      const out = results.subarray(0, some.length * rows * valueDim);
      const lse = all.subarray(first * rows, (first + some.length) * rows);
      outputs.push(store.attend(layer, some, queries, 'tokens-first', scale, out, lse));
    }
    await Promise.all(outputs.map(output => output.read()));
    return all;
  };
  const pieces = piecesOf(table, sinks);
  const lse = await denominators([table, ...pieces.map(alone)]);
  return pieces.map(({ position, tokens }, n) => {
    let mass = 0;
    for (let row = 0; row < rows; row++) {
      const share = (logarithm: number): number => Math.exp(logarithm - lse[row]!);
      // What else is in a denominator: the sink logit, and beside another window the sinks.
      const logit = sinkLogits?.[row % queryHeads] ?? -Infinity;
      const beside = position < sinks || sinks === 0 ? share(logit) : share(lse[rows + row]!);
      mass += Math.max(0, share(lse[(n + 1) * rows + row]!) - beside) / rows;
    }
    return { from: position, to: position + tokens, mass };
  });
}
