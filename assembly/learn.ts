// Learn: the energies of pairs of channels, Σ x² of both, from which the host makes a head's balance. Sums run in order, one number after
// another, in every build: it does not matter how calls are split, nor which binary runs.

import { Shape, TILE_ROW } from "./abi";
import { normalizeTokens } from "./encode";
import { divide, norms } from "./normalize";
import { tileFromRaw } from "./page";
import { S2 } from "./scratch";

/**
 * Energies of queries, token by token and head by head.
 *
 *   queries   f32 [tokens, queryHeads, headDim]
 *   energies  f32 [kvHeads, headDim / 2]   added to
 */
export function addQueryEnergies(shape: Shape, queries: usize, tokens: usize, energies: usize): void {
  const headDim = shape.keys.headDim, pairs = headDim >> 1;
  for (let t: usize = 0; t < tokens; t++) {
    let sums = energies;
    for (let head: usize = 0; head < shape.kvHeads; head++, sums += pairs << 2) {
      for (let h: usize = 0; h < shape.queryHeadsPerKvHead; h++, queries += headDim << 2) {
        for (let pair: usize = 0; pair < pairs; pair++) {
          add(sums + (pair << 2), load<f32>(queries + first(shape, pair)), load<f32>(queries + second(shape, pair)));
        }
      }
    }
  }
}

/**
 * Energies of a raw window's keys, normalized, shifted and normalized again over all channels.
 *
 *   raw       u32 [4]: addresses of the window's quarters
 *   energies  f32 [kvHeads, headDim / 2]   added to
 *
 * Specification: `keyEnergies` in src/reference/reference.ts.
 */
export function addKeyEnergies(shape: Shape, raw: usize, energies: usize): void {
  const headDim = shape.keys.headDim, tile = shape.tile, s2 = shape.scratch + S2;
  for (let head: usize = 0; head < shape.kvHeads; head++) {
    tileFromRaw(shape, raw, head, false, tile);
    normalizeTokens(shape, shape.keys, tile, tile + headDim * TILE_ROW, true);   // the block is nobody's
    norms(tile, headDim, s2);
    divide(tile, headDim, s2);
    for (let pair: usize = 0; pair < headDim >> 1; pair++, energies += 4) {
      const a = tile + first(shape, pair) * 64, b = tile + second(shape, pair) * 64;
      for (let t: usize = 0; t < TILE_ROW; t += 4) add(energies, load<f32>(a + t), load<f32>(b + t));
    }
  }
}

@inline function add(sum: usize, a: f32, b: f32): void {
  store<f32>(sum, load<f32>(sum) + (a * a + b * b));
}

/** Bytes in a row of f32 to the channels of a pair, as src/format/layout.ts pairs them. */
@inline function first(shape: Shape, pair: usize): usize {
  return pair < shape.pairs ? pair * shape.pairStep : pair << 3;
}

@inline function second(shape: Shape, pair: usize): usize {
  return first(shape, pair) + (pair < shape.pairs ? shape.pairOffset : 4);
}
