// `npm run chat`: a conversation in the terminal over a quantized cache. /save and /load keep the cache with it.
import { readFile, writeFile } from 'node:fs/promises';
import { createInterface } from 'node:readline/promises';
import { Command, Option } from 'commander';
import { codecs, openBackend, type CodecName } from 'nsnquant';
import { Chat, type Transcript } from './engine/chat.ts';
import { InputError } from './engine/source.ts';
import { NsnCache } from './caches/nsn.ts';
import { openModel } from './node.ts';
import { commonOptions, count, facts, run, type CommonOptions } from './program.ts';
import { generator } from './stats.ts';

interface Options extends CommonOptions {
  keys: CodecName;
  values: CodecName;
  capacity?: number;
  answer: number;
  temperature: number;
  topP: number;
  seed: number;
}

const MAX_APPEND = 512;
const HELP = '/save FILE, /load FILE, /new, /quit';

await run(async () => {
  const names = Object.keys(codecs);
  const options = commonOptions(new Command('chat'))
    .description('A chat over a quantized cache.')
    .addOption(new Option('--keys <codec>', 'codec of the keys').choices(names).default('nsn4'))
    .addOption(new Option('--values <codec>', 'codec of the values').choices(names).default('nsn2'))
    .option('--capacity <tokens>', "tokens that the cache holds (default: the model's context)", count)
    .option('--temperature <t>', '0 takes the likeliest token always', Number, 0)
    .option('--answer <tokens>', 'of one answer at most', count, 512)
    .option('--top-p <p>', 'the likeliest tokens of this probability are drawn from', Number, 0.9)
    .option('--seed <n>', 'of the drawing', Number, 1)
    .parse()
    .opts<Options>();
  const backend = await openBackend();
  const model = await openModel(options.model, options);
  const capacity = Math.min(options.capacity ?? model.config.context, model.config.context);
  const maxAppend = Math.min(MAX_APPEND, capacity);
  const open = (): { cache: NsnCache; chat: Chat } => {
    const cache = new NsnCache(backend, model.config, { keys: options.keys, values: options.values, capacity, maxAppend, sinks: 4, recent: 0, rope: true });
    return { cache, chat: new Chat(model, cache, { capacity, maxAppend, maxAnswer: options.answer, temperature: options.temperature, topP: options.topP, random: generator(options.seed) }) };
  };

  console.log(`${facts(model, backend, options).join('\n')}\nkeys ${options.keys}, values ${options.values}, ${capacity} tokens at most; ${HELP}`);
  let { cache, chat } = open();
  const lines = createInterface({ input: process.stdin, output: process.stdout, terminal: process.stdin.isTTY });
  lines.setPrompt('\n> ');
  lines.prompt();
  for await (const line of lines) {
    const text = line.trim();
    const [command, file] = text.split(/\s+(.*)/) as [string, string?];
    if (command === '/quit') break;
    try {
      if (command === '/new') {
        cache.dispose();
        ({ cache, chat } = open());
      } else if (command === '/save') {
        await save(named(file), cache, chat);
      } else if (command === '/load') {
        await load(named(file), cache, chat);
      } else if (text.startsWith('/')) {
        console.log(HELP);
      } else if (text !== '') {
        await answer(text, cache, chat);
      }
    } catch (error) {
      if (!(error instanceof InputError || error instanceof RangeError || (error instanceof Error && 'syscall' in error))) throw error;
      console.log(error.message);
    }
    lines.prompt();
  }
  lines.close();
});

async function answer(question: string, cache: NsnCache, chat: Chat): Promise<void> {
  const begin = performance.now();
  let first = 0;
  let pieces = 0;
  for await (const piece of chat.ask(question)) {
    if (pieces++ === 0) first = performance.now();
    process.stdout.write(piece);
  }
  const seconds = (performance.now() - first) / 1000;
  const { length, bytes } = cache;
  const { layers, kvHeads, headDim } = cache.cache.shape;
  const f16 = length * layers * kvHeads * headDim * 2 * 2;
  console.log(`\n[${length} tokens, ${kilobytes(bytes)} in the cache (f16: ${kilobytes(f16)}), first after ${((first - begin) / 1000).toFixed(1)} s, then ${((pieces - 1) / seconds).toFixed(1)} tokens/s]`);
}

/** The cache as the library saves it, and beside it what the conversation needs to go on. */
async function save(file: string, cache: NsnCache, chat: Chat): Promise<void> {
  const bytes = await cache.sequence.save();
  await writeFile(file, bytes);
  await writeFile(`${file}.json`, JSON.stringify(chat.transcript));
  console.log(`saved ${cache.length} tokens: ${kilobytes(bytes.length)}`);
}

async function load(file: string, cache: NsnCache, chat: Chat): Promise<void> {
  const transcript = JSON.parse(await readFile(`${file}.json`, 'utf8')) as Transcript;
  cache.restore(new Uint8Array(await readFile(file)));
  chat.resume(transcript);
  console.log(`loaded ${cache.length} tokens; the last question was: ${transcript.messages.findLast(({ role }) => role === 'user')?.content ?? ''}`);
}

function named(file: string | undefined): string {
  if (!file) throw new InputError('expected a file name');
  return file;
}

function kilobytes(bytes: number): string {
  return `${Math.round(bytes / 1024).toLocaleString('en-US')} KiB`;
}
