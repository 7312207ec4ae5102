// What a sequence should do, with lists instead of memory: which tokens it holds, which of them are coded, what must be refused.

import type { CacheShape, LayerShape } from 'nsnquant';
import { rounded } from './half.ts';
import { keyLike, normal } from './inputs.ts';

/** Channels of a head, where a history says nothing else. */
export const WIDTH = 32;
/** Channels of a token at most, over all heads. */
const WIDEST = 3 * WIDTH;

/** One token's channels as they went into the raw tail: f16 numbers, of which a layer has as many as it needs. */
export interface Token {
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** Tokens that are appended, over and over: f16 numbers, no two alike. */
export const stream: readonly Token[] = (() => {
  const [keys, values] = [rounded(keyLike(2048, WIDEST, 50)), rounded(normal(2048, WIDEST, 60))];
  return Array.from({ length: 2048 }, (_, t) => {
    const row = (x: Float32Array) => x.subarray(t * WIDEST, (t + 1) * WIDEST);
    return { keys: row(keys), values: row(values) };
  });
})();

export const SIDES = ['keys', 'values'] as const;
export type Side = (typeof SIDES)[number];

/** Channels of a token in a layer. */
export const widthOf = ({ kvHeads, headDim, valueDim }: LayerShape, side: Side) => kvHeads * (side === 'keys' ? headDim : valueDim);

/** f32 [tokens, width] */
export const rowsOf = (tokens: readonly Token[], side: Side, width: number) => {
  const rows = new Float32Array(tokens.length * width);
  tokens.forEach((token, t) => rows.set(token[side].subarray(0, width), t * width));
  return rows;
};

/** A coded window: forks share it. */
export interface Page {
  holders: number;
}

/** Why there is no page of a window that was coded, or would have been: no query sees it any more, or it was told to go. */
type Gone = 'behind' | 'evicted';

interface Layer {
  /** Of every window that is not raw any more. */
  windows: (Page | Gone)[];
  /** All that came, also those that are gone. */
  tokens: Token[];
  /** Of each whether its query lacked something that was evicted. */
  lacked: boolean[];
  /** The oldest position that may be asked about still, as far as what is behind a window goes. */
  oldest: number;
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
  /** [queryHeads, headDim] each. */
  readonly asked: readonly Float32Array[];
}

/** Tokens after the sinks that are learned from. */
const LEARNED = 128;

export type ModelShape = Pick<CacheShape, 'layers' | 'capacity' | 'sequences' | 'sinks' | 'recent' | 'rawSlots' | 'reserve' | 'balance'>;

/** A sequence of tokens. */
export class ModelSequence {
  readonly layers: readonly Layer[];
  /** The layer that was appended to last. */
  newest = -1;
  readonly #shape: ModelShape;

  constructor(shape: ModelShape) {
    this.#shape = shape;
    this.layers = shape.layers.map(() => ({ windows: [], tokens: [], lacked: [], oldest: 0, asked: [], next: 0, lesson: undefined }));
  }

  get length(): number {
    return Math.min(...this.layers.map(layer => layer.tokens.length));
  }

  /** Whether all layers hold as many tokens. */
  get even(): boolean {
    return this.layers.every(layer => layer.tokens.length === this.length);
  }

  /** The pages of a layer, and the numbers of their windows. */
  pages(layer: number): { readonly window: number; readonly page: Page }[] {
    return this.layers[layer]!.windows.flatMap((page, window) => (typeof page === 'object' ? [{ window, page }] : []));
  }

  rawTokens(layer: number): number {
    return this.layers[layer]!.tokens.length - 64 * this.layers[layer]!.windows.length;
  }

  /** Positions that a layer holds. */
  positions(layer: number): number[] {
    const { windows, tokens } = this.layers[layer]!;
    const { sinks } = this.#shape;
    const isHeld = (position: number) => position < sinks || typeof windows[Math.floor((position - sinks) / 64)] !== 'string';
    return tokens.map((_, position) => position).filter(isHeld);
  }

  /** The tokens at those. */
  held(layer: number): Token[] {
    return this.positions(layer).map(position => this.layers[layer]!.tokens[position]!);
  }

  /** Raw windows, the last of which may be partial. */
  rawWindows(layer: number): number {
    const { tokens, windows } = this.layers[layer]!;
    return Math.ceil(Math.max(0, tokens.length - this.#shape.sinks) / 64) - windows.length;
  }

  /** Whether a layer has yet to learn: it does when its first windows are coded. */
  learns(layer: number): boolean {
    return this.#shape.balance === 'learn' && this.layers[layer]!.windows.length === 0;
  }

  /** Queries of a layer's newest tokens: those are learned from that are asked for a position for the first time, and in time. */
  ask(layer: number, query: Float32Array): void {
    if (!this.learns(layer)) return;
    const held = this.layers[layer]!;
    const { queryHeads, headDim } = this.#shape.layers[layer]!;
    const width = queryHeads * headDim;
    const from = held.tokens.length - query.length / width;
    for (let position = Math.max(from, held.next); position < Math.min(held.tokens.length, this.#shape.sinks + LEARNED); position++) {
      held.asked.push(query.slice((position - from) * width, (position - from + 1) * width));
      held.next = position + 1;
    }
  }

  /** Windows that are not raw once all that waits is coded. */
  sealedWindows(layer: number): number {
    const { windows, tokens } = this.layers[layer]!;
    if (this.learns(layer) && tokens.length < this.#shape.sinks + LEARNED) return 0;
    return Math.max(windows.length, this.whole(tokens.length) - this.#shape.recent);
  }

  /** How many of those are not coded. */
  waitingWindows(layer: number): number {
    return this.sealedWindows(layer) - this.layers[layer]!.windows.length;
  }

  /** Codes what waits, but what is behind every query that may come: that just goes. */
  seal(layer: number): void {
    const held = this.layers[layer]!;
    const count = this.sealedWindows(layer);
    if (count > 0 && this.learns(layer)) {
      const { sinks } = this.#shape;
      held.lesson = { tokens: held.tokens.slice(sinks, sinks + LEARNED), asked: held.asked };
      held.asked = [];
      held.next = 0;
    }
    const behind = this.#behind(layer, held.oldest);
    const passes = Math.min(behind, count) > held.windows.length;
    while (held.windows.length < count) held.windows.push(held.windows.length < behind ? 'behind' : { holders: 1 });
    if (passes) this.#give(layer, 'behind', 0, behind);
  }

  sealAll(): void {
    this.layers.forEach((_, layer) => {
      this.seal(layer);
    });
  }

  /** No query older than the next token comes any more. */
  pass(layer: number): void {
    const { tokens } = this.layers[layer]!;
    this.layers[layer]!.oldest = tokens.length;
    this.#give(layer, 'behind', 0, this.#behind(layer, tokens.length));
  }

  /** What `pass` gives back: pages, and raw windows once all that waits is coded. */
  passing(layer: number): { readonly pages: readonly Page[]; readonly raw: number } {
    const { windows, tokens } = this.layers[layer]!;
    const behind = this.#behind(layer, tokens.length);
    const pages = this.pages(layer).filter(({ window }) => window < behind);
    const raw = Math.max(0, Math.min(behind, this.sealedWindows(layer)) - windows.length);
    return { pages: pages.map(({ page }) => page), raw };
  }

  /** Whether an eviction has something to forget in a layer: a page, or what is one once all that waits is coded. */
  evicts(layer: number, from: number, to: number): boolean {
    const { windows, oldest } = this.layers[layer]!;
    const waiting = Array.from({ length: this.sealedWindows(layer) - windows.length }, (_, n) => windows.length + n);
    const held = [...this.pages(layer).map(({ window }) => window), ...waiting.filter(window => window >= this.#behind(layer, oldest))];
    return held.some(window => window >= this.#whole(from, Math.ceil) && window < this.whole(to));
  }

  evict(layer: number, from: number, to: number): void {
    this.#give(layer, 'evicted', this.#whole(from, Math.ceil), this.whole(to));
  }

  /** Windows before this one are behind a query at `position`, and all that come after it; `recent` more are kept for crops. */
  #behind(layer: number, position: number): number {
    const { sinks, recent, layers } = this.#shape;
    const oldestSeen = position - layers[layer]!.window + 1;
    return Math.max(0, Math.floor((oldestSeen - sinks) / 64) - recent);
  }

  /** Gives back the pages of windows from `from` on and before `to`; and remembers of all of them why, but of evicted ones that were behind. */
  #give(layer: number, why: Gone, from: number, to: number): void {
    const { windows } = this.layers[layer]!;
    windows.slice(0, to).forEach((page, window) => {
      if (window < from) return;
      if (typeof page === 'object') page.holders--;
      if (page !== 'behind') windows[window] = why;
    });
  }

  /** The first windows, which are gone as they are behind. */
  #dropped(layer: number): number {
    const { windows } = this.layers[layer]!;
    const first = windows.findIndex(page => page !== 'behind');
    return first < 0 ? windows.length : first;
  }

  /** How many of the newest tokens may be asked about: their own keys are held, and what their windows show them was not given back. */
  answerable(layer: number): number {
    const { tokens, windows } = this.layers[layer]!;
    const { sinks, layers } = this.#shape;
    const ends = sinks + 64 * (windows.lastIndexOf('evicted') + 1);
    const dropped = this.#dropped(layer);
    let count = 0;
    for (let position = tokens.length - 1; position >= 0; position--, count++) {
      if (windows.includes('evicted') && position < ends) break;
      const oldestSeen = Math.max(0, position - layers[layer]!.window + 1);
      if (dropped > 0 && (position < sinks || oldestSeen < sinks + 64 * dropped)) break;
    }
    return count;
  }

  append(layer: number, tokens: readonly Token[]): void {
    const held = this.layers[layer]!;
    for (const token of tokens) {
      held.lacked.push(this.#lacks(layer, held.tokens.length));
      held.tokens.push(token);
    }
  }

  /** Whether a query at `position` does not see all that it should. */
  #lacks(layer: number, position: number): boolean {
    const { sinks, layers } = this.#shape;
    const oldestSeen = position - layers[layer]!.window + 1;
    return this.layers[layer]!.windows.some((page, window) => page === 'evicted' && sinks + 64 * (window + 1) > oldestSeen);
  }

  /** What a file says of windows that are gone. */
  gone(layer: number): { readonly dropped: string; readonly whole: string } {
    const { lacked, tokens } = this.layers[layer]!;
    const first = [...lacked, this.#lacks(layer, tokens.length)].indexOf(true);
    return { dropped: `${this.#dropped(layer)}`, whole: first < 0 ? 'all' : `${first}` };
  }

  /** The refusal of so many queries. */
  beyond(name: string, layer: number, count: number): string | undefined {
    const most = this.answerable(layer);
    if (count <= most) return undefined;
    const all = most === this.layers[layer]!.tokens.length;
    const why = all ? `all that layer ${layer} holds` : `what older ones see layer ${layer} holds no longer`;
    return `"${name}" expected at most ${most} token${most === 1 ? '' : 's'} (${why}), got ${count}`;
  }

  /** Raw slots that more tokens take. */
  slotsFor(layer: number, count: number): number {
    const { tokens, windows } = this.layers[layer]!;
    return Math.ceil(Math.max(0, tokens.length + count - this.#shape.sinks) / 64) - windows.length - this.rawWindows(layer);
  }

  /** Whether a crop to `length` cuts a page, for which there is no raw slot yet. */
  cutNeedsSlot(layer: number, length: number): boolean {
    return this.rawWindows(layer) === 0 && this.cutFrom(layer, length) < length;
  }

  /** Raw windows of all layers. */
  get slots(): number {
    return this.layers.reduce((sum, _, layer) => sum + this.rawWindows(layer), 0);
  }

  /** Tokens that a copy of a layer does not share. */
  copiedTokens(layer: number): number {
    return this.layers[layer]!.tokens.length - 64 * this.sealedWindows(layer);
  }

  /** Tokens of windows that go without being coded once what waits is. */
  passedTokens(layer: number): number {
    const { windows, oldest } = this.layers[layer]!;
    return 64 * Math.max(0, Math.min(this.sealedWindows(layer), this.#behind(layer, oldest)) - windows.length);
  }

  /** Windows that the first `length` tokens fill. */
  whole(length: number): number {
    return this.#whole(length, Math.floor);
  }

  #whole(length: number, round: (windows: number) => number): number {
    return round(Math.max(0, length - this.#shape.sinks) / 64);
  }

  /** The tokens from this one on are in a page that a crop to `length` cuts; it is none where there are none. */
  cutFrom(layer: number, length: number): number {
    const from = this.#shape.sinks + 64 * this.whole(length);
    return this.layers[layer]!.windows.length > this.whole(length) ? Math.min(from, length) : length;
  }

  /** Tokens that a crop adds to what a layer holds: below 0 where it frees some. */
  cropCost(layer: number, length: number): number {
    const { windows } = this.layers[layer]!;
    const keep = Math.min(this.whole(length), windows.length);
    const freed = this.pages(layer).filter(({ window, page }) => window >= keep && page.holders === 1).length;
    return length - 64 * keep - this.rawTokens(layer) - 64 * freed;
  }

  /** The refusal of a crop that needs tokens which are gone. */
  uncroppable(layer: number, length: number): string | undefined {
    const { sinks, layers } = this.#shape;
    const dropped = this.#dropped(layer);
    const least = sinks + 64 * dropped + layers[layer]!.window - 1;
    if (length > sinks && dropped > 0 && length < least)
      return `"length" expected at least ${least} or at most ${sinks} (layer ${layer} has given back what is behind its window), got ${length}`;
    if (this.cutFrom(layer, length) < length && this.layers[layer]!.windows[this.whole(length)] === 'evicted')
      return `"length" expected a position that layer ${layer} holds (others were evicted), got ${length}`;
    return undefined;
  }

  /** Tokens from `length` on are to go: what is before them may be asked about again. */
  askAgain(length: number): void {
    for (const layer of this.layers) layer.oldest = Math.min(layer.oldest, length);
  }

  /** @param decoded  of every layer the tokens from `cutFrom` on, as they were decoded */
  crop(length: number, decoded: readonly (readonly Token[])[]): void {
    this.askAgain(length);
    this.layers.forEach((layer, n) => {
      layer.tokens = [...layer.tokens.slice(0, this.cutFrom(n, length)), ...decoded[n]!];
      layer.lacked.length = length;
      for (const page of layer.windows.splice(this.whole(length))) if (typeof page === 'object') page.holders--;
      if (layer.windows.length === 0) layer.lesson = undefined;
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

  /** What a file of it has: nothing that no query will see. */
  saved(): ModelSequence {
    const copy = this.copy();
    copy.layers.forEach((_, layer) => {
      copy.pass(layer);
    });
    return copy;
  }

  #copy(copyOf: (page: Page) => Page): ModelSequence {
    const copy = new ModelSequence(this.#shape);
    this.layers.forEach(({ windows, tokens, lacked, asked, ...layer }, n) => {
      const copied = windows.map(page => (typeof page === 'object' ? copyOf(page) : page));
      Object.assign(copy.layers[n]!, { ...layer, windows: copied, tokens: tokens.slice(), lacked: lacked.slice(), asked: asked.slice() });
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
