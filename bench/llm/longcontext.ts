// `npm run longcontext`: numbers hidden in a book, asked for at its end; scored by the probability of the right answer, against the raw cache.
import { writeFileSync } from 'node:fs';
import { argmax, type Cache, InputError, type Model } from '@nsnquant/gguf';
import { Command } from 'commander';
import { toMarkdown } from '../table.ts';
import { WINDOW } from './caches/cache.ts';
import { type Method, methodName, openCache, parseMethods, raw } from './caches/methods.ts';
import { longestChunk, windowChunks } from './evaluate.ts';
import { hide, MAX_NEEDLES, type Needle } from './haystack.ts';
import { readText } from './node.ts';
import {
  balanceOption,
  type CommonOptions,
  commonOptions,
  count,
  counts,
  facts,
  type Opened,
  openAll,
  outputFile,
  run,
  status,
  threadText
} from './program.ts';
import { logProbability, mean } from './stats.ts';

interface Options extends CommonOptions {
  lengths: number[];
  depths: number[];
  trials: number;
  digits: number;
  methods: string;
  json?: string;
}

interface Score {
  readonly trial: number;
  readonly depth: number;
  /** ln p of the right answer, all its tokens. */
  readonly logProbability: number;
  /** Whether every token of it was the likeliest. */
  readonly found: boolean;
}

/** A row, as --json writes it. */
interface Row {
  readonly method: string;
  readonly length: number;
  /** What the cache held at the end of the last book. */
  readonly bytes: number;
  readonly scores: readonly Score[];
}

await run(async () => {
  const options = commonOptions(new Command('longcontext'))
    .description('Finds numbers hidden in a book.')
    .addOption(balanceOption())
    .option('--lengths <list>', 'tokens before the questions', counts, [1024, 2048, 4096, 8000])
    .option('--depths <list>', 'where numbers hide, in percent of the book, ascending', counts, [5, 25, 50, 75, 95])
    .option('--trials <n>', 'books of every length', count, 10)
    .option('--digits <n>', 'of a number', count, 5)
    .option('--methods <list>', 'as for quality; raw is always among them', 'nsn1,nsn2,nsn3,nsn4/nsn2,nsn4,q4_0+hadamard@sinks=4')
    .option('--json <file>', 'where the results go as JSON', outputFile)
    .parse()
    .opts<Options>();
  const { lengths, depths, trials, digits } = options;
  if (depths.length > MAX_NEEDLES || depths.some((depth, i) => depth > 100 || depth <= (depths[i - 1] ?? 0))) {
    throw new InputError(`"--depths" expected at most ${MAX_NEEDLES} ascending numbers from 1 to 100, got ${depths.join(',')}`);
  }
  const methods = [raw, ...parseMethods(options.methods).filter(method => method.keys !== 'raw')];
  const opened = await openAll(options);
  const { context } = opened.config;
  const longest = Math.max(...lengths);
  if (longest + WINDOW > context)
    throw new InputError(`"--lengths" expected at most ${context - WINDOW} tokens (the model's context less a question), got ${longest}`);
  status('tokenizing');
  const book = opened.model.encode((await readText('war-and-peace')).slice(0, 6 * longest * (trials + 1)));

  const rows: Row[] = [];
  for (const length of lengths) {
    for (const method of methods) {
      const row = await measure(opened, method, length, book, options);
      rows.push(row);
      status(
        `${length} tokens, ${row.method}: ln p ${average(row.scores).toFixed(2)}, found ${row.scores.filter(({ found }) => found).length}/${row.scores.length}`
      );
    }
  }
  status('');
  console.log(
    [
      ...facts(opened.model, opened.backend, threadText(options.threads)),
      `${trials} books of every length, each with ${depths.length} numbers of ${digits} digits, at ${depths.join(', ')} %`
    ].join('\n')
  );
  console.log(`\n${table(rows, depths)}`);
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(rows, null, 2)}\n`);
});

async function measure(
  opened: Opened,
  method: Method,
  length: number,
  book: readonly number[],
  { depths, digits, trials }: Options
): Promise<Row> {
  const { sinks } = method.options;
  const scores: Score[] = [];
  let bytes = 0;
  for (let trial = 0; trial < trials; trial++) {
    // Ends where a window does: questions then find it coded, and leave nothing coded behind.
    const whole = sinks + Math.floor((length - sinks) / WINDOW) * WINDOW;
    const { tokens, needles } = hide(opened.model, book.slice(trial * length), whole, depths, digits, trial);
    const cache = openCache(method, opened, tokens.length + 2 * WINDOW, longestChunk(sinks));
    for (const [from, to] of windowChunks(tokens.length, sinks)) await opened.model.forward(tokens.slice(from, to), cache);
    for (const needle of needles) {
      scores.push({ trial, depth: needle.depth, ...(await ask(opened.model, cache, needle)) });
      bytes = cache.bytes;
      cache.crop(tokens.length);
    }
    cache.dispose();
  }
  return { method: methodName(method), length, bytes, scores };
}

/** Question and answer in one call, so that the answer is scored token by token. */
async function ask(model: Model, cache: Cache, { question, answer }: Needle): Promise<Pick<Score, 'logProbability' | 'found'>> {
  const { width, vocabulary } = model.config;
  const hidden = await model.forward([...question, ...answer.slice(0, -1)], cache);
  const logits = await model.logits(hidden.slice((question.length - 1) * width));
  const rows = answer.map((_, i) => logits.subarray(i * vocabulary, (i + 1) * vocabulary));
  return {
    logProbability: answer.reduce((sum, token, i) => sum + logProbability(rows[i]!, token), 0),
    found: answer.every((token, i) => argmax(rows[i]!) === token)
  };
}

/** By depth: the difference to raw; in raw's own rows ln p. */
function table(rows: readonly Row[], depths: readonly number[]): string {
  return toMarkdown({
    headers: ['cache', 'tokens', 'MiB', 'found', 'ln p', 'difference', '±', ...depths.map(depth => `at ${depth} %`)],
    textColumns: 1,
    rows: rows.map(({ method, length, bytes, scores }) => {
      const { scores: rawScores } = rows.find(row => row.length === length)!;
      const differences = scores.map((score, i) => ({ ...score, logProbability: score.logProbability - rawScores[i]!.logProbability }));
      const isRaw = scores === rawScores;
      const shown = isRaw ? scores : differences;
      return [
        method,
        `${length}`,
        (bytes / 2 ** 20).toFixed(1),
        `${scores.filter(({ found }) => found).length}/${scores.length}`,
        average(scores).toFixed(2),
        ...(isRaw ? ['–', '–'] : [average(differences).toFixed(2), differences.length > 1 ? standardError(differences).toFixed(2) : '–']),
        ...depths.map(depth => average(shown.filter(score => score.depth === depth)).toFixed(2))
      ];
    })
  });
}

function average(scores: readonly Score[]): number {
  return mean(Float64Array.from(scores, score => score.logProbability));
}

function standardError(scores: readonly Score[]): number {
  const center = average(scores);
  return Math.sqrt(scores.reduce((sum, score) => sum + (score.logProbability - center) ** 2, 0) / (scores.length * (scores.length - 1)));
}
