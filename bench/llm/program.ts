// What the programs share: options, the lines that say where numbers come from, errors as one sentence.
import { accessSync, constants } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { dirname } from 'node:path';
import { InputError, type Model } from '@nsnquant/gguf';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type Backend, BackendError, type BackendName, openBackend } from 'nsnquant';
import { DenseAttention } from './caches/dense.ts';
import type { Resources } from './caches/methods.ts';
import { findModel, openModel, runtime } from './node.ts';
import { markOf, readProfile } from './profile.ts';

export interface ModelOptions {
  model?: string;
  backend: BackendName;
}

export interface CommonOptions extends ModelOptions {
  threads: number;
  balance?: string;
}

export interface Opened extends Resources {
  readonly model: Model;
}

export function commonOptions(command: Command): Command {
  return modelOption(command).option('--threads <n>', 'threads of the host engine', count, 1);
}

export function modelOption(command: Command): Command {
  return (
    command
      .option(
        '--model <file>',
        'a GGUF file, or OWNER/NAME/FILE.gguf on Hugging Face (default: NSN_MODEL, or the file beside the repository)'
      )
      // Never what the machine would choose: the same command has to measure the same everywhere.
      .addOption(new Option('--backend <name>', "where nsnquant's attention runs").choices(['wasm', 'webgpu', 'reference']).default('wasm'))
  );
}

export function balanceOption(): Option {
  return new Option('--balance <file>', 'what keys are balanced by: a profile of calibrate (default: every sequence learns its own)');
}

/** For commander: an integer of at least 1. */
export function count(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('expected integer of at least 1');
  return Number(text);
}

/** For commander: integers of at least 1, comma separated. */
export function counts(text: string): number[] {
  return text.split(',').map(count);
}

/** For commander: a number of at least 0. */
export function amount(text: string): number {
  if (!/^\d+(\.\d+)?$/.test(text)) throw new InvalidArgumentError('expected number of at least 0');
  return Number(text);
}

/** For commander: a file for results. That it can be written is known before hours of measuring. */
export function outputFile(path: string): string {
  try {
    accessSync(dirname(path), constants.W_OK);
  } catch {
    throw new InvalidArgumentError('expected a file in a folder that can be written to');
  }
  return path;
}

export async function openAll({ model: file, threads, backend: prefer, balance }: CommonOptions): Promise<Opened> {
  const backend = await openBackend({ prefer });
  const model = await openModel(file, { threads });
  const profile = balance === undefined ? undefined : await readProfile(balance, await markOf(await findModel(file)));
  const dense = await DenseAttention.open(runtime, model.config, { threads });
  return { model, config: model.config, backend, dense, profile };
}

/** The first lines of every report. */
export function facts({ config }: Model, backend: Backend, threads: string): string[] {
  return [
    `model: ${config.name}: ${config.layers} layers, ${config.queryHeads} query heads, ${config.kvHeads} KV heads of ${config.headDim}`,
    `machine: ${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${availableParallelism()} processors; Node ${process.versions.node}`,
    `attention: ${backend.name} ${backend.variant}; host engine: onnxruntime-node, ${threads}`,
    `date: ${new Date().toISOString().slice(0, 10)}; command: ${['npm run', process.env['npm_lifecycle_event'] ?? 'program', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' ')}`
  ];
}

export function threadText(threads: number): string {
  return threads === 1 ? '1 thread' : `${threads} threads`;
}

/** Errors that say all there is to say end the program with their sentence; others with a stack. */
export async function run(main: () => Promise<void>): Promise<void> {
  try {
    await main();
  } catch (error) {
    if (!(error instanceof InputError || error instanceof BackendError || error instanceof RangeError)) throw error;
    console.error(error.message);
    process.exitCode = 1;
  }
}

/** A line on the terminal that replaces itself, or whole lines where output goes to a file. Not the program's result. */
export function status(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
  else if (text !== '') process.stderr.write(`${text}\n`);
}
