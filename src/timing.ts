// Times a decoding step on a backend: what openBackend() chooses by, and what plan() shows. Never asserts, only measures.

import { type Backend, BackendError, type PageTable, type Store } from './backend.ts';
import { WINDOW } from './format/layout.ts';
import { CAPACITY_MOST, type LayerShape } from './layer.ts';
import { balanceBytes, type CacheShape, cacheShape, type StepShape, windowsBehind } from './shape.ts';

/** Bytes of distinct pages, or one sequence's; beyond them sequences share, so that a large batch needs no large memory to be timed. */
const PAGE_BYTES = 2 ** 28;
/** Different windows that fill the pages, over and over. */
const WINDOWS = 4;
/** How long a cell is timed, and how many steps at least. */
const BUDGET_MS = 40;
const STEPS = 2;

/**
 * Milliseconds of a decoding step of one layer, the mean of several: a token is appended to every sequence, all are attended
 * to, and the result is read as an array.
 *
 * @param shape    the first of its layers is timed
 * @param batch    sequences
 * @param context  tokens of each
 * @throws {BackendError} if the backend has no memory for it
 */
export async function timeStep(backend: Backend, shape: StepShape, batch: number, context: number): Promise<number> {
  const { cache, windowCount } = contextsOf(shape, batch, context);
  const layer = cache.layers[0]!;
  const { kvHeads, queryHeads, headDim, valueDim } = layer;
  await backend.prepare?.(cache);
  const store = backend.createStore(cache);
  try {
    await store.ready;
    const tables = tablesOf(cache, windowCount); // once their memory is granted: there may be too many
    if (layer.page.keys.balanced) {
      store.setBalance(0, 0, new Uint8Array(balanceBytes([layer])));
      for (const { sequence } of tables.slice(1)) store.copyBalance(0, 0, sequence);
    }
    await fill(store, layer, cache.pageCounts[0]!);
    const [keys, values] = [noise(kvHeads * headDim), noise(kvHeads * valueDim)];
    const writes = tables.map((_, slot) => ({
      keys,
      values,
      layout: 'tokens-first' as const,
      runs: [{ slot, at: 0, from: 0, tokens: 1 }]
    }));
    const queries = tables.map(() => noise(queryHeads * headDim));
    const out = new Float32Array(batch * queryHeads * valueDim);
    return await meanMs(async () => {
      store.write(0, writes);
      await store.attend(0, tables, queries, 'tokens-first', 1 / Math.sqrt(headDim), out).read();
    });
  } finally {
    store.dispose();
  }
}

/** A cache of one layer for sequences of `context` tokens, and how many windows these are. */
function contextsOf(shape: StepShape, batch: number, context: number): { readonly cache: CacheShape; readonly windowCount: number } {
  const { layers, ...common } = shape;
  const first = Array.isArray(layers) ? layers.slice(0, 1) : 1;
  const balance = shape.balance === 'off' ? 'off' : 'learn'; // a profile is one of all layers, and no time depends on what it says
  const sized = (pages: number): CacheShape =>
    cacheShape({ ...common, balance, layers: first, recent: 0, capacity: WINDOW * pages, sequences: batch, maxAppend: 1, reserve: true });
  const {
    sinks,
    layers: [layer]
  } = sized(1);
  const windowCount = Math.max(1, Math.floor((context - sinks) / WINDOW));
  const distinct = Math.min(batch * windowCount, Math.max(windowCount, Math.floor(PAGE_BYTES / layer!.page.bytes)), CAPACITY_MOST / WINDOW);
  return { cache: sized(distinct), windowCount };
}

/** Tables of the sequences of such a cache: every token in pages that a query still sees, and one raw that is written anew each time. */
function tablesOf(cache: CacheShape, windowCount: number): PageTable[] {
  const { sequences, sinks, rawSlots, pageCounts } = cache;
  const position = sinks + WINDOW * windowCount;
  const behind = windowsBehind(cache, 0, position);
  const pageCount = windowCount - behind;
  return Array.from({ length: sequences }, (_, n) => ({
    sequence: n,
    length: position + 1,
    sinkSlot: sinks === 0 ? -1 : rawSlots + n,
    pages: Uint32Array.from({ length: pageCount }, (_, i) => (n * pageCount + i) % pageCounts[0]!),
    windows: Uint32Array.from({ length: pageCount }, (_, i) => behind + i),
    pageCount,
    coded: windowCount,
    raws: Uint32Array.of(n),
    rawCount: 1
  }));
}

/** Of many steps by one look at the clock: a page's may tick in whole milliseconds, and single steps would take none. */
async function meanMs(step: () => Promise<void>): Promise<number> {
  await step(); // warms up
  const begin = performance.now();
  let elapsedMs = 0;
  let steps = 0;
  while (steps < STEPS || elapsedMs < BUDGET_MS) {
    await step();
    steps++;
    elapsedMs = performance.now() - begin;
  }
  return elapsedMs / steps;
}

/** As timeStep, or why it could not be timed. */
export async function tryStep(backend: Backend, shape: StepShape, batch: number, context: number): Promise<number | BackendError> {
  try {
    return await timeStep(backend, shape, batch, context);
  } catch (error) {
    if (error instanceof BackendError) return error;
    throw error;
  }
}

/** Fills all pages, of which only a few are coded: coding is what takes long. */
async function fill(store: Store, { kvHeads, headDim, valueDim }: LayerShape, pages: number): Promise<void> {
  const coded = Math.min(WINDOWS, pages);
  const keys = noise(WINDOWS * WINDOW * kvHeads * headDim);
  const values = noise(WINDOWS * WINDOW * kvHeads * valueDim);
  for (let n = 0; n < coded; n++) {
    store.write(0, [{ keys, values, layout: 'tokens-first', runs: [{ slot: 0, at: 0, from: n * WINDOW, tokens: WINDOW }] }]);
    store.encode(0, [0], [n], [0]);
  }
  const table = {
    sequence: 0,
    length: 0,
    sinkSlot: -1,
    pages: Uint32Array.from({ length: coded }, (_, n) => n),
    windows: Uint32Array.from({ length: coded }, (_, n) => n),
    pageCount: coded,
    coded,
    raws: new Uint32Array(0),
    rawCount: 0
  };
  const bytes = (await store.dump(0, table)).pages;
  for (let n = coded; n < pages; n++) store.setPage(0, n, bytes[n % coded]!);
}

/** Near-normal numbers, the same every time. */
export function noise(count: number): Float32Array {
  let state = 1;
  const uniform = (): number => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
  return Float32Array.from({ length: count }, () => uniform() + uniform() + uniform() + uniform() - 2);
}
