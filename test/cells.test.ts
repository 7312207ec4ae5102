// The nearest codeword is looked for among a cell's candidates alone (assembly/cells.ts): what lies on a border between cells, a
// little to either side of one, beyond the last of them, or as near to one codeword as to another, must find what a search of all
// 256 finds.

import { codebooks } from 'nsnquant/reference';
import { group } from '../tools/group.ts';
import { sameBits, sameCodes } from './compare.ts';
import { relaxed, scalar, simd128 } from './verbs.ts';

const HEAD_DIM = 576;
const WINDOW = 64 * HEAD_DIM;

const CHANNELS = [8, 4, 2] as const;
type Channels = (typeof CHANNELS)[number];

/** Where cells end, as src/wasm/cells.ts has it. Eight channels have no cells: any numbers will do. */
const BORDERS: Readonly<Record<Channels, readonly number[]>> = {
  2: Array.from({ length: 65 }, (_, i) => -3.52 + i * 0.11),
  4: Array.from({ length: 13 }, (_, i) => -2.4 + i * 0.4),
  8: [-25, -1, 0, 1, 25]
};

/** Seeded: numbers from 0 to below `count`. */
function below(seed: number): (count: number) => number {
  let state = seed;
  return count => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 2 ** 32) * count);
  };
}

/** Points [count, channels], each on its own corner of a cell or off it by some roundings of f32; some at the very limit. */
function corners(channels: Channels): Float32Array {
  const borders = [...BORDERS[channels], -25, 25];
  const random = below(7);
  const count = Math.min(borders.length ** channels, 40_000);
  const step = borders.length ** channels / count;
  return Float32Array.from({ length: count * channels }, (_, i) => {
    const corner = Math.floor(Math.floor(i / channels) * step);
    const border = borders[Math.floor(corner / borders.length ** (i % channels)) % borders.length]!;
    return Math.max(-25, Math.min(border * (1 + (random(5) - 2) * 2 ** -23), 25));
  });
}

/** Points [pairs, channels] halfway between two codewords: f32 holds them. */
function halfway(channels: Channels): Float32Array {
  const { codewords } = codebooks[channels];
  const points: number[] = [];
  for (let a = 0; a < 256; a++) {
    for (let b = 0; b < a; b++) {
      for (let k = 0; k < channels; k++) points.push((codewords[a * channels + k]! + codewords[b * channels + k]!) / 2);
    }
  }
  return Float32Array.from(points);
}

/** Points that have one channel on a border and the others anywhere. */
function faces(channels: Channels): Float32Array {
  const borders = BORDERS[channels];
  const random = below(11);
  let face = 0;
  return Float32Array.from({ length: 2 * WINDOW }, (_, i) => {
    if (i % channels === 0) face = random(channels);
    return i % channels === face ? borders[random(borders.length)]! : (random(2 ** 20) + random(2 ** 20) + random(2 ** 20)) / 2 ** 19 - 3;
  });
}

/** Windows of a multiple of points, the last filled up with zeros. */
function* windows(points: Float32Array): Generator<Float32Array> {
  for (let at = 0; at < points.length; at += WINDOW) {
    const window = new Float32Array(WINDOW);
    window.set(points.subarray(at, at + WINDOW));
    yield window;
  }
}

group('the nearest codeword', test => {
  for (const channels of CHANNELS) {
    for (const [where, points] of Object.entries({ corners, faces, halfway })) {
      test(`is found at ${where}: ${channels} channels`, async () => {
        const opened = [scalar, simd128, ...(relaxed ? [relaxed] : [])].map(tested => tested.kernels({ headDim: HEAD_DIM, codec: 'nsn1' }));
        const [verbs, simdVerbs, relaxedVerbs] = await Promise.all(opened);
        for (const window of windows(points(channels))) {
          const codes = verbs!.quantize(window, channels);
          sameCodes(`${channels} at ${where}`, codes, window, codebooks[channels]);
          sameBits(`${channels} at ${where}, simd128`, simdVerbs!.quantize(window, channels), codes);
          if (relaxedVerbs)
            sameCodes(`${channels} at ${where}, relaxed`, relaxedVerbs.quantize(window, channels), window, codebooks[channels]);
        }
      });
    }
  }
});
