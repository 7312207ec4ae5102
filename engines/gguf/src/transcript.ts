// What a conversation is besides its cache, and how a saved sequence carries it: as words of the application in the file's metadata.
import { inspect } from 'nsnquant';
import { InputError } from './source.ts';

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

export interface Transcript {
  readonly messages: readonly Message[];
  /** Ids of the tokens that the cache holds, forgotten ones too. */
  readonly tokens: readonly number[];
}

/** What a model is known by. */
export interface ModelMark {
  readonly name: string;
  /** Of all its bytes, hexadecimal. */
  readonly fingerprint: string;
}

/**
 * What `Sequence.save({ metadata })` keeps of a conversation. A cache means nothing to other weights, which it cannot see: so a saved one
 * names its model.
 *
 * @example
 * const metadata = toMetadata({ messages: [], tokens: [] }, { name: 'tiny', fingerprint: '00' });
 */
export function toMetadata({ messages, tokens }: Transcript, { name, fingerprint }: ModelMark): Record<string, string> {
  return { model: name, fingerprint, messages: JSON.stringify(messages), tokens: JSON.stringify(tokens) };
}

/**
 * The transcript in a saved conversation's file: what `toMetadata` made of it.
 *
 * @throws {RangeError} if this is no file of a sequence
 * @throws {InputError} if it is none of a conversation, or of one with another model
 *
 * @example
 * const chat = await Chat.open(model);
 * const mark = { name: model.config.name, fingerprint: await model.fingerprint() };
 * const { messages } = readTranscript(await chat.save(), mark);
 */
export function readTranscript(bytes: Uint8Array, model: ModelMark): Transcript {
  const { metadata, length } = inspect(bytes);
  const transcript = parse(metadata);
  if (!transcript) throw new InputError('expected a saved conversation, got a sequence without its text');
  const saved = { name: metadata['model']!, fingerprint: metadata['fingerprint']! };
  if (saved.fingerprint !== model.fingerprint) {
    throw new InputError(`expected a conversation with ${said(model)}, got one with ${said(saved)}`);
  }
  if (transcript.tokens.length !== length) {
    throw new InputError(`saved conversation expected ${length} tokens (as its cache), got ${transcript.tokens.length}`);
  }
  return transcript;
}

function parse(metadata: Readonly<Record<string, string>>): Transcript | undefined {
  try {
    const messages = JSON.parse(metadata['messages']!) as Message[];
    const tokens = JSON.parse(metadata['tokens']!) as number[];
    const isText = metadata['model'] !== undefined && metadata['fingerprint'] !== undefined;
    return isText && messages.every(isMessage) && tokens.every(token => Number.isInteger(token) && token >= 0)
      ? { messages, tokens }
      : undefined;
  } catch {
    return undefined;
  }
}

function isMessage({ role, content }: Message): boolean {
  return ['system', 'user', 'assistant'].includes(role) && typeof content === 'string';
}

function said({ name, fingerprint }: ModelMark): string {
  return `${name} (${fingerprint.slice(0, 12)}…)`;
}
