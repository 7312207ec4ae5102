// Rows: channels of one token and head each, from one type and order into another. What comes from and goes to the host's arrays is
// staged as it is there, so that JavaScript converts and transposes nothing.

import { widen } from "./raw";
import { halvesFromFloats } from "./tile";

/**
 * Copies the rows of `tokens` tokens and `heads` heads, in f32 or f16, to nearest even; what is beyond f16's range becomes its end.
 *
 *   from, to               the first row
 *   fromHalf, toHalf       whether they are f16
 *   fromToken, toToken     bytes from a token's row to the next token's
 *   fromHead, toHead       bytes from a head's row to the next head's
 *   channels               a multiple of 8
 */
export function copyRows(
  from: usize, fromHalf: bool, fromToken: usize, fromHead: usize,
  to: usize, toHalf: bool, toToken: usize, toHead: usize,
  tokens: usize, heads: usize, channels: usize
): void {
  for (let t: usize = 0; t < tokens; t++) {
    for (let head: usize = 0; head < heads; head++) {
      const source = from + t * fromToken + head * fromHead, target = to + t * toToken + head * toHead;
      if (fromHalf == toHalf) memory.copy(target, source, fromHalf ? channels << 1 : channels << 2);
      else if (fromHalf) widen(source, channels, target);
      else halvesFromFloats(source, channels, target);
    }
  }
}
