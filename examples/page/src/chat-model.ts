// What the page asks of a model that chats, whichever engine runs it: GGUF files (gguf-model.ts) or folders (folder-model.ts).
import type { Chat, ChatOptions } from '@nsnquant/gguf';
import type { Backend, CacheOptions, KVCache } from 'nsnquant';

/** A tab's WebAssembly memory ends at four of them. */
export const GIB = 2 ** 30;

/** What an opened model is. */
export interface ModelFacts {
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly context: number;
  /** Which file of a folder has the weights, and of how many; empty where the model is one file. */
  readonly weights: string;
}

/** What the cache holds, at one moment. */
export interface Held {
  readonly tokens: number;
  readonly bytes: number;
}

export type CacheChoice = Pick<CacheOptions, 'keys' | 'values' | 'capacity' | 'sinks' | 'recent' | 'balance'> & {
  readonly maxAppend: number;
};

export interface ChatModel {
  readonly facts: ModelFacts;
  /** A new, empty cache. Where it is refused, others stay in use. */
  open(backend: Backend, choice: CacheChoice): Promise<ChatCache>;
  /** What tells its weights from all others: a checksum of every byte. */
  fingerprint(): Promise<string>;
}

/** A conversation as @nsnquant/gguf has it. */
export type Talk = Pick<Chat, 'transcript' | 'ask' | 'save' | 'load' | 'resume'>;

/** A cache under a model, and the conversation over it. */
export interface ChatCache {
  readonly cache: KVCache;
  readonly held: Held;
  /** How long attention took since the cache was made, where the engine lets that be seen. */
  readonly attentionMs: number | undefined;
  /** A conversation over this cache; `resume` says what it holds. */
  talk(options: ChatOptions): Talk;
  /** Forgets all tokens. */
  clear(): void;
  dispose(): void;
}
