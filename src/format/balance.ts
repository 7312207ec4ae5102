// What a sequence learns of a head's keys: how much of a query's logits every pair of channels carries. Channels that weigh more come
// first, where more bits are, and keys are scaled so that an error costs the same in each.
//
// A byte a pair (layout.ts: channelPairs): how far the energy of keys lies below the largest, in half octaves, 0 to 15; and that of
// queries, in the high nibble. A head's bytes together are its balance.

import { channelPairs, type Rope } from './layout.ts';

/** The order and the scales that a balance stands for. */
export interface ChannelOrder {
  /** u16 [headDim]: the channels of keys in the order in which they are coded. */
  readonly channels: Uint16Array;
  /** f32 [headDim]: what they are multiplied by, in that order: (energy of queries / energy of keys)^¼. */
  readonly scales: Float32Array;
}

/** @internal Levels of an energy. */
export const LEVELS = 16;

/** @internal What a level is above: energies below the largest times this have a higher one. */
export function threshold(level: number): number {
  return 2 ** (-(level + 0.5) / 2);
}

/** @internal What channels are multiplied by, by how much farther the energy of their keys lies below the largest than that of queries. */
export function scaleOf(levels: number): number {
  return 2 ** (levels / 8);
}

/** @internal One head's of numbers [kvHeads, headDim / 2]: a balance, or energies. */
export function ofHead<T extends Uint8Array | Float32Array>(numbers: T, head: number, headDim: number): T {
  return numbers.subarray((head * headDim) / 2, ((head + 1) * headDim) / 2) as T;
}

/**
 * The order of a head's channels: pairs by the product of both energies, descending, the first among equals.
 *
 * @param balance  u8 [headDim / 2]
 */
export function channelOrder(balance: Uint8Array, headDim: number, rope: Rope | undefined): ChannelOrder {
  const channels = new Uint16Array(headDim);
  const scales = new Float32Array(headDim);
  const pairs = channelPairs(headDim, rope);
  let n = 0;
  for (let sum = 0; sum <= 2 * (LEVELS - 1); sum++) {
    balance.forEach((byte, pair) => {
      const [keys, queries] = [byte & 15, byte >> 4];
      if (keys + queries !== sum) return;
      for (const channel of pairs[pair]!) {
        channels[n] = channel;
        scales[n++] = scaleOf(keys - queries);
      }
    });
  }
  return { channels, scales };
}

/**
 * The balance of energies, each [headDim / 2].
 *
 * @param queries  all 0 where none were seen: they then count as equal
 */
export function balanceOf(keys: ArrayLike<number>, queries: ArrayLike<number>): Uint8Array {
  const keyLevels = levelsOf(keys);
  const queryLevels = levelsOf(queries);
  return Uint8Array.from(keyLevels, (level, pair) => level | (queryLevels[pair]! << 4));
}

/** Half octaves below the largest, rounded; 15 for all that lie lower. Of zeros alone, 0. */
function levelsOf(energies: ArrayLike<number>): number[] {
  const all = Array.from(energies);
  const most = Math.max(...all);
  return all.map(energy => {
    let level = 0;
    while (level < LEVELS - 1 && energy < most * threshold(level)) level++;
    return level;
  });
}
