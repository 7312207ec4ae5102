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

/** What one layer's kernels are made of. Where two sides or layers have the same codec and RoPE, they share a pipeline. */
export interface LayerPrograms {
  readonly encode: readonly [keys: Program, values: Program];
  readonly decode: readonly [keys: Program, values: Program];
  /** By quads less 1: for row tiles of 4, 8, … query rows. */
  readonly attend: readonly Program[];
}

type Overrides = Readonly<Record<string, number>>;

export function writeProgram({ headDim }: CacheShape): Program {
  return { name: 'write', constants: { HEAD_DIM: headDim } };
}

export function mergeProgram({ headDim, kvHeads, queryHeads }: CacheShape): Program {
  return { name: 'merge', constants: { HEAD_DIM: headDim, QUERY_HEADS_PER_KV_HEAD: queryHeads / kvHeads } };
}

/** Tokens that an encoder or decoder holds at once: a power of two up to 64. */
export function tileTokens(headDim: number): number {
  return Math.min(WINDOW, 2 ** Math.floor(Math.log2(TILE_ELEMENTS / headDim)));
}

export function layerPrograms(shape: CacheShape, page: PageLayout, constants: Constants): LayerPrograms {
  const { headDim, rope } = shape;
  const n = hadamardSize(headDim);
  const common = { HEAD_DIM: headDim, TABLES: constants.tables, N: n, SCALE: Math.fround(1 / Math.sqrt(n)) };
  const pairs = rope?.invFreq.length ?? 0;
  const rotated = { PAIRS: pairs, PAIR_STEP: rope?.interleaved ? 2 : 1, PAIR_OFFSET: rope?.interleaved ? 1 : pairs };
  const unrotated = { PAIRS: 0, PAIR_STEP: 1, PAIR_OFFSET: 0 };
  const section = ({ codec, rowBytes, s2, s1, scales, o }: BlockLayout): Overrides => ({
    CHANNELS: codec.channels,
    ROW_WORDS: rowBytes / 4,
    S2: s2 / 4,
    S1: s1 / 4,
    SCALES: scales / 4,
    O: o / 4,
    BOOK: constants.books.get(codec.name)!
  });
  const side = (layout: BlockLayout, pairs: Overrides): Overrides => ({
    ...common,
    ...section(layout),
    ...pairs,
    TILE: tileTokens(headDim)
  });
  const [keys, values] = [side(page.keys, rotated), side(page.values, unrotated)];
  return {
    encode: [
      { name: 'encode', constants: keys },
      { name: 'encode', constants: values }
    ],
    decode: [
      { name: 'decode', constants: keys },
      { name: 'decode', constants: values }
    ],
    attend: attendPrograms(shape, page, {
      ...common,
      ...rotated,
      ...prefixed('KEY', section(page.keys)),
      ...prefixed('VALUE', section(page.values))
    })
  };
}

function prefixed(prefix: string, overrides: Overrides): Overrides {
  return Object.fromEntries(Object.entries(overrides).map(([name, value]) => [`${prefix}_${name}`, value]));
}

/** Attention for every number of quads that a workgroup can hold. */
function attendPrograms({ headDim, kvHeads, queryHeads }: CacheShape, { keys, values }: PageLayout, overrides: Overrides): Program[] {
  const shared = keys.codec === values.codec;
  const bookWords = WINDOW * (keys.codec.channels + (shared ? 0 : values.codec.channels));
  const padded = keys.rowBytes * keys.codec.channels;
  const columns = Math.min(WINDOW, headDim / 2);
  // A code looked up once for more rows pays: 64 query tokens over 1,024 took SwiftShader 3.7 times as long with one quad as with
  // four (headDim 64), 3.1 times as with three (128); real GPUs are to be measured.
  // In attend.wgsl's order: queryAt and causalEnd, rows, coefs and logits, eighths; book. Its o holds 8 vec4f.
  const quadBytes = 16 * (2 + padded + 2 * WINDOW + 8);
  const pairsOfThread = Math.ceil(headDim / 2 / columns);
  const most = Math.max(1, Math.min(Math.floor(4 / pairsOfThread), Math.floor((WORKGROUP_BYTES - 4 * bookWords) / quadBytes)));
  return Array.from({ length: most }, (_, n) => ({
    name: 'attend',
    constants: {
      ...overrides,
      HEAD_WORDS: (keys.bytes + values.bytes) / 4,
      KEY_BLOCK: HEADER_BYTES / 4,
      VALUE_BLOCK: (HEADER_BYTES + keys.bytes) / 4,
      QUERY_HEADS_PER_KV_HEAD: queryHeads / kvHeads,
      QUADS: n + 1,
      PADDED: padded,
      BOOK_WORDS: bookWords,
      VALUE_START: shared ? 0 : WINDOW * keys.codec.channels,
      COLUMNS: columns,
      SPLIT: Math.floor(WINDOW / columns)
    }
  }));
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
