// A cache with a stopwatch.
import type { Cache } from '@nsnquant/gguf';

export class TimedCache implements Cache {
  readonly #cache: Cache;
  attendMs = 0;
  appendMs = 0;

  constructor(cache: Cache) {
    this.#cache = cache;
  }

  get length(): number {
    return this.#cache.length;
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    const begin = performance.now();
    this.#cache.append(layer, keys, values);
    this.appendMs += performance.now() - begin;
  }

  async attend(layer: number, query: Float32Array): Promise<Float32Array> {
    const begin = performance.now();
    const out = await this.#cache.attend(layer, query);
    this.attendMs += performance.now() - begin;
    return out;
  }
}
