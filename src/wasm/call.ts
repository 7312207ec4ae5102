// What a call of attend is laid out in: a region of a cache's memory, larger for a larger call. Numbers only.

import { align, QUARTER, WINDOW } from '../format/layout.ts';
import type { LayerShape } from '../layer.ts';
import type { CacheShape } from '../shape.ts';
import type { Kernels } from './abi.ts';

/** A call: its query tokens; pages and raw runs of all its sequences. */
export interface Call {
  readonly tokens: number;
  readonly pages: number;
  readonly raws: number;
}

/** Addresses of what a call is laid out in. */
export interface CallPlaces {
  readonly input: number;
  /** Whatever the call's size, it holds energies of a layer. */
  readonly output: number;
  readonly denominators: number;
  readonly items: number;
  readonly states: number;
  readonly pageAddresses: number;
  readonly pagePositions: number;
  readonly rawRecords: number;
  readonly rawAddresses: number;
}

const NOTHING: Call = { tokens: 0, pages: 0, raws: 0 };

export class Calls {
  /** Query tokens of one call at most. */
  readonly tokens: number;
  /** All sequences, with all that they can hold. */
  readonly largest: Call;
  /** What there is room for at least. */
  readonly first: Call;
  readonly #shape: CacheShape;
  readonly #sizes: Kernels;

  constructor(shape: CacheShape, sizes: Kernels) {
    const { sequences, pageCounts, rawSlots } = shape;
    this.#shape = shape;
    this.#sizes = sizes;
    this.tokens = Math.max(Math.floor(sizes.callRows() / this.#most(({ queryHeads, kvHeads }) => queryHeads / kvHeads)), sequences);
    this.largest = { tokens: this.tokens, pages: sequences * Math.max(...pageCounts), raws: rawSlots + sequences };
    this.first = this.grown(NOTHING, { tokens: 1, pages: 32, raws: 8 });
  }

  /** Room for a call where there was some: the same where it is enough, else powers of two. */
  grown(room: Call, { tokens, pages, raws }: Call): Call {
    const larger = (need: number, has: number, most: number): number =>
      need <= has ? has : Math.min(2 ** Math.ceil(Math.log2(need)), most);
    const grown = {
      tokens: larger(Math.min(tokens, this.tokens), room.tokens, this.largest.tokens),
      pages: larger(pages, room.pages, this.largest.pages),
      raws: larger(raws, room.raws, this.largest.raws)
    };
    return grown.tokens === room.tokens && grown.pages === room.pages && grown.raws === room.raws ? room : grown;
  }

  bytes(call: Call): number {
    return Object.values(this.#parts(call)).reduce((sum, bytes) => sum + align(bytes, 16), 0);
  }

  places(call: Call, at: number): CallPlaces {
    let next = at;
    const entries = Object.entries(this.#parts(call)).map(([name, bytes]) => {
      const place = next;
      next += align(bytes, 16);
      return [name, place] as const;
    });
    return Object.fromEntries(entries) as unknown as CallPlaces;
  }

  /** Bytes of every place. */
  #parts({ tokens, pages, raws }: Call): CallPlaces {
    const sizes = this.#sizes;
    // Input or output holds queries or results: what the one is made into lies in the other.
    const rows = 4 * tokens * this.#most(({ queryHeads, headDim, valueDim }) => queryHeads * Math.max(headDim, valueDim));
    // An even number of states: those of a prompt go by twos.
    const states = Math.min(sizes.callRows(), align(tokens * this.#most(({ queryHeads, kvHeads }) => queryHeads / kvHeads), 8));
    return {
      input: rows,
      output: rows,
      denominators: 8 * tokens * this.#most(({ queryHeads }) => queryHeads),
      items: sizes.itemBytes() * tokens,
      states: (this.#most(({ headDim, valueDim }) => sizes.statesBytes(headDim, valueDim)) * states) / sizes.callRows(),
      pageAddresses: 4 * pages,
      pagePositions: 4 * pages,
      rawRecords: sizes.rawBytes() * raws,
      rawAddresses: 4 * (WINDOW / QUARTER) * raws
    };
  }

  #most(countOf: (layer: LayerShape) => number): number {
    return Math.max(...this.#shape.layers.map(countOf));
  }
}
