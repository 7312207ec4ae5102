// Sequences that begin as others are: forks, and beams that go on from their parents.

import type { Store } from './backend.ts';
import { holding, staying } from './filling.ts';
import { WINDOW } from './format/layout.ts';
import { PageTables } from './pagetable.ts';
import type { Pool } from './pool.ts';
import type { Sealing } from './sealing.ts';
import type { CacheShape } from './shape.ts';

export class Branching {
  readonly #pool: Pool;
  readonly #sealing: Sealing;

  constructor(pool: Pool, sealing: Sealing) {
    this.#pool = pool;
    this.#sealing = sealing;
  }

  /** A sequence with the same tokens: sealed pages are shared, the rest is copied. */
  fork(store: Store, tables: PageTables): PageTables {
    this.#checkRoom([tables], []);
    const fork = new PageTables(this.#pool);
    try {
      const slots = slotsOf(tables, this.#pool.shape);
      const places = this.#sealing.withRoom(this.#sealing.waiting(tables), () => slots.length);
      this.#sealing.seal(store, places, { slots, sequences: [fork.number] });
      this.#copy(store, tables, fork);
    } catch (error) {
      fork.release();
      throw error;
    }
    return fork;
  }

  /**
   * What becomes of a batch whose nth sequence goes on from its parents[n]th: every parent's tables go to one of its children, itself if it
   * is one; the others take those of sequences that are nobody's parent, and share.
   */
  reorder(store: Store, batch: readonly PageTables[], parents: readonly number[]): PageTables[] {
    const heirs = new Map<number, number>();
    parents.forEach((parent, child) => {
      if (!heirs.has(parent) || parent === child) heirs.set(parent, child);
    });
    const others = parents.flatMap((parent, child) => (heirs.get(parent) === child ? [] : [{ child, parent: batch[parent]! }]));
    const unused = batch.filter((_, n) => !heirs.has(n));
    const copied = others.map(({ parent }) => parent);
    this.#checkRoom(copied, unused);
    const { sinks } = this.#pool.shape;
    const freed = unused.flatMap(tables => tables.layers.flatMap((_, layer) => holding(tables, layer, sinks)));
    const slots = copied.flatMap(tables => slotsOf(tables, this.#pool.shape));
    const waiting = [...new Set(copied)].flatMap(tables => this.#sealing.waiting(tables));
    const places = this.#sealing.withRoom(waiting, () => Math.max(0, slots.length - freed.length), { gone: unused });
    this.#sealing.seal(store, places, { slots, freed });
    const next = parents.map(parent => batch[parent]!);
    for (const tables of unused) {
      this.#sealing.forget(tables);
      tables.clear();
    }
    others.forEach(({ child, parent }, n) => {
      this.#copy(store, parent, unused[n]!);
      next[child] = unused[n]!;
    });
    return next;
  }

  /** Refuses copies of what these hold raw where that has no room, once others were cleared. */
  #checkRoom(copied: readonly PageTables[], cleared: readonly PageTables[]): void {
    this.#pool.held.forEach((_, layer) => {
      const behind = sumOf([...new Set(copied)], tables => tables.completeBehind(layer)); // windows that go once they are sealed
      const more = sumOf(copied, tables => tables.rawTokens(layer) - WINDOW * tables.completeWindows(layer)) - WINDOW * behind;
      const pages = cleared.map(({ layers }) => layers[layer]!.pages.subarray(0, layers[layer]!.pageCount));
      const less = sumOf(cleared, tables => tables.rawTokens(layer)) + WINDOW * this.#pool.freed(layer, pages);
      if (more > less) this.#pool.checkRoom(layer, more - less);
    });
  }

  /** Into an empty sequence all that a sealed one holds. */
  #copy(store: Store, from: PageTables, to: PageTables): void {
    const { balance, sinks } = this.#pool.shape;
    to.share(from);
    from.layers.forEach(({ sinkSlot, raws, rawCount }, layer) => {
      const table = to.layers[layer]!;
      if (balance !== 'off') store.copyBalance(layer, from.number, to.number);
      if (sinks > 0) store.copySlot(sinkSlot, table.sinkSlot);
      for (let n = 0; n < rawCount; n++) store.copySlot(raws[n]!, table.raws[n]!);
    });
  }
}

/** How many tokens each raw slot holds that a copy of a sequence takes once it is sealed. */
function slotsOf(tables: PageTables, { sinks }: CacheShape): number[] {
  return tables.layers.flatMap((_, layer) => staying(tables, layer, sinks));
}

export function sumOf<T>(list: readonly T[], countOf: (item: T, index: number) => number): number {
  return list.reduce((sum, item, index) => sum + countOf(item, index), 0);
}
