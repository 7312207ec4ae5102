// What a cache has to give: pages of every layer, raw slots, numbers of sequences; and how many tokens are held. Numbers only.

import { WINDOW } from './format/layout.ts';
import type { CacheShape } from './shape.ts';

/** What is free, and who else holds a page. */
export class Pool {
  readonly shape: CacheShape;
  /** Tokens held in each layer; a page that forks share counts once. */
  readonly held: Uint32Array;
  /** Raw slots of 64 tokens. */
  readonly slots: FreeList;
  /** Numbers of sequences: each has sink slots of its own. */
  readonly sequences: FreeList;
  readonly #pages: readonly FreeList[];
  /** Holders of every page that ever was taken. */
  readonly #refCounts: readonly number[][];

  constructor(shape: CacheShape) {
    this.shape = shape;
    this.held = new Uint32Array(shape.layers.length);
    this.slots = new FreeList(shape.rawSlots);
    this.sequences = new FreeList(shape.sequences);
    this.#pages = shape.pageCounts.map(pages => new FreeList(pages));
    this.#refCounts = shape.layers.map(() => []);
  }

  /** Refuses tokens that would not fit in a layer. */
  checkRoom(layer: number, tokens: number): void {
    const { capacity } = this.shape;
    const held = this.held[layer]!;
    if (held + tokens > capacity) {
      throw new RangeError(`"capacity" expected at most ${capacity} tokens, got ${held + tokens} (${held} held + ${tokens} more)`);
    }
  }

  /** Refuses one more sequence than there may be. */
  checkSequences(): void {
    if (this.sequences.size > 0) return;
    throw new RangeError(`"sequences" expected at most ${this.shape.sequences} open at once (option "sequences"), got one more`);
  }

  /** The pages that the next `count` allocations will give. */
  nextPages(layer: number, count: number): number[] {
    return this.#pages[layer]!.next(count);
  }

  allocatePage(layer: number): number {
    const page = this.#pages[layer]!.allocate();
    this.#refCounts[layer]![page] = 1;
    return page;
  }

  retainPage(layer: number, page: number): void {
    this.#refCounts[layer]![page]!++;
  }

  refCount(layer: number, page: number): number {
    return this.#refCounts[layer]![page]!;
  }

  /** How many pages of a layer are free once each of these holders has given its own back. */
  freed(layer: number, holders: readonly Uint32Array[]): number {
    if (holders.every(pages => pages.length === 0)) return 0; // of nearly every token
    const counts = new Map<number, number>();
    for (const pages of holders) {
      for (const page of pages) counts.set(page, (counts.get(page) ?? 0) + 1);
    }
    return [...counts].filter(([page, count]) => this.refCount(layer, page) === count).length;
  }

  /** Lets go of a page; the last holder frees it and its tokens. */
  releasePage(layer: number, page: number): void {
    if (--this.#refCounts[layer]![page]! > 0) return;
    this.#pages[layer]!.release(page);
    this.held[layer]! -= WINDOW;
  }
}

/** Free numbers, the lowest first: what others numbered falls idle, and a store may give up its memory. */
class FreeList {
  readonly #count: number;
  /** Those that were given back, the highest first. */
  readonly #returned: number[] = [];
  #unused = 0;

  /** @param count  numbers that there are */
  constructor(count: number) {
    this.#count = count;
  }

  /** How many are free. */
  get size(): number {
    return this.#count - this.held;
  }

  /** How many are not. */
  get held(): number {
    return this.#unused - this.#returned.length;
  }

  allocate(): number {
    if (this.size === 0) throw new Error('free list is empty: reservations are wrong');
    return this.#returned.pop() ?? this.#unused++;
  }

  release(number: number): void {
    let [low, high] = [0, this.#returned.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#returned[middle]! > number) low = middle + 1;
      else high = middle;
    }
    this.#returned.splice(low, 0, number);
  }

  /** What the next `count` allocations will give, once these were given back. */
  next(count: number, returned: readonly number[] = []): number[] {
    if (this.size + returned.length < count) throw new Error('free list is empty: reservations are wrong');
    const own = this.#returned.slice(Math.max(0, this.#returned.length - count));
    const lowest = [...own, ...returned].sort((a, b) => a - b).slice(0, count);
    return [...lowest, ...Array.from({ length: count - lowest.length }, (_, n) => this.#unused + n)];
  }

  /** Those that were given back, but for these. */
  idle(taken: readonly number[]): number[] {
    const next = new Set(taken);
    return this.#returned.filter(number => !next.has(number));
  }
}
