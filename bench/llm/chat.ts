// `npm run chat`: a conversation in the terminal over a quantized cache. /save and /load keep the cache with it.
import { readFile, writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline/promises';
import { Chat, type Ending, InputError } from '@nsnquant/gguf';
import { Command, Option } from 'commander';
import { type CodecName, codecs, openBackend } from 'nsnquant';
import { random } from '../../tools/numbers.ts';
import { codebookBytes } from '../bytes.ts';
import { findModel, openModel } from './node.ts';
import { markOf, readProfile } from './profile.ts';
import { amount, balanceOption, type CommonOptions, commonOptions, count, facts, run, status, threadText } from './program.ts';

interface Options extends CommonOptions {
  keys: CodecName;
  values: CodecName;
  capacity?: number;
  roll?: boolean;
  answer: number;
  temperature: number;
  topP: number;
  seed: number;
}

/** What is said of an answer that ended so. */
type Endings = Readonly<Record<Ending, string>>;

const MAX_APPEND = 512;
const HELP = `/save FILE  keeps the conversation: its cache, its text, and what model it is with
/load FILE  goes on with a kept one
/new        forgets everything
/quit       ends; so does Ctrl-C, which during an answer stops the answer
/help       says this`;

await run(async () => {
  const names = Object.keys(codecs);
  const options = commonOptions(new Command('chat'))
    .description('A chat over a quantized cache.')
    .addOption(new Option('--keys <codec>', 'codec of the keys').choices(names).default('nsn3'))
    .addOption(new Option('--values <codec>', 'codec of the values').choices(names).default('nsn3'))
    .addOption(balanceOption())
    .option('--capacity <tokens>', "tokens that the cache holds (default: the model's context)", count)
    .option('--roll', 'forget the oldest when the cache is full, and go on')
    .option('--answer <tokens>', 'of one answer at most', count, 512)
    .option('--temperature <t>', '0 takes the likeliest token always', amount, 0)
    .option('--top-p <p>', 'the likeliest tokens of this probability are drawn from', amount, 0.9)
    .option('--seed <n>', 'of the drawing', count, 1)
    .parse()
    .opts<Options>();
  const { keys, values } = options;
  const backend = await openBackend({ prefer: options.backend });
  status('loading the model');
  const modelFile = await findModel(options.model);
  const model = await openModel(modelFile, options);
  status('');
  const balance = options.balance === undefined ? 'learn' : await readProfile(options.balance, await markOf(modelFile));
  const capacity = Math.min(options.capacity ?? model.config.context, model.config.context);
  const open = (): Promise<Chat> =>
    Chat.open(model, {
      ...{ backend, keys, values, balance, capacity, temperature: options.temperature, topP: options.topP },
      ...{ maxAnswer: options.answer, full: options.roll ? 'roll' : 'stop', random: random(options.seed) }
    });
  const endings: Endings = {
    'stop token': '',
    'longest answer': `[cut after ${options.answer} tokens; --answer allows more]\n`,
    capacity: `[the cache is full with ${capacity} tokens; ${capacity < model.config.context ? '--capacity allows more, ' : ''}--roll would go on, /new starts anew]\n`,
    aborted: '[stopped]\n'
  };

  console.log(
    `${facts(model, backend, threadText(options.threads)).join('\n')}\nkeys ${keys}, values ${values}, ${capacity} tokens at most; /help says what else there is`
  );
  let chat = await open();
  let answering: AbortController | undefined;
  const lines = createInterface({ input: process.stdin, output: process.stdout, terminal: process.stdin.isTTY });
  const interrupt = (): void => {
    // Whoever asks again does not want to wait for a prompt that is still being read.
    if (answering?.signal.aborted) process.exit(130);
    if (answering) answering.abort();
    else lines.close();
  };
  lines.on('SIGINT', interrupt);
  process.on('SIGINT', interrupt);
  lines.setPrompt('\n> ');
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    const [command, file] = text.split(/\s+(.*)/) as [string, string?];
    if (command === '/quit') break;
    try {
      if (command === '/new') {
        chat.dispose();
        chat = await open();
      } else if (command === '/save') {
        await save(named(file), chat);
      } else if (command === '/load') {
        await load(named(file), chat);
      } else if (text.startsWith('/')) {
        console.log(HELP);
      } else if (text !== '') {
        answering = new AbortController();
        await answer(text, chat, endings, answering.signal);
      }
    } catch (error) {
      if (!(error instanceof InputError || error instanceof RangeError || (error instanceof Error && 'syscall' in error))) throw error;
      console.log(error.message);
    } finally {
      answering = undefined;
    }
    lines.prompt();
  }
  lines.close();
});

async function answer(question: string, chat: Chat, endings: Endings, signal: AbortSignal): Promise<void> {
  const { cache } = chat;
  const begin = performance.now();
  let first: { ms: number; length: number } | undefined;
  const reading = (done: number, total: number): void => {
    if (total > MAX_APPEND) status(done < total ? `read ${done} of ${total} tokens` : '');
  };
  const pieces = chat.ask(question, { signal, reading });
  let step = await pieces.next();
  for (; !step.done; step = await pieces.next()) {
    first ??= { ms: performance.now(), length: cache.length };
    process.stdout.write(step.value);
  }
  const { length } = cache;
  const bytes = cache.sequence.bytes + codebookBytes(cache.cache.shape);
  const f16 = cache.cache.shape.layers.reduce(
    (sum, { kvHeads, headDim, valueDim }) => sum + 2 * cache.heldTokens * kvHeads * (headDim + valueDim),
    0
  );
  const speed = first
    ? `, first after ${((first.ms - begin) / 1000).toFixed(1)} s, then ${(((length - first.length) / (performance.now() - first.ms)) * 1000).toFixed(1)} tokens/s`
    : '';
  console.log(`\n${endings[step.value]}[${cache.heldTokens} tokens, ${kilobytes(bytes)} in the cache (f16: ${kilobytes(f16)})${speed}]`);
}

async function save(file: string, chat: Chat): Promise<void> {
  const bytes = await chat.save();
  await writeFile(file, bytes);
  console.log(`saved ${chat.cache.length} tokens: ${kilobytes(bytes.length)}`);
}

async function load(file: string, chat: Chat): Promise<void> {
  await chat.load(new Uint8Array(await readFile(file)));
  const question = chat.transcript.messages.findLast(({ role }) => role === 'user')?.content ?? '';
  console.log(`loaded ${chat.cache.length} tokens; the last question was: ${question}`);
}

function named(file: string | undefined): string {
  if (!file) throw new InputError('expected a file name');
  return file;
}

function kilobytes(bytes: number): string {
  return `${Math.round(bytes / 1024).toLocaleString('en-US')} KiB`;
}
