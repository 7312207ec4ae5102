// Who holds which page, raw place and slot of a cache, and how many tokens. Numbers only: it never sees a byte.

import { WINDOW } from './format/layout.ts';
import type { CacheShape } from './shape.ts';

/** Nothing is allocated after the constructor. */
export class Pool {
  /** Tokens held in each layer; a page that forks share counts once. */
  readonly held: Uint32Array;
  readonly #capacity: number;
  readonly #sequences: number;
  readonly #pages: Stack[];
  readonly #references: Uint16Array[];
  readonly #places: Stack;
  readonly #slots: Stack;

  constructor(shape: CacheShape) {
    this.#capacity = shape.capacity;
    this.#sequences = shape.sequences;
    this.held = new Uint32Array(shape.layers);
    this.#pages = shape.pages.map(() => new Stack(shape.pagesPerLayer));
    this.#references = shape.pages.map(() => new Uint16Array(shape.pagesPerLayer));
    this.#places = new Stack(shape.rawPages);
    this.#slots = new Stack(shape.sequences);
  }

  /** A sequence's slot. */
  takeSlot(): number {
    if (this.#slots.size === 0) {
      throw new RangeError(`"sequences" expected at most ${this.#sequences} open at once (option "sequences"), got one more`);
    }
    return this.#slots.pop();
  }

  giveSlot(slot: number): void {
    this.#slots.push(slot);
  }

  /** Refuses tokens that would not fit in a layer. */
  checkRoom(layer: number, tokens: number): void {
    const held = this.held[layer]!;
    if (held + tokens > this.#capacity) {
      throw new RangeError(`"capacity" expected at most ${this.#capacity} tokens, got ${held + tokens} (${held} held + ${tokens} more)`);
    }
  }

  takePlace(): number {
    return this.#places.pop();
  }

  givePlace(place: number): void {
    this.#places.push(place);
  }

  takePage(layer: number): number {
    const page = this.#pages[layer]!.pop();
    this.#references[layer]![page] = 1;
    return page;
  }

  sharePage(layer: number, page: number): void {
    this.#references[layer]![page]!++;
  }

  shared(layer: number, page: number): boolean {
    return this.#references[layer]![page]! > 1;
  }

  /** Lets go of a page; the last holder frees it and its tokens. */
  givePage(layer: number, page: number): void {
    if (--this.#references[layer]![page]! > 0) return;
    this.#pages[layer]!.push(page);
    this.held[layer]! -= WINDOW;
  }
}

/** A stack of free numbers, lowest on top at first. */
class Stack {
  size: number;
  readonly #free: Uint32Array;

  constructor(count: number) {
    this.#free = Uint32Array.from({ length: count }, (_, i) => count - 1 - i);
    this.size = count;
  }

  pop(): number {
    if (this.size === 0) throw new Error('pool is empty: reservations are wrong');
    return this.#free[--this.size]!;
  }

  push(free: number): void {
    this.#free[this.size++] = free;
  }
}
