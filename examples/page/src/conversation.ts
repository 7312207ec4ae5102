// The worker's side: a model, a cache, one conversation. Knows nothing of the page; what it refuses it refuses in a sentence.

import { type ChatOptions, type Ending, InputError, type Message, type Transcript } from '@nsnquant/gguf';
import { type Backend, BackendError, type CodecName, openBackend, plan } from 'nsnquant';
import type { ChatCache, ChatModel, Held, ModelFacts, Talk } from './chat-model.ts';
import { findKept, forget, keep } from './kept.ts';
import { type Chosen, openSource } from './sources.ts';

/** Tokens of one call while a prompt is read: a window, so that the page hears of it and can stop it often. */
const MAX_APPEND = 64;

export type Attention = 'wasm' | 'webgpu';

export interface Settings {
  readonly attention: Attention;
  readonly keys: CodecName;
  readonly values: CodecName;
  /** Tokens that the cache holds; the model's context where that is less. */
  readonly capacity: number;
}

export interface AskOptions {
  readonly temperature: number;
  readonly maxAnswer: number;
}

/** What a cache is, before anything is in it. */
export interface CacheFacts {
  /** The backend's variant, and why it was picked. */
  readonly variant: string;
  readonly reason: string;
  readonly capacity: number;
  /** All that was allocated. */
  readonly allocatedBytes: number;
  readonly bytesPerToken: number;
  readonly bitsPerElement: number;
  readonly f16BytesPerToken: number;
  /** Tokens of the conversation, which the cache has yet to read. */
  readonly unread: number;
}

/** A conversation that was kept and goes on. */
export interface Resumed {
  readonly settings: Settings;
  readonly cache: CacheFacts;
  readonly held: Held;
  readonly messages: readonly Message[];
  /** What loading its cache took, */
  readonly loadMs: number;
  /** what it took to see that the model is the same, */
  readonly checkMs: number;
  /** and what reading its tokens would take, at the pace at which prompts were read. */
  readonly readMs: number;
}

export type Report =
  | { readonly kind: 'reading'; readonly done: number; readonly total: number; readonly ms: number; readonly held: Held }
  | {
      readonly kind: 'piece';
      readonly text: string;
      readonly tokens: number;
      readonly ms: number;
      /** Where the engine lets it be seen. */
      readonly attentionMs: number | undefined;
      readonly held: Held;
    };

export type Listen<T> = (event: T) => unknown;

const NOTHING: Transcript = { messages: [], tokens: [] };

export class Conversation {
  readonly #backends = new Map<Attention, Backend>();
  #model: ChatModel | undefined;
  #cache: ChatCache | undefined;
  #settings: Settings | undefined;
  #transcript = NOTHING;
  /** Tokens that the transcript was when it was last read. */
  #length = 0;
  /** How long a token of the newest prompt took to read. */
  #readMsPerToken = 0;
  #stop = new AbortController();
  #busy = false;

  /** Opens a model; one conversation opens one. `loaded` hears 0 to 1. */
  async open(chosen: Chosen, loaded: Listen<number>): Promise<ModelFacts> {
    // Each engine has an ONNX Runtime of its own: the one that is not used is not loaded.
    if ('files' in chosen) this.#model = await (await import('./folder-model.ts')).openFolderModel(chosen);
    else this.#model = await (await import('./gguf-model.ts')).openGgufModel(await openSource(chosen, loaded), loaded);
    return this.#model.facts;
  }

  /**
   * A new, empty cache; the next question reads the conversation into it. Where it is refused the old one stays in use.
   *
   * @throws {BackendError} if the backend is missing here, computes wrongly, or has no memory for the cache
   */
  configure(settings: Settings): Promise<CacheFacts> {
    return this.#alone(() => this.#configure(settings));
  }

  async #configure(settings: Settings): Promise<CacheFacts> {
    const model = this.#opened();
    let backend = this.#backends.get(settings.attention);
    if (!backend) {
      backend = await openBackend({ prefer: settings.attention });
      this.#backends.set(settings.attention, backend);
    }
    const { keys, values } = settings;
    const capacity = Math.min(settings.capacity, model.facts.context);
    const options = { keys, values, capacity, maxAppend: Math.min(MAX_APPEND, capacity), sinks: 4, recent: 0, balance: 'learn' } as const;
    const cache = await model.open(backend, options);
    this.#cache?.dispose();
    this.#cache = cache;
    this.#settings = settings;
    this.#transcript = { ...this.#transcript, tokens: [] };
    const layers = cache.cache.shape.layers.map(({ queryHeads, kvHeads, headDim, valueDim }) => ({
      queryHeads,
      kvHeads,
      headDim,
      valueDim
    }));
    const { bytesPerToken, bitsPerElement, f16BytesPerToken } = plan({ layers, ...options });
    return {
      variant: backend.variant,
      reason: backend.reason,
      capacity,
      allocatedBytes: cache.cache.bytes,
      bytesPerToken,
      bitsPerElement,
      f16BytesPerToken,
      unread: this.#length
    };
  }

  /** Answers, reporting every piece. Resolves to why the answer ended. */
  ask(question: string, options: AskOptions, listen: Listen<Report>): Promise<Ending> {
    return this.#alone(() => this.#ask(question, options, listen));
  }

  async #ask(question: string, { temperature, maxAnswer }: AskOptions, listen: Listen<Report>): Promise<Ending> {
    if (!this.#cache) await this.#configure(this.#settings!);
    const cache = this.#cache!;
    const chat = this.#chat({ maxAnswer, temperature });
    this.#stop = new AbortController();

    let before = performance.now();
    const begin = before;
    let tokensBefore = 0;
    const sinceLast = (): number => {
      const now = performance.now();
      const ms = now - before;
      before = now;
      return ms;
    };
    try {
      const pieces = chat.ask(question, {
        signal: this.#stop.signal,
        reading: (done, total) => {
          tokensBefore = cache.held.tokens;
          this.#readMsPerToken = (performance.now() - begin) / done;
          return listen({ kind: 'reading', done, total, ms: sinceLast(), held: cache.held });
        }
      });
      for (;;) {
        const attentionBefore = cache.attentionMs;
        const { done, value } = await pieces.next();
        if (done) return value;
        const { held } = cache;
        // Awaited: while the page hears of it, this worker hears whether to stop.
        await listen({
          kind: 'piece',
          text: value,
          tokens: held.tokens - tokensBefore,
          ms: sinceLast(),
          attentionMs: cache.attentionMs && cache.attentionMs - attentionBefore!,
          held
        });
        before = performance.now();
        tokensBefore = held.tokens;
      }
    } catch (error) {
      // What fails in the middle leaves layers of different lengths: the next question gets a new cache, and a new device if
      // this one failed. The conversation stays.
      if (!(error instanceof InputError)) {
        cache.dispose();
        this.#cache = undefined;
        if (error instanceof BackendError) this.#backends.delete(error.backend as Attention);
      }
      throw error;
    } finally {
      const { messages, tokens } = chat.transcript;
      this.#transcript = { messages, tokens: this.#cache ? tokens : [] };
      this.#length = tokens.length;
    }
  }

  /**
   * Begins anew with a document, of which the model is told before all else, and reads it; stopped early, the next question reads the
   * rest. Where it is refused the conversation before goes on.
   */
  read(document: string, listen: Listen<Report>): Promise<void> {
    return this.#alone(async () => {
      const before = this.#transcript;
      this.#transcript = { messages: [{ role: 'system', content: document }], tokens: before.tokens };
      const reading = (report: Report): unknown => {
        if (report.kind === 'reading' && report.done === report.total) this.stop();
        return listen(report);
      };
      try {
        // A question without words, stopped before its answer: the next one begins with the same tokens, and finds them read.
        await this.#ask('', { temperature: 0, maxAnswer: 1 }, reading);
      } catch (error) {
        this.#transcript = { messages: before.messages, tokens: this.#cache ? before.tokens : [] };
        throw error;
      }
    });
  }

  /** Ends the answer that is being made, after its next token. */
  stop(): void {
    this.#stop.abort();
  }

  /** Keeps the conversation and its cache in this browser, in the place of what it kept before; resolves to their bytes. */
  keep(): Promise<number> {
    return this.#alone(async () => {
      const file = await this.#chat().save();
      await keep({ settings: this.#settings!, file, readMsPerToken: this.#readMsPerToken });
      return file.length;
    });
  }

  /**
   * Goes on with what this browser keeps, if anything, and reads none of it anew: a cache as it had then, on WebAssembly. Where it is
   * refused it stays kept, and nothing has been said here.
   *
   * @throws {InputError} if it is of another model
   * @throws {RangeError} if it is damaged
   */
  resume(): Promise<Resumed | undefined> {
    return this.#alone(() => this.#resume());
  }

  async #resume(): Promise<Resumed | undefined> {
    const start = performance.now();
    const kept = await findKept();
    if (!kept) return undefined;
    const foundMs = performance.now() - start;
    const settings: Settings = { ...kept.settings, attention: 'wasm' };
    const facts = await this.#configure(settings);
    const chat = this.#chat();
    const checkStart = performance.now();
    await this.#opened().fingerprint();
    const loadStart = performance.now();
    await chat.load(kept.file);
    const loadMs = foundMs + performance.now() - loadStart;
    this.#transcript = chat.transcript;
    const { messages, tokens } = this.#transcript;
    this.#length = tokens.length;
    this.#readMsPerToken = kept.readMsPerToken;
    const readMs = kept.readMsPerToken * tokens.length;
    return { settings, cache: facts, held: this.#cache!.held, messages, loadMs, checkMs: loadStart - checkStart, readMs };
  }

  /** Forgets the conversation, and what this browser keeps. */
  restart(): Promise<void> {
    return this.#alone(async () => {
      this.#cache?.clear();
      this.#transcript = NOTHING;
      this.#length = 0;
      await forget();
    });
  }

  /** The conversation as it stands, over the cache that is in use. */
  #chat(options: ChatOptions = {}): Talk {
    const chat = this.#cache!.talk({ maxAppend: MAX_APPEND, ...options });
    chat.resume(this.#transcript);
    return chat;
  }

  /** What uses the cache uses it alone: while an answer is made it must neither be cropped nor replaced, nor asked something else. */
  async #alone<T>(run: () => Promise<T>): Promise<T> {
    if (this.#busy) throw new InputError('expected one thing at a time, got another before the answer has ended');
    this.#busy = true;
    try {
      return await run();
    } finally {
      this.#busy = false;
    }
  }

  #opened(): ChatModel {
    if (!this.#model) throw new Error('conversation expected open, got one without a model');
    return this.#model;
  }
}
