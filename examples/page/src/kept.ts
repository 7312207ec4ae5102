// The conversation that this browser keeps: one, in IndexedDB. Knows nothing of models.
import { InputError } from '@nsnquant/gguf';
import { del, get, set } from 'idb-keyval';
import type { Settings } from './conversation.ts';

export interface Kept {
  readonly settings: Settings;
  /** What Chat.save() gave. */
  readonly file: Uint8Array;
  /** How long a token of a prompt took to read. */
  readonly readMsPerToken: number;
}

const KEY = 'conversation';

export function keep(kept: Kept): Promise<void> {
  return set(KEY, kept);
}

/** @throws {InputError} if another version of this page kept something else */
export async function findKept(): Promise<Kept | undefined> {
  const kept = await get<Partial<Kept>>(KEY);
  if (kept && !(kept.settings && kept.file instanceof Uint8Array && typeof kept.readMsPerToken === 'number')) {
    throw new InputError(`kept conversation expected settings, file and readMsPerToken, got ${Object.keys(kept).join(', ') || 'nothing'}`);
  }
  return kept as Kept | undefined;
}

export function forget(): Promise<void> {
  return del(KEY);
}
