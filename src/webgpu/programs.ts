// What a cache's shape makes of the shaders: the overrides that specialize them.

import { type BlockLayout, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { type Constants, unsegmentedKeys } from './constants.ts';
import type { Program } from './device.ts';

/** Query rows of a quad: the lanes of a vec4f. */
export const QUAD = 4;
/** Elements of an encoder's or decoder's tile of tokens: 8 KiB of the 16 KiB that every device has. */
const TILE_ELEMENTS = 2048;
/** What every device has for a workgroup. */
const WORKGROUP_BYTES = 16384;

/** What one layer's kernels are made of. Where two sides or layers have the same codec and RoPE, they share a pipeline. */
export interface LayerPrograms {
  readonly write: Program;
  readonly merge: Program;
  readonly encode: readonly [keys: Program, values: Program];
  readonly decode: readonly [keys: Program, values: Program];
  readonly extract: readonly [keys: Program, values: Program];
  /** By quads less 1: for row tiles of 4, 8, … query rows. */
  readonly attend: readonly Program[];
  /** Where keys are balanced: what windows of keys have to say of it, what queries have, and what follows. */
  readonly learning: { readonly keys: Program; readonly queries: Program; readonly learn: Program } | undefined;
}

type Overrides = Readonly<Record<string, number>>;

/** Tokens that an encoder or decoder of a side holds at once: a power of two up to 64. */
export function tileTokens(channels: number): number {
  return Math.min(WINDOW, 2 ** Math.floor(Math.log2(TILE_ELEMENTS / channels)));
}

export function layerPrograms(layer: LayerShape, constants: Constants): LayerPrograms {
  const { headDim, valueDim, kvHeads, queryHeads, rope, page } = layer;
  const { powers, thresholds } = constants;
  const { balanced } = page.keys;
  const pairs = rope?.invFreq.length ?? 0;
  const rotated = { PAIRS: pairs, PAIR_STEP: rope?.interleaved ? 2 : 1, PAIR_OFFSET: rope?.interleaved ? 1 : pairs };
  const unrotated = { PAIRS: 0, PAIR_STEP: 1, PAIR_OFFSET: 0 };
  const codes = (layout: BlockLayout): Overrides => {
    const { at, count } = constants.stagesOf(layout);
    return { STAGES: count, STAGES_AT: at };
  };
  const section = (layout: BlockLayout): Overrides => ({
    ROW_WORDS: layout.rowBytes / 4,
    S2: layout.s2 / 4,
    S1: layout.s1 / 4,
    O: layout.o / 4,
    SCALES: layout.scales / 4,
    EXPONENTS: layout.exponents / 4,
    MEAN_BITS: layout.meanBits,
    ...codes(layout)
  });
  const heads = { HEAD_DIM: headDim, QUERY_HEADS_PER_KV_HEAD: queryHeads / kvHeads };
  const side = (channels: number, layout: BlockLayout, pairs: Overrides, angles: number): Overrides => ({
    DIM: channels,
    POWERS: powers,
    ...section(layout),
    ...pairs,
    ANGLES: angles,
    ORDERED: Number(layout.balanced),
    TILE: tileTokens(channels)
  });
  const angles = constants.anglesOf(layer);
  const [keys, values] = [side(headDim, page.keys, rotated, angles), side(valueDim, page.values, unrotated, 0)];
  const encode = { RAW_WORDS: (WINDOW * (headDim + valueDim)) / 2, LEARNS: 0 };
  return {
    write: { name: 'write', constants: { HEAD_DIM: headDim, VALUE_DIM: valueDim } },
    merge: {
      name: 'merge',
      constants: { VALUE_DIM: valueDim, QUERY_HEADS_PER_KV_HEAD: queryHeads / kvHeads, SINK_LOGITS: Number(layer.sinkLogits !== undefined) }
    },
    encode: [
      { name: 'encode', constants: { ...keys, ...encode } },
      { name: 'encode', constants: { ...values, ...encode } }
    ],
    decode: [
      { name: 'decode', constants: keys },
      { name: 'decode', constants: values }
    ],
    extract: [
      { name: 'extract', constants: { DIM: headDim } },
      { name: 'extract', constants: { DIM: valueDim } }
    ],
    attend: attendPrograms(layer, constants, {
      POWERS: powers,
      ANGLES: angles,
      ...heads,
      VALUE_DIM: valueDim,
      ROW_DIM: Math.max(headDim, valueDim),
      SLIDING_WINDOW: Number(layer.window !== Infinity),
      SOFTCAP: Number(layer.softcap > 0),
      SLOPES: Number(layer.slopes !== undefined),
      ...rotated,
      ...prefixed('KEY', section(page.keys)),
      ...prefixed('VALUE', section(page.values)),
      ORDERED: Number(balanced)
    }),
    learning: balanced
      ? {
          keys: { name: 'encode', constants: { ...keys, ...encode, ...codes(unsegmentedKeys(layer)), ORDERED: 0, LEARNS: 1 } },
          queries: { name: 'energies', constants: { ...heads, ...rotated } },
          learn: { name: 'learn', constants: { HEAD_DIM: headDim, THRESHOLDS: thresholds, ...rotated } }
        }
      : undefined
  };
}

function prefixed(prefix: string, overrides: Overrides): Overrides {
  return Object.fromEntries(Object.entries(overrides).map(([name, value]) => [`${prefix}_${name}`, value]));
}

/** Attention for every number of quads that a workgroup can hold. */
function attendPrograms({ headDim, valueDim, page }: LayerShape, constants: Constants, overrides: Overrides): Program[] {
  const { keys, values } = page;
  const books = constants.booksOf([keys, values]);
  const columns = Math.min(WINDOW, valueDim / 2);
  // A code looked up once for more rows pays: 64 query tokens over 1,024 took SwiftShader 3.7 times as long with one quad as with
  // four (headDim 64, plain nsn2), 3.1 times as with three (128); real GPUs are to be measured. Unrealized speed-up: three codebooks leave
  // 128 bytes too few for a fourth quad at headDim 64.
  // In attend.wgsl's order: queryAt and causalEnd, rows, coefs and logits, eighths; book. Its o holds 10 vec4f, two for every quad and
  // pair of channels of a thread.
  const quadBytes = 16 * (2 + Math.max(headDim, valueDim) + 2 * WINDOW + 8);
  const pairsOfThread = Math.ceil(valueDim / 2 / columns);
  const most = Math.max(1, Math.min(Math.floor(4 / pairsOfThread), Math.floor((WORKGROUP_BYTES - 4 * books.words) / quadBytes)));
  return Array.from({ length: most }, (_, n) => ({
    name: 'attend',
    constants: {
      ...overrides,
      HEAD_WORDS: (keys.bytes + values.bytes) / 4,
      VALUE_BLOCK: keys.bytes / 4,
      QUADS: n + 1,
      BOOKS: books.at,
      BOOK_WORDS: books.words,
      COLUMNS: columns,
      SPLIT: Math.floor(WINDOW / columns)
    }
  }));
}
