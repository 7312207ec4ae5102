// The verbs of a window of 64 tokens of one head, one by one: what they are, and the checks of what they are given.

import type { BackendName } from './backend.ts';
import { checkLength, kind, plural } from './check.ts';
import { typedArrayName } from './format/half.ts';
import { type BlockLayout, type Rope, WINDOW } from './format/layout.ts';
import { checkFinite, checkFloat32Array, checkFloats } from './input.ts';
import type { CacheShape } from './shape.ts';

/**
 * Shapes: x, y f32 [64, headDim] row-major; a block is the bytes of one head and side in a page (src/format/layout.ts). Every number
 * lies from −65504 to 65504. TypeError for the wrong kind of array, RangeError for a wrong length or number.
 *
 * @see NSNQuant (arXiv 2505.18231), section 3: Normalize–Shift–Normalize
 *
 * @example
 * const verbs = await openKernels({ headDim: 128, codec: 'nsn2' });
 * const x = tokens.slice();
 * const s1 = verbs.normalize(x);
 * const o = verbs.shift(x);
 */
export interface Verbs {
  /** Which backend runs them. */
  readonly name: BackendName;
  /** Which of its forms. */
  readonly variant: string;
  /** x ← x / s1, in place. Returns s1 f32 [64], in 4 bits, dequantized. */
  normalize(x: Float32Array): Float32Array;
  /** x ← x − RoPEᵤ(o), in place. Returns o f32 [headDim], of keys in 8 bits, of values in 4, dequantized. */
  shift(x: Float32Array): Float32Array;
  /** x ← x / s2, in place. Returns s2 f32 [64], before the scale adjustment. */
  normalizeAgain(x: Float32Array): Float32Array;
  /** x ← H·x for every token, in place. */
  hadamard(x: Float32Array): void;
  /** Codes of every group of 8, 4 or 2 channels, |y| ≤ 23, by the codebook of so many: u8 [64, headDim / channels]. */
  quantize(y: Float32Array, channels: 8 | 4 | 2): Uint8Array;
  /** The block that stands for x. */
  encode(x: Float32Array): Uint8Array;
  /** The tokens that a block stands for: f32 [64, headDim]. */
  decode(block: Uint8Array): Float32Array;
  /** Logits of 1 to 4 queries, f32 [heads, headDim] with the query scale in: f32 [heads, 64]. */
  scores(queries: Float32Array, block: Uint8Array): Float32Array;
  /** Weighted sums for 1 to 4 heads' weights, f32 [heads, 64]: f32 [heads, headDim]. */
  mix(weights: Float32Array, block: Uint8Array): Float32Array;
}

/** @internal What verbs are made for: one head and side of a cache. */
export interface VerbsShape {
  readonly headDim: number;
  /** How the tokens were rotated; none where they are values. */
  readonly rope: Rope | undefined;
  /** How their blocks are laid out. */
  readonly layout: BlockLayout;
  /** u8 [headDim / 2] where the layout is balanced. */
  readonly balance: Uint8Array | undefined;
  /** The cache of one layer, head and page, whose keys or values they are. */
  readonly cache: CacheShape;
}

/** Beyond any channel: ‖y‖ = √headDim ≤ √576. */
const LARGEST_CODED = 25;
/** Heads that share a pass over a block. */
const HEADS = 4;

/** @internal The verbs, each of which checks what it is given before it changes anything; `unchecked` need not. */
export function checkedVerbs(unchecked: Verbs, { codec, bytes }: BlockLayout, headDim: number): Verbs {
  const tokens = `${plural(WINDOW, 'token')} × ${headDim}`;

  function window(x: Float32Array, name = 'x'): Float32Array {
    checkFloats(name, x, WINDOW * headDim, tokens);
    return x;
  }

  function coded(y: Float32Array): Float32Array {
    const at = window(y, 'y').findIndex(value => Math.abs(value) > LARGEST_CODED);
    if (at >= 0)
      throw new RangeError(`"y[${at}]" expected number from −${LARGEST_CODED} to ${LARGEST_CODED} (‖y‖ = √headDim), got ${y[at]}`);
    return y;
  }

  function whole(block: Uint8Array): Uint8Array {
    if (typedArrayName(block) !== 'Uint8Array') throw new TypeError(`"block" expected Uint8Array, got ${kind(block)}`);
    checkLength('block', block.length, bytes, `${tokens} in ${codec.name}`);
    return block;
  }

  function heads(name: string, x: Float32Array, width: number): Float32Array {
    checkFloat32Array(name, x);
    const { length } = x;
    if (length === 0 || length > HEADS * width || length % width !== 0) {
      throw new RangeError(`"${name}" expected length ${width} to ${HEADS * width} (1 to ${HEADS} heads × ${width}), got ${length}`);
    }
    checkFinite(name, x);
    return x;
  }

  return {
    name: unchecked.name,
    variant: unchecked.variant,
    normalize: x => unchecked.normalize(window(x)),
    shift: x => unchecked.shift(window(x)),
    normalizeAgain: x => unchecked.normalizeAgain(window(x)),
    hadamard: x => unchecked.hadamard(window(x)),
    quantize(y, channels) {
      if (typeof channels !== 'number') throw new TypeError(`"channels" expected number, got ${kind(channels)}`);
      if (channels !== 8 && channels !== 4 && channels !== 2)
        throw new RangeError(`"channels" expected 8, 4 or 2, got ${channels as number}`);
      return unchecked.quantize(coded(y), channels);
    },
    encode: x => unchecked.encode(window(x)),
    decode: block => unchecked.decode(whole(block)),
    scores: (queries, block) => unchecked.scores(heads('queries', queries, headDim), whole(block)),
    mix: (weights, block) => unchecked.mix(heads('weights', weights, WINDOW), whole(block))
  };
}
