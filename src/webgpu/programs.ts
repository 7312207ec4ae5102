// What a cache's shape makes of the shaders: the constants that they read, and the overrides that specialize them.

import { type CodecName, codecs } from '../format/codec.ts';
import { toHalf } from '../format/half.ts';
import { type BlockLayout, HEADER_BYTES, hadamardSize, type PageLayout, pageHeader, WINDOW } from '../format/layout.ts';
import { ropeTables } from '../rope.ts';
import type { CacheShape } from '../shape.ts';
import type { Program } from './device.ts';

/** Query rows of a quad: the lanes of a vec4f. */
export const QUAD = 4;
/** Elements of an encoder's or decoder's tile of tokens: 8 KiB of the 16 KiB that every device has. */
const TILE_ELEMENTS = 2048;
/** What every device has for a workgroup. */
const WORKGROUP_BYTES = 16384;

/** What one layer's kernels are made of; layers of equal codecs share pipelines. */
export interface LayerPrograms {
  readonly encode: readonly [keys: Program, values: Program];
  readonly decode: readonly [keys: Program, values: Program];
  /** By quads less 1: for row tiles of 4, 8, … query rows. */
  readonly attend: readonly Program[];
}

export function writeProgram({ headDim, kvHeads }: CacheShape): Program {
  return { name: 'write', constants: { HEAD_DIM: headDim, KV_HEADS: kvHeads } };
}

export function mergeProgram({ headDim, kvHeads, queryHeads }: CacheShape): Program {
  return { name: 'merge', constants: { HEAD_DIM: headDim, KV_HEADS: kvHeads, GROUP: queryHeads / kvHeads } };
}

/** Tokens that an encoder or decoder holds at once: a power of two up to 64. */
export function tileTokens(headDim: number): number {
  return Math.min(WINDOW, 2 ** Math.floor(Math.log2(TILE_ELEMENTS / headDim)));
}

export function layerPrograms(shape: CacheShape, page: PageLayout, constants: Constants): LayerPrograms {
  const { headDim, kvHeads, queryHeads, sinks, rope } = shape;
  const n = hadamardSize(headDim);
  const pairs = rope?.invFreq.length ?? 0;
  const common = {
    HEAD_DIM: headDim,
    HEAD_WORDS: (page.keys.bytes + page.values.bytes) / 4,
    TABLES: constants.tables,
    PAIR_STEP: rope?.interleaved ? 2 : 1,
    PAIR_OFFSET: rope?.interleaved ? 1 : pairs,
    N: n,
    SCALE: Math.fround(1 / Math.sqrt(n))
  };
  const block = { KEY: HEADER_BYTES / 4, VALUE: (HEADER_BYTES + page.keys.bytes) / 4 };
  const side = (layout: BlockLayout): Record<string, number> => ({
    CHANNELS: layout.codec.channels,
    ROW_WORDS: layout.rowBytes / 4,
    S2: layout.s2 / 4,
    S1: layout.s1 / 4,
    SCALES: layout.scales / 4,
    O: layout.o / 4,
    BOOK: constants.books.get(layout.codec.name)!
  });
  const keys = { ...common, ...side(page.keys), BLOCK: block.KEY, PAIRS: pairs, TILE: tileTokens(headDim) };
  // Values are not rotated: the same pipelines whatever the RoPE.
  const unrotated = { PAIRS: 0, PAIR_STEP: 1, PAIR_OFFSET: 0 };
  const values = { ...common, ...side(page.values), ...unrotated, BLOCK: block.VALUE, TILE: tileTokens(headDim) };

  const shared = page.keys.codec === page.values.codec;
  const bookWords = WINDOW * (page.keys.codec.channels + (shared ? 0 : page.values.codec.channels));
  const padded = page.keys.rowBytes * page.keys.codec.channels;
  const columns = Math.min(WINDOW, headDim / 2);
  const prefixed = (prefix: 'KEY' | 'VALUE', layout: BlockLayout): Record<string, number> =>
    Object.fromEntries(Object.entries({ ...side(layout), BLOCK: block[prefix] }).map(([name, value]) => [`${prefix}_${name}`, value]));
  const attend = (quads: number): Program => ({
    name: 'attend',
    constants: {
      ...common,
      ...prefixed('KEY', page.keys),
      ...prefixed('VALUE', page.values),
      KV_HEADS: kvHeads,
      GROUP: queryHeads / kvHeads,
      QUADS: quads,
      SINKS: sinks,
      PAGE_WORDS: page.bytes / 4,
      PAIRS: pairs,
      PADDED: padded,
      BOOK_WORDS: bookWords,
      VALUE_START: shared ? 0 : WINDOW * page.keys.codec.channels,
      COLUMNS: columns,
      SPLIT: Math.floor(WINDOW / columns)
    }
  });
  // A code looked up once for more rows pays: 64 query tokens over 1,024 took SwiftShader 3.7 times as long with one quad as with
  // four (headDim 64), 3.1 times as with three (128); real GPUs are to be measured.
  // In attend.wgsl's order: queryAt and causalEnd, rows, coefs and logits, eighths; book. Its o holds 8 vec4f.
  const quadBytes = 16 * (2 + padded + 2 * WINDOW + 8);
  const pairsOfThread = Math.ceil(headDim / 2 / columns);
  const most = Math.max(1, Math.min(Math.floor(4 / pairsOfThread), Math.floor((WORKGROUP_BYTES - 4 * bookWords) / quadBytes)));
  return {
    encode: [
      { name: 'encode', constants: { ...keys, SIDE: 0 } },
      { name: 'encode', constants: { ...values, SIDE: 1 } }
    ],
    decode: [
      { name: 'decode', constants: { ...keys, KV_HEADS: kvHeads } },
      { name: 'decode', constants: { ...values, KV_HEADS: kvHeads } }
    ],
    attend: Array.from({ length: most }, (_, i) => attend(i + 1))
  };
}

/** Codebooks, RoPE's angles and page headers, one after another; offsets in words. */
export class Constants {
  readonly words: Uint32Array<ArrayBuffer>;
  readonly books = new Map<CodecName, number>();
  readonly headers = new Map<PageLayout, number>();
  readonly tables: number;

  constructor(shape: CacheShape) {
    const words: number[] = [];
    for (const codec of Object.values(codecs)) {
      this.books.set(codec.name, words.length);
      for (let i = 0; i < 128 * codec.channels; i += 2) words.push(toHalf(codec.codebook[i]!) + toHalf(codec.codebook[i + 1]!) * 65536);
    }
    this.tables = words.length;
    const { cos, sin } = ropeTables(shape.rope);
    for (const table of [cos, sin]) for (const word of new Uint32Array(table.buffer)) words.push(word);
    for (const page of shape.pages) {
      this.headers.set(page, words.length);
      words.push(...new Uint32Array(pageHeader(page).buffer));
    }
    this.words = Uint32Array.from(words);
  }
}
