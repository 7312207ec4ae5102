// `npm run check-engine`: the engine over the raw cache against figures of independent implementations. Holds for SmolLM2-135M-Instruct Q4_1 alone.
import { Command } from 'commander';
import { toMarkdown } from '../table.ts';
import { rawLogits } from './evaluate.ts';
import { readText } from './node.ts';
import { type CommonOptions, commonOptions, count, facts, openAll, run, status, threadText } from './program.ts';
import { logProbability, mean } from './stats.ts';

interface Options extends CommonOptions {
  sequences: number;
}

interface Check {
  readonly name: string;
  readonly expected: number;
  readonly measured: number;
}

const TOKENS = 2048;
const TOLERANCE = 0.005;
/** Of WikiText-2's raw test text, without a start token. */
const TEXT_TOKENS = 303_415;
/** By number of sequences: perplexity over every position of each but its last, in f32 and with the 8-bit activations of llama.cpp. */
const KNOWN: Readonly<Record<number, Readonly<Record<string, number>>>> = {
  1: { 'f32 arithmetic': 15.1, 'llama.cpp': 15.14 },
  8: { 'llama.cpp': 19.28 }
};

await run(async () => {
  const options = commonOptions(new Command('check-engine'))
    .description('Tokenization and perplexity of the engine, against independent implementations.')
    .option('--sequences <n>', `of ${TOKENS} tokens; 1 and 8 have known perplexities`, count, 8)
    .parse()
    .opts<Options>();
  const opened = await openAll(options);
  const { model, backend } = opened;
  const { vocabulary } = model.config;
  const ids = model.encode(await readText('wikitext'));
  const checks: Check[] = [{ name: 'tokens of WikiText-2', expected: TEXT_TOKENS, measured: ids.length }];
  const nll: number[] = [];
  for (let sequence = 1; sequence <= options.sequences; sequence++) {
    status(`sequence ${sequence}/${options.sequences}`);
    const tokens = ids.slice((sequence - 1) * TOKENS, sequence * TOKENS);
    const logits = await rawLogits(model, opened, tokens);
    for (const [i, token] of tokens.slice(1).entries()) {
      nll.push(-logProbability(logits.subarray(i * vocabulary, (i + 1) * vocabulary), token));
    }
    const measured = Math.exp(mean(Float64Array.from(nll)));
    for (const [by, expected] of Object.entries(KNOWN[sequence] ?? {})) {
      checks.push({ name: `perplexity of ${sequence} × ${TOKENS.toLocaleString('en-US')} tokens, by ${by}`, expected, measured });
    }
  }
  status('');
  console.log(facts(model, backend, threadText(options.threads)).join('\n'));
  console.log(
    `\n${toMarkdown({
      headers: ['check', 'expected', 'measured', 'off'],
      textColumns: 1,
      rows: checks.map(({ name, expected, measured }) => [
        name,
        `${expected}`,
        Number.isInteger(measured) ? `${measured}` : measured.toFixed(2),
        `${(100 * (measured / expected - 1)).toFixed(2)} %`
      ])
    })}\n`
  );
  const failed = checks.filter(check => !holds(check)).length;
  if (failed > 0) process.exitCode = 1;
  console.log(`${checks.length - failed} passed, ${failed} failed`);
});

/** A perplexity within the tolerance; a number of tokens exactly. */
function holds({ expected, measured }: Check): boolean {
  return Number.isInteger(expected) ? measured === expected : Math.abs(measured / expected - 1) <= TOLERANCE;
}
