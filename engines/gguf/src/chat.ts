// A conversation: messages, the tokens that the cache holds of them, and answers as a stream of text. Runs in a browser.
import { Template } from '@huggingface/jinja';
import { type Backend, type CacheOptions, openBackend } from 'nsnquant';
import type { PrefixStore } from 'nsnquant/prefixes';
import { SequenceCache } from './cache.ts';
import type { Model } from './model.ts';
import { checkOptions } from './options.ts';
import { type SampleOptions, sample } from './sample.ts';
import { InputError } from './source.ts';
import { type Message, readTranscript, type Transcript, toMetadata } from './transcript.ts';

/** How a conversation goes on. */
export interface ChatOptions extends Partial<SampleOptions> {
  /** Tokens of one call while a prompt is read. Default 512, or what the cache takes. */
  readonly maxAppend?: number;
  /** Tokens of one answer at most: small models may not find an end. Default 512. */
  readonly maxAnswer?: number;
  /**
   * What happens when the cache is full: `'stop'` (default) ends the answer, and refuses the next question; `'roll'` forgets the oldest
   * windows of 64 tokens behind the sinks and goes on. Positions then grow beyond the model's context, which it was not made for.
   */
  readonly full?: 'stop' | 'roll';
  /** What the model is told before all else; not every template takes it. */
  readonly system?: string;
  /** Where prompts that were read are kept, to be found by the next conversation that begins so. Its `model` is `model.fingerprint()`. */
  readonly prefixes?: PrefixStore;
}

/** What `Chat.open` takes: how a conversation goes on, and its cache. */
export interface OpenChatOptions extends ChatOptions, Partial<Pick<CacheOptions, 'keys' | 'values' | 'sinks' | 'balance' | 'capacity'>> {
  /** Where attention runs. Default: what `openBackend()` finds. */
  readonly backend?: Backend;
}

const OPTIONS = [
  ...(['maxAppend', 'maxAnswer', 'full', 'system', 'prefixes', 'temperature', 'topP', 'random'] as const),
  ...(['keys', 'values', 'sinks', 'balance', 'capacity', 'backend'] as const)
] satisfies readonly (keyof OpenChatOptions)[];

export interface AskOptions {
  /** Ends the answer early. What was said until then stays in the conversation; before the first letter nothing does. */
  readonly signal?: AbortSignal;
  /** Called, and awaited, whenever part of the prompt has been read, with tokens. */
  readonly reading?: (done: number, total: number) => unknown;
}

/** Why an answer ended: the model said so, `maxAnswer`, the cache is full, or the signal. */
export type Ending = 'stop token' | 'longest answer' | 'capacity' | 'aborted';

/** ChatML, which most small models were taught: for files without a template. */
const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

const MAX_APPEND = 512;
const MAX_ANSWER = 512;

/**
 * A conversation with a model over a quantized cache.
 *
 * @example
 * const chat = await Chat.open(model, { keys: 'nsn3', values: 'nsn3', maxAnswer: 20 });
 * for await (const piece of chat.ask('Hello!')) console.log(piece);
 * const saved = await chat.save(); // its cache, text and the model's name in one file
 * chat.dispose();
 */
export class Chat {
  readonly #model: Model;
  readonly #cache: SequenceCache;
  readonly #options: ChatOptions & SampleOptions & { readonly maxAppend: number; readonly maxAnswer: number };
  readonly #template: Template;
  #busy = false;
  #messages: readonly Message[];
  /** What the cache holds, token by token, forgotten ones too. */
  #tokens: number[] = [];

  /** A conversation over a cache of its own, which it then is alone to use. `open` makes that, too. */
  constructor(model: Model, cache: SequenceCache, options: ChatOptions = {}) {
    const maxAppend = options.maxAppend ?? cache.cache.shape.maxAppend;
    this.#model = model;
    this.#cache = cache;
    this.#options = { temperature: 0, topP: 0.9, random: Math.random, maxAnswer: MAX_ANSWER, ...options, maxAppend };
    this.#template = inTemplate(() => new Template(model.chatTemplate || CHATML));
    this.#messages = options.system === undefined ? [] : [{ role: 'system', content: options.system }];
  }

  /**
   * A conversation with nothing said yet, and its cache.
   *
   * @throws {TypeError}    for an option that is unknown
   * @throws {RangeError}   for what the cache refuses
   * @throws {InputError}   if the file's chat template cannot be read
   * @throws {BackendError} if there is no memory for the cache
   *
   * @example
   * const chat = await Chat.open(model, { capacity: 1024, full: 'roll', system: 'Answer in one word.' });
   * for await (const piece of chat.ask('What is the capital of France?')) console.log(piece);
   */
  static async open(model: Model, options: OpenChatOptions = {}): Promise<Chat> {
    checkOptions(options, OPTIONS);
    const { backend, keys = 'nsn3', values = 'nsn3', sinks = 4, balance = 'learn', capacity = model.config.context, ...rest } = options;
    const maxAppend = Math.min(rest.maxAppend ?? MAX_APPEND, capacity);
    const cache = new SequenceCache(backend ?? (await openBackend()), model.config, { keys, values, sinks, balance, capacity, maxAppend });
    await cache.cache.ready;
    try {
      return new Chat(model, cache, { ...rest, maxAppend });
    } catch (error) {
      cache.dispose();
      throw error;
    }
  }

  /** What was said, and its tokens. */
  get transcript(): Transcript {
    return { messages: this.#messages, tokens: this.#tokens };
  }

  /** The cache: what it holds, and how many bytes that takes. */
  get cache(): SequenceCache {
    return this.#cache;
  }

  /**
   * The answer, piece by piece; why it ended is what the generator returns. Nothing that a person types is read as a control token.
   *
   * @throws {InputError}   before anything runs, if the conversation no longer fits, its template fails, or another answer has not ended
   * @throws {StorageError} if the store of prefixes fails: before anything is read, or once the answer has ended
   *
   * @example
   * const chat = await Chat.open(model, { maxAnswer: 20 });
   * const stop = new AbortController();
   * for await (const piece of chat.ask('Tell me a story.', { signal: stop.signal })) if (piece.includes('.')) stop.abort();
   */
  async *ask(question: string, options: AskOptions = {}): AsyncGenerator<string, Ending> {
    this.#begin();
    try {
      return yield* this.#answer(question, options);
    } finally {
      this.#busy = false;
    }
  }

  /**
   * The conversation as one file: its cache as the library saves it, with its messages, token ids and the model's fingerprint.
   *
   * @throws {InputError} if an answer has not ended
   *
   * @example
   * const chat = await Chat.open(model, { maxAnswer: 5 });
   * for await (const _ of chat.ask('Hello!'));
   * const bytes = await chat.save();
   * const again = await Chat.open(model);
   * await again.load(bytes); // nothing is read anew
   */
  async save(): Promise<Uint8Array> {
    return this.#alone(async () => this.#cache.save(toMetadata(this.transcript, await this.#mark())));
  }

  /**
   * Goes on with a saved conversation. Where it is refused, this one goes on as it was.
   *
   * @throws {InputError} if it is of another model, no conversation, or an answer has not ended
   * @throws {RangeError} if the bytes are damaged, or of a cache of another shape or with more tokens than this has room for
   */
  async load(bytes: Uint8Array): Promise<void> {
    await this.#alone(async () => {
      const { messages, tokens } = readTranscript(bytes, await this.#mark());
      await this.#cache.restore(bytes);
      this.#messages = messages;
      this.#tokens = [...tokens];
    });
  }

  /** Goes on with messages and tokens from elsewhere; `tokens` says what the cache holds of them. */
  resume({ messages, tokens }: Transcript): void {
    if (tokens.length !== this.#cache.length) {
      throw new InputError(`saved conversation expected ${this.#cache.length} tokens (as its cache), got ${tokens.length}`);
    }
    this.#messages = [...messages];
    this.#tokens = [...tokens];
  }

  /** Gives the cache's memory back. */
  dispose(): void {
    this.#cache.dispose();
  }

  async *#answer(question: string, { signal, reading }: AskOptions): AsyncGenerator<string, Ending> {
    const messages: Message[] = [...this.#messages, { role: 'user', content: question }];
    const prompt = this.#prompt(messages);
    const { maxAppend, maxAnswer, full } = this.#options;
    this.#checkRoom(prompt.length);

    const same = await this.#keep(prompt);
    let hidden = new Float32Array();
    for (let from = same; from < prompt.length; from += maxAppend) {
      hidden = await this.#run(prompt.slice(from, from + maxAppend));
      await reading?.(this.#cache.length - same, prompt.length - same);
      if (signal?.aborted) return 'aborted';
    }
    const answer: number[] = [];
    let shown = '';
    let ending: Ending | undefined;
    while (!ending) {
      const logits = await this.#model.logits(hidden.slice(-this.#model.config.width));
      const token = sample(logits.subarray(0, this.#model.vocabulary.size), this.#options);
      if (this.#model.vocabulary.stops.has(token)) {
        ending = 'stop token';
        break;
      }
      answer.push(token);
      const text = this.#model.vocabulary.tokenizer.decode(answer, { skip_special_tokens: true });
      // A letter of several bytes may still be incomplete.
      if (!text.endsWith('\ufffd')) {
        yield text.slice(shown.length);
        shown = text;
      }
      if (signal?.aborted) ending = 'aborted';
      else if (answer.length >= maxAnswer) ending = 'longest answer';
      else if (this.#cache.free < 1 && full !== 'roll') ending = 'capacity';
      else hidden = await this.#run([token]);
    }
    if (ending === 'aborted' && shown === '') return ending;
    this.#messages = [...messages, { role: 'assistant', content: shown }];
    if (this.#cache.heldTokens === this.#cache.length) await this.#options.prefixes?.put(this.#cache.sequence, this.#tokens);
    return ending;
  }

  /** Tokens of the conversation up to where the answer begins. */
  #prompt(messages: readonly Message[]): number[] {
    const { special, start, literal } = this.#model.vocabulary;
    const context = {
      messages: messages.map(({ role, content }) => ({ role, content: literal(content) })),
      add_generation_prompt: true,
      ...special
    };
    const text = inTemplate(() => this.#template.render(context));
    const prompt = this.#model.encode(text.startsWith(start) ? text : start + text);
    if (prompt.length === 0) throw new InputError('expected a chat template that makes a prompt, got nothing from it');
    return prompt;
  }

  /** Refuses a prompt that leaves no room for an answer. */
  #checkRoom(tokens: number): void {
    const { length, free, heldTokens } = this.#cache;
    const capacity = free + heldTokens;
    const needed = tokens - (length - heldTokens);
    // A cache of another kind may say nothing of its room.
    if (this.#options.full === 'roll' || !(needed >= capacity)) return;
    throw new InputError(
      `expected a conversation of fewer than ${capacity} tokens (the cache's capacity), got ${needed}; shorten the question, start anew, or open a larger cache`
    );
  }

  /** What the cache or the store of prefixes holds of this prompt already stays; at least one token must run, for its logits. */
  async #keep(prompt: readonly number[]): Promise<number> {
    const { prefixes } = this.#options;
    let same = 0;
    while (same < this.#tokens.length && same < prompt.length - 1 && this.#tokens[same] === prompt[same]) same++;
    if (prefixes && (await prefixes.find(this.#cache.cache, prompt)) > same) {
      this.#tokens = [];
      await this.#cache.load(prefixes, prompt);
      same = this.#cache.length;
    } else if (same < this.#cache.length) {
      try {
        this.#cache.crop(same);
      } catch (error) {
        // What sliding windows have given back does not return: the conversation is read again.
        if (!(error instanceof RangeError)) throw error;
        this.#cache.crop(0);
        same = 0;
      }
    }
    this.#tokens = prompt.slice(0, same);
    return same;
  }

  async #run(tokens: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
    if (this.#options.full === 'roll' && !this.#cache.roll(tokens.length)) {
      throw new InputError(
        `expected a cache that has room for ${tokens.length} tokens once the oldest are forgotten, got ${this.#cache.free}`
      );
    }
    const before = this.#cache.length;
    try {
      const hidden = await this.#model.forward(tokens, this.#cache);
      this.#tokens.push(...tokens);
      return hidden as Float32Array<ArrayBuffer>;
    } catch (error) {
      // Layers may have tokens that others have not.
      this.#cache.crop(before);
      throw error;
    }
  }

  async #mark() {
    return { name: this.#model.config.name, fingerprint: await this.#model.fingerprint() };
  }

  #begin(): void {
    if (this.#busy) throw new InputError('expected one question at a time, got another before the answer has ended');
    this.#busy = true;
  }

  async #alone<T>(run: () => Promise<T>): Promise<T> {
    this.#begin();
    try {
      return await run();
    } finally {
      this.#busy = false;
    }
  }
}

/** What a template does, whose errors say in words of the template's language or of JavaScript what is wrong with the model's file. */
function inTemplate<T>(run: () => T): T {
  try {
    return run();
  } catch (error) {
    throw new InputError(`the model's chat template expected to run, got "${(error as Error).message}"`);
  }
}
