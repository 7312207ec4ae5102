// Raw slots in a cache's memory. What a slot holds lies in raw pages (format/layout.ts), a window in four of 16 tokens: it gets no more
// memory than its tokens need.

import { type Heads, rawOffset } from '../format/layout.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import type { WasmMemory } from './memory.ts';
import { copyRows, fromToken, type Placed } from './rows.ts';

/** Where a slot's keys or values lie from a token on, up to the next multiple of `together`. */
export function rowsAt(memory: WasmMemory, heads: Heads, slot: number, side: number, token: number): Placed {
  const { headDim, valueDim } = heads;
  const capacity = memory.together(slot);
  const piece = Math.floor(token / capacity);
  return {
    address: memory.slot(slot)[piece]! + 2 * rawOffset(heads, capacity, 0, side as 0 | 1, token - piece * capacity),
    half: true,
    tokenBytes: 2 * (side === 0 ? headDim : valueDim),
    headBytes: 2 * capacity * (headDim + valueDim)
  };
}

/** Calls back for all tokens of a slot from `at` on that lie together: the first, counted from `at`, and how many they are. */
export function eachStretch(
  memory: WasmMemory,
  slot: number,
  at: number,
  tokens: number,
  visit: (first: number, count: number) => void
): void {
  const capacity = memory.together(slot);
  for (let first = 0; first < tokens; ) {
    const count = Math.min(capacity - ((at + first) % capacity), tokens - first);
    visit(first, count);
    first += count;
  }
}

/** Rows into a slot's keys or values, from token `at` on. */
export function copyToSlot(memory: WasmMemory, heads: Heads, from: Placed, slot: number, side: number, at: number, tokens: number): void {
  const { kvHeads, headDim, valueDim } = heads;
  eachStretch(memory, slot, at, tokens, (first, count) => {
    const to = rowsAt(memory, heads, slot, side, at + first);
    copyRows(memory, fromToken(from, first), to, count, kvHeads, side === 0 ? headDim : valueDim);
  });
}

/** What a slot has, head by head: an address, where that is in a raw page of all the slot's tokens, and bytes. */
export function eachRun(
  memory: WasmMemory,
  shape: CacheShape,
  layer: number,
  slot: number,
  visit: (at: number, offset: number, bytes: number) => void
): void {
  const heads = shape.layers[layer]!;
  const [tokens, capacity] = [slotTokens(shape, slot), memory.together(slot)];
  for (const [n, address] of memory.slot(slot).entries()) {
    for (let head = 0; head < heads.kvHeads; head++) {
      for (const side of [0, 1] as const) {
        const bytes = 2 * capacity * (side === 0 ? heads.headDim : heads.valueDim);
        const offset = 2 * rawOffset(heads, tokens, head, side, n * capacity);
        visit(address + 2 * rawOffset(heads, capacity, head, side, 0), offset, bytes);
      }
    }
  }
}

/** Writes down where what a slot has lies, as the nth list of a call; the list's address. */
export function addressesOf(memory: WasmMemory, slot: number, n = 0): number {
  const addresses = memory.slot(slot);
  const at = memory.call.rawAddresses + 16 * n;
  for (let i = 0; i < addresses.length; i++) memory.u32[at / 4 + i] = addresses[i]!;
  return at;
}
