// What a cache should do, with lists instead of memory: who holds which tokens, which of them are coded, what must be refused.

import * as assert from 'uvu/assert';
import { rounded } from './half.ts';
import { keyLike, normal } from './inputs.ts';

/** Channels of a token. */
export const WIDTH = 32;

/** One token's channels as they went into the raw tail: f16 numbers. */
export interface Token {
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** Tokens that are appended, over and over: f16 numbers, no two alike. */
export const stream: readonly Token[] = (() => {
  const [keys, values] = [rounded(keyLike(2048, WIDTH, 50)), rounded(normal(2048, WIDTH, 60))];
  return Array.from({ length: 2048 }, (_, t) => {
    const row = (x: Float32Array) => x.subarray(t * WIDTH, (t + 1) * WIDTH);
    return { keys: row(keys), values: row(values) };
  });
})();

export const SIDES = ['keys', 'values'] as const;

/** f32 [tokens, WIDTH] */
export const rowsOf = (tokens: readonly Token[], side: 'keys' | 'values') => {
  const rows = new Float32Array(tokens.length * WIDTH);
  tokens.forEach((token, t) => rows.set(token[side], t * WIDTH));
  return rows;
};

/** A coded window: forks share it. */
interface Page {
  holders: number;
}

interface Layer {
  pages: Page[];
  /** Oldest first. */
  tokens: Token[];
  /** Queries that are to be learned from, in the order in which they were asked. */
  asked: Float32Array[];
  /** Queries of the positions before this one are not to be learned from any more. */
  next: number;
  /** What was learned from, once it was. */
  lesson: Lesson | undefined;
}

/** What a layer has learned how to balance its keys from. */
export interface Lesson {
  readonly tokens: readonly Token[];
  /** [queryHeads, WIDTH] each. */
  readonly asked: readonly Float32Array[];
}

/** Tokens after the sinks that are learned from. */
const LEARNED = 128;

export interface ModelShape {
  readonly layers: number;
  readonly queryHeads: number;
  readonly capacity: number;
  readonly sequences: number;
  readonly sinks: number;
  readonly recent: number;
  readonly rawSlots: number;
  readonly balance: 'learn' | 'off' | Uint8Array;
}

/** A sequence of tokens. */
export class ModelSequence {
  readonly layers: readonly Layer[];
  /** The layer that was appended to last. */
  newest = -1;
  readonly #shape: ModelShape;

  constructor(shape: ModelShape) {
    this.#shape = shape;
    this.layers = Array.from({ length: shape.layers }, () => ({ pages: [], tokens: [], asked: [], next: 0, lesson: undefined }));
  }

  get length(): number {
    return Math.min(...this.layers.map(layer => layer.tokens.length));
  }

  /** Whether all layers hold as many tokens. */
  get even(): boolean {
    return this.layers.every(layer => layer.tokens.length === this.length);
  }

  rawTokens(layer: number): number {
    return this.layers[layer]!.tokens.length - 64 * this.layers[layer]!.pages.length;
  }

  /** Raw windows, the last of which may be partial. */
  rawWindows(layer: number): number {
    const { tokens, pages } = this.layers[layer]!;
    return Math.ceil(Math.max(0, tokens.length - this.#shape.sinks) / 64) - pages.length;
  }

  /** Whether a layer has yet to learn: it does when its first page is coded. */
  learns(layer: number): boolean {
    return this.#shape.balance === 'learn' && this.layers[layer]!.pages.length === 0;
  }

  /** Queries of a layer's newest tokens: those are learned from that are asked for a position for the first time, and in time. */
  ask(layer: number, query: Float32Array): void {
    if (!this.learns(layer)) return;
    const held = this.layers[layer]!;
    const width = this.#shape.queryHeads * WIDTH;
    const from = held.tokens.length - query.length / width;
    for (let position = Math.max(from, held.next); position < Math.min(held.tokens.length, this.#shape.sinks + LEARNED); position++) {
      held.asked.push(query.slice((position - from) * width, (position - from + 1) * width));
      held.next = position + 1;
    }
  }

  /** Pages that a layer has once all that waits is coded. */
  sealedPages(layer: number): number {
    const { pages, tokens } = this.layers[layer]!;
    if (this.learns(layer) && tokens.length < this.#shape.sinks + LEARNED) return 0;
    return Math.max(pages.length, this.whole(tokens.length) - this.#shape.recent);
  }

  seal(layer: number): void {
    const held = this.layers[layer]!;
    const count = this.sealedPages(layer);
    if (count > 0 && this.learns(layer)) {
      const { sinks } = this.#shape;
      held.lesson = { tokens: held.tokens.slice(sinks, sinks + LEARNED), asked: held.asked };
      held.asked = [];
      held.next = 0;
    }
    while (held.pages.length < count) held.pages.push({ holders: 1 });
  }

  sealAll(): void {
    this.layers.forEach((_, layer) => {
      this.seal(layer);
    });
  }

  /** Raw slots that more tokens take. */
  slotsFor(layer: number, count: number): number {
    const { tokens, pages } = this.layers[layer]!;
    return Math.ceil(Math.max(0, tokens.length + count - this.#shape.sinks) / 64) - pages.length - this.rawWindows(layer);
  }

  /** Whether a crop to `length` cuts a page, for which there is no raw slot yet. */
  cutNeedsSlot(layer: number, length: number): boolean {
    return this.rawWindows(layer) === 0 && this.cutFrom(layer, length) < length;
  }

  /** Raw windows of all layers. */
  get slots(): number {
    return this.layers.reduce((sum, _, layer) => sum + this.rawWindows(layer), 0);
  }

  /** Windows that the first `length` tokens fill. */
  whole(length: number): number {
    return Math.floor(Math.max(0, length - this.#shape.sinks) / 64);
  }

  /** The tokens from this one on are in a page that a crop to `length` cuts; it is none where there are none. */
  cutFrom(layer: number, length: number): number {
    const from = this.#shape.sinks + 64 * this.whole(length);
    return this.layers[layer]!.pages.length > this.whole(length) ? Math.min(from, length) : length;
  }

  /** Tokens that a crop adds to what a layer holds: below 0 where it frees some. */
  cropCost(layer: number, length: number): number {
    const { pages } = this.layers[layer]!;
    const keep = Math.min(this.whole(length), pages.length);
    const freed = pages.slice(keep).filter(page => page.holders === 1).length;
    return length - 64 * keep - this.rawTokens(layer) - 64 * freed;
  }

  /** @param decoded  of every layer the tokens from `cutFrom` on, as they were decoded */
  crop(length: number, decoded: readonly (readonly Token[])[]): void {
    this.layers.forEach((layer, n) => {
      layer.tokens = [...layer.tokens.slice(0, this.cutFrom(n, length)), ...decoded[n]!];
      while (layer.pages.length > this.whole(length)) layer.pages.pop()!.holders--;
      if (layer.pages.length === 0) layer.lesson = undefined;
      // What was asked of tokens that are gone is still known of what queries look like; of no token nothing is.
      layer.next = Math.min(layer.next, length);
      if (length === 0) layer.asked = [];
    });
  }

  fork(): ModelSequence {
    return this.#copy(page => {
      page.holders++;
      return page;
    });
  }

  /** The same tokens and pages, none of them shared. */
  copy(): ModelSequence {
    return this.#copy(() => ({ holders: 1 }));
  }

  #copy(copyOf: (page: Page) => Page): ModelSequence {
    const copy = new ModelSequence(this.#shape);
    this.layers.forEach(({ pages, tokens, asked, next, lesson }, n) => {
      Object.assign(copy.layers[n]!, { pages: pages.map(copyOf), tokens: tokens.slice(), asked: asked.slice(), next, lesson });
    });
    return copy;
  }

  dispose(): void {
    this.crop(
      0,
      this.layers.map(() => [])
    );
  }
}

/** A cache of such sequences. */
export class ModelCache {
  readonly open = new Set<ModelSequence>();
  /** The layer that was appended to last. */
  newest = -1;
  readonly shape: ModelShape;

  constructor(shape: ModelShape) {
    this.shape = shape;
  }

  /** Tokens that a layer holds; what forks share counts once. */
  held(layer: number): number {
    const pages = new Set([...this.open].flatMap(sequence => sequence.layers[layer]!.pages));
    return [...this.open].reduce((sum, sequence) => sum + sequence.rawTokens(layer), 64 * pages.size);
  }

  /** The refusal of `more` tokens in a layer, if they do not fit. */
  overflow(layer: number, more: number): string | undefined {
    const { capacity } = this.shape;
    const held = this.held(layer);
    if (more <= 0 || held + more <= capacity) return undefined;
    return `"capacity" expected at most ${capacity} tokens, got ${held + more} (${held} held + ${more} more)`;
  }

  /** The first such refusal over all layers. */
  overflows(more: (layer: number) => number): string | undefined {
    for (let layer = 0; layer < this.shape.layers; layer++) {
      const refusal = this.overflow(layer, more(layer));
      if (refusal !== undefined) return refusal;
    }
    return undefined;
  }

  /** The refusal of one more sequence, if there are too many. */
  get full(): string | undefined {
    const { sequences } = this.shape;
    return this.open.size < sequences
      ? undefined
      : `"sequences" expected at most ${sequences} open at once (option "sequences"), got one more`;
  }

  /** What an append of so many tokens codes before it begins. */
  sealBefore(batch: readonly ModelSequence[], layer: number, counts: readonly number[]): void {
    for (const sequence of batch) sequence.seal(layer);
    const slots = batch.reduce((sum, sequence, n) => sum + sequence.slotsFor(layer, counts[n]!), 0);
    this.makeRoom(slots, { newest: layer });
  }

  /** What is coded so that `count` raw slots are free: anything but the newest layer, what is needed least first. */
  makeRoom(count: number, { newest = this.newest, spared }: { newest?: number; spared?: ModelSequence } = {}): void {
    const free = () => this.shape.rawSlots - [...this.open].reduce((sum, { slots }) => sum + slots, 0);
    for (let rank = 0; rank <= 2 && free() < count; rank++) {
      for (const sequence of this.open) {
        sequence.layers.forEach((_, layer) => {
          const own = sequence === spared ? 2 : Number(layer === sequence.newest);
          if (layer !== newest && own === rank) sequence.seal(layer);
        });
      }
    }
    assert.ok(free() >= count, `expected ${count} free raw slots, got ${free()}`);
  }
}
