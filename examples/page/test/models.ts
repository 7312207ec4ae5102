// A small model made in memory whose answers depend on all of its context.
import { tiny, tinyGguf } from '../../../tools/tiny-gguf.ts';
import type { File } from './browser.ts';

export const QUESTIONS = ['abcdefgh', 'hgfedcba', 'bad cafe'] as const;
/** Its first window is coded before the answer begins. */
export const LONG_QUESTION = 'abcdefgh'.repeat(8);
export const LETTERS = 60;

/**
 * Uniform random weights from −1 to 1: codecs differ as soon as a window is coded. In the answers that are asked for here, 60
 * letters long, the likeliest letter leads by 0.01 at least, far more than another order of addition moves it: every engine
 * gives the same text.
 */
export function lively(context = 512): File {
  const bytes = tinyGguf({ metadata: { 'llama.context_length': context } });
  const { width, heads, kvHeads, headDim, inner, vocabulary, layers } = tiny;
  const perLayer = 2 * width + 2 * width * headDim * (heads + kvHeads) + 3 * width * inner;
  const weights = new Float32Array(vocabulary * width + width + layers * perLayer);
  let state = 6;
  for (let i = 0; i < weights.length; i++) {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    weights[i] = state / 2 ** 31 - 1;
  }
  bytes.set(new Uint8Array(weights.buffer), bytes.length - weights.byteLength);
  return { name: 'lively.gguf', bytes };
}
