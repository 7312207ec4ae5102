// What a cache of the random histories should do: how many tokens fit, and what is coded so that others find room. Sequences are model.ts's.

import * as assert from 'uvu/assert';
import type { ModelSequence, ModelShape, Page } from './model.ts';

/** A cache of such sequences. */
export class ModelCache {
  readonly open = new Set<ModelSequence>();
  /** The layer that was appended to last. */
  newest = -1;
  readonly shape: ModelShape;

  constructor(shape: ModelShape) {
    this.shape = shape;
  }

  /** Tokens that a layer of these sequences holds; what forks share counts once. */
  held(layer: number, sequences: Iterable<ModelSequence> = this.open): number {
    const pages = new Set([...sequences].flatMap(sequence => sequence.pages(layer).map(({ page }) => page)));
    return [...sequences].reduce((sum, sequence) => sum + sequence.rawTokens(layer), 64 * pages.size);
  }

  /** Tokens that every layer has room for. */
  get free(): number {
    return this.shape.capacity - Math.max(...this.shape.layers.map((_, layer) => this.held(layer)));
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
    return first(this.shape.layers.map((_, layer) => this.overflow(layer, more(layer))));
  }

  /** The refusal of an append of so many tokens, if they do not fit in a layer in the place of those that go. */
  appendOverflow(batch: readonly ModelSequence[], layer: number, count: number): string | undefined {
    const holders = new Map<Page, number>();
    for (const page of batch.flatMap(sequence => sequence.passing(layer).pages)) holders.set(page, (holders.get(page) ?? 0) + 1);
    const freed = [...holders].filter(([page, count]) => page.holders === count).length;
    const raw = batch.reduce((sum, sequence) => sum + sequence.passing(layer).raw, 0);
    return this.overflow(layer, count - 64 * (freed + raw));
  }

  /** What becomes of sequences that go on from their parents: its refusal, if copies do not fit, and the models once it ran. */
  reorder(batch: readonly ModelSequence[], parents: readonly number[]): { refusal: string | undefined; run: () => ModelSequence[] } {
    const heirOf = (parent: number) => (parents[parent] === parent ? parent : parents.indexOf(parent));
    const copied = parents.filter((parent, child) => heirOf(parent) !== child).map(parent => batch[parent]!);
    const gone = batch.filter((_, n) => !parents.includes(n));
    const stay = [...this.open].filter(sequence => !gone.includes(sequence));
    const refusal = this.overflows(layer => {
      const copies = copied.reduce((sum, parent) => sum + parent.copiedTokens(layer), 0);
      const passed = [...new Set(copied)].reduce((sum, parent) => sum + parent.passedTokens(layer), 0);
      return copies - passed + this.held(layer, stay) - this.held(layer);
    });
    const run = () => {
      for (const parent of copied) parent.sealAll();
      const slots = copied.reduce((sum, parent) => sum + parent.slots, 0) - gone.reduce((sum, { slots }) => sum + slots, 0);
      this.makeRoom(slots, { gone });
      for (const sequence of gone) {
        sequence.dispose();
        this.open.delete(sequence);
      }
      const next = parents.map((parent, child) => (heirOf(parent) === child ? batch[parent]! : batch[parent]!.fork()));
      for (const sequence of next) this.open.add(sequence);
      return next;
    };
    return { refusal, run };
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

  /**
   * What is coded so that `count` raw slots are free: anything but the newest layer, what is needed least first; and all that is needed
   * least where a prompt has left more than a window, or where sequences hold more slots than two a layer, or than they need whatever
   * happens.
   */
  makeRoom(
    count: number,
    {
      newest = this.newest,
      spared,
      gone = [],
      opened = 0
    }: { newest?: number; spared?: ModelSequence; gone?: readonly ModelSequence[]; opened?: number } = {}
  ): void {
    const { rawSlots, layers, recent, reserve } = this.shape;
    const held = () => [...this.open].reduce((sum, { slots }) => sum + slots, 0);
    const free = () => rawSlots - held();
    const few = reserve ? rawSlots : (this.open.size + opened) * layers.length * Math.max(2, 1 + recent);
    const code = (rank: number, which: (sequence: ModelSequence, layer: number) => boolean) => {
      for (const sequence of this.open) {
        if (gone.includes(sequence)) continue;
        sequence.layers.forEach((_, layer) => {
          const own = sequence === spared ? 2 : Number(layer === sequence.newest);
          if (layer !== newest && own === rank && which(sequence, layer)) sequence.seal(layer);
        });
      }
    };
    if (count > 0 && !reserve) code(0, (sequence, layer) => sequence.waitingWindows(layer) > (sequence.learns(layer) ? 2 : 1));
    for (let rank = 0; rank <= 2 && (free() < count || (rank === 0 && count > 0 && held() > few)); rank++) code(rank, () => true);
    assert.ok(free() >= count, `expected ${count} free raw slots, got ${free()}`);
  }
}

/** The first refusal in a list. */
export const first = (refusals: readonly (string | undefined)[]) => refusals.find(refusal => refusal !== undefined);
