// The constants of a cache, one buffer for all of its shaders; offsets in words:
//
//   codebooks    f16 [128, channels] of 2, 4 and 8 channels; codeword c + 128 is the negation of codeword c
//   half norms   f32 [128] of each: ‖C‖²/2
//   powers       f32 [31]: 2^(n/8), n from −15 to 15: scales of channels, by the difference of their levels
//   thresholds   f32 [15]: energies below the largest times the nth have a level above n
//   stages       lists of Stage structs (structs.ts): how the channels of a kind of block are coded. Before what models differ in: where
//                they lie is compiled in, and pipelines of the same codecs are the same
//   angles       of every rotation cos, then sin f32 [pairs, 64] of ω·(t − 31.5)
//   logits       of every layer that has such slopes, and sink logits, f32 [query heads], times log₂ e
//   orders       u32 [layers][sequences, KV heads, headDim]: channels of balanced keys in their order, from bit 16 on the byte of their
//                pair (src/format/balance.ts). What sequences learn: this alone changes

import { channelOrder, LEVELS, ofHead, scaleOf, threshold } from '../format/balance.ts';
import { codebooks, halfNormsOf } from '../format/codec.ts';
import { toHalf } from '../format/half.ts';
import { type BlockLayout, blockLayout, channelPairs } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import { ropeTables, ropeText } from '../rope.ts';
import type { CacheShape } from '../shape.ts';
import { floatBits, structWords } from './structs.ts';

const CODEWORDS = 128;
const WIDTHS = [2, 4, 8] as const;

export class Constants {
  /** All but the orders. */
  readonly words: Uint32Array<ArrayBuffer>;
  /** Words with the orders. */
  readonly length: number;
  readonly powers: number;
  readonly thresholds: number;
  readonly #shape: CacheShape;
  readonly #angles = new Map<string, number>();
  /** Where the orders of every layer begin. */
  readonly #orders: readonly number[];
  readonly #logits = new Map<Float32Array, number>();
  readonly #books = new Map<number, number>();
  /** By kind of block. */
  readonly #stages = new Map<string, number>();

  constructor(shape: CacheShape) {
    const words: number[] = [];
    const floats = (numbers: ArrayLike<number>): number => {
      const at = words.length;
      for (const word of new Uint32Array(Float32Array.from(numbers).buffer)) words.push(word);
      return at;
    };
    for (const width of WIDTHS) {
      this.#books.set(width, words.length);
      const { codewords } = codebooks[width];
      for (let i = 0; i < CODEWORDS * width; i += 2) words.push(toHalf(codewords[i]!) + toHalf(codewords[i + 1]!) * 65536);
    }
    const halfNorms = new Map(WIDTHS.map(width => [width, floats(halfNormsOf(codebooks[width]).subarray(0, CODEWORDS))]));
    this.powers = floats(Array.from({ length: 2 * LEVELS - 1 }, (_, n) => scaleOf(n - LEVELS + 1)));
    this.thresholds = floats(Array.from({ length: LEVELS - 1 }, (_, n) => threshold(n)));
    for (const block of shape.layers.flatMap(layer => [layer.page.keys, layer.page.values, unsegmentedKeys(layer)])) {
      if (this.#stages.has(kindOf(block))) continue;
      this.#stages.set(kindOf(block), words.length);
      const stages = block.segments.flatMap(({ channel, channels, stages }, segment) =>
        stages.map(({ column, columns, codebook: { channels: width }, scale }) => {
          const [book, norms] = [this.#books.get(width)!, halfNorms.get(width)!];
          return { segment, channel, channels, column, columns, width, book, halfNorms: norms, scale: floatBits(scale) };
        })
      );
      words.push(...structWords('Stage', stages));
    }
    for (const { rope } of shape.layers) {
      if (!rope || this.#angles.has(ropeText(rope))) continue;
      const { cos, sin } = ropeTables(rope);
      this.#angles.set(ropeText(rope), floats(cos));
      floats(sin);
    }
    for (const logits of shape.layers.flatMap(({ slopes, sinkLogits }) => [slopes, sinkLogits])) {
      if (!logits || this.#logits.has(logits)) continue;
      this.#logits.set(logits, floats(Array.from(logits, logit => logit * Math.LOG2E)));
    }
    this.#shape = shape;
    this.words = Uint32Array.from(words);
    let end = words.length;
    this.#orders = shape.layers.map(({ kvHeads, headDim, page }) => {
      const at = end;
      if (page.keys.balanced) end += shape.sequences * kvHeads * headDim;
      return at;
    });
    this.length = end;
  }

  /** Where the angles of a layer's rotation are; 0 for none. */
  anglesOf({ rope }: LayerShape): number {
    return rope ? this.#angles.get(ropeText(rope))! : 0;
  }

  /** Where the slopes or the sink logits of a layer are; 0 for none. */
  logitsOf(logits: Float32Array | undefined): number {
    return logits ? this.#logits.get(logits)! : 0;
  }

  /** Where the stages of a block's codes are listed, and how many there are. */
  stagesOf(block: BlockLayout): { readonly at: number; readonly count: number } {
    return { at: this.#stages.get(kindOf(block))!, count: block.segments.reduce((sum, { stages }) => sum + stages.length, 0) };
  }

  /** The words that hold all codebooks which these blocks choose from. */
  booksOf(blocks: readonly BlockLayout[]): { readonly at: number; readonly words: number } {
    const widths = blocks.flatMap(({ segments }) => segments.flatMap(({ stages }) => stages.map(({ codebook }) => codebook.channels)));
    const [least, most] = [Math.min(...widths), Math.max(...widths)];
    const at = this.#books.get(least)!;
    return { at, words: this.#books.get(most)! + (CODEWORDS * most) / 2 - at };
  }

  /** Where the order of the channels of a sequence's first KV head lies; 0 in a layer that has none. */
  orderOf(layer: number, sequence: number): number {
    const { kvHeads, headDim, page } = this.#shape.layers[layer]!;
    return page.keys.balanced ? this.#orders[layer]! + sequence * kvHeads * headDim : 0;
  }

  /** The words of a layer's order: of a balance u8 [kvHeads, headDim / 2]. */
  wordsOf(layer: number, balance: Uint8Array): Uint32Array<ArrayBuffer> {
    const { kvHeads, headDim, rope } = this.#shape.layers[layer]!;
    const words = new Uint32Array(kvHeads * headDim);
    const pairs = pairsOf(this.#shape.layers[layer]!);
    for (let head = 0; head < kvHeads; head++) {
      const bytes = ofHead(balance, head, headDim);
      channelOrder(bytes, headDim, rope).channels.forEach((channel, i) => {
        words[head * headDim + i] = channel + bytes[pairs[channel]!]! * 65536;
      });
    }
    return words;
  }

  /** The balance u8 [kvHeads, headDim / 2] of the words of a layer's order. */
  balanceOf(layer: number, words: Uint32Array): Uint8Array {
    const { headDim } = this.#shape.layers[layer]!;
    const balance = new Uint8Array(words.length / 2);
    const pairs = pairsOf(this.#shape.layers[layer]!);
    words.forEach((word, i) => {
      balance[(Math.floor(i / headDim) * headDim) / 2 + pairs[word & 0xffff]!] = word >>> 16;
    });
    return balance;
  }
}

/** Every channel's pair. */
function pairsOf({ headDim, rope }: LayerShape): Uint16Array {
  const pairs = new Uint16Array(headDim);
  channelPairs(headDim, rope).forEach((channels, pair) => {
    for (const channel of channels) pairs[channel] = pair;
  });
  return pairs;
}

/** Keys in one segment, as what is learned of them takes them. */
export function unsegmentedKeys({ headDim, page }: LayerShape): BlockLayout {
  return blockLayout(page.values.codec, headDim, 'values', false);
}

/** Of one side blocks with more channels have more bytes; those of the other, whose mean has other bits, may have as many. */
function kindOf({ codec, balanced, meanBits, bytes }: BlockLayout): string {
  return `${codec.name} ${balanced} ${meanBits} ${bytes}`;
}
