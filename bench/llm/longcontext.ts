// `npm run longcontext`: numbers hidden in a book, asked for at its end; scored by the probability of the right answer, against the raw cache.
import { writeFileSync } from 'node:fs';
import { Command } from 'commander';
import { WINDOW } from './caches/cache.ts';
import { methodName, openCache, parseMethods, type Method } from './caches/methods.ts';
import type { Model } from './engine/model.ts';
import { argmax } from './engine/sample.ts';
import { InputError } from './engine/source.ts';
import { readText } from './node.ts';
import { commonOptions, count, counts, facts, openAll, run, status, type CommonOptions, type Opened } from './program.ts';
import { generator } from './stats.ts';
import { short, toMarkdown } from './table.ts';

interface Options extends CommonOptions {
  lengths: number[];
  depths: number[];
  trials: number;
  methods: string;
  json?: string;
}

interface Needle {
  /** Share of the text before it. */
  readonly depth: number;
  readonly text: string;
  readonly question: readonly number[];
  readonly answer: readonly number[];
}

interface Haystack {
  readonly tokens: readonly number[];
  readonly needles: readonly Needle[];
}

/** A row, as --json writes it. */
interface Row {
  readonly method: string;
  readonly length: number;
  /** Mean over needles of ln p(answer). */
  readonly logProbability: number;
  readonly logProbabilityByDepth: readonly number[];
  /** Needles whose every token was the likeliest. */
  readonly found: number;
  readonly needles: number;
  readonly bytes: number;
}

const TOWNS = ['Aldermoor', 'Brightwater', 'Castlebrook', 'Dunhaven', 'Eastmere', 'Foxbury', 'Greywick', 'Hollowfield'];
const DIGITS = 5;

await run(async () => {
  const options = commonOptions(new Command('longcontext'))
    .description('Finds numbers hidden in a book.')
    .option('--lengths <list>', 'tokens before the questions', counts, [1024, 2048, 4096, 8000])
    .option('--depths <list>', 'where numbers hide, in percent', counts, [5, 25, 50, 75, 95])
    .option('--trials <n>', 'books of every length', count, 1)
    .option('--methods <list>', 'as for quality', 'raw,nsn1,nsn2,nsn4/nsn2,nsn4,q8_0,q4_0+hadamard,kivi2,turbo2')
    .option('--json <file>', 'where the results go as JSON')
    .parse()
    .opts<Options>();
  if (options.depths.length > TOWNS.length || options.depths.some(depth => depth > 100)) {
    throw new InputError(`"--depths" expected at most ${TOWNS.length} numbers from 1 to 100, got ${options.depths.join(',')}`);
  }
  const opened = await openAll(options);
  const { context } = opened.config;
  const longest = Math.max(...options.lengths);
  if (longest + WINDOW > context) throw new InputError(`"--lengths" expected at most ${context - WINDOW} tokens (the model's context less a question), got ${longest}`);
  status('tokenizing');
  const book = opened.model.encode((await readText('war-and-peace')).slice(0, 6 * longest * (options.trials + 1)));

  const methods = parseMethods(options.methods);
  const rows: Row[] = [];
  for (const length of options.lengths) {
    for (const method of methods) {
      rows.push(await measure(opened, method, length, book, options));
      status(`${length} tokens: ${methodName(method)} found ${rows.at(-1)!.found} of ${rows.at(-1)!.needles}`);
    }
  }
  status('');
  console.log([...facts(opened.model, opened.backend, options), `${options.trials} × ${options.depths.length} numbers of ${DIGITS} digits, at ${options.depths.join(', ')} % of War and Peace's beginning`].join('\n'));
  console.log(`\n${table(rows, methods, options.lengths)}`);
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(rows, null, 2)}\n`);
});

async function measure(opened: Opened, method: Method, length: number, book: readonly number[], { depths, trials }: Options): Promise<Row> {
  const { sinks } = method.options;
  const scores: { depth: number; logProbability: number; found: boolean }[] = [];
  let bytes = 0;
  for (let trial = 0; trial < trials; trial++) {
    // Ends where a window does: questions then find it coded, and leave nothing coded behind.
    const { tokens, needles } = hide(opened.model, book.slice(trial * length), sinks + Math.floor((length - sinks) / WINDOW) * WINDOW, depths, trial);
    const cache = openCache(method, opened, tokens.length + 2 * WINDOW, sinks + WINDOW);
    for (let from = 0; from < tokens.length;) {
      const to = from === 0 ? sinks + WINDOW : from + WINDOW;
      await opened.model.forward(tokens.slice(from, to), cache);
      from = to;
    }
    for (const needle of needles) {
      scores.push({ depth: needle.depth, ...await ask(opened.model, cache, needle) });
      bytes = cache.bytes;
      cache.crop(tokens.length);
    }
    cache.dispose();
  }
  const average = (of: readonly { logProbability: number }[]): number => of.reduce((sum, { logProbability }) => sum + logProbability, 0) / of.length;
  return {
    method: methodName(method),
    length,
    logProbability: average(scores),
    logProbabilityByDepth: depths.map(depth => average(scores.filter(score => score.depth === depth))),
    found: scores.filter(({ found }) => found).length,
    needles: scores.length,
    bytes
  };
}

/** A book of `length` tokens with its numbers in it. */
function hide(model: Model, book: readonly number[], length: number, depths: readonly number[], trial: number): Haystack {
  const random = generator(trial + 1);
  const needles = depths.map((depth, i): Needle => {
    const number = Array.from({ length: DIGITS }, () => Math.floor(random() * 10)).join('');
    const sentence = `The secret number of ${TOWNS[i]} is`;
    return {
      depth,
      text: `\n\n${sentence} ${number}.\n\n`,
      question: model.encode(`\n\nRemember the secret numbers that were mentioned above. ${sentence}`),
      answer: model.encode(` ${number}`)
    };
  });
  const coded = needles.map(({ text }) => model.encode(text));
  const rest = length - coded.reduce((sum, { length: size }) => sum + size, 0);
  if (rest <= 0 || book.length < rest) throw new InputError(`"--lengths" expected fewer tokens than the book has and more than its needles, got ${length}`);
  const tokens: number[] = [];
  let from = 0;
  needles.forEach(({ depth }, i) => {
    const to = Math.floor(rest * depth / 100);
    tokens.push(...book.slice(from, to), ...coded[i]!);
    from = to;
  });
  tokens.push(...book.slice(from, rest));
  return { tokens, needles };
}

/** Question and answer in one call, so that the answer is scored token by token. */
async function ask(model: Model, cache: Parameters<Model['forward']>[1], { question, answer }: Needle): Promise<{ logProbability: number; found: boolean }> {
  const { width, vocabulary } = model.config;
  const hidden = await model.forward([...question, ...answer.slice(0, -1)], cache);
  const logits = await model.logits(hidden.slice((question.length - 1) * width));
  let logProbability = 0;
  let found = true;
  answer.forEach((token, i) => {
    const row = logits.subarray(i * vocabulary, (i + 1) * vocabulary);
    const best = argmax(row);
    let sum = 0;
    for (const logit of row) sum += Math.exp(logit - row[best]!);
    logProbability += row[token]! - row[best]! - Math.log(sum);
    found &&= best === token;
  });
  return { logProbability, found };
}

function table(rows: readonly Row[], methods: readonly Method[], lengths: readonly number[]): string {
  return toMarkdown({
    headers: ['cache', ...lengths.flatMap(length => [`${length}: ln p`, 'found', 'MiB'])],
    textColumns: 1,
    rows: methods.map(method => [methodName(method), ...lengths.flatMap(length => {
      const row = rows.find(each => each.method === methodName(method) && each.length === length)!;
      return [short(row.logProbability), `${row.found}/${row.needles}`, (row.bytes / 2 ** 20).toFixed(1)];
    })])
  });
}
