// How an array of tokens is laid out: of every token and head a row of channels, in one order of rows or the other.

/** `'tokens-first'`: [tokens, heads, channels]. `'heads-first'`: [heads, tokens, channels], as ONNX and transformers hold them. */
export type Layout = 'tokens-first' | 'heads-first';

/** @internal */
export const LAYOUTS = ['tokens-first', 'heads-first'] as const satisfies readonly Layout[];

/** @internal The rows of an array of tokens. */
export interface Rows {
  readonly layout: Layout;
  readonly tokens: number;
  readonly heads: number;
}

/** @internal Rows from a token to the next, and from a head to the next. */
export function stridesOf({ layout, tokens, heads }: Rows): { readonly tokenRows: number; readonly headRows: number } {
  return layout === 'tokens-first' ? { tokenRows: heads, headRows: 1 } : { tokenRows: 1, headRows: tokens };
}

/**
 * @internal Some tokens of an array, as runs of rows that lie together: `take` gets a run's first row in the array, its first row in an
 * array of these tokens alone, and how many there are.
 */
export function eachRun(
  { layout, tokens, heads }: Rows,
  from: number,
  count: number,
  take: (row: number, partRow: number, count: number) => void
): void {
  if (layout === 'tokens-first' || count === tokens) take(from * heads, 0, count * heads);
  else for (let head = 0; head < heads; head++) take(head * tokens + from, head * count, count);
}
