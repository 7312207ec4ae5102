// What a layer holds of some positions, decoded into arrays or GPUBuffers.

import { type PageTable, piecesOf, type Store, type Tokens } from './backend.ts';
import { checkInteger, checkOptions, plural } from './check.ts';
import { checkApart, checkTarget, type Target } from './input.ts';
import { DECODE_OPTIONS, type DecodeOptions, layoutOf } from './options.ts';
import type { CacheShape } from './shape.ts';

const OUT = ['keys', 'values'] as const satisfies readonly (keyof Tokens)[];

/** @internal Tokens of a layer, once they are where they go. */
export async function decodeTokens(
  store: Store,
  { sinks, layers }: CacheShape,
  layer: number,
  table: PageTable,
  options: DecodeOptions
): Promise<Tokens<Target, Target>> {
  const { kvHeads, headDim, valueDim } = layers[layer]!;
  const layout = layoutOf(options, DECODE_OPTIONS);
  const { from = 0, to = table.length } = options;
  checkInteger('from', from, 0, table.length);
  checkInteger('to', to, from, table.length);
  const pieces = piecesOf(table, sinks, from, to);
  const tokens = pieces.reduce((sum, piece) => sum + piece.tokens, 0);
  const lengthOf = (channels: number): number => tokens * kvHeads * channels;
  const { out = { keys: new Float32Array(lengthOf(headDim)), values: new Float32Array(lengthOf(valueDim)) } } = options;
  checkOptions('out', out, OUT);
  const { keys, values } = out;
  const arithmetic = (channels: number): string => `${plural(tokens, 'token')} × ${plural(kvHeads, 'head')} × ${channels}`;
  checkTarget('out.keys', keys, store.takesBuffers, lengthOf(headDim), arithmetic(headDim));
  checkTarget('out.values', values, store.takesBuffers, lengthOf(valueDim), arithmetic(valueDim));
  checkApart({ name: 'out.values', data: values, length: lengthOf(valueDim) }, [
    { name: 'out.keys', data: keys, length: lengthOf(headDim) }
  ]);
  await store.read(layer, table.sequence, pieces, { keys, values }, layout);
  return { keys, values };
}
