// `npm run speed`: milliseconds per generated token and the attention's share, prefill and the encoder's share, bytes; by context and threads.
import { writeFileSync } from 'node:fs';
import { type Cache, InputError } from '@nsnquant/gguf';
import { Command } from 'commander';
import { codecs } from 'nsnquant';
import { toMarkdown } from '../table.ts';
import { FixedCache } from './caches/fixed.ts';
import { type Method, methodName, openCache, parseMethods, raw } from './caches/methods.ts';
import { NsnCache } from './caches/nsn.ts';
import { TimedCache } from './caches/timed.ts';
import type { WindowedCache } from './caches/windowed.ts';
import { readText } from './node.ts';
import {
  count,
  counts,
  facts,
  type ModelOptions,
  modelOption,
  type Opened,
  openAll,
  outputFile,
  run,
  status,
  threadText
} from './program.ts';
import { quantile } from './stats.ts';

interface Options extends ModelOptions {
  contexts: number[];
  threadCounts: number[];
  methods: string;
  steps: number;
  json?: string;
}

/** A row, as --json writes it. Times of one token. */
interface Row {
  readonly method: string;
  readonly threads: number;
  readonly context: number;
  readonly tokenMs: number;
  readonly attendMs: number;
  readonly encodeMs: number;
  /** Tokens per second while the context was read, from the first token on. Null where there are kernels for single tokens alone. */
  readonly prefillPerSecond: number | null;
  readonly prefillAttendShare: number | null;
  /** Share of prefill that sealing windows took. */
  readonly prefillEncodeShare: number | null;
  readonly bytes: number;
  /** Everything that the cache has allocated for its capacity. */
  readonly allocated: number | null;
}

/** The model with a host engine of so many threads. */
interface Engine extends Opened {
  readonly threads: number;
  /** What all but the cache took to read a context, in milliseconds, by its tokens: the same with every cache. */
  readonly hostMs: Map<number, number>;
}

/** Tokens of one call while a prompt is read. */
const CHUNK = 512;
const WARM_UP = 4;
const NO_PREFILL = { prefillPerSecond: null, prefillAttendShare: null, prefillEncodeShare: null };

await run(async () => {
  const options = modelOption(new Command('speed'))
    .description('Times of a language model over every cache.')
    .option('--contexts <list>', 'tokens before the measured ones, ascending', counts, [512, 2048, 8000])
    .option('--thread-counts <list>', 'threads of the host engine, one table for each', counts, [1, 2])
    .option('--methods <list>', 'codecs of nsnquant', 'nsn1,nsn2,nsn3,nsn4/nsn2,nsn4')
    .option('--steps <n>', 'measured tokens after each context', count, 64)
    .option('--json <file>', 'where the results go as JSON', outputFile)
    .parse()
    .opts<Options>();
  const { contexts, threadCounts, steps } = options;
  if (contexts.some((context, i) => context <= (contexts[i - 1] ?? 0)))
    throw new InputError(`"--contexts" expected ascending numbers, got ${contexts.join(',')}`);
  const methods = parseMethods(options.methods);
  if (!methods.every(({ keys }) => keys in codecs)) throw new InputError(`"--methods" expected codecs of nsnquant, got ${options.methods}`);
  const longest = contexts.at(-1)! + steps + WARM_UP;
  const engines: Engine[] = [];
  for (const threads of threadCounts) {
    const opened = await openAll({ ...options, threads });
    if (longest > opened.config.context) {
      throw new InputError(
        `"--contexts" expected at most ${opened.config.context - steps - WARM_UP} tokens (the model's context less those measured), got ${contexts.at(-1)}`
      );
    }
    engines.push({ ...opened, threads, hostMs: new Map() });
  }
  const { model, backend } = engines[0]!;
  status('tokenizing');
  const ids = model.encode((await readText('war-and-peace')).slice(0, 8 * longest)).slice(0, longest);
  const rows: Row[] = [];
  for (const engine of engines) rows.push(...(await measureDense(engine, ids, options)));
  for (const method of methods) rows.push(...(await measureMethod(engines, method, ids, options)));
  status('');
  console.log(facts(model, backend, threadCounts.map(threadText).join(' or ')).join('\n'));
  for (const threads of threadCounts)
    console.log(`\n${threadText(threads)} of the host engine\n\n${table(rows.filter(row => row.threads === threads))}`);
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(rows, null, 2)}\n`);
});

/** Raw f32 by the host engine and by WebAssembly, int8 by WebAssembly: the same prompt serves them all. */
async function measureDense(engine: Engine, ids: readonly number[], { contexts, steps }: Options): Promise<Row[]> {
  const rows: Row[] = [];
  const { threads, config, backend } = engine;
  const cache = openCache(raw, engine, ids.length, CHUNK) as WindowedCache;
  const timed = new TimedCache(cache);
  let allMs = 0;
  for (const context of contexts) {
    status(`${threadText(threads)}, raw, ${context} tokens`);
    allMs += await read(engine, timed, ids, context);
    const hostMs = allMs - timed.attendMs - timed.appendMs;
    engine.hostMs.set(context, hostMs);
    for (const [method, kind] of [
      ['f32', 'f32'],
      ['int8 (as q8_0)', 'int8']
    ] as const) {
      const fixed = await FixedCache.open(config, kind, backend.variant === 'relaxed', cache);
      rows.push({
        method,
        threads,
        context,
        ...(await decode(engine, fixed, ids, context, steps)),
        ...NO_PREFILL,
        bytes: fixed.bytes,
        allocated: null
      });
    }
    const bytes = cache.bytes;
    rows.push({
      method: 'f32 by the host engine',
      threads,
      context,
      ...(await decode(engine, cache, ids, context, steps)),
      ...prefill(context, hostMs, timed),
      bytes,
      allocated: null
    });
    cache.crop(context);
  }
  return rows;
}

/** The prompt is read once, by the engine with the most threads: how long the cache takes does not depend on them. */
async function measureMethod(
  engines: readonly Engine[],
  method: Method,
  ids: readonly number[],
  { contexts, steps }: Options
): Promise<Row[]> {
  const rows: Row[] = [];
  const fastest = engines.reduce((most, engine) => (engine.threads > most.threads ? engine : most));
  const cache = openCache(method, fastest, ids.length, CHUNK);
  const timed = new TimedCache(cache);
  for (const context of contexts) {
    status(`${methodName(method)}, ${context} tokens`);
    await read(fastest, timed, ids, context);
    const { bytes } = cache;
    const allocated = cache instanceof NsnCache ? cache.cache.bytes : null;
    for (const engine of engines) {
      const times = await decode(engine, cache, ids, context, steps);
      cache.crop(context);
      rows.push({
        method: methodName(method),
        threads: engine.threads,
        context,
        ...times,
        ...prefill(context, engine.hostMs.get(context)!, timed),
        bytes,
        allocated
      });
    }
  }
  cache.dispose();
  return rows;
}

function prefill(
  context: number,
  hostMs: number,
  { attendMs, appendMs }: TimedCache
): Pick<Row, 'prefillPerSecond' | 'prefillAttendShare' | 'prefillEncodeShare'> {
  const allMs = hostMs + attendMs + appendMs;
  return { prefillPerSecond: (context / allMs) * 1000, prefillAttendShare: attendMs / allMs, prefillEncodeShare: appendMs / allMs };
}

/** Reads the prompt on to `context` tokens; milliseconds. */
async function read({ model }: Engine, cache: Cache, ids: readonly number[], context: number): Promise<number> {
  const begin = performance.now();
  while (cache.length < context) await model.forward(ids.slice(cache.length, Math.min(context, cache.length + CHUNK)), cache);
  return performance.now() - begin;
}

/** Token by token: medians, and the mean of encoding, as only one token in 64 seals a window. */
async function decode(
  { model }: Engine,
  cache: Cache,
  ids: readonly number[],
  context: number,
  steps: number
): Promise<Pick<Row, 'tokenMs' | 'attendMs' | 'encodeMs'>> {
  const timed = new TimedCache(cache);
  const host: number[] = [];
  const attend: number[] = [];
  let encode = 0;
  for (let step = 0; step < steps + WARM_UP; step++) {
    const before = { attendMs: timed.attendMs, appendMs: timed.appendMs };
    const begin = performance.now();
    await model.logits(await model.forward([ids[context + step]!], timed));
    const all = performance.now() - begin;
    if (step < WARM_UP) continue;
    const appendMs = timed.appendMs - before.appendMs;
    attend.push(timed.attendMs - before.attendMs);
    host.push(all - attend.at(-1)! - appendMs);
    encode += appendMs / steps;
  }
  const attendMs = quantile(Float64Array.from(attend), 0.5);
  return { attendMs, encodeMs: encode, tokenMs: quantile(Float64Array.from(host), 0.5) + attendMs + encode };
}

function table(rows: readonly Row[]): string {
  const percent = (x: number | null): string => (x === null ? '–' : `${(100 * x).toFixed(1)} %`);
  const mebibytes = (x: number | null): string => (x === null ? '–' : (x / 2 ** 20).toFixed(1));
  return toMarkdown({
    headers: [
      'cache',
      'context',
      'ms/token',
      'attend ms',
      'encode ms',
      'attention share',
      'prefill tokens/s',
      'attend share',
      'encode share',
      'held MiB',
      'allocated MiB'
    ],
    textColumns: 1,
    rows: rows.map(row => [
      row.method,
      `${row.context}`,
      row.tokenMs.toFixed(1),
      row.attendMs.toFixed(2),
      row.encodeMs.toFixed(2),
      percent((row.attendMs + row.encodeMs) / row.tokenMs),
      row.prefillPerSecond?.toFixed(0) ?? '–',
      percent(row.prefillAttendShare),
      percent(row.prefillEncodeShare),
      mebibytes(row.bytes),
      mebibytes(row.allocated)
    ])
  });
}
