// `npm run quality`: what every codec and format costs a language model in perplexity and KL divergence, against bits.
import { writeFileSync } from 'node:fs';
import { InputError } from '@nsnquant/gguf';
import { Command } from 'commander';
import { toMarkdown } from '../table.ts';
import { type Method, methodName, openCache, parseMethods } from './caches/methods.ts';
import { Compare, longestChunk, measure, rawLogits, sequenceOf } from './evaluate.ts';
import { readText, runtime, textNames } from './node.ts';
import {
  balanceOption,
  type CommonOptions,
  commonOptions,
  count,
  facts,
  type Opened,
  openAll,
  outputFile,
  run,
  status,
  threadText
} from './program.ts';
import { drawFrontier, type Result, resultTable, writeReport } from './quality-report.ts';
import { fingerprint, type Measurement, State } from './state.ts';
import { bootstrap, join, summarize } from './stats.ts';

const METHODS = [
  'raw',
  'nsn1',
  'nsn2',
  'nsn3',
  'nsn4',
  'nsn2/nsn1',
  'nsn3/nsn2',
  'nsn4/nsn2',
  'nsn4/nsn3',
  'nsn2/nsn3',
  'nsn2/nsn4',
  'nsn3/nsn4',
  'nsn1@balance=off',
  'nsn2@balance=off',
  'nsn3@balance=off',
  'nsn4@balance=off',
  'nsn4/nsn2@balance=off',
  'nsn2@sinks=0',
  'nsn3@sinks=0',
  'nsn2@rope=off',
  'nsn3@rope=off',
  'nsn2@recent=1',
  'paper2',
  'paper2@sinks=0',
  'q8_0',
  'q4_0',
  'q4_0+hadamard',
  'q4_0+hadamard@sinks=4',
  'kivi2',
  'kivi2@sinks=4',
  'turbo2',
  'turbo3',
  'turbo4',
  'turbo2@sinks=4',
  'turbo4@sinks=4',
  'trellis2',
  'trellis2@sinks=4',
  'kvarn2',
  'kvarn2@sinks=4',
  'kvarn2_g128@sinks=128',
  'kvarn4',
  'kvarn4@sinks=4',
  'kvarn4_g128@sinks=128',
  'kvarn4/kvarn2@sinks=4'
].join(',');

interface Options extends CommonOptions {
  text: string;
  sequences: number;
  tokens: number;
  stride?: number;
  methods: string;
  json?: string;
  report: string;
  plot?: string;
  fresh?: true;
}

/** What a measurement is kept under. */
type Key = (text: string, sequence: number, method: Method) => string;

await run(async () => {
  const program = commonOptions(new Command('quality'))
    .description('Perplexity and KL divergence of every codec and format against the raw cache.')
    .option('--text <names>', `${textNames.join(', ')}, or files; comma separated`, textNames.join(','))
    .addOption(balanceOption())
    .option('--sequences <n>', 'of every text', count, 8)
    .option('--tokens <n>', 'of every sequence', count, 2048)
    .option('--stride <n>', 'from the start of a sequence to the start of the next, in tokens (default: --tokens)', count)
    .option('--methods <list>', 'KEYS[/VALUES][@sinks=N,recent=N,rope=off,balance=off], comma separated', METHODS)
    .option('--json <file>', 'where the results go as JSON', outputFile)
    .option('--report <file>', 'where the HTML report goes', outputFile, 'quality.html')
    .option('--plot <file>', 'where an image of divergence against coded bits goes, as SVG', outputFile)
    .option('--fresh', 'forget what an earlier run measured of this');
  const options = program.parse().opts<Options>();
  const methods = parseMethods(options.methods);
  const texts = options.text.split(',');
  const opened = await openAll(options);
  const { sequences, tokens, stride = tokens } = options;
  const { name, variant } = opened.backend;
  const profile = opened.profile && Buffer.from(opened.profile).toString('base64');
  const key: Key = (text, sequence, method) =>
    `${text} ${sequence * stride} ${tokens} ${methodName(method)} ${name} ${variant} ${method.options.balance ? profile : ''}`;
  const state = new State(fingerprint(await opened.model.fingerprint()));
  // All of it before anything is measured: a run that is stopped must leave nothing older than itself for the next to take.
  if (options.fresh) {
    for (const text of texts) for (let n = 0; n < sequences; n++) for (const method of methods) state.forget(key(text, n, method));
  }
  const results: Result[] = [];
  for (const text of texts) results.push(...(await measureText(text, methods, opened, options, state, key)));

  const lines = [
    ...facts(opened.model, opened.backend, threadText(options.threads)),
    `${sequences} sequences of ${tokens} tokens of every text, ${stride} tokens from start to start`
  ];
  console.log(lines.join('\n'));
  for (const text of new Set(results.map(result => result.text))) {
    console.log(`\n${text}\n\n${toMarkdown(resultTable(results.filter(result => result.text === text)))}`);
  }
  writeFileSync(options.report, writeReport(lines, results));
  if (options.plot !== undefined) writeFileSync(options.plot, drawFrontier(results));
  if (options.json !== undefined) writeFileSync(options.json, `${JSON.stringify(results, null, 2)}\n`);
  status('');
});

async function measureText(
  text: string,
  methods: readonly Method[],
  opened: Opened,
  options: Options,
  state: State,
  key: Key
): Promise<Result[]> {
  const { sequences, tokens, stride = tokens } = options;
  const { model } = opened;
  status(`${text}: tokenizing`);
  const ids = model.encode(await readText(text));
  const needed = (sequences - 1) * stride + tokens;
  if (ids.length < needed)
    throw new InputError(
      `"--text" expected ${needed} tokens (${sequences} sequences of ${tokens}, ${stride} apart), got ${ids.length} in ${text}`
    );
  if (tokens > model.config.context)
    throw new InputError(`"--tokens" expected at most ${model.config.context} (the model's context), got ${tokens}`);

  const compare = await Compare.open(runtime, options);
  const parts = new Map<Method, Measurement[]>(methods.map(method => [method, []]));
  for (let sequence = 0; sequence < sequences; sequence++) {
    const sequenceIds = sequenceOf(model, ids, sequence * stride, tokens);
    // Only where something is left to compare with it.
    let reference: Float32Array | undefined;
    for (const [index, method] of methods.entries()) {
      let measured = state.get(key(text, sequence, method));
      if (!measured) {
        const begin = performance.now();
        reference ??= await rawLogits(model, opened, sequenceIds);
        const cache = openCache(method, opened, tokens, longestChunk(method.options.sinks));
        const stats = await measure(model, compare, cache, method.options.sinks, sequenceIds, reference);
        measured = { stats, bytes: cache.bytes, codedBits: cache.codedBits };
        cache.dispose();
        state.set(key(text, sequence, method), measured);
        const { kld, ppl } = summarize(stats);
        status(
          `${text}: sequence ${sequence + 1}/${sequences}, method ${index + 1}/${methods.length}: ${methodName(method)} ppl ${ppl.toFixed(2)} KLD ${kld.toFixed(4)} (${((performance.now() - begin) / 1000).toFixed(1)} s)`
        );
      }
      parts.get(method)!.push(measured);
    }
  }

  const { layers, kvHeads, headDim } = model.config;
  return [...parts].map(([method, measurements]): Result => {
    const stats = join(measurements.map(({ stats }) => stats));
    return {
      text,
      keys: method.keys,
      values: method.values,
      options: method.options,
      bitsPerElement: (8 * measurements[0]!.bytes) / (2 * tokens * layers * kvHeads * headDim),
      codedBits: measurements[0]!.codedBits,
      ...summarize(stats),
      ci: bootstrap(stats)
    };
  });
}
