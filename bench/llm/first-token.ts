// `npm run first-token`: milliseconds until a prompt's first answered token, with its prefix in a store of files and without.
import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { argmax, InputError } from '@nsnquant/gguf';
import { Command } from 'commander';
import { PrefixStore } from 'nsnquant/prefixes';
import { createStorage } from 'unstorage';
import fsDriver from 'unstorage/drivers/fs';
import { toMarkdown } from '../table.ts';
import { methodName, openCache, parseMethod } from './caches/methods.ts';
import { NsnCache } from './caches/nsn.ts';
import { readText } from './node.ts';
import { type CommonOptions, commonOptions, count, counts, facts, openAll, run, status, threadText } from './program.ts';

interface Options extends CommonOptions {
  contexts: number[];
  method: string;
  rounds: number;
}

/** Tokens of one call while a prompt is read. */
const CHUNK = 512;

await run(async () => {
  const options = commonOptions(new Command('first-token'))
    .description('Time to the first token, with a store of prefixes and without.')
    .option('--contexts <list>', 'tokens of a prompt', counts, [512, 2048, 8000])
    .option('--method <name>', 'codecs of nsnquant', 'nsn3')
    .option('--rounds <n>', 'how often each is timed; the fastest counts', count, 3)
    .parse()
    .opts<Options>();
  const { contexts, rounds, threads } = options;
  const method = parseMethod(options.method);
  const opened = await openAll(options);
  const { model } = opened;
  const longest = Math.max(...contexts);
  if (longest > opened.config.context) {
    throw new InputError(`"--contexts" expected at most ${opened.config.context} tokens (the model's context), got ${longest}`);
  }
  status('tokenizing');
  const ids = model.encode((await readText('war-and-peace')).slice(0, 8 * longest)).slice(0, longest);
  const folder = await mkdtemp(join(tmpdir(), 'nsnquant-prefixes-'));
  const rows: string[][] = [];
  try {
    const prefixes = new PrefixStore(createStorage({ driver: fsDriver({ base: folder }) }), {
      model: await model.fingerprint(),
      budget: Infinity
    });
    for (const context of contexts) {
      const prompt = ids.slice(0, context);
      const cache = openCache(method, opened, context + CHUNK, CHUNK);
      if (!(cache instanceof NsnCache)) throw new InputError(`"--method" expected codecs of nsnquant, got ${options.method}`);
      /** Reads what the cache has not, and gives the most likely token. */
      const answer = async (): Promise<number> => {
        let hidden: Float32Array = new Float32Array(0);
        while (cache.length < context) hidden = await model.forward(prompt.slice(cache.length, cache.length + CHUNK), cache);
        return argmax(await model.logits(hidden.slice(-model.config.width)));
      };
      const best = { without: Infinity, put: Infinity, load: Infinity, with: Infinity };
      const time = async <T>(what: keyof typeof best, work: () => Promise<T>): Promise<T> => {
        status(`${methodName(method)}, ${context} tokens, ${what}`);
        const begin = performance.now();
        const result = await work();
        best[what] = Math.min(best[what], performance.now() - begin);
        return result;
      };
      let found = 0;
      let same = true;
      for (let round = 0; round < rounds; round++) {
        cache.crop(0);
        const first = await time('without', answer);
        await prefixes.clear();
        await time('put', () => prefixes.put(cache.sequence, prompt));
        const second = await time('with', async () => {
          await time('load', () => cache.load(prefixes, prompt));
          found = cache.length;
          return answer();
        });
        same &&= first === second;
      }
      const megabytes = (await prefixes.bytes()) / 1e6;
      rows.push([
        ...[`${context}`, `${found}`, megabytes.toFixed(1)],
        ...[best.without, best.put, best.load, best.with].map(ms => ms.toFixed(0)),
        (best.without / best.with).toFixed(1),
        same ? 'yes' : 'no'
      ]);
      cache.dispose();
    }
  } finally {
    await rm(folder, { recursive: true });
  }
  status('');
  console.log(facts(model, opened.backend, threadText(threads)).join('\n'));
  const headers = ['prompt', 'found', 'MB', 'without ms', 'put ms', 'load ms', 'with ms', '×', 'same token'];
  console.log(`\nTime to the first token, ${methodName(method)}\n\n${toMarkdown({ headers, rows, textColumns: 0 })}`);
});
