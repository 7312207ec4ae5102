// Masks that a graph computes: tried on a few lengths, to tell what they hide. Only what a cache does by itself is accepted.

import type { Tensor } from 'onnxruntime-common';
import { numbersOf } from './constants.ts';

/** What a part of a graph gives for `tokens` tokens behind `past`. */
export type Run = (past: number, tokens: number) => Promise<Tensor>;

/** A row of so many tokens shows where a window ends. */
const LONG = 1 << 17;
/** Logits this far below others weigh nothing: exporters write −10,000, the least number of the type, or −Infinity. */
const HIDDEN = -1000;

/**
 * The window of a causal mask; Infinity where it has none.
 *
 * @param mask           gives it in shape [.., .., tokens or 1, past + tokens]
 * @param causal         whether the attention itself hides later tokens
 * @param contextLength  tokens that the graph can be asked about
 * @throws {RangeError} if it hides other tokens, or adds anything to logits
 */
export async function windowOf(title: string, mask: Run, causal: boolean, contextLength: number): Promise<number> {
  const long = Math.min(LONG, contextLength);
  const row = seen(title, await mask(long - 1, 1), 1, long)[0]!;
  const count = row.filter(Boolean).length;
  const window = count === long ? Number.POSITIVE_INFINITY : count;
  const trials = [[0, 5], [7, 3], [0, 1], ...(count === long ? [] : [[Math.max(0, window - 2), 4]])] as const;
  check(title, [row], long - 1, causal, window);
  for (const [past, tokens] of trials as readonly (readonly [number, number])[]) {
    check(title, seen(title, await mask(past, tokens), tokens, past + tokens), past, causal, window);
  }
  return window;
}

/** For every query which tokens it sees. */
function seen(title: string, mask: Tensor, tokens: number, total: number): boolean[][] {
  const { dims, type } = mask;
  const [rows, columns] = [dims.at(-2) ?? 1, dims.at(-1) ?? 1];
  if (![1, tokens].includes(rows) || ![1, total].includes(columns)) {
    throw new RangeError(`"${title}" expected a mask of shape [${tokens}, ${total}], got [${dims}]`);
  }
  const numbers = numbersOf(mask);
  return Array.from({ length: tokens }, (_, i) =>
    Array.from({ length: total }, (_, j) => {
      // Where heads have masks of their own, all must agree.
      const all = Array.from({ length: numbers.length / (rows * columns) }, (_, head) => {
        const added = numbers[(head * rows + (rows === 1 ? 0 : i)) * columns + (columns === 1 ? 0 : j)]!;
        if (type === 'bool') return added !== 0;
        if (added === 0) return true;
        if (added <= HIDDEN) return false;
        throw new RangeError(
          `"${title}" expected a mask of 0 and −∞, got ${added} for token ${j} in the sight of token ${total - tokens + i}`
        );
      });
      if (all.every(see => see === all[0])) return all[0]!;
      throw new RangeError(`"${title}" expected a mask that is the same for every head, got others for token ${j}`);
    })
  );
}

function check(title: string, rows: readonly boolean[][], past: number, causal: boolean, window: number): void {
  rows.forEach((row, i) => {
    const position = past + i;
    row.forEach((sees, j) => {
      const expected = j <= position && j > position - window;
      if ((sees && (j <= position || !causal)) === expected) return;
      throw new RangeError(
        `"${title}" expected a causal mask, or one with a window, got one by which token ${position} ${sees ? 'sees' : 'does not see'} token ${j}`
      );
    });
  });
}
