// `npm run chat`: a conversation in the terminal over a quantized cache. /save and /load keep the cache with it.
import { createInterface } from 'node:readline/promises';
import { Chat, type Ending, InputError } from '@nsnquant/gguf';
import { Command, Option } from 'commander';
import { type CodecName, codecs, openBackend } from 'nsnquant';
import { random } from '../../tools/numbers.ts';
import { NsnCache } from './caches/nsn.ts';
import { type ModelMark, markOf, readKept, writeKept } from './kept.ts';
import { findModel, openModel } from './node.ts';
import { readProfile } from './profile.ts';
import { amount, balanceOption, type CommonOptions, commonOptions, count, facts, run, status, threadText } from './program.ts';

interface Options extends CommonOptions {
  keys: CodecName;
  values: CodecName;
  capacity?: number;
  answer: number;
  temperature: number;
  topP: number;
  seed: number;
}

interface Conversation {
  readonly cache: NsnCache;
  readonly chat: Chat;
}

/** What is said of an answer that ended so. */
type Endings = Readonly<Record<Ending, string>>;

const MAX_APPEND = 512;
const HELP = `/save FILE  keeps the conversation, its cache in FILE and its text and its model in FILE.json
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
  let mark: Promise<ModelMark> | undefined;
  // Only when something is kept or gone on with: it reads the whole file.
  const marked = (): Promise<ModelMark> => {
    mark ??= markOf(modelFile);
    return mark;
  };
  const balance = options.balance === undefined ? 'learn' : await readProfile(options.balance, await marked());
  const capacity = Math.min(options.capacity ?? model.config.context, model.config.context);
  const maxAppend = Math.min(MAX_APPEND, capacity);
  const open = (): Conversation => {
    const cache = new NsnCache(backend, model.config, { keys, values, capacity, maxAppend, sinks: 4, recent: 0, rope: true, balance });
    return {
      cache,
      chat: new Chat(model, cache, {
        capacity,
        maxAppend,
        maxAnswer: options.answer,
        temperature: options.temperature,
        topP: options.topP,
        random: random(options.seed)
      })
    };
  };
  const endings: Endings = {
    'stop token': '',
    'longest answer': `[cut after ${options.answer} tokens; --answer allows more]\n`,
    capacity: `[the cache is full with ${capacity} tokens; ${capacity < model.config.context ? '--capacity allows more, ' : ''}/new starts anew]\n`,
    aborted: '[stopped]\n'
  };

  console.log(
    `${facts(model, backend, threadText(options.threads)).join('\n')}\nkeys ${keys}, values ${values}, ${capacity} tokens at most; /help says what else there is`
  );
  let current = open();
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
        current.cache.dispose();
        current = open();
      } else if (command === '/save') {
        await save(named(file), current, await marked());
      } else if (command === '/load') {
        await load(named(file), current, await marked());
      } else if (text.startsWith('/')) {
        console.log(HELP);
      } else if (text !== '') {
        answering = new AbortController();
        await answer(text, current, endings, answering.signal);
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

async function answer(question: string, { cache, chat }: Conversation, endings: Endings, signal: AbortSignal): Promise<void> {
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
  const { length, bytes } = cache;
  const f16 = cache.cache.shape.layers.reduce(
    (sum, { kvHeads, headDim, valueDim }) => sum + 2 * length * kvHeads * (headDim + valueDim),
    0
  );
  const speed = first
    ? `, first after ${((first.ms - begin) / 1000).toFixed(1)} s, then ${(((length - first.length) / (performance.now() - first.ms)) * 1000).toFixed(1)} tokens/s`
    : '';
  console.log(`\n${endings[step.value]}[${length} tokens, ${kilobytes(bytes)} in the cache (f16: ${kilobytes(f16)})${speed}]`);
}

async function save(file: string, { cache, chat }: Conversation, mark: ModelMark): Promise<void> {
  const bytes = await cache.sequence.save();
  await writeKept(file, bytes, chat.transcript, mark);
  console.log(`saved ${cache.length} tokens: ${kilobytes(bytes.length)}`);
}

async function load(file: string, { cache, chat }: Conversation, mark: ModelMark): Promise<void> {
  const kept = await readKept(file, mark);
  const before = await cache.sequence.save();
  try {
    cache.restore(kept.cache);
    chat.resume(kept.transcript);
  } catch (error) {
    cache.restore(before);
    throw error;
  }
  console.log(
    `loaded ${cache.length} tokens; the last question was: ${kept.transcript.messages.findLast(({ role }) => role === 'user')?.content ?? ''}`
  );
}

function named(file: string | undefined): string {
  if (!file) throw new InputError('expected a file name');
  return file;
}

function kilobytes(bytes: number): string {
  return `${Math.round(bytes / 1024).toLocaleString('en-US')} KiB`;
}
