// A random history of a cache: calls, good, bad and broken off by the backend, each of them checked against lists of tokens (model.ts, model-cache.ts).

import {
  BackendError,
  type CacheOptions,
  type CacheShape,
  KVCache,
  type LayerOptions,
  type LayerShape,
  type Range,
  type Sequence,
  type Tokens
} from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend, PageTable, Store } from '../src/backend.ts';
import { expectedOver, positionsOf } from './attention.ts';
import { pairsOf } from './brute.ts';
import { allFinite, atMost, relativeL2, sameBits, withinFloatRule } from './compare.ts';
import { learnedFrom } from './encoded.ts';
import { altered } from './gpu.ts';
import { Granted } from './granted.ts';
import { halfBits, rounded } from './half.ts';
import { below, normal, random } from './inputs.ts';
import { mistakesIn } from './mistakes.ts';
import { type Lesson, ModelSequence, rowsOf, SIDES, type Side, stream, type Token, WIDTH, widthOf } from './model.ts';
import { first, ModelCache } from './model-cache.ts';
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
type Verb = 'reserve' | (typeof VERBS)[number];

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
  #granted!: Granted;
  /** The verb that is to throw when it is next called. */
  #breaks: Verb | undefined;
  #attended: readonly PageTable[] = [];

  constructor({ backend, gpu }: Tested, options: Partial<CacheOptions>, seed: number) {
    this.#options = { ...base, ...options };
    this.#backend = backend;
    this.#next = random(seed);
    this.#gpu = gpu;
    const inside = backend as Backend;
    const watch = (shape: CacheShape) => {
      this.#granted = new Granted(shape);
      this.#store = inside.createStore(shape);
      return this.#watched(this.#granted.watch(this.#store));
    };
    this.cache = new KVCache({ ...inside, createStore: watch } as Backend, this.#options);
    this.#other = new KVCache(backend, this.#options);
    this.#foreign = this.#other.sequence();
    this.#model = new ModelCache(this.cache.shape);
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
    else if (action < 0.59) await this.#seal(chosen);
    else if (action < 0.66) await this.#fork(chosen);
    else if (action < 0.77) await this.#crop(chosen);
    else if (action < 0.81) await this.#evict(chosen);
    else if (action < 0.83) await this.#reorder();
    else if (action < 0.865) await this.#save(chosen);
    else if (action < 0.89) await this.#restore();
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
    // Memory that is wanted a second time is refused as it is the first.
    if (verb === 'reserve') this.#granted.left = this.#below(2);
    else this.#breaks = verb;
    let error: unknown;
    try {
      await run();
    } catch (thrown) {
      error = thrown;
    }
    const broken = verb === 'reserve' ? this.#granted.left < 0 : verb !== undefined && this.#breaks === undefined;
    this.#breaks = undefined;
    this.#granted.left = Infinity;
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
    const outcome = await this.#call(['reserve', this.#opening], this.#model.full, () => {
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
    const inputs = SIDES.map(side =>
      tokens.map(held => {
        const rows = rowsOf(held, side, this.#width(layer, side));
        return this.#next() < 0.8 ? rows : halfBits(rows);
      })
    );
    const models = batch.map(({ model }) => model);
    const count = tokens.reduce((sum, rows) => sum + rows.length, 0);
    let wrote = false;
    const outcome = await this.#call(['reserve', 'write', 'encode', 'learn'], this.#model.appendOverflow(models, layer, count), () => {
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
    // What waited is coded and what is behind its window goes before the tokens are written.
    if (outcome === 'done' || (outcome === 'broken' && wrote)) {
      for (const model of models) model.pass(layer);
      this.#model.sealBefore(
        models,
        layer,
        tokens.map(rows => rows.length)
      );
    }
    if (outcome !== 'done') return;
    models.forEach((model, n) => {
      model.append(layer, tokens[n]!);
      model.newest = layer;
      this.#model.newest = layer;
    });
  }

  async #attend(): Promise<void> {
    const layer = this.#below(2);
    const batch = this.#open.filter(({ model }) => model.layers[layer]!.tokens.length > 0 && this.#next() < 0.6);
    const { queryHeads, headDim, valueDim } = this.cache.shape.layers[layer]!;
    // Sometimes one more than may be asked.
    const queries = batch.map(({ model }) => {
      const most = model.answerable(layer) + Number(this.#next() < 0.05);
      return normal(1 + this.#below(this.#next() < 0.1 ? most : 1), queryHeads * headDim, this.#below(2 ** 31));
    });
    const rows = queries.map(query => query.length / headDim);
    const refusals = batch.map(({ model }, n) => model.beyond(`queries[${n}]`, layer, rows[n]! / queryHeads));
    let out: Float32Array = new Float32Array(0);
    const lse = new Float32Array(rows.reduce((a, b) => a + b, 0));
    const outcome = await this.#call(['attend', 'addEnergies'], first(refusals), async () => {
      out = await this.cache
        .attend(
          batch.map(({ sequence }) => sequence),
          layer,
          queries,
          { lse }
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
      const held = { ...(await sequence.decode(layer)), positions: positionsOf(sequence, layer) };
      const expected = expectedOver(sequence, layer, queries[n]!, held, pages);
      const to = from + rows[n]!;
      const what = `attention of ${n}`;
      withinFloatRule(what, out.subarray(from * valueDim, to * valueDim), expected.exact, expected.naive, valueDim, expected.extra);
      const { exact, naive, extra } = expected.lse;
      withinFloatRule(`${what}: log-sum-exp`, lse.subarray(from, to), exact, naive, queryHeads, extra);
      from = to;
    }
    assert.is(from * valueDim, out.length);
  }

  async #seal({ sequence, model }: Pair): Promise<void> {
    if ((await this.#call(['reserve', 'encode', 'learn'], undefined, () => sequence.seal())) === 'done') model.sealAll();
  }

  async #fork({ sequence, model }: Pair): Promise<void> {
    let fork: Sequence;
    let copying = false;
    const outcome = await this.#call(
      ['reserve', 'copySlot', 'copyBalance', 'encode', 'learn'],
      this.#model.overflows(layer => model.copiedTokens(layer) - model.passedTokens(layer)) ?? this.#model.full,
      () => {
        copying = this.#breaks === 'copySlot' || this.#breaks === 'copyBalance';
        fork = sequence.fork();
      }
    );
    if (outcome === 'done' || (outcome === 'broken' && copying)) {
      model.sealAll();
      this.#model.makeRoom(model.slots, { opened: 1 });
    }
    if (outcome === 'done') this.#add(fork!, model.fork());
  }

  async #crop({ sequence, model }: Pair): Promise<void> {
    const { length } = model;
    const { sinks, layers } = this.cache.shape;
    // Mostly a few of the newest, as drafts that are rejected; else anywhere, or near where a window ends, or what one sees.
    const ends = sinks + 64 * this.#below(model.whole(length) + 2) + this.#below(3) - 1;
    const anywhere = this.#pick([length - this.#below(length + 1), ends, ends + Math.min(length, this.#pick(layers)!.window)])!;
    const to = Math.min(length, Math.max(0, this.#next() < 0.6 ? length - this.#below(8) : anywhere));
    const refusal = first(
      layers.flatMap((_, layer) => [model.uncroppable(layer, to), this.#model.overflow(layer, model.cropCost(layer, to))])
    );
    const decoded: Token[][] = [];
    if (refusal === undefined) {
      for (const layer of layers.keys()) {
        const held = await sequence.decode(layer);
        const from = model.cutFrom(layer, to);
        const at = model.positions(layer).indexOf(from);
        // What a cut leaves of a page is raw from now on, rounded to f16.
        const row = (side: Side, t: number) => {
          const width = this.#width(layer, side);
          return rounded(held[side].subarray((at + t) * width, (at + t + 1) * width));
        };
        decoded.push(Array.from({ length: to - from }, (_, t) => ({ keys: row('keys', t), values: row('values', t) })));
      }
    }
    if ((await this.#call(['reserve'], refusal, () => sequence.crop(to))) !== 'done') return;
    model.askAgain(to);
    this.#model.makeRoom(layers.filter((_, layer) => model.cutNeedsSlot(layer, to)).length, { spared: model });
    model.crop(to, decoded);
  }

  async #evict({ sequence, model }: Pair): Promise<void> {
    const { length } = model;
    if (length === 0) return;
    const to = 1 + this.#below(length);
    const from = this.#next() < 0.3 ? 0 : this.#below(to);
    const layer = this.#pick([0, 1, undefined]);
    const layers = layer === undefined ? [0, 1] : [layer];
    const refusal = layers.some(n => model.evicts(n, from, to))
      ? undefined
      : `"to" expected the end of a coded window that begins at ${from} or behind it, got ${to}`;
    const options = layer === undefined ? { from, to } : { from, to, layer };
    if ((await this.#call(['reserve', 'encode', 'learn'], refusal, () => sequence.evict(options))) !== 'done') return;
    model.sealAll();
    for (const n of layers) model.evict(n, from, to);
  }

  async #reorder(): Promise<void> {
    const batch = this.#open.filter(() => this.#next() < 0.8);
    const parents = batch.map(() => this.#below(batch.length));
    const models = batch.map(({ model }) => model);
    const { refusal, run } = this.#model.reorder(models, parents);
    const sequences = batch.map(({ sequence }) => sequence);
    if ((await this.#call(['reserve', 'encode', 'learn'], refusal, () => this.cache.reorder(sequences, parents))) !== 'done') return;
    const next = run();
    batch.forEach(({ sequence }, n) => {
      this.#open[this.#open.indexOf(batch[n]!)] = { sequence, model: next[n]! };
    });
  }

  async #save({ sequence, model }: Pair): Promise<void> {
    const { length } = model;
    const uneven = model.layers.findIndex(({ tokens }) => tokens.length !== length);
    const refusal = model.even
      ? undefined
      : `layer ${uneven} expected ${length} tokens, as the shortest has, got ${model.layers[uneven]!.tokens.length}`;
    let file: Uint8Array;
    let dumping = false;
    const outcome = await this.#call(['reserve', 'dump', 'encode', 'learn'], refusal, async () => {
      dumping = this.#breaks === 'dump';
      file = await sequence.save();
    });
    if (outcome === 'done' || (outcome === 'broken' && dumping)) model.sealAll();
    if (outcome !== 'done') return;
    await this.#checkFile(file!, model.saved());
    if (this.#saved.length === 4) this.#saved.shift();
    this.#saved.push({ file: file!, model: model.saved() });
  }

  async #restore(): Promise<void> {
    const saved = this.#pick(this.#saved);
    if (!saved) return;
    const { file, model } = saved;
    let sequence: Sequence;
    let filling = false;
    const outcome = await this.#call(
      ['reserve', 'setPage', 'setSlot', 'setBalance', 'setEnergies', 'encode', 'learn'],
      this.#model.overflows(layer => model.positions(layer).length) ?? this.#model.full,
      () => {
        filling = !['reserve', 'encode', 'learn', undefined].includes(this.#breaks);
        sequence = this.cache.restore(file);
      }
    );
    if (outcome === 'done' || (outcome === 'broken' && filling)) this.#model.makeRoom(model.slots, { opened: 1 });
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
    const { layers, sinks } = this.cache.shape;
    assert.is(this.cache.free, this.#model.free);
    for (const { sequence, model } of this.#open) {
      assert.is(sequence.length, model.length);
      const count = (countOf: (layer: number) => number) => countOf(0) + countOf(1);
      const pagesOf = (layer: number) => model.pages(layer).length;
      const tokenBytes = (layer: number) => 2 * (this.#width(layer, 'keys') + this.#width(layer, 'values'));
      assert.is(
        sequence.bytes,
        count(
          layer =>
            pagesOf(layer) * (layers[layer]!.page.bytes + 4) +
            64 * model.rawWindows(layer) * tokenBytes(layer) +
            (model.layers[layer]!.tokens.length > 0 ? sinks * tokenBytes(layer) + layers[layer]!.learnedBytes : 0)
        )
      );
      assert.equal(sequence.sealed, { bytes: count(layer => pagesOf(layer) * layers[layer]!.page.bytes), tokens: 32 * count(pagesOf) });
      for (const layer of layers.keys()) {
        const positions = model.positions(layer);
        assert.equal(sequence.ranges(layer), rangesOf(positions));
        assert.is(sequence.tokens(layer), positions.length);
      }
      if (this.#next() >= share) continue;
      for (const layer of layers.keys()) checkTokens(`layer ${layer}`, await sequence.decode(layer), model, layer, this.cache.shape);
    }
  }

  /**
   * What a file says of balances is what its layers learned from teaches; and the bytes of coded windows are those that the same tokens
   * have, by the same balances, where nothing but appends made them, split otherwise, and nothing stays raw.
   */
  async #checkFile(file: Uint8Array, model: ModelSequence): Promise<void> {
    const { metadata, layers: saved } = readSaved(file);
    const gone = model.layers.map((_, layer) => model.gone(layer));
    for (const field of ['dropped', 'whole'] as const) assert.is(metadata[field], gone.map(layer => layer[field]).join(' '));
    const { balance, maxAppend, layers, capacity } = this.cache.shape;
    const profile =
      typeof balance === 'string' ? new Uint8Array(layers.reduce((sum, layer) => sum + balanceBytes(layer), 0)) : balance.slice();
    let at = 0;
    model.layers.forEach(({ windows, asked, lesson }, n) => {
      const layer = layers[n]!;
      const { balance: found, energies } = saved[n]!;
      assert.is(found !== undefined, balance !== 'off' && windows.length > 0);
      assert.is(energies !== undefined, asked.length > 0);
      if (energies) checkEnergies(energies, energiesOf(asked, layer));
      if (lesson) checkLesson(`balance of layer ${n}`, found!, lesson, layer);
      else if (found) sameBits('profile', found, profile.subarray(at, at + balanceBytes(layer)));
      if (found) profile.set(found, at);
      at += balanceBytes(layer);
    });
    const { window: _, keepSinks: __, ...options } = this.#options;
    const twin = new KVCache(this.#backend, {
      ...options,
      layers: layers.map((_, n) => withoutWindow(this.#options, n)),
      capacity: Math.max(capacity, model.length),
      recent: 0,
      balance: balance === 'off' ? 'off' : profile
    });
    const sequence = twin.sequence();
    for (let from = 0; from < model.length; ) {
      const to = Math.min(model.length, from + 1 + this.#below(maxAppend));
      model.layers.forEach(({ tokens }, n) => {
        const [keys, values] = SIDES.map(side => rowsOf(tokens.slice(from, to), side, this.#width(n, side)));
        sequence.append(n, keys!, values!);
      });
      from = to;
    }
    const expected = readSaved(await sequence.save()).layers;
    saved.forEach(({ pages }, layer) => {
      const held = model.pages(layer);
      assert.is(pages.length, held.length);
      held.forEach(({ window }, n) => sameBits(`window ${window} of layer ${layer}`, pages[n]!, expected[layer]!.pages[window]!));
    });
    twin.dispose();
  }

  #width(layer: number, side: Side): number {
    return widthOf(this.cache.shape.layers[layer]!, side);
  }

  /** Disposes all, and the cache is as if nothing had been: the whole capacity and all sequences fit again, and no more. */
  async end(): Promise<void> {
    while (this.#open.length > 0) this.#dispose(this.#pick(this.#open)!);
    const { capacity, maxAppend, sequences, layers } = this.cache.shape;
    assert.is(this.cache.free, capacity);
    const all = Array.from({ length: sequences }, () => this.cache.sequence());
    assert.throws(
      () => this.cache.sequence(),
      (error: Error) => error instanceof RangeError
    );
    for (const [layer, { window }] of layers.entries()) {
      const zeros = (tokens: number) =>
        SIDES.map(side => new Float32Array(tokens * this.#width(layer, side))) as [Float32Array, Float32Array];
      for (let held = 0; held < capacity; held += maxAppend) {
        all[held % sequences]!.append(layer, ...zeros(Math.min(maxAppend, capacity - held)));
      }
      if (window < Infinity) continue; // there is room for more
      assert.throws(
        () => all[0]!.append(layer, ...zeros(1)),
        (error: Error) => error instanceof RangeError
      );
    }
    this.cache.dispose();
    this.#other.dispose();
  }
}

/** Of a history's options those of a layer, which forgets nothing. */
function withoutWindow({ layers }: CacheOptions, layer: number): LayerOptions {
  const { window: _, keepSinks: __, ...own } = typeof layers === 'number' ? ({} as LayerOptions) : layers[layer]!;
  return own;
}

const balanceBytes = ({ kvHeads, headDim }: LayerShape) => (kvHeads * headDim) / 2;

/** Consecutive positions as ranges. */
function rangesOf(positions: readonly number[]): Range[] {
  const begins = positions.filter((position, n) => position - 1 !== positions[n - 1]);
  const ends = positions.filter((position, n) => position + 1 !== positions[n + 1]);
  return begins.map((from, n) => ({ from, to: ends[n]! + 1 }));
}

/** Σ q² of pairs, head after head. */
function energiesOf(asked: readonly Float32Array[], { kvHeads, queryHeads, headDim, rope }: LayerShape): Float64Array {
  const pairs = pairsOf(headDim, rope);
  const energies = new Float64Array(kvHeads * pairs.length);
  for (const query of asked) {
    for (let head = 0; head < queryHeads; head++) {
      const [at, to] = [head * headDim, Math.floor(head / (queryHeads / kvHeads)) * pairs.length];
      pairs.forEach(([a, b], pair) => {
        energies[to + pair]! += query[at + a]! ** 2 + query[at + b]! ** 2;
      });
    }
  }
  return energies;
}

/** Sums in f32 are as near as levels need them. */
function checkEnergies(actual: Float32Array, expected: Float64Array): void {
  assert.is(actual.length, expected.length);
  actual.forEach((energy, pair) => {
    atMost(`energy of pair ${pair}: difference`, Math.abs(energy - expected[pair]!), LEVEL_TIE * expected[pair]!);
  });
}

function checkLesson(what: string, balance: Uint8Array, { tokens, asked }: Lesson, layer: LayerShape): void {
  const { kvHeads, headDim, rope } = layer;
  const energies = energiesOf(asked, layer);
  for (let head = 0; head < kvHeads; head++) {
    const ofHead = ({ keys }: Token) => ({ keys: keys.subarray(head * headDim, (head + 1) * headDim), values: keys });
    const windows = [tokens.slice(0, 64), tokens.slice(64)].map(window => rowsOf(window.map(ofHead), 'keys', headDim));
    const part = <T extends { slice(from: number, to: number): T }>(list: T): T =>
      list.slice((head * headDim) / 2, ((head + 1) * headDim) / 2);
    learnedFrom(`${what}, head ${head}`, part(balance), windows, part(energies), headDim, rope, { near: 0, codes: 0 });
  }
}

/** Raw tokens are as they came, coded ones near it. */
function checkTokens(what: string, held: Tokens, model: ModelSequence, layer: number, { layers, sinks }: CacheShape): void {
  const tokens = model.held(layer);
  const coded = [sinks, sinks + 64 * model.pages(layer).length] as const;
  for (const side of SIDES) {
    const { headDim, valueDim, page } = layers[layer]!;
    const [width, channels] = [widthOf(layers[layer]!, side), side === 'keys' ? headDim : valueDim];
    const [actual, expected] = [held[side], rowsOf(tokens, side, width)];
    assert.is(actual.length, expected.length);
    const [begin, end] = coded.map(t => Math.min(t * width, expected.length)) as [number, number];
    sameBits(`${what}: ${side} of sinks`, actual.subarray(0, begin), expected.subarray(0, begin));
    sameBits(`${what}: raw ${side}`, actual.subarray(end), expected.subarray(end));
    allFinite(`${what}: ${side}`, actual);
    if (page[side].codec.name !== 'nsn4') continue;
    for (let at = begin; at < end; at += channels) {
      const row = (x: Float32Array) => x.subarray(at, at + channels);
      atMost(`${what}: error of ${side} at ${at}`, relativeL2(row(actual), row(expected)), CODED_ROW);
    }
  }
}
