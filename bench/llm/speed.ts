// `npm run speed`: milliseconds per generated token and the attention's share, prefill and the encoder's share, bytes; by context and threads.
import { writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { FixedCache } from './caches/fixed.ts';
import { methodName, openCache, parseMethod, parseMethods } from './caches/methods.ts';
import { NsnCache } from './caches/nsn.ts';
import { TimedCache } from './caches/timed.ts';
import type { WindowedCache } from './caches/windowed.ts';
import type { Cache } from './engine/model.ts';
import { InputError } from './engine/source.ts';
import { readText } from './node.ts';
import { count, counts, facts, modelOption, openAll, run, status, type Opened } from './program.ts';
import { quantile } from './stats.ts';
import { toMarkdown } from './table.ts';

interface Options {
  model?: string;
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
  /** Tokens per second while the context was read, from the first token on. */
  readonly prefillPerSecond: number | null;
  /** Share of prefill that sealing windows took. */
  readonly prefillEncodeShare: number | null;
  readonly prefillAttendShare: number | null;
  readonly bytes: number;
  /** Everything that the cache has allocated for its capacity. */
  readonly allocated: number | null;
}

/** Tokens of one call while a prompt is read. */
const CHUNK = 512;
const WARM_UP = 4;

await run(async () => {
  const options = modelOption(new Command('speed'))
    .description('Times of a language model over every cache.')
    .option('--contexts <list>', 'tokens before the measured ones, ascending', counts, [512, 2048, 8000])
    .option('--thread-counts <list>', 'threads of the host engine, one table for each', counts, [1, 2])
    .option('--methods <list>', 'codecs of nsnquant', 'nsn1,nsn2,nsn4/nsn2,nsn4')
    .option('--steps <n>', 'measured tokens after each context', count, 64)
    .option('--json <file>', 'where the results go as JSON')
    .parse()
    .opts<Options>();
  const rows: Row[] = [];
  for (const threads of options.threadCounts) {
    const opened = await openAll({ model: options.model, threads });
    if (rows.length === 0) console.log(facts(opened.model, opened.backend, { threads }).join('\n'));
    const longest = Math.max(...options.contexts) + options.steps + WARM_UP;
    if (longest > opened.config.context) {
      throw new InputError(`"--contexts" expected at most ${opened.config.context - options.steps - WARM_UP} tokens (the model's context less those measured), got ${Math.max(...options.contexts)}`);
    }
    status('tokenizing');
    const ids = opened.model.encode((await readText('war-and-peace')).slice(0, 8 * longest)).slice(0, longest);
    rows.push(...await measureDense(opened, ids, options, threads));
    for (const method of parseMethods(options.methods)) rows.push(...await measureMethod(opened, methodName(method), ids, options, threads));
    await opened.model.release();
  }
  status('');
  for (const threads of options.threadCounts) console.log(`\n${threadText(threads)} of the host engine\n\n${table(rows.filter(row => row.threads === threads))}`);
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(rows, null, 2)}\n`);
});

/** Raw f32 by the host engine and by WebAssembly, int8 by WebAssembly: the same prompt serves them all. */
async function measureDense(opened: Opened, ids: number[], { contexts, steps }: Options, threads: number): Promise<Row[]> {
  const rows: Row[] = [];
  const cache = openCache(parseMethod('raw'), opened, ids.length, CHUNK) as WindowedCache;
  const prefill = new TimedCache(cache);
  let prefillMs = 0;
  for (const context of contexts) {
    status(`${threadText(threads)}, raw, ${context} tokens`);
    prefillMs += await read(opened, prefill, ids, context);
    const shares = { prefillPerSecond: context / prefillMs * 1000, prefillEncodeShare: null, prefillAttendShare: prefill.attendMs / prefillMs };
    for (const [method, kind] of [['f32', 'f32'], ['int8 (as q8_0)', 'int8']] as const) {
      const fixed = await FixedCache.open(opened.config, kind, opened.backend.variant === 'relaxed', cache);
      rows.push({ method, threads, context, ...await decode(opened, fixed, ids, context, steps), ...(kind === 'f32' ? shares : { ...shares, prefillPerSecond: null, prefillAttendShare: null }), bytes: fixed.bytes, allocated: null });
    }
    const host = await decode(opened, cache, ids, context, steps);
    cache.crop(context);
    rows.push({ method: 'f32 by the host engine', threads, context, ...host, ...shares, bytes: cache.bytes, allocated: null });
  }
  return rows;
}

async function measureMethod(opened: Opened, method: string, ids: number[], { contexts, steps }: Options, threads: number): Promise<Row[]> {
  const rows: Row[] = [];
  const cache = openCache(parseMethod(method), opened, ids.length, CHUNK);
  const timed = new TimedCache(cache);
  let prefillMs = 0;
  let tokens = 0;
  for (const context of contexts) {
    status(`${threadText(threads)}, ${method}, ${context} tokens`);
    const begin = cache.length;
    prefillMs += await read(opened, timed, ids, context);
    tokens += context - begin;
    const { bytes } = cache;
    const shares = { prefillPerSecond: tokens / prefillMs * 1000, prefillEncodeShare: timed.appendMs / prefillMs, prefillAttendShare: timed.attendMs / prefillMs };
    rows.push({
      method, threads, context, ...await decode(opened, cache, ids, context, steps), ...shares, bytes,
      allocated: cache instanceof NsnCache ? cache.cache.bytes : null
    });
  }
  cache.dispose();
  return rows;
}

/** Reads the prompt on to `context` tokens; milliseconds. */
async function read({ model }: Opened, cache: Cache, ids: readonly number[], context: number): Promise<number> {
  const begin = performance.now();
  while (cache.length < context) await model.forward(ids.slice(cache.length, Math.min(context, cache.length + CHUNK)), cache);
  return performance.now() - begin;
}

/** Token by token: medians, and the mean of encoding, as only one token in 64 seals a window. */
async function decode({ model }: Opened, cache: Cache, ids: readonly number[], context: number, steps: number): Promise<Pick<Row, 'tokenMs' | 'attendMs' | 'encodeMs'>> {
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

function threadText(threads: number): string {
  return threads === 1 ? '1 thread' : `${threads} threads`;
}

function table(rows: readonly Row[]): string {
  const percent = (x: number | null): string => (x === null ? '–' : `${(100 * x).toFixed(1)} %`);
  const mebibytes = (x: number | null): string => (x === null ? '–' : (x / 2 ** 20).toFixed(1));
  return toMarkdown({
    headers: ['cache', 'context', 'ms/token', 'attend ms', 'encode ms', 'attention share', 'prefill tokens/s', 'attend share', 'encode share', 'held MiB', 'allocated MiB'],
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
