// `npm run calibrate`: a profile of a model from a text: what caches balance keys by whose sequences are not to learn it each.

import { InputError } from '@nsnquant/gguf';
import { Command } from 'commander';
import { WINDOW } from './caches/cache.ts';
import { sequenceOf } from './evaluate.ts';
import { findModel, readText, textNames } from './node.ts';
import { learnProfile, markOf, SINKS, writeProfile } from './profile.ts';
import { type CommonOptions, commonOptions, count, facts, openAll, outputFile, run, status, threadText } from './program.ts';

interface Options extends CommonOptions {
  text: string;
  sequences: number;
  tokens: number;
  out: string;
}

await run(async () => {
  const options = commonOptions(new Command('calibrate'))
    .description('Learns from a text what keys are balanced by, for --balance of other commands.')
    .option('--text <name>', `${textNames.join(', ')} or a file`, textNames[0])
    .option('--sequences <n>', 'that are read, spread evenly over the text', count, 4)
    .option('--tokens <n>', 'of every sequence', count, SINKS + 8 * WINDOW)
    .option('--out <file>', 'where the profile goes', outputFile, 'balance.json')
    .parse()
    .opts<Options>();
  const { sequences, tokens } = options;
  if (tokens < SINKS + WINDOW) throw new InputError(`"--tokens" expected at least ${SINKS + WINDOW} (sinks and a window), got ${tokens}`);
  const opened = await openAll(options);
  const { model, config, backend } = opened;
  if (tokens > config.context) throw new InputError(`"--tokens" expected at most ${config.context} (the model's context), got ${tokens}`);
  status('tokenizing');
  const ids = model.encode(await readText(options.text));
  if (ids.length < sequences * tokens)
    throw new InputError(
      `"--text" expected ${sequences * tokens} tokens (${sequences} sequences of ${tokens}), got ${ids.length} in ${options.text}`
    );

  const starts = Array.from({ length: sequences }, (_, n) => Math.floor((n * ids.length) / sequences));
  const profile = await learnProfile(
    opened,
    starts.map(from => sequenceOf(model, ids, from, tokens)),
    status
  );
  await writeProfile(options.out, profile, await markOf(await findModel(options.model)));
  status('');
  console.log(
    [
      ...facts(model, backend, threadText(options.threads)),
      `${options.out}: the balance of ${config.layers} layers of ${config.kvHeads} heads, from ${sequences} sequences of ${tokens} tokens of ${options.text}`
    ].join('\n')
  );
});
