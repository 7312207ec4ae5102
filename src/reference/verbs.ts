// The verbs one by one in f64, by reference.ts.

import { channelOrder } from '../format/balance.ts';
import { WINDOW } from '../format/layout.ts';
import type { Verbs, VerbsShape } from '../verbs.ts';
import * as reference from './reference.ts';

/** The verbs of one side. They check nothing. */
export function referenceVerbs({ headDim, rope, layout, balance }: VerbsShape): Verbs {
  const coding = reference.codingOf(layout, rope, balance && channelOrder(balance, headDim, rope));
  const unpack = (block: Uint8Array): reference.CodedWindow => reference.unpack(block, layout, headDim);

  function inPlace<T>(x: Float32Array, verb: (rows: Float64Array) => T): T {
    const rows = Float64Array.from(x);
    const result = verb(rows);
    x.set(rows);
    return result;
  }

  /** A verb for every row of x [heads, width]. */
  function perHead(x: Float32Array, width: number, verb: (row: Float32Array) => Float64Array): Float32Array {
    const rows = Array.from({ length: x.length / width }, (_, head) => verb(x.subarray(head * width, (head + 1) * width)));
    return Float32Array.from(rows.flatMap(row => [...row]));
  }

  return {
    name: 'reference',
    variant: 'f64',
    normalize: x => inPlace(x, rows => Float32Array.from(reference.normalize(rows, headDim).s1)),
    shift: x => inPlace(x, rows => Float32Array.from(reference.shift(rows, headDim, layout.meanBits, rope).o)),
    normalizeAgain: x => inPlace(x, rows => Float32Array.from(reference.normalizeAgain(rows, headDim))),
    hadamard: x => inPlace(x, rows => reference.hadamard(rows, headDim)),
    quantize: (y, channels) =>
      Uint8Array.from(reference.quantize(Float64Array.from(y), reference.codebookQuantizer(reference.codebooks[channels]))),
    encode: x => reference.pack(reference.encode(x, headDim, coding), layout),
    decode: block => Float32Array.from(reference.decode(unpack(block), coding)),
    scores: (queries, block) => perHead(queries, headDim, query => reference.scores(query, unpack(block), coding)),
    mix: (weights, block) => perHead(weights, WINDOW, row => reference.mix(row, unpack(block), coding))
  };
}
