// What a cache costs, before it is made: bytes, and on which backend how many milliseconds.

import { type Backend, checkBackend } from './backend.ts';
import { checkArray, checkInteger, checkOptions } from './check.ts';
import { WINDOW } from './format/layout.ts';
import { type CacheOptions, cacheShape, type StepShape, stepShape, tokenBytes } from './shape.ts';
import { tryStep } from './timing.ts';

/** What a cache takes at most, in bytes. */
export interface Plan {
  /** Bytes of one more token once it is coded: all layers, metadata counted. What sliding windows give back for it is not. */
  readonly bytesPerToken: number;
  /** The same per element of keys and values, in bits. */
  readonly bitsPerElement: number;
  /** What f16 takes for one token. */
  readonly f16BytesPerToken: number;
  /** Coded pages for `capacity` tokens. Fewer take `bytesPerToken` each. */
  readonly pageBytes: number;
  /** Raw tails, recent windows, sinks, and room for a prompt's own tokens. */
  readonly rawBytes: number;
  /** What sequences learn of their keys. */
  readonly learnedBytes: number;
  /** What the first sequence takes of these with its first tokens: sinks and a raw window of every layer, and what it learns. */
  readonly firstBytes: number;
  /**
   * All of these, once `capacity` is held. A backend adds its tables and scratch, and takes somewhat more at a time than is needed: with
   * `reserve` that sum is `cache.bytes`.
   */
  readonly bytes: number;
}

/** What to time: every batch with every context, on every backend. */
export interface PlanGrid {
  /** What to compare. */
  readonly backends: readonly Backend[];
  /** Sequences that are attended to at once. */
  readonly batch: readonly number[];
  /** Tokens of each. */
  readonly context: readonly number[];
}

const PLAN_GRID = ['backends', 'batch', 'context'] as const satisfies readonly (keyof PlanGrid)[];

/** A decoding step of the first layer: a token appended to every sequence, all attended to, the result read. */
export interface StepTime {
  /** Sequences that are attended to at once. */
  readonly batch: number;
  /** Tokens of each. */
  readonly context: number;
  /** On every backend, in the grid's order, the mean of several; NaN where it refused the memory. */
  readonly milliseconds: readonly number[];
  /** The fastest, unless all refused. */
  readonly fastest: Backend | undefined;
}

/** A plan with the milliseconds of steps. */
export interface TimedPlan extends Plan {
  /** One for every batch and context of the grid. */
  readonly steps: readonly StepTime[];
}

/**
 * The bytes of a cache with these options; with a grid also how long steps take on backends, so that one sees where one
 * overtakes the other. Times are measured here and now: some tens of milliseconds a cell, or two steps.
 *
 * @throws {TypeError | RangeError} for options that `new KVCache` would refuse, or a grid of the wrong kind or values
 *
 * @example
 * const options = { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192, keys: 'nsn2', values: 'nsn2' } as const;
 * plan(options).bitsPerElement;   // 2.4375
 * const backends = [await openBackend({ variant: 'scalar' }), await openBackend({ variant: 'simd128' })];
 * const { steps } = await plan(options, { backends, batch: [1, 4], context: [1024] });
 * console.log(steps.map(({ batch, fastest }) => `${batch}: ${fastest?.variant}`));
 */
export function plan(options: CacheOptions): Plan;
export function plan(options: CacheOptions, grid: PlanGrid): Promise<TimedPlan>;
export function plan(options: CacheOptions, grid?: PlanGrid): Plan | Promise<TimedPlan> {
  const bytes = planBytes(options);
  if (grid === undefined) return bytes;
  checkGrid(grid);
  return timeGrid(stepShape(options), grid).then(steps => ({ ...bytes, steps }));
}

function planBytes(options: CacheOptions): Plan {
  const shape = cacheShape(options);
  const elements = shape.layers.reduce((sum, { kvHeads, headDim, valueDim }) => sum + kvHeads * (headDim + valueDim), 0);
  const bytesPerToken = shape.layers.reduce((sum, { page }) => sum + page.bytes, 0) / WINDOW;
  const { pageBytes, rawBytes, learnedBytes } = tokenBytes(shape);
  const { rawSlotBytes, sinkBytes, sequences } = shape;
  return {
    bytesPerToken,
    bitsPerElement: (bytesPerToken * 8) / elements,
    f16BytesPerToken: elements * 2,
    pageBytes,
    rawBytes,
    learnedBytes,
    firstBytes: shape.layers.length * (rawSlotBytes + sinkBytes) + learnedBytes / sequences,
    bytes: pageBytes + rawBytes + learnedBytes
  };
}

function checkGrid(grid: PlanGrid): void {
  checkOptions('grid', grid, PLAN_GRID);
  const { backends, batch, context } = grid;
  checkArray('grid.backends', backends);
  for (const [i, backend] of backends.entries()) checkBackend(`grid.backends[${i}]`, backend);
  checkArray('grid.batch', batch);
  for (const [i, sequences] of batch.entries()) checkInteger(`grid.batch[${i}]`, sequences, 1, 65536);
  checkArray('grid.context', context);
  for (const [i, tokens] of context.entries()) checkInteger(`grid.context[${i}]`, tokens, 1, 2 ** 24);
}

async function timeGrid(shape: StepShape, { backends, batch, context }: PlanGrid): Promise<StepTime[]> {
  const steps: StepTime[] = [];
  for (const sequences of batch) {
    for (const tokens of context) {
      const milliseconds: number[] = [];
      for (const backend of backends) {
        const time = await tryStep(backend, shape, sequences, tokens);
        milliseconds.push(typeof time === 'number' ? time : NaN);
      }
      const least = Math.min(...milliseconds.filter(time => !Number.isNaN(time)));
      steps.push({ batch: sequences, context: tokens, milliseconds, fastest: backends[milliseconds.indexOf(least)] });
    }
  }
  return steps;
}
