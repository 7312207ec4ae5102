// The verbs one by one in f64, by reference.ts.

import { WINDOW } from '../format/layout.ts';
import type { CacheShape } from '../shape.ts';
import type { Verbs } from '../verbs.ts';
import * as reference from './reference.ts';

/** The verbs for a shape's keys. They check nothing. */
export function referenceVerbs({ headDim, rope, pages }: CacheShape): Verbs {
  const { codec } = pages[0]!.keys;
  const quantizer = reference.codecQuantizer(codec);
  const unpack = (block: Uint8Array): reference.CodedWindow => reference.unpack(block, codec, headDim);

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
    shift: x => inPlace(x, rows => Float32Array.from(reference.shift(rows, headDim, rope).o)),
    normalizeAgain: x => inPlace(x, rows => Float32Array.from(reference.normalizeAgain(rows, headDim))),
    hadamard: x => inPlace(x, rows => reference.hadamard(rows, headDim)),
    quantize: y => Uint8Array.from(reference.quantize(Float64Array.from(y), quantizer)),
    encode: x => reference.pack(reference.encode(x, headDim, quantizer, rope), codec),
    decode: block => Float32Array.from(reference.decode(unpack(block), quantizer, rope)),
    scores: (queries, block) => perHead(queries, headDim, query => reference.scores(query, unpack(block), quantizer, rope)),
    mix: (weights, block) => perHead(weights, WINDOW, row => reference.mix(row, unpack(block), quantizer))
  };
}
