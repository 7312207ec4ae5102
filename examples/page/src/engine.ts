// The worker as the page sees it: calls that always come to an end, even where the worker does not.

import type { Ending } from '@nsnquant/gguf';
import { proxy, type Remote, wrap } from 'comlink';
import type { ModelFacts } from './chat-model.ts';
import type { AskOptions, CacheFacts, Conversation, Listen, Report, Resumed, Settings } from './conversation.ts';
import type { Chosen } from './sources.ts';

/** The page itself ended the worker. */
export class Ended extends Error {}

export class Engine {
  readonly #worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module', name: 'conversation' });
  readonly #remote: Remote<Conversation> = wrap<Conversation>(this.#worker);
  readonly #over: Promise<never>;
  #fail!: (reason: Error) => void;
  /** The worker is gone; no call will be answered. */
  failed = false;

  constructor() {
    this.#over = new Promise((_, reject) => {
      this.#fail = reason => {
        this.failed = true;
        reject(reason);
      };
    });
    this.#over.catch(() => undefined); // heard by the calls that it ends, if any
    this.#worker.addEventListener('error', event => {
      event.preventDefault();
      this.#fail(new Error(`The worker failed: ${event.message || 'its script did not load'}`));
    });
  }

  open(chosen: Chosen, loaded: Listen<number>): Promise<ModelFacts> {
    return this.#call(this.#remote.open(chosen, proxy(loaded)));
  }

  configure(settings: Settings): Promise<CacheFacts> {
    return this.#call(this.#remote.configure(settings));
  }

  ask(question: string, options: AskOptions, listen: Listen<Report>): Promise<Ending> {
    return this.#call(this.#remote.ask(question, options, proxy(listen)));
  }

  read(document: string, listen: Listen<Report>): Promise<void> {
    return this.#call(this.#remote.read(document, proxy(listen)));
  }

  keep(): Promise<number> {
    return this.#call(this.#remote.keep());
  }

  resume(): Promise<Resumed | undefined> {
    return this.#call(this.#remote.resume());
  }

  stop(): void {
    void this.#remote.stop(); // what it ends is what the caller waits for
  }

  restart(): Promise<void> {
    return this.#call(this.#remote.restart());
  }

  /** Ends the worker, and with it gives all memory back: a WebAssembly memory never shrinks. */
  end(): void {
    this.#worker.terminate();
    this.#fail(new Ended('ended'));
  }

  #call<T>(answer: Promise<T>): Promise<T> {
    return Promise.race([answer, this.#over]);
  }
}
