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

const LEVELS = 16;

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
        scales[n++] = 2 ** ((keys - queries) / 8);
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
    while (level < LEVELS - 1 && energy < most * 2 ** (-(level + 0.5) / 2)) level++;
    return level;
  });
}
