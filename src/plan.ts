// What a cache costs, before it is made.

import { WINDOW } from './layout.ts';
import { cacheShape, type CacheOptions } from './shape.ts';

export interface Plan {
  /** Bytes of one more token once it is coded: all layers, metadata counted. */
  readonly bytesPerToken: number;
  /** The same per element of keys and values, in bits. */
  readonly bitsPerElement: number;
  /** What f16 takes for one token. */
  readonly f16BytesPerToken: number;
  /** Coded pages for `capacity` tokens. */
  readonly pageBytes: number;
  /** Raw tails, recent windows, sinks, and room for a prompt's own tokens. */
  readonly rawBytes: number;
  /** All pages and raw tokens. A backend adds its tables and scratch: `cache.bytes` is that sum. */
  readonly bytes: number;
}

/**
 * The bytes of a cache with these options.
 *
 * @throws {TypeError | RangeError} for options that `new KVCache` would refuse
 *
 * @example
 * plan({ layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192, keys: 'nsn2' }).bitsPerElement;   // 2.41
 */
export function plan(options: CacheOptions): Plan {
  const shape = cacheShape(options);
  const elements = 2 * shape.layers * shape.kvHeads * shape.headDim;
  const bytesPerToken = shape.pages.reduce((sum, page) => sum + page.bytes, 0) / WINDOW;
  const pageBytes = bytesPerToken * WINDOW * shape.pagesPerLayer;
  const rawBytes = shape.rawPages * shape.rawPageBytes + shape.sinkPlaces * shape.sinkBytes;
  return {
    bytesPerToken,
    bitsPerElement: (bytesPerToken * 8) / elements,
    f16BytesPerToken: elements * 2,
    pageBytes,
    rawBytes,
    bytes: pageBytes + rawBytes
  };
}
