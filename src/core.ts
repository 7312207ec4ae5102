// What a cache and its sequences share, out of users' reach: page tables, the store whose memory they number, and the verbs on both.
// A call checks all that it may refuse before anything changes, and numbers change once the store has done its part.

import { attend, checkAnswerable, SCALE_MOST } from './attending.ts';
import type { Backend, Output, Range, Store, Tokens } from './backend.ts';
import { Branching, sumOf } from './branching.ts';
import { checkInteger, checkLength, checkOptions, checkPositive, plural } from './check.ts';
import { decodeTokens } from './decoding.ts';
import { type FileContents, withoutBehind } from './file.ts';
import { cutting, growing, slotsFor } from './filling.ts';
import type { Data } from './format/half.ts';
import { WINDOW } from './format/layout.ts';
import { checkCrop, rangesOf } from './gone.ts';
import { type Metadata, windowsOf } from './header.ts';
import { checkInput, checkQuery, type Input, type Results, type Target, wholeTokens } from './input.ts';
import type { LayerShape } from './layer.ts';
import { attentionMass, type Mass } from './mass.ts';
import {
  APPEND_OPTIONS,
  type AppendOptions,
  ATTEND_OPTIONS,
  type AttendOptions,
  type DecodeOptions,
  EVICT_OPTIONS,
  type EvictOptions,
  layoutOf,
  MASS_OPTIONS,
  type MassOptions
} from './options.ts';
import { PageTables } from './pagetable.ts';
import { Pool } from './pool.ts';
import { isAmong, type Place, Sealing, type Use } from './sealing.ts';
import { balanceBytes, baseSlots, type CacheShape, ofLayer, sealable, windowsBehind } from './shape.ts';

/** @internal What messages call the nth array of a list: a batch's are numbered, and one that came alone is called by its own name. */
export type NameOf = (list: 'keys' | 'values' | 'queries', n: number) => string;

/** @internal */
export class Core {
  readonly backend: Backend;
  readonly shape: CacheShape;
  readonly #pool: Pool;
  #store: Store | undefined;
  readonly #sealing: Sealing;
  readonly #branching: Branching;

  constructor(backend: Backend, shape: CacheShape) {
    this.backend = backend;
    this.shape = shape;
    const store = backend.createStore(shape); // first: it refuses what does not fit, of which there may be too many to number
    try {
      this.#pool = new Pool(shape);
      this.#sealing = new Sealing(this.#pool, shape);
      this.#branching = new Branching(this.#pool, this.#sealing);
    } catch (error) {
      store.dispose();
      throw error;
    }
    this.#store = store;
  }

  /** The memory, unless the cache or its backend was disposed, or the sequence that is asked for. */
  store(tables?: PageTables): Store {
    if (tables?.open === false) throw new TypeError('sequence expected open, got disposed');
    if (!this.#store) throw new TypeError('cache expected open, got disposed');
    this.backend.checkOpen();
    return this.#store;
  }

  /** Refuses where the sequence or the cache was disposed. */
  checkOpen(tables?: PageTables): void {
    this.store(tables);
  }

  /** An empty sequence. */
  open(): PageTables {
    return this.#opened({}, () => {});
  }

  /** A sequence of what a file holds. */
  restore({ length, layers: found }: FileContents): PageTables {
    const store = this.store();
    // Of another cache's, which keeps more for crops, there may be windows that no query sees.
    const layers = found.map((contents, layer) => withoutBehind(contents, windowsBehind(this.shape, layer, length)));
    const held = layers.map(({ windows, coded }) => length - WINDOW * (coded - windows.length));
    held.forEach((tokens, layer) => this.#pool.checkRoom(layer, tokens));
    // Where the file's cache had still to learn and this one has not, a window more is raw than this one reserves: it is coded at once.
    const most = baseSlots(this.shape);
    const slots = sumOf(layers, ({ raws }) => Math.min(raws.length, most)) + Number(layers.some(({ raws }) => raws.length > most));
    const complete = Math.floor(windowsOf(length, this.shape.sinks));
    const pages = layers.map(({ pages, coded }) => pages.length + sealable(this.shape, complete, coded));
    return this.#opened({ slots: new Array<number>(slots).fill(WINDOW), pages }, tables =>
      layers.forEach(({ pages, windows, coded, dropped, whole, raws, sinks, balance, energies, counted }, layer) => {
        tables.fill(layer, windows, raws.length, { length, coded, dropped, whole });
        const table = tables.layers[layer]!;
        pages.forEach((page, n) => store.setPage(layer, table.pages[n]!, page));
        raws.forEach((raw, n) => store.setSlot(layer, table.raws[n]!, raw));
        if (sinks) store.setSlot(layer, table.sinkSlot, sinks);
        if (balance) store.setBalance(layer, tables.number, balance);
        if (energies && tables.learns(layer)) {
          store.setEnergies(layer, tables.number, energies);
          tables.count(layer, counted);
        }
        this.#sealing.seal(store, [{ tables, layer }]);
      })
    );
  }

  /** Appends to a layer of every sequence. */
  append(
    batch: readonly PageTables[],
    layer: number,
    keys: readonly Input[],
    values: readonly Input[],
    nameOf: NameOf,
    options: AppendOptions = {}
  ): void {
    const store = this.store();
    const layout = layoutOf(options, APPEND_OPTIONS);
    const { kvHeads, headDim, valueDim } = this.#layer(layer);
    const counts = batch.map((tables, n) => {
      this.checkOpen(tables);
      const [keysName, valuesName] = [nameOf('keys', n), nameOf('values', n)];
      const length = checkInput(keysName, keys[n]!, store.takesBuffers, kvHeads * headDim);
      const tokens = wholeTokens(keysName, length, kvHeads, headDim);
      const valuesLength = checkInput(valuesName, values[n]!, store.takesBuffers, kvHeads * valueDim);
      const expected = tokens * kvHeads * valueDim;
      checkLength(valuesName, valuesLength, expected, `${plural(tokens, 'token')} × ${plural(kvHeads, 'head')} × ${valueDim}`);
      tables.checkAppend(keysName, layer, tokens);
      return tokens;
    });
    // Pages that sequences of the batch share go when all of them let go.
    const passing = batch.map(tables => tables.passingPages(layer));
    const freed = this.#pool.freed(layer, passing) + sumOf(batch, tables => tables.passingSlots(layer));
    this.#pool.checkRoom(layer, sumOf(counts, count => count) - WINDOW * freed);
    const waiting = batch.filter(tables => this.#sealing.waits(tables, layer)).map(tables => ({ tables, layer }));
    const slots = batch.flatMap((tables, n) => slotsFor(tables, layer, this.shape.sinks, counts[n]!));
    const more = batch.flatMap((tables, n) => growing(tables, layer, this.shape.sinks, counts[n]!));
    // Sequences that are not in this batch may be at the same layer, in another batch: their windows stay. Those that are at another
    // layer have attended to theirs, unless the caller goes through layers in another order for each: where memory is short, such a
    // prompt is read coded. This bounds the raw memory that prompts need, to one layer's tokens.
    const takeBack = batch.map(tables => tables.pass(layer));
    orUndo(
      () => takeBack.forEach(undo => undo()),
      () => {
        const places = this.#sealing.withRoom(waiting, () => slots.length, { newest: layer });
        this.#sealing.seal(store, places, { slots, growing: more });
      }
    );
    for (const tables of batch) tables.drop(layer); // not before: where memory is refused, pages stay
    const before = batch.map(tables => tables.layers[layer]!.length);
    orUndo(
      () => batch.forEach((tables, n) => tables.crop(layer, before[n]!)),
      () => {
        const runs = batch.map((tables, n) => tables.extend(layer, counts[n]!));
        store.write(
          layer,
          runs.map((runs, n) => ({ keys: keys[n]!, values: values[n]!, layout, runs }))
        );
      }
    );
    for (const tables of batch) this.#sealing.appended(tables, layer);
  }

  /** Attention of every sequence's newest queries. */
  attend<Out extends Target>(
    batch: readonly PageTables[],
    layer: number,
    queries: readonly Input[],
    nameOf: NameOf,
    options: AttendOptions<Out> = {}
  ): Output<Results<Out>> {
    const store = this.store();
    const layout = layoutOf(options, ATTEND_OPTIONS);
    this.#layer(layer);
    for (const tables of batch) this.checkOpen(tables);
    return attend(store, this.shape, batch, layer, queries, n => nameOf('queries', n), layout, options);
  }

  /** What share of a query's attention goes to every window. */
  async mass(tables: PageTables, layer: number, query: Data, options: MassOptions = {}): Promise<Mass[]> {
    const store = this.store(tables);
    checkOptions('options', options, MASS_OPTIONS);
    const { queryHeads, headDim } = this.#layer(layer);
    const tokens = checkQuery('query', query, false, queryHeads, headDim);
    checkAnswerable(this.shape, 'query', tables, layer, tokens);
    const { scale = 1 / Math.sqrt(headDim) } = options;
    checkPositive('scale', scale, SCALE_MOST);
    return attentionMass(store, this.shape, layer, tables.layers[layer]!, query, scale);
  }

  /** What a layer holds of some positions. */
  async decode(tables: PageTables, layer: number, options: DecodeOptions = {}): Promise<Tokens<Target, Target>> {
    const store = this.store(tables);
    this.#layer(layer);
    return decodeTokens(store, this.shape, layer, tables.layers[layer]!, options);
  }

  /** Codes every complete window of a sequence, but the `recent` newest. */
  seal(tables: PageTables): void {
    this.#sealing.seal(this.store(tables), this.#sealing.waiting(tables));
  }

  /** A sequence with the same tokens: sealed pages are shared, the rest is copied. */
  fork(tables: PageTables): PageTables {
    return this.#branching.fork(this.store(tables), tables);
  }

  /** What the tables of a batch are once its nth sequence goes on from its parents[n]th. */
  reorder(batch: readonly PageTables[], parents: readonly number[]): PageTables[] {
    for (const tables of batch) this.checkOpen(tables);
    for (let n = 0; n < parents.length; n++) checkInteger(`parents[${n}]`, parents[n], 0, batch.length - 1); // holes too
    return this.#branching.reorder(this.store(), batch, parents);
  }

  /** Forgets all tokens from `length` on. */
  crop(tables: PageTables, length: number): void {
    const store = this.store(tables);
    checkInteger('length', length, 0, tables.length);
    tables.layers.forEach((table, layer) => {
      checkCrop(this.shape, layer, table, length);
      this.#pool.checkRoom(layer, Math.max(0, tables.cropCost(layer, length)));
    });
    const room = (places: readonly Place[]) => cutting(tables, length, layer => isAmong(places, tables, layer));
    const places = this.#sealing.withRoom([], all => room(all).slots.length, { spared: tables });
    // What it sees is not to go while room is made.
    orUndo(tables.ask(length), () => this.#sealing.seal(store, places, room(places)));
    tables.layers.forEach((_, layer) => {
      const cut = tables.cutPage(layer, length);
      if (cut) store.decode(layer, cut.page, cut.slot, tables.number);
    });
    tables.layers.forEach(({ coded }, layer) => {
      tables.crop(layer, length);
      // What was learned goes with the first coded window, and what was counted with the first token.
      if (tables.layers[layer]!.coded === 0 && (coded > 0 || length === 0)) this.#forget(tables, layer);
    });
  }

  /** Forgets the coded windows between two positions, in a layer or in all. */
  evict(tables: PageTables, options: EvictOptions): void {
    const store = this.store(tables);
    checkOptions('options', options, EVICT_OPTIONS);
    const { from, to, layer } = options;
    checkInteger('to', to, 1, tables.length);
    checkInteger('from', from, 0, to - 1);
    if (layer !== undefined) this.#layer(layer);
    const { sinks } = this.shape;
    const [first, end] = [Math.ceil(Math.max(0, from - sinks) / WINDOW), Math.floor((to - sinks) / WINDOW)];
    const layers = layer === undefined ? tables.layers.map((_, n) => n) : [layer];
    if (!layers.some(n => tables.evicts(n, first, end))) {
      throw new RangeError(`"to" expected the end of a coded window that begins at ${from} or behind it, got ${to}`);
    }
    this.#sealing.seal(store, this.#sealing.waiting(tables));
    for (const n of layers) tables.evict(n, first, end);
  }

  /** What a sequence's file holds, with these words of the application. */
  async contents(tables: PageTables, metadata: Metadata): Promise<FileContents> {
    const store = this.store(tables);
    const { length } = tables;
    tables.layers.forEach((table, layer) => {
      if (table.length !== length) {
        throw new RangeError(`layer ${layer} expected ${length} tokens, as the shortest has, got ${table.length}`);
      }
    });
    this.#sealing.seal(store, this.#sealing.waiting(tables));
    // All reads are queued before the first is awaited: the file is the sequence at the time of the call.
    const layers = await Promise.all(
      tables.layers.map(async (table, layer) => {
        const counted = tables.counted(layer);
        const { coded, dropped, whole } = table;
        const windows = Array.from(table.windows.subarray(0, table.pageCount));
        const dump = await store.dump(layer, table);
        const balance = coded > 0 ? dump.balance : undefined;
        return { ...dump, windows, coded, dropped, whole, balance, energies: counted > 0 ? dump.energies : undefined, counted };
      })
    );
    const seen = layers.map((contents, layer) => withoutBehind(contents, windowsBehind(this.shape, layer, length)));
    return { length, metadata, layers: seen };
  }

  /** What a sequence has learned, u8 [layers, kvHeads, headDim / 2]. */
  async balance(tables: PageTables): Promise<Uint8Array> {
    const store = this.store(tables);
    const { balance, layers } = this.shape;
    if (balance === 'off') throw new RangeError('"balance" expected learn or Uint8Array (option of the cache), got off');
    const unlearned = tables.layers.findIndex((_, layer) => tables.learns(layer));
    if (unlearned >= 0) throw new RangeError(`layer ${unlearned} expected a coded window (by the first it has learned), got none`);
    const dumps = await Promise.all(
      tables.layers.map((table, layer) => store.dump(layer, { ...table, length: 0, pageCount: 0, rawCount: 0 }))
    );
    const profile = new Uint8Array(balanceBytes(layers));
    dumps.forEach((dump, layer) => ofLayer(profile, layers, layer).set(dump.balance!));
    return profile;
  }

  /** Gives a sequence's pages and slots back. */
  release(tables: PageTables): void {
    if (!tables.open) return;
    tables.release();
    this.#sealing.forget(tables);
  }

  dispose(): void {
    this.#store?.dispose();
    this.#store = undefined;
  }

  /** Tokens that every layer has room for. */
  get free(): number {
    this.checkOpen();
    return this.#pool.held.reduce((least, held) => Math.min(least, this.shape.capacity - held), Infinity);
  }

  /** The positions that a layer of a sequence holds. */
  ranges(tables: PageTables, layer: number): Range[] {
    this.checkOpen(tables);
    this.#layer(layer);
    return rangesOf(this.shape, tables.layers[layer]!);
  }

  /** What a layer is, if there is one of this number. */
  #layer(layer: number): LayerShape {
    checkInteger('layer', layer, 0, this.shape.layers.length - 1);
    return this.shape.layers[layer]!;
  }

  /** A new sequence once there is room for what it is filled with; where something throws, nothing is left of it. */
  #opened(use: Use, fill: (tables: PageTables) => void): PageTables {
    const store = this.store();
    const tables = new PageTables(this.#pool);
    return orUndo(
      () => this.release(tables),
      () => {
        const places = this.#sealing.withRoom([], () => use.slots?.length ?? 0);
        this.#sealing.seal(store, places, { ...use, sequences: [tables.number] });
        this.shape.layers.forEach((_, layer) => this.#forget(tables, layer));
        fill(tables);
        return tables;
      }
    );
  }

  /** A layer of a sequence has learned nothing, or what the cache was told. */
  #forget(tables: PageTables, layer: number): void {
    const { balance, layers } = this.shape;
    if (balance === 'learn') this.store().setEnergies(layer, tables.number);
    else if (balance !== 'off') this.store().setBalance(layer, tables.number, ofLayer(balance, layers, layer));
  }
}

/** Runs what may be refused, and takes back then what was changed for it. */
function orUndo<T>(undo: () => void, run: () => T): T {
  try {
    return run();
  } catch (error) {
    undo();
    throw error;
  }
}
