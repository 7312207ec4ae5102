// A conversation: messages, the tokens that the cache holds of them, and answers as a stream of text. Runs in a browser.
import { Template } from '@huggingface/jinja';
import type { Cache, Model } from './model.ts';
import { type SampleOptions, sample } from './sample.ts';
import { InputError } from './source.ts';

export interface Message {
  readonly role: 'system' | 'user' | 'assistant';
  readonly content: string;
}

/** A cache that can forget what came after a place where a conversation went on differently. */
export interface ChatCache extends Cache {
  crop(length: number): void;
}

export interface ChatOptions extends SampleOptions {
  /** Tokens that the cache can hold. */
  readonly capacity: number;
  /** Tokens of one call while a prompt is read; the cache's `maxAppend`. */
  readonly maxAppend: number;
  /** Tokens of one answer at most: small models may not find an end. */
  readonly maxAnswer: number;
}

export interface AskOptions {
  /** Ends the answer early. What was said until then stays in the conversation; before the first letter nothing does. */
  readonly signal?: AbortSignal;
  /** Called, and awaited, whenever part of the prompt has been read, with tokens. */
  readonly reading?: (done: number, total: number) => unknown;
}

/** Why an answer ended: the model said so, `maxAnswer`, the cache is full, or the signal. */
export type Ending = 'stop token' | 'longest answer' | 'capacity' | 'aborted';

/** What a conversation is besides its cache: what has to be kept with a saved one. */
export interface Transcript {
  readonly messages: readonly Message[];
  readonly tokens: readonly number[];
}

/** ChatML, which most small models were taught: for files without a template. */
const CHATML =
  "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

export class Chat {
  readonly #model: Model;
  readonly #cache: ChatCache;
  readonly #options: ChatOptions;
  readonly #template: Template;
  #answering = false;
  #messages: Message[] = [];
  /** What the cache holds, token by token. */
  #tokens: number[] = [];

  constructor(model: Model, cache: ChatCache, options: ChatOptions) {
    this.#model = model;
    this.#cache = cache;
    this.#options = options;
    this.#template = inTemplate(() => new Template(model.chatTemplate || CHATML));
  }

  get transcript(): Transcript {
    return { messages: this.#messages, tokens: this.#tokens };
  }

  /** Goes on with a saved conversation, whose tokens the cache holds already. */
  resume({ messages, tokens }: Transcript): void {
    if (tokens.length !== this.#cache.length) {
      throw new InputError(`saved conversation expected ${this.#cache.length} tokens (as its cache), got ${tokens.length}`);
    }
    this.#messages = [...messages];
    this.#tokens = [...tokens];
  }

  /**
   * The answer, piece by piece; why it ended is what the generator returns.
   *
   * @throws {InputError} before anything runs, if the conversation no longer fits, its template fails, or another answer has not ended
   */
  async *ask(question: string, options: AskOptions = {}): AsyncGenerator<string, Ending> {
    if (this.#answering) throw new InputError('expected one question at a time, got another before the answer has ended');
    this.#answering = true;
    try {
      return yield* this.#answer(question, options);
    } finally {
      this.#answering = false;
    }
  }

  async *#answer(question: string, { signal, reading }: AskOptions): AsyncGenerator<string, Ending> {
    const messages: Message[] = [...this.#messages, { role: 'user', content: question }];
    const prompt = this.#prompt(messages);
    const { capacity, maxAppend, maxAnswer } = this.#options;
    if (prompt.length >= capacity) {
      throw new InputError(
        `expected a conversation of fewer than ${capacity} tokens (the cache's capacity), got ${prompt.length}; shorten the question, start anew, or open a larger cache`
      );
    }

    // What the cache holds of this prompt already stays; at least one token must run, for its logits.
    let same = 0;
    while (same < this.#tokens.length && same < prompt.length - 1 && this.#tokens[same] === prompt[same]) same++;
    if (same < this.#cache.length) this.#cache.crop(same);
    this.#tokens.length = same;

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
      else if (this.#cache.length >= capacity) ending = 'capacity';
      else hidden = await this.#run([token]);
    }
    if (ending === 'aborted' && shown === '') return ending;
    this.#messages = [...messages, { role: 'assistant', content: shown }];
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

  async #run(tokens: readonly number[]): Promise<Float32Array<ArrayBuffer>> {
    const hidden = await this.#model.forward(tokens, this.#cache);
    this.#tokens.push(...tokens);
    return hidden as Float32Array<ArrayBuffer>;
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
