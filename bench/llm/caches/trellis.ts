// A trellis-coded cache at 2 bits, after QTIP (Tseng et al., arXiv 2406.11235), which codes weights. From it: Gaussian numbers by
// a Hadamard transform, the bitshift trellis (a state is the last bits of the stream, and every step shifts two in), Viterbi's
// algorithm, and tail-biting, by which the first state needs no bits of its own. Ours: 256 states, the order of the codebook, a
// scale for every 64 channels. QTIP keeps nothing raw, as weights have no newest ones.
import { half } from '../../baselines/ggml.ts';
import { WINDOW } from './cache.ts';
import type { WindowFormat } from './formats.ts';
import { transformed } from './transformed.ts';

const STATES = 256;
const BITS = 2; // a step, and a step is one channel
/** States that may go before a state, and those that may follow it. */
const BRANCHES = 2 ** BITS;
/** What two neighboring states share: all bits but those that are shifted. */
const SHARED = STATES / BRANCHES;
/** Channels of a trellis and of a scale. */
const GROUP = 64;

/** Φ(x) of the normal distribution. */
function probability(x: number): number {
  let sum = 0;
  for (let n = 1, term = x; Math.abs(term) > 1e-17; n += 2, term *= (x * x) / n) sum += term;
  return 0.5 + (Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI)) * sum;
}

function quantile(p: number): number {
  let low = -8;
  for (let step = 8; step > 1e-12; step /= 2) if (probability(low + step) < p) low += step;
  return low;
}

/**
 * The value of every state: quantiles of N(0, 1), dealt so that the four states that follow a state lie far apart. Of all odd
 * factors 71 gives the least error, 0.0741 of a normal vector's square; random draws give 0.0852, the codebook that Lloyd's
 * algorithm trains from this one 0.0733.
 */
const codebook = Float64Array.from({ length: STATES }, (_, state) => half(quantile((((71 * state) % STATES) + 0.5) / STATES)));

/** Of the path to every state, and of the best to every group of states that share what they begin with. */
const costs = new Float64Array(STATES);
const leastCosts = new Float64Array(SHARED);
const origins = new Uint8Array(GROUP * SHARED);

/**
 * The states nearest to `y`, one a step.
 *
 * @param shared  the bits that must stand before the first step and after the last; any where it is undefined
 */
function search(y: Float64Array, states: Uint8Array, shared?: number): void {
  for (let state = 0; state < STATES; state++) costs[state] = shared === undefined || state % SHARED === shared ? 0 : Infinity;
  for (let step = 0; step < y.length; step++) {
    const x = y[step]!;
    // The four states that follow have their origin in common.
    for (let i = 0; i < SHARED; i++) {
      let least = costs[i]!;
      let origin = i;
      // Written out, as a loop over three takes three times as long.
      const second = costs[i + SHARED]!;
      const third = costs[i + 2 * SHARED]!;
      const fourth = costs[i + 3 * SHARED]!;
      if (second < least) {
        least = second;
        origin = i + SHARED;
      }
      if (third < least) {
        least = third;
        origin = i + 2 * SHARED;
      }
      if (fourth < least) {
        least = fourth;
        origin = i + 3 * SHARED;
      }
      leastCosts[i] = least;
      origins[step * SHARED + i] = origin;
    }
    for (let state = 0; state < STATES; state++) {
      const error = x - codebook[state]!;
      costs[state] = leastCosts[state >> BITS]! + error * error;
    }
  }
  let last = -1;
  for (let state = shared ?? 0; state < STATES; state += shared === undefined ? 1 : SHARED) {
    if (last < 0 || costs[state]! < costs[last]!) last = state;
  }
  for (let step = y.length - 1; step >= 0; step--) {
    states[step] = last;
    last = origins[step * SHARED + (last >> BITS)]!;
  }
}

/** Two bits a step: the bits that each state shifts in. */
function encode(y: Float64Array): Uint8Array {
  const states = new Uint8Array(y.length);
  // Tail-biting as QTIP does it: the best path through the vector begun in its middle says what the ends share.
  const middle = y.length >> 1;
  search(
    y.map((_, i) => y[(i + middle) % y.length]!),
    states
  );
  search(y, states, states[y.length - middle - 1]! % SHARED);
  return states.map(state => state % BRANCHES);
}

/** The codes in a ring: a step's state is its own bits and those of the three steps before it. */
function decode(codes: Uint8Array): Float64Array {
  let state = codes.reduce((bits, code) => ((bits << BITS) | code) % STATES, 0);
  return Float64Array.from(codes, code => {
    state = ((state << BITS) | code) % STATES;
    return codebook[state]!;
  });
}

/** x ← decoded(encoded(x)): 2 bits a channel and one f16. */
function roundTrip(x: Float64Array): void {
  const norm = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length);
  if (norm === 0) return;
  const decoded = decode(encode(x.map(value => value / norm)));
  const product = decoded.reduce((sum, value, i) => sum + value * x[i]!, 0);
  const square = decoded.reduce((sum, value) => sum + value * value, 0);
  // The scale of the least squared error, not the norm: it takes 0.0013 off the error of a normal vector.
  const scale = half(product / square);
  for (let i = 0; i < x.length; i++) x[i] = decoded[i]! * scale;
}

export const trellis2: WindowFormat = {
  name: 'trellis2',
  window: WINDOW,
  windowBytes: headDim => WINDOW * ((headDim * BITS) / 8 + 2 * Math.ceil(headDim / GROUP)),
  tableBytes: 2 * STATES,
  roundTrip(x, headDim) {
    transformed(x, headDim, y => {
      for (let row = 0; row < y.length; row += headDim) {
        for (let at = row; at < row + headDim; at += GROUP) roundTrip(y.subarray(at, Math.min(at + GROUP, row + headDim)));
      }
    });
  }
};
