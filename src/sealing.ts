// When raw windows are coded: of every layer which sequences hold complete ones, and what is coded so that others find raw slots.

import type { Store } from './backend.ts';
import type { Fill } from './filling.ts';
import { WINDOW } from './format/layout.ts';
import type { PageTables } from './pagetable.ts';
import type { Pool } from './pool.ts';
import { baseSlots, type CacheShape } from './shape.ts';

/** A layer of a sequence. */
export interface Place {
  readonly tables: PageTables;
  readonly layer: number;
}

/** What a call uses besides the pages of what it codes. */
export interface Use {
  /** Raw slots that are taken next: how many tokens each is to hold. */
  readonly slots?: readonly number[];
  /** Raw slots that are given back before those are taken, and what they hold until then. */
  readonly freed?: readonly Fill[];
  /** Others that are to hold more. */
  readonly growing?: readonly Fill[];
  /** More pages of every layer. */
  readonly pages?: readonly number[];
  /** Numbers of sequences. */
  readonly sequences?: readonly number[];
}

export class Sealing {
  /** The layer that was appended to last, in any sequence. */
  newest = -1;
  readonly #pool: Pool;
  /**
   * For every layer the sequences that hold complete windows raw there. They do until they are appended to in that layer again, so that
   * drafts may be rejected without loss, or until the slots are needed.
   */
  readonly #pending: readonly Set<PageTables>[];

  constructor(pool: Pool, { layers }: CacheShape) {
    this.#pool = pool;
    this.#pending = layers.map(() => new Set());
  }

  /** A sequence was appended to in a layer: what is complete there waits. */
  appended(tables: PageTables, layer: number): void {
    this.newest = layer;
    tables.newest = layer;
    if (tables.completeWindows(layer) > 0) this.#pending[layer]!.add(tables);
  }

  /** Where a sequence holds complete windows raw. */
  waiting(tables: PageTables): Place[] {
    return this.#pending.flatMap((waiting, layer) => (waiting.has(tables) ? [{ tables, layer }] : []));
  }

  /** Whether a sequence does in this layer. */
  waits(tables: PageTables, layer: number): boolean {
    return this.#pending[layer]!.has(tables);
  }

  /** A sequence is gone. */
  forget(tables: PageTables): void {
    for (const waiting of this.#pending) waiting.delete(tables);
  }

  /**
   * Raw slots that sequences may hold before what can be coded is, so that memory grows no further than it must: what they need whatever
   * happens, and of every layer a window that has just been completed, whose newest tokens may yet be dropped without loss.
   */
  get #fewSlots(): number {
    const { reserve, rawSlots, layers } = this.#pool.shape;
    return reserve ? rawSlots : this.#pool.sequences.held * layers.length * Math.max(2, baseSlots(this.#pool.shape));
  }

  /**
   * These places and, where fewer raw slots than `count` would be free once what is complete there is coded, others to code: of all layers
   * but the cache's newest, as far as needed. First those in layers that their sequence is through with, and these also where sequences
   * hold more slots than they need (`#fewSlots`), or a prompt has left several; then those in its own newest layer, last those of the
   * sequence `spared`, and none of the sequences `gone`, which are about to be cleared.
   *
   * There are always enough. Once complete windows that may be coded are raw in the newest layer alone, a sequence holds at most
   * B = baseSlots() windows in any other: one that is partial, and `recent` complete ones, or while the layer has still to learn as many
   * as LEARNED_WINDOWS − 1. In the newest layer an append finds as many, as it codes what waits in its own sequences first, and adds at
   * most ⌈maxAppend / 64⌉; and a layer holds `capacity` tokens at most, in windows of which every sequence has one that is partial. So S
   * sequences with L layers hold at most S·(L − 1)·B + min(S·(B + ⌈maxAppend / 64⌉), ⌈capacity / 64⌉ + S) windows: a shape has that many
   * raw slots. A fork is one of the S and holds B windows a layer, as its original does once that is coded; so does what is restored,
   * but for one more that a layer holds for a moment, for which the S-th of that minimum has room. A cut leaves one raw window in the
   * place of pages, where there is none.
   *
   * @param count  may depend on what is coded
   */
  withRoom(
    places: readonly Place[],
    count: (all: readonly Place[]) => number,
    { newest = this.newest, spared, gone = [] }: { newest?: number; spared?: PageTables; gone?: readonly PageTables[] } = {}
  ): readonly Place[] {
    let all = places;
    const others = (rank: number): Place[] =>
      this.#pending.flatMap((waiting, layer) =>
        [...waiting]
          .filter(tables => layer !== newest && rank === (tables === spared ? 2 : Number(layer === tables.newest)))
          .filter(tables => !gone.includes(tables) && !isAmong(all, tables, layer))
          .map(tables => ({ tables, layer }))
      );
    if (count(all) === 0) return all;
    if (!this.#pool.shape.reserve) all = [...all, ...others(0).filter(({ tables, layer }) => tables.leftByPrompt(layer))];
    const freed = (): number => all.reduce((sum, { tables, layer }) => sum + tables.completeWindows(layer), 0);
    const tooFew = (): boolean => this.#pool.slots.size + freed() < count(all);
    const many = (): boolean => this.#pool.slots.held - freed() > this.#fewSlots;
    for (let rank = 0; rank <= 2 && (tooFew() || (rank === 0 && many())); rank++) all = [...all, ...others(rank)];
    if (tooFew()) throw new Error('too few raw slots: reservations are wrong');
    return all;
  }

  /**
   * Codes the complete windows at these places, those of one layer in one go, once there is memory for their pages and for all else that
   * is to be used. What no query will see again is not coded. Nothing has changed where memory is refused.
   */
  seal(store: Store, places: readonly Place[], { slots = [], freed = [], growing = [], pages = [], sequences = [] }: Use = {}): void {
    if ([places, slots, growing, pages, sequences].every(list => list.length === 0)) return;
    const complete = places.map(({ tables, layer }) => ({ slots: tables.completeSlots(layer), behind: tables.completeBehind(layer) }));
    const layers = new Map(
      Array.from(new Set(places.map(place => place.layer)), layer => {
        return [layer, places.flatMap((place, n) => (place.layer === layer ? [{ tables: place.tables, ...complete[n]! }] : []))];
      })
    );
    const needed = pages.slice();
    for (const [layer, there] of layers) {
      needed[layer] = there.reduce((sum, { slots, behind }) => sum + slots.length - behind, needed[layer] ?? 0);
    }
    // What slots that are given back hold until then. Those that are taken again have room for both meanwhile.
    const until = new Map([...complete.flatMap(({ slots }) => slots.map((slot): Fill => [slot, WINDOW])), ...freed]);
    const next = this.#pool.slots.next(slots.length, [...until.keys()]);
    const taken = next.map((slot, n): Fill => [slot, slots[n]!]);
    const again = taken.filter(([slot]) => until.has(slot));
    const both = again.map(([slot, tokens]): Fill => [slot, Math.max(tokens, until.get(slot)!)]);
    store.reserve({
      pages: new Map(needed.flatMap((count, layer) => (count > 0 ? [[layer, this.#pool.nextPages(layer, count)]] : []))),
      slots: new Map([...growing, ...taken, ...both]),
      sequences,
      idle: () => this.#pool.slots.idle(next)
    });
    for (const [layer, there] of layers) {
      // Nothing has changed until all are coded: pages are free ones, and what is learned means nothing before there is a page.
      for (const { tables, slots } of there) {
        if (slots.length > 0 && tables.learns(layer)) store.learn(layer, tables.number, tables.learnedSlots(layer));
      }
      const coded = there.flatMap(({ tables, slots, behind }) => slots.slice(behind).map(slot => ({ slot, sequence: tables.number })));
      if (coded.length === 0) continue;
      store.encode(
        layer,
        coded.map(({ slot }) => slot),
        this.#pool.nextPages(layer, coded.length),
        coded.map(({ sequence }) => sequence)
      );
    }
    places.forEach(({ tables, layer }, n) => {
      tables.seal(layer, complete[n]!.slots.length, complete[n]!.behind);
      this.#pending[layer]!.delete(tables);
    });
    if (again.length > 0) store.reserve({ slots: new Map(again) });
  }
}

export function isAmong(places: readonly Place[], tables: PageTables, layer: number): boolean {
  return places.some(place => place.tables === tables && place.layer === layer);
}
