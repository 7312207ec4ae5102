// A conversation on disk: its cache in FILE as the library saves it, and in FILE.json its text and what both were made with.
// A cache means nothing to other weights, which its own format cannot tell: the checksums say so.
import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { readFile, writeFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { InputError, type Message, type Transcript } from '@nsnquant/gguf';

/** What a model file is known by. */
export interface ModelMark {
  readonly name: string;
  readonly sha256: string;
}

interface Text extends Transcript {
  readonly model: ModelMark;
  /** SHA-256 of the cache's file. */
  readonly cache: string;
}

/** Reads the whole file: two models of one shape may differ anywhere. */
export async function markOf(modelFile: string): Promise<ModelMark> {
  const hash = createHash('sha256');
  await pipeline(createReadStream(modelFile), hash);
  return { name: basename(modelFile), sha256: hash.digest('hex') };
}

export async function writeKept(file: string, cache: Uint8Array, transcript: Transcript, model: ModelMark): Promise<void> {
  const text: Text = { model, cache: checksum(cache), ...transcript };
  await writeFile(file, cache);
  await writeFile(`${file}.json`, JSON.stringify(text));
}

/** @throws {InputError} for what is no kept conversation, was kept with another model, or whose two files do not belong together */
export async function readKept(file: string, model: ModelMark): Promise<{ cache: Uint8Array; transcript: Transcript }> {
  const cache = new Uint8Array(await readFile(file));
  const text = parse(await readFile(`${file}.json`, 'utf8'));
  if (!text) throw new InputError(`${file}.json: expected the text of a kept conversation, got something else`);
  if (text.model.sha256 !== model.sha256) {
    throw new InputError(`${file}.json: expected a conversation with ${named(model)}, got one with ${named(text.model)}`);
  }
  if (text.cache !== checksum(cache)) throw new InputError(`${file}: expected the cache that ${file}.json was kept with, got other bytes`);
  return { cache, transcript: { messages: text.messages, tokens: text.tokens } };
}

function parse(json: string): Text | undefined {
  try {
    const text = JSON.parse(json) as Text;
    const isText = typeof text.cache === 'string' && typeof text.model.name === 'string' && typeof text.model.sha256 === 'string';
    return isText && text.messages.every(isMessage) && text.tokens.every(token => Number.isInteger(token) && token >= 0) ? text : undefined;
  } catch {
    return undefined;
  }
}

function isMessage({ role, content }: Message): boolean {
  return ['system', 'user', 'assistant'].includes(role) && typeof content === 'string';
}

export function named({ name, sha256 }: ModelMark): string {
  return `${name} (SHA-256 ${sha256.slice(0, 12)}…)`;
}

function checksum(bytes: Uint8Array): string {
  return createHash('sha256').update(bytes).digest('hex');
}
