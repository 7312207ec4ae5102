// A store that is watched: nothing of it may be used that was not reserved, and it can be told to be short of memory.

import { BackendError, type CacheShape } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Needs, PageTable, Store } from '../src/backend.ts';
import { altered } from './gpu.ts';

/** Tokens of a raw slot that get memory together. */
const QUARTER = 16;
const quarters = (tokens = 0) => Math.ceil(tokens / QUARTER);

export class Granted {
  /** How many of the next calls that want memory get it. */
  left = Infinity;
  readonly #shape: CacheShape;
  /** As `layer page`. */
  readonly #pages = new Set<string>();
  /** For how many tokens raw slots have memory, and how many they were to hold when they were last reserved. */
  readonly #slots = new Map<number, number>();
  readonly #fills = new Map<number, number>();
  readonly #sequences = new Set<number>();

  constructor(shape: CacheShape) {
    this.#shape = shape;
  }

  watch(store: Store): Store {
    if (this.#shape.reserve) return store;
    return altered(store, {
      reserve: needs => {
        if (!this.#has(needs)) this.#ask();
        store.reserve(needs);
        this.#grant(needs);
      },
      write: (layer, writes) => {
        for (const { slot, at, tokens } of writes.flatMap(({ runs }) => runs)) this.#use(slot, at + tokens);
        store.write(layer, writes);
      },
      copySlot: (from, to) => {
        this.#use(to, 1); // how many tokens there are, who reads them says
        store.copySlot(from, to);
      },
      setSlot: (layer, slot, bytes) => {
        this.#use(slot, 64);
        store.setSlot(layer, slot, bytes);
      },
      setPage: (layer, page, bytes) => {
        this.#usePages(layer, [page]);
        store.setPage(layer, page, bytes);
      },
      encode: (layer, slots, pages, sequences) => {
        for (const slot of slots) this.#use(slot, 64);
        this.#usePages(layer, pages);
        store.encode(layer, slots, pages, sequences);
      },
      decode: (layer, page, slot, sequence) => {
        this.#usePages(layer, [page]);
        this.#use(slot, 64);
        store.decode(layer, page, slot, sequence);
      },
      learn: (layer, sequence, slots) => {
        for (const slot of slots) this.#use(slot, 64);
        store.learn(layer, sequence, slots);
      },
      copyBalance: (layer, from, to) => {
        for (const sequence of [from, to]) assert.ok(this.#sequences.has(sequence), `sequence ${sequence} has no memory`);
        store.copyBalance(layer, from, to);
      },
      read: (layer, sequence, pieces, ...rest) => {
        for (const { coded, number, at, tokens } of pieces) {
          if (coded) this.#usePages(layer, [number]);
          else this.#use(number, at + tokens);
        }
        return store.read(layer, sequence, pieces, ...rest);
      },
      dump: (layer, table) => {
        this.#useTable(layer, table);
        return store.dump(layer, table);
      },
      attend: (layer, tables, ...rest) => {
        this.#ask();
        for (const table of tables) this.#useTable(layer, table);
        return store.attend(layer, tables, ...rest);
      }
    } satisfies Partial<Store>);
  }

  #ask(): void {
    if (this.left-- === 0) throw new BackendError('wasm', 'expected memory, got none');
  }

  #has({ pages = new Map(), slots = new Map(), sequences = [] }: Needs): boolean {
    return (
      [...pages].every(([layer, numbers]) => numbers.every((page: number) => this.#pages.has(`${layer} ${page}`))) &&
      [...slots].every(([slot, tokens]) => quarters(this.#slots.get(slot)) >= quarters(tokens)) &&
      sequences.every(sequence => this.#sequences.has(sequence))
    );
  }

  /** Where memory is granted, all that is idle goes for it, and what slots have beyond what they were to hold. */
  #grant(needs: Needs): void {
    const { pages = new Map(), slots = new Map(), sequences = [], idle = () => [] } = needs;
    if (!this.#has(needs)) {
      for (const slot of idle()) this.#slots.delete(slot);
      for (const [slot, tokens] of this.#fills) if (this.#slots.has(slot) && !slots.has(slot)) this.#slots.set(slot, tokens);
    }
    for (const [layer, numbers] of pages) for (const page of numbers) this.#pages.add(`${layer} ${page}`);
    for (const [slot, tokens] of slots) {
      this.#slots.set(slot, Math.max(tokens, this.#slots.get(slot) ?? 0));
      this.#fills.set(slot, tokens);
    }
    for (const sequence of sequences) this.#sequences.add(sequence);
  }

  #use(slot: number, tokens: number): void {
    const { rawSlots, layers } = this.#shape;
    const has =
      slot < rawSlots ? quarters(this.#slots.get(slot)) >= quarters(tokens) : this.#hasSinks(Math.floor((slot - rawSlots) / layers.length));
    assert.ok(has, `slot ${slot} has no memory for ${tokens} tokens`);
  }

  #hasSinks(sequence: number): boolean {
    return this.#sequences.has(sequence);
  }

  #usePages(layer: number, pages: Iterable<number>): void {
    for (const page of pages) assert.ok(this.#pages.has(`${layer} ${page}`), `page ${page} of layer ${layer} has no memory`);
  }

  #useTable(layer: number, { pages, pageCount, sequence, raws, rawCount, coded, length }: PageTable): void {
    assert.ok(this.#sequences.has(sequence), `sequence ${sequence} has no memory`);
    this.#usePages(layer, pages.subarray(0, pageCount));
    raws.subarray(0, rawCount).forEach((slot, n) => {
      this.#use(slot, Math.min(64, length - this.#shape.sinks - 64 * (coded + n)));
    });
  }
}
