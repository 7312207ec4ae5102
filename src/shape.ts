// A cache's options, checked and completed, and the counts that follow from them. Shared by KVCache and plan().

import { checkInteger, checkObject, checkOneOf } from './check.ts';
import { type CodecName, codecs } from './format/codec.ts';
import { type PageLayout, pageLayout, type Rope, rawBytes, WINDOW } from './format/layout.ts';

export interface CacheOptions {
  readonly layers: number;
  readonly kvHeads: number;
  /** A multiple of kvHeads, up to 64 times as many. */
  readonly queryHeads: number;
  /** A multiple of 8 from 32 to 512. */
  readonly headDim: number;
  /** Tokens over all sequences; what forks share counts once. */
  readonly capacity: number;
  /** Codec of the keys. Default `nsn4`. */
  readonly keys?: CodecName;
  /** Codec of the values. Default `nsn2`. */
  readonly values?: CodecName;
  /** Other codecs for single layers, by layer number. */
  readonly overrides?: Readonly<Record<number, { readonly keys?: CodecName; readonly values?: CodecName }>>;
  /** How keys were rotated before they came; lets the channel mean be taken before RoPE (better; see the README). */
  readonly rope?: Rope;
  /** First tokens of a sequence that stay raw, 0 to 64. Default 4; 0 is the paper. */
  readonly sinks?: number;
  /** Newest complete windows that stay raw. Default 0. */
  readonly recent?: number;
  /** Sequences that can be open at once. Default 4. */
  readonly sequences?: number;
  /** Tokens of one append call at most: what the raw memory of a prompt is reserved for. Default `capacity`. */
  readonly maxAppend?: number;
}

export interface CacheShape {
  readonly layers: number;
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  readonly capacity: number;
  readonly rope: Rope | undefined;
  readonly sinks: number;
  readonly recent: number;
  readonly sequences: number;
  readonly maxAppend: number;
  /** Every layer's page layout. */
  readonly pages: readonly PageLayout[];
  readonly pagesPerLayer: number;
  /** Raw places of 64 tokens. */
  readonly rawPages: number;
  readonly rawPageBytes: number;
  /** Raw places of `sinks` tokens: one for every sequence and layer. */
  readonly sinkPlaces: number;
  readonly sinkBytes: number;
}

export function cacheShape(options: CacheOptions): CacheShape {
  checkObject('options', options);
  const { layers, kvHeads, queryHeads, headDim, capacity } = options;
  const { keys = 'nsn4', values = 'nsn2', overrides = {}, sinks = 4, recent = 0, sequences = 4 } = options;
  checkInteger('layers', layers, 1, 4096);
  checkInteger('kvHeads', kvHeads, 1, 1024);
  checkInteger('queryHeads', queryHeads, kvHeads, 64 * kvHeads);
  if (queryHeads % kvHeads !== 0) {
    throw new RangeError(`"queryHeads" expected multiple of kvHeads (${kvHeads}), got ${queryHeads}`);
  }
  checkInteger('headDim', headDim, 32, 512);
  if (headDim % 8 !== 0) throw new RangeError(`"headDim" expected multiple of 8 from 32 to 512, got ${headDim}`);
  checkInteger('capacity', capacity, 1, 2 ** 24);
  checkInteger('sinks', sinks, 0, WINDOW);
  checkInteger('recent', recent, 0, 1024);
  checkInteger('sequences', sequences, 1, 65536);
  const maxAppend = options.maxAppend ?? capacity;
  checkInteger('maxAppend', maxAppend, 1, capacity);
  checkCodec('keys', keys);
  checkCodec('values', values);
  checkObject('overrides', overrides);
  for (const [layer, override] of Object.entries(overrides)) {
    checkInteger('overrides', Number(layer), 0, layers - 1);
    checkObject(`overrides[${layer}]`, override);
    if (override.keys !== undefined) checkCodec(`overrides[${layer}].keys`, override.keys);
    if (override.values !== undefined) checkCodec(`overrides[${layer}].values`, override.values);
  }
  const rope = options.rope && checkRope(options.rope, headDim);

  // A prompt's own tokens stay raw until the next call: room for the tokens that all sequences can hold raw at once.
  const staged = Math.min(sequences * Math.ceil(maxAppend / WINDOW), Math.ceil(capacity / WINDOW) + sequences);
  return Object.freeze({
    layers,
    kvHeads,
    queryHeads,
    headDim,
    capacity,
    rope,
    sinks,
    recent,
    sequences,
    maxAppend,
    pages: Object.freeze(
      Array.from({ length: layers }, (_, layer) =>
        pageLayout(codecs[overrides[layer]?.keys ?? keys], codecs[overrides[layer]?.values ?? values], kvHeads, headDim, rope !== undefined)
      )
    ),
    pagesPerLayer: Math.floor(capacity / WINDOW),
    rawPages: sequences * layers * (1 + recent) + staged,
    rawPageBytes: rawBytes(kvHeads, headDim, WINDOW),
    sinkPlaces: sinks === 0 ? 0 : sequences * layers,
    sinkBytes: rawBytes(kvHeads, headDim, sinks)
  });
}

function checkCodec(name: string, codec: unknown): void {
  checkOneOf(name, codec, Object.keys(codecs));
}

function checkRope(rope: Rope, headDim: number): Rope {
  checkObject('rope', rope);
  const { invFreq, interleaved } = rope;
  if (!Array.isArray(invFreq) && !ArrayBuffer.isView(invFreq)) {
    throw new TypeError(`"rope.invFreq" expected array of numbers, got ${typeof invFreq}`);
  }
  checkInteger('rope.invFreq.length', invFreq.length, 1, headDim / 2);
  for (let i = 0; i < invFreq.length; i++) {
    if (!Number.isFinite(invFreq[i])) throw new RangeError(`"rope.invFreq[${i}]" expected finite number, got ${invFreq[i]}`);
  }
  if (typeof interleaved !== 'boolean') throw new TypeError(`"rope.interleaved" expected boolean, got ${typeof interleaved}`);
  return Object.freeze({ invFreq: Float64Array.from(invFreq), interleaved });
}
