// A random history of a cache: calls, good, bad and broken off by the backend, each of them checked against lists of tokens (model.ts).

import { BackendError, type CacheOptions, KVCache, type Rope, type Sequence, type Tokens } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend, PageTable, Store } from '../src/backend.ts';
import { expectedOver } from './attention.ts';
import { pairsOf } from './brute.ts';
import { allFinite, atMost, relativeL2, sameBits, withinFloatRule } from './compare.ts';
import { learnedFrom } from './encoded.ts';
import { altered } from './gpu.ts';
import { halfBits, rounded } from './half.ts';
import { below, normal, random } from './inputs.ts';
import { mistakesIn } from './mistakes.ts';
import { type Lesson, ModelCache, ModelSequence, rowsOf, SIDES, stream, type Token, WIDTH } from './model.ts';
import { readSaved } from './pages.ts';
import { CODED_ROW, LEVEL_TIE } from './tolerance.ts';
import type { Tested } from './verbs.ts';

const base = {
  layers: 2,
  kvHeads: 1,
  queryHeads: 2,
  headDim: WIDTH,
  capacity: 420,
  sequences: 4,
  keys: 'nsn4',
  values: 'nsn4'
} satisfies CacheOptions;

/** Verbs that a backend may refuse in the middle of a call, as one does that has run out of memory. */
const VERBS = [
  'write',
  'learn',
  'encode',
  'copySlot',
  'copyBalance',
  'setSlot',
  'setPage',
  'setBalance',
  'setEnergies',
  'dump',
  'attend',
  'addEnergies'
] as const;
type Verb = (typeof VERBS)[number];

interface Pair {
  readonly sequence: Sequence;
  readonly model: ModelSequence;
}

export class History {
  readonly cache: KVCache;
  readonly counts = { done: 0, refused: 0, broken: 0 };
  readonly #backend: Tested['backend'];
  readonly #options: CacheOptions;
  readonly #other: KVCache;
  readonly #foreign: Sequence;
  readonly #next: () => number;
  readonly #gpu: boolean;
  readonly #model: ModelCache;
  readonly #open: Pair[] = [];
  readonly #saved: { readonly file: Uint8Array; readonly model: ModelSequence }[] = [];
  #disposed: Sequence | undefined;
  /** Whether the call of this step threw. */
  #threw = false;
  #at = 0;
  #store!: Store;
  /** The verb that is to throw when it is next called. */
  #breaks: Verb | undefined;
  #attended: readonly PageTable[] = [];

  constructor({ backend, gpu }: Tested, options: Partial<CacheOptions>, seed: number) {
    this.#options = { ...base, ...options };
    this.#backend = backend;
    this.#next = random(seed);
    this.#gpu = gpu;
    const inside = backend as Backend;
    const watched: Backend = { ...inside, createStore: shape => this.#watched((this.#store = inside.createStore(shape))) };
    this.cache = new KVCache(watched, this.#options);
    this.#other = new KVCache(backend, this.#options);
    this.#foreign = this.#other.sequence();
    this.#model = new ModelCache({ ...this.cache.shape, queryHeads: this.cache.shape.layers[0]!.queryHeads, layers: 2 });
  }

  #watched(store: Store): Store {
    const changes = VERBS.map(verb => [
      verb,
      (...args: unknown[]) => {
        if (this.#breaks === verb) {
          this.#breaks = undefined;
          throw new BackendError(this.cache.backend.name, 'was told to refuse, got a call');
        }
        if (verb === 'attend') this.#attended = args[1] as readonly PageTable[];
        return (store[verb] as (...args: unknown[]) => unknown)(...args);
      }
    ]);
    return altered(store, Object.fromEntries(changes));
  }

  #below(count: number): number {
    return below(this.#next, count);
  }

  #pick<T>(list: readonly T[]): T | undefined {
    return list[this.#below(list.length)];
  }

  /** One call, chosen at random, and all that can be said of what it left. */
  async step(): Promise<void> {
    this.#threw = false;
    const chosen = this.#pick(this.#open);
    const action = this.#next();
    if (!chosen || action < 0.05) await this.#create();
    else if (action < 0.45) await this.#append();
    else if (action < 0.55) await this.#attend();
    else if (action < 0.6) await this.#seal(chosen);
    else if (action < 0.68) await this.#fork(chosen);
    else if (action < 0.8) await this.#crop(chosen);
    else if (action < 0.84) await this.#save(chosen);
    else if (action < 0.87) await this.#restore();
    else if (action < 0.96) await this.#mistake(chosen);
    else this.#dispose(chosen);
    // What was refused must be seen to have changed nothing. On a GPU every look waits for its queue.
    await this.#check(this.#gpu ? 0.1 : this.#threw ? 1 : 0.4);
  }

  /**
   * Makes a call that the model refuses with `refusal`, or not; one of these verbs of the backend may break it off.
   *
   * @returns 'done', or 'refused' where nothing may have changed, or 'broken' where the backend threw
   */
  async #call(verbs: readonly Verb[], refusal: string | undefined, run: () => unknown): Promise<'done' | 'refused' | 'broken'> {
    const verb = this.#next() < 0.1 ? this.#pick(verbs) : undefined;
    this.#breaks = verb;
    let error: unknown;
    try {
      await run();
    } catch (thrown) {
      error = thrown;
    }
    const broken = verb !== undefined && this.#breaks === undefined;
    this.#breaks = undefined;
    if (broken) assert.instance(error, BackendError);
    else if (refusal === undefined && error !== undefined) throw error;
    else if (refusal !== undefined) {
      assert.instance(error, RangeError);
      assert.is((error as Error).message, refusal);
    }
    const outcome = broken ? 'broken' : refusal === undefined ? 'done' : 'refused';
    this.counts[outcome]++;
    this.#threw = outcome !== 'done';
    return outcome;
  }

  /** The verb that a new sequence begins with, but where keys are plain. */
  get #opening(): Verb {
    return this.cache.shape.balance === 'learn' ? 'setEnergies' : 'setBalance';
  }

  #add(sequence: Sequence, model: ModelSequence): void {
    this.#open.push({ sequence, model });
    this.#model.open.add(model);
  }

  async #create(): Promise<void> {
    let sequence: Sequence;
    const outcome = await this.#call([this.#opening], this.#model.full, () => {
      sequence = this.cache.sequence();
    });
    if (outcome === 'done') this.#add(sequence!, new ModelSequence(this.#model.shape));
  }

  async #append(): Promise<void> {
    const batch = this.#open.filter((_, n) => n === 0 || this.#next() < 0.3);
    if (this.#next() < 0.5) batch.splice(0, batch.length, this.#pick(this.#open)!);
    const layer = this.#below(2);
    const { maxAppend } = this.cache.shape;
    const tokens = batch.map(() =>
      Array.from({ length: 1 + this.#below(this.#next() < 0.3 ? maxAppend : 12) }, () => stream[this.#at++ % 2048]!)
    );
    const inputs = SIDES.map(side => tokens.map(rows => (this.#next() < 0.8 ? rowsOf(rows, side) : halfBits(rowsOf(rows, side)))));
    const models = batch.map(({ model }) => model);
    const count = tokens.reduce((sum, rows) => sum + rows.length, 0);
    let wrote = false;
    const outcome = await this.#call(['write', 'encode', 'learn'], this.#model.overflow(layer, count), () => {
      wrote = this.#breaks === 'write';
      if (batch.length === 1 && this.#next() < 0.5) batch[0]!.sequence.append(layer, inputs[0]![0]!, inputs[1]![0]!);
      else
        this.cache.append(
          batch.map(({ sequence }) => sequence),
          layer,
          inputs[0]!,
          inputs[1]!
        );
    });
    // What waited is coded before the tokens are written.
    if (outcome === 'done' || (outcome === 'broken' && wrote)) {
      this.#model.sealBefore(
        models,
        layer,
        tokens.map(rows => rows.length)
      );
    }
    if (outcome !== 'done') return;
    models.forEach((model, n) => {
      model.layers[layer]!.tokens.push(...tokens[n]!);
      model.newest = layer;
      this.#model.newest = layer;
    });
  }

  async #attend(): Promise<void> {
    const layer = this.#below(2);
    const batch = this.#open.filter(({ model }) => model.layers[layer]!.tokens.length > 0 && this.#next() < 0.6);
    const queries = batch.map(({ model }) =>
      normal(1 + this.#below(this.#next() < 0.2 ? model.layers[layer]!.tokens.length : 1), 2 * WIDTH, this.#below(2 ** 31))
    );
    let out: Float32Array = new Float32Array(0);
    const outcome = await this.#call(['attend', 'addEnergies'], undefined, async () => {
      out = await this.cache
        .attend(
          batch.map(({ sequence }) => sequence),
          layer,
          queries
        )
        .read();
    });
    if (outcome !== 'done') return;
    batch.forEach(({ model }, n) => {
      model.ask(layer, queries[n]!);
    });
    const tables = this.#attended;
    let from = 0;
    for (const [n, { sequence }] of batch.entries()) {
      const { pages } = await this.#store.dump(layer, tables[n]!);
      const { exact, naive, extra } = expectedOver(sequence, layer, queries[n]!, await sequence.decode(layer), pages);
      withinFloatRule(`attention of ${n}`, out.subarray(from, (from += queries[n]!.length)), exact, naive, WIDTH, extra);
    }
    assert.is(from, out.length);
  }

  async #seal({ sequence, model }: Pair): Promise<void> {
    if ((await this.#call(['encode', 'learn'], undefined, () => sequence.seal())) === 'done') model.sealAll();
  }

  async #fork({ sequence, model }: Pair): Promise<void> {
    const copied = (layer: number) => model.layers[layer]!.tokens.length - 64 * model.sealedPages(layer);
    let fork: Sequence;
    let copying = false;
    const outcome = await this.#call(
      ['copySlot', 'copyBalance', 'encode', 'learn'],
      this.#model.overflows(copied) ?? this.#model.full,
      () => {
        copying = this.#breaks === 'copySlot' || this.#breaks === 'copyBalance';
        fork = sequence.fork();
      }
    );
    if (outcome === 'done' || (outcome === 'broken' && copying)) {
      model.sealAll();
      this.#model.makeRoom(model.slots);
    }
    if (outcome === 'done') this.#add(fork!, model.fork());
  }

  async #crop({ sequence, model }: Pair): Promise<void> {
    const { length } = model;
    // Mostly a few of the newest, as drafts that are rejected.
    const to = Math.max(0, length - this.#below(this.#next() < 0.6 ? Math.min(8, length + 1) : length + 1));
    const decoded: Token[][] = [];
    for (const layer of [0, 1]) {
      const { keys, values } = await sequence.decode(layer);
      const from = model.cutFrom(layer, to);
      // What a cut leaves of a page is raw from now on, rounded to f16.
      const row = (x: Float32Array, t: number) => rounded(x.subarray(t * WIDTH, (t + 1) * WIDTH));
      decoded.push(Array.from({ length: to - from }, (_, n) => ({ keys: row(keys, from + n), values: row(values, from + n) })));
    }
    const outcome = await this.#call(
      [],
      this.#model.overflows(layer => model.cropCost(layer, to)),
      () => sequence.crop(to)
    );
    if (outcome !== 'done') return;
    this.#model.makeRoom([0, 1].filter(layer => model.cutNeedsSlot(layer, to)).length, { spared: model });
    model.crop(to, decoded);
  }

  async #save({ sequence, model }: Pair): Promise<void> {
    const { length } = model;
    const uneven = model.layers.findIndex(({ tokens }) => tokens.length !== length);
    const refusal = model.even
      ? undefined
      : `layer ${uneven} expected ${length} tokens, as the shortest has, got ${model.layers[uneven]!.tokens.length}`;
    let file: Uint8Array;
    let dumping = false;
    const outcome = await this.#call(['dump', 'encode', 'learn'], refusal, async () => {
      dumping = this.#breaks === 'dump';
      file = await sequence.save();
    });
    if (outcome === 'done' || (outcome === 'broken' && dumping)) model.sealAll();
    if (outcome !== 'done') return;
    await this.#checkFile(file!, model);
    if (this.#saved.length === 4) this.#saved.shift();
    this.#saved.push({ file: file!, model: model.copy() });
  }

  async #restore(): Promise<void> {
    const saved = this.#pick(this.#saved);
    if (!saved) return;
    const { file, model } = saved;
    let sequence: Sequence;
    let filling = false;
    const outcome = await this.#call(
      ['setPage', 'setSlot', 'setBalance', 'setEnergies', 'encode', 'learn'],
      this.#model.overflows(() => model.length) ?? this.#model.full,
      () => {
        filling = ![this.#opening, 'encode', 'learn', undefined].includes(this.#breaks);
        sequence = this.cache.restore(file);
      }
    );
    if (outcome === 'done' || (outcome === 'broken' && filling)) this.#model.makeRoom(model.slots);
    if (outcome === 'done') this.#add(sequence!, model.copy());
  }

  #dispose(chosen: Pair): void {
    chosen.sequence.dispose();
    chosen.model.dispose();
    this.#model.open.delete(chosen.model);
    this.#open.splice(this.#open.indexOf(chosen), 1);
    this.#disposed = chosen.sequence;
    this.counts.done++;
  }

  /** A call that is wrong whatever the cache holds: an error in the library's form, and nothing has changed. */
  async #mistake({ sequence }: Pair): Promise<void> {
    const mistakes = mistakesIn({
      cache: this.cache,
      sequence,
      open: this.#open.map(pair => pair.sequence),
      foreign: this.#foreign,
      disposed: this.#disposed,
      file: this.#pick(this.#saved)?.file,
      next: this.#next
    });
    const mistake = this.#pick(mistakes)!;
    let error: unknown;
    try {
      await mistake();
    } catch (thrown) {
      error = thrown;
    }
    assert.ok(error instanceof TypeError || error instanceof RangeError, `expected a refusal, got ${error} of ${mistake}`);
    assert.match((error as Error).message, /expected .+, got .+/);
    this.counts.refused++;
    this.#threw = true;
  }

  /** Lengths and bytes of all sequences, and what `share` of them hold. */
  async #check(share: number): Promise<void> {
    const { layers, sinks, rawSlotBytes, sinkBytes } = this.cache.shape;
    for (const { sequence, model } of this.#open) {
      assert.is(sequence.length, model.length);
      const count = (bytesOf: (layer: number) => number) => bytesOf(0) + bytesOf(1);
      const pagesOf = (layer: number) => model.layers[layer]!.pages.length;
      assert.is(
        sequence.bytes,
        count(
          layer =>
            pagesOf(layer) * (layers[layer]!.page.bytes + 4) +
            model.rawWindows(layer) * rawSlotBytes +
            (model.layers[layer]!.tokens.length > 0 ? sinkBytes + layers[layer]!.learnedBytes : 0)
        )
      );
      assert.equal(sequence.sealed, { bytes: count(layer => pagesOf(layer) * layers[layer]!.page.bytes), tokens: 32 * count(pagesOf) });
      if (this.#next() >= share) continue;
      for (const layer of [0, 1])
        checkTokens(`layer ${layer}`, await sequence.decode(layer), model, layer, layers[layer]!.page.keys.codec.name === 'nsn4', sinks);
    }
  }

  /**
   * What a file says of balances is what its layers learned from teaches; and the bytes of coded windows are those that the same tokens
   * have, by the same balances, where nothing but appends made them, split otherwise, and nothing stays raw.
   */
  async #checkFile(file: Uint8Array, { layers, length }: ModelSequence): Promise<void> {
    const saved = readSaved(file).layers;
    const { balance, maxAppend } = this.cache.shape;
    const { headDim, rope } = this.cache.shape.layers[0]!;
    const profile = typeof balance === 'string' ? new Uint8Array(headDim) : balance.slice();
    layers.forEach(({ pages, asked, lesson }, layer) => {
      const from = (layer * headDim) / 2;
      const { balance: found, energies } = saved[layer]!;
      assert.is(found !== undefined, balance !== 'off' && pages.length > 0);
      assert.is(energies !== undefined, asked.length > 0);
      if (energies) checkEnergies(energies, this.#energiesOf(asked));
      if (lesson) checkLesson(`balance of layer ${layer}`, found!, lesson, this.#energiesOf(lesson.asked), rope);
      else if (found) sameBits('profile', found, profile.subarray(from, from + headDim / 2));
      if (found) profile.set(found, from);
    });
    const twin = new KVCache(this.#backend, { ...this.#options, recent: 0, balance: balance === 'off' ? 'off' : profile });
    const sequence = twin.sequence();
    for (let from = 0; from < length; ) {
      const to = Math.min(length, from + 1 + this.#below(maxAppend));
      layers.forEach(({ tokens }, layer) => {
        const rows = tokens.slice(from, to);
        sequence.append(layer, rowsOf(rows, 'keys'), rowsOf(rows, 'values'));
      });
      from = to;
    }
    const expected = readSaved(await sequence.save()).layers;
    saved.forEach(({ pages }, layer) => {
      assert.is(pages.length, layers[layer]!.pages.length);
      pages.forEach((page, n) => sameBits(`page ${n} of layer ${layer}`, page, expected[layer]!.pages[n]!));
    });
    twin.dispose();
  }

  /** Σ q² of pairs. */
  #energiesOf(asked: readonly Float32Array[]): Float64Array {
    const { headDim, rope } = this.cache.shape.layers[0]!;
    const pairs = pairsOf(headDim, rope);
    const energies = new Float64Array(pairs.length);
    for (const query of asked) {
      for (let at = 0; at < query.length; at += headDim) {
        pairs.forEach(([a, b], pair) => {
          energies[pair]! += query[at + a]! ** 2 + query[at + b]! ** 2;
        });
      }
    }
    return energies;
  }

  /** Disposes all, and the cache is as if nothing had been: the whole capacity and all sequences fit again, and no more. */
  async end(): Promise<void> {
    while (this.#open.length > 0) this.#dispose(this.#pick(this.#open)!);
    const { capacity, maxAppend, sequences } = this.cache.shape;
    const all = Array.from({ length: sequences }, () => this.cache.sequence());
    assert.throws(
      () => this.cache.sequence(),
      (error: Error) => error instanceof RangeError
    );
    for (const layer of [0, 1]) {
      for (let held = 0; held < capacity; held += maxAppend) {
        const x = new Float32Array(Math.min(maxAppend, capacity - held) * WIDTH);
        all[held % sequences]!.append(layer, x, x);
      }
      const one = new Float32Array(WIDTH);
      assert.throws(
        () => all[0]!.append(layer, one, one),
        (error: Error) => error instanceof RangeError
      );
    }
    this.cache.dispose();
    this.#other.dispose();
  }
}

/** Sums in f32 are as near as levels need them. */
function checkEnergies(actual: Float32Array, expected: Float64Array): void {
  assert.is(actual.length, expected.length);
  actual.forEach((energy, pair) => {
    atMost(`energy of pair ${pair}: difference`, Math.abs(energy - expected[pair]!), LEVEL_TIE * expected[pair]!);
  });
}

function checkLesson(what: string, balance: Uint8Array, { tokens }: Lesson, energies: Float64Array, rope: Rope | undefined): void {
  const windows = [tokens.slice(0, 64), tokens.slice(64)].map(window => rowsOf(window, 'keys'));
  learnedFrom(what, balance, windows, energies, WIDTH, rope, { near: 0, codes: 0 });
}

/** Raw tokens are as they came, coded ones near it. */
function checkTokens(what: string, held: Tokens, model: ModelSequence, layer: number, near: boolean, sinks: number): void {
  const { tokens, pages } = model.layers[layer]!;
  const coded = [sinks, sinks + 64 * pages.length] as const;
  for (const side of SIDES) {
    const [actual, expected] = [held[side], rowsOf(tokens, side)];
    assert.is(actual.length, expected.length);
    const [begin, end] = coded.map(t => Math.min(t * WIDTH, expected.length)) as [number, number];
    sameBits(`${what}: ${side} of sinks`, actual.subarray(0, begin), expected.subarray(0, begin));
    sameBits(`${what}: raw ${side}`, actual.subarray(end), expected.subarray(end));
    allFinite(`${what}: ${side}`, actual);
    for (let at = begin; near && at < end; at += WIDTH) {
      const row = (x: Float32Array) => x.subarray(at, at + WIDTH);
      atMost(`${what}: error of ${side} of token ${at / WIDTH}`, relativeL2(row(actual), row(expected)), CODED_ROW);
    }
  }
}
