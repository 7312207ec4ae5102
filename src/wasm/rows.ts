// Rows of tokens in a cache's memory, and on their way between there and arrays. A kernel converts and reorders them: arrays are copied
// as they are.

import { type Data, isHalf, wordsOf } from '../format/half.ts';
import { eachRun, type Rows, stridesOf } from '../rows.ts';
import type { WasmMemory } from './memory.ts';

/** Where the rows of some tokens lie, and how. */
export interface Placed {
  readonly address: number;
  readonly half: boolean;
  /** Bytes from a token's row to the next token's, and from a head's to the next head's. */
  readonly tokenBytes: number;
  readonly headBytes: number;
}

/** The rows of an array at an address. */
export function arrayAt(address: number, half: boolean, rows: Rows, channels: number): Placed {
  const rowBytes = channels * (half ? 2 : 4);
  const { tokenRows, headRows } = stridesOf(rows);
  return { address, half, tokenBytes: tokenRows * rowBytes, headBytes: headRows * rowBytes };
}

/** The same rows, from a token on. */
export function fromToken(rows: Placed, token: number): Placed {
  return token === 0 ? rows : { ...rows, address: rows.address + token * rows.tokenBytes };
}

/** Some tokens of an array into memory, as an array of these alone. */
export function load(memory: WasmMemory, data: Data, rows: Rows, channels: number, from: number, tokens: number, address: number): Placed {
  const words = wordsOf(data);
  const view = isHalf(data) ? memory.u16 : memory.f32;
  const at = address / view.BYTES_PER_ELEMENT;
  eachRun(rows, from, tokens, (row, partRow, count) => {
    view.set(words.subarray(row * channels, (row + count) * channels), at + partRow * channels);
  });
  return arrayAt(address, isHalf(data), { ...rows, tokens }, channels);
}

/** An array of some tokens at an address into the array of all, which begins at row `first` of `data`. */
function save(
  memory: WasmMemory,
  address: number,
  data: Data,
  first: number,
  rows: Rows,
  channels: number,
  from: number,
  tokens: number
): void {
  const words = wordsOf(data);
  const view = isHalf(data) ? memory.u16 : memory.f32;
  const at = address / view.BYTES_PER_ELEMENT;
  eachRun(rows, from, tokens, (row, partRow, count) => {
    words.set(view.subarray(at + partRow * channels, at + (partRow + count) * channels), (first + row) * channels);
  });
}

export function copyRows({ kernels }: WasmMemory, from: Placed, to: Placed, tokens: number, heads: number, channels: number): void {
  kernels.copyRows(
    from.address,
    from.half,
    from.tokenBytes,
    from.headBytes,
    to.address,
    to.half,
    to.tokenBytes,
    to.headBytes,
    tokens,
    heads,
    channels
  );
}

/** Rows at a place into the array of all, which begins at row `first` of `data`; where they must be made into others, at `staging`. */
export function saveRows(
  memory: WasmMemory,
  from: Placed,
  staging: number,
  data: Data,
  first: number,
  rows: Rows,
  channels: number,
  token: number,
  tokens: number
): void {
  const { heads } = rows;
  const staged = arrayAt(staging, isHalf(data), { ...rows, tokens }, channels);
  const sameTokens = tokens === 1 || from.tokenBytes === staged.tokenBytes;
  const sameHeads = heads === 1 || from.headBytes === staged.headBytes;
  const asItIs = from.half === staged.half && sameTokens && sameHeads;
  if (!asItIs) copyRows(memory, from, staged, tokens, heads, channels);
  save(memory, asItIs ? from.address : staging, data, first, rows, channels, token, tokens);
}
