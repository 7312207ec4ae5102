// Attention of a batch: what is asked for is checked, answered, and counted where a layer has still to learn from it.

import type { Output, Store } from './backend.ts';
import { checkPositive, plural } from './check.ts';
import { answerable } from './gone.ts';
import { checkApart, checkPlaces, checkQuery, checkTarget, type Input, type Place, type Results, type Target } from './input.ts';
import type { AttendOptions } from './options.ts';
import type { PageTables } from './pagetable.ts';
import type { Layout } from './rows.ts';
import type { CacheShape } from './shape.ts';

/** Queries and keys are shorter than 2^20.5; the square of a scaled query stays below 2^106, a logit above what hides a token (−1e30). */
export const SCALE_MOST = 2 ** 32;

/** Attention of every sequence's newest queries. */
export function attend<Out extends Target>(
  store: Store,
  shape: CacheShape,
  batch: readonly PageTables[],
  layer: number,
  queries: readonly Input[],
  nameOf: (n: number) => string,
  layout: Layout,
  options: AttendOptions<Out>
): Output<Results<Out>> {
  const { queryHeads, headDim, valueDim } = shape.layers[layer]!;
  const counts = batch.map((tables, n) => {
    const tokens = checkQuery(nameOf(n), queries[n], store.takesBuffers, queryHeads, headDim);
    checkAnswerable(shape, nameOf(n), tables, layer, tokens);
    return tokens;
  });
  const rows = counts.reduce((sum, tokens) => sum + tokens * queryHeads, 0);
  const { scale = 1 / Math.sqrt(headDim), out = new Float32Array(rows * valueDim), lse } = options;
  checkPositive('scale', scale, SCALE_MOST);
  checkTarget('out', out, store.takesBuffers, rows * valueDim, 'that of the queries');
  const results: Place = { name: 'out', data: out, length: rows * valueDim };
  const asked = queries.map((data, n): Place => ({ name: nameOf(n), data, length: counts[n]! * queryHeads * headDim }));
  checkPlaces(results, valueDim, asked, headDim);
  if (lse !== undefined) {
    checkTarget('lse', lse, store.takesBuffers, rows, 'a number for every query head of every token', ['f32']);
    checkApart({ name: 'lse', data: lse, length: rows }, [results, ...asked]);
  }
  const tables = batch.map(({ layers }) => layers[layer]!);
  /** Counts queries before the result may be written over them, and not before it is sure to be. */
  const learnFrom = (): void =>
    batch.forEach((sequence, n) => {
      const { from, to } = sequence.uncounted(layer, counts[n]!);
      if (from === to) return;
      store.addEnergies(layer, sequence.number, queries[n]!, layout, from - (tables[n]!.length - counts[n]!), to - from);
      sequence.count(layer, to);
    });
  return store.attend(layer, tables, queries, layout, scale, out, lse, learnFrom) as Output<Results<Out>>;
}

/** Refuses queries of so many newest tokens where not all that they see is held. */
export function checkAnswerable(shape: CacheShape, name: string, tables: PageTables, layer: number, tokens: number): void {
  const table = tables.layers[layer]!;
  const most = answerable(shape, layer, table);
  if (tokens <= most) return;
  const all = most === table.length;
  const why = all ? `all that layer ${layer} holds` : `what older ones see layer ${layer} holds no longer`;
  throw new RangeError(`"${name}" expected at most ${plural(most, 'token')} (${why}), got ${tokens}`);
}
