// The worker as the page sees it: calls that always come to an end, even where the worker does not.
import { proxy, type Remote, wrap } from 'comlink';
import type { Listen, Measurement, Plan } from './measurement.ts';
import type { Facts } from './report.ts';

/** The page itself ended the worker. */
export class Ended extends Error {}

/** One worker. A context takes one of its own, so that what it leaves in memory, or what it dies of, is gone before the next. */
export class Engine {
  readonly #worker = new Worker(new URL('worker.js', import.meta.url), { type: 'module', name: 'measurement' });
  readonly #remote: Remote<Measurement> = wrap<Measurement>(this.#worker);
  readonly #over: Promise<never>;
  #fail!: (reason: Error) => void;

  constructor() {
    this.#over = new Promise((_, reject) => {
      this.#fail = reject;
    });
    this.#over.catch(() => undefined); // heard by the calls that it ends, if any
    this.#worker.addEventListener('error', event => {
      event.preventDefault();
      this.#fail(new Error(`the worker failed: ${event.message || 'its script did not load'}`));
    });
  }

  describe(): Promise<Facts> {
    return Promise.race([this.#remote.describe(), this.#over]);
  }

  measure(tokens: number, plan: Plan, listen: Listen): Promise<void> {
    return Promise.race([this.#remote.measure(tokens, plan, proxy(listen)), this.#over]);
  }

  /** Ends the worker, and with it gives all memory back: a WebAssembly memory never shrinks. */
  end(): void {
    this.#worker.terminate();
    this.#fail(new Ended('ended'));
  }
}
