// A GGUF file as a model that chats: @nsnquant/gguf, over ONNX Runtime's WebAssembly build.
import { Chat, type ChatOptions, type Model, openGguf, type Source } from '@nsnquant/gguf';
import type { Backend } from 'nsnquant';
import wasm from 'onnxruntime-web/ort-wasm-simd-threaded.wasm';
import { env, InferenceSession, Tensor } from 'onnxruntime-web/wasm';
import { NsnCache } from '../../../bench/llm/caches/nsn.ts';
import { type CacheChoice, type ChatCache, type ChatModel, GIB, type Held, type ModelFacts } from './chat-model.ts';

env.wasm.wasmPaths = { wasm: new URL(wasm, import.meta.url).href };
env.wasm.numThreads = 1; // more would need cross-origin isolation

/** A matrix is there up to four times while it is read. */
const WEIGHT_BYTES = 3 * GIB;

/** @param loaded  hears 0 to 1 */
export async function openGgufModel(source: Source, loaded: (share: number) => unknown): Promise<ChatModel> {
  return new GgufModel(await openGguf(source, { runtime: { InferenceSession, Tensor }, weightBytes: WEIGHT_BYTES, progress: loaded }));
}

class GgufModel implements ChatModel {
  readonly facts: ModelFacts;
  readonly #model: Model;

  constructor(model: Model) {
    const { layers, queryHeads, kvHeads, headDim, context } = model.config;
    this.facts = { layers, queryHeads, kvHeads, headDim, context, weights: '' };
    this.#model = model;
  }

  async open(backend: Backend, choice: CacheChoice): Promise<ChatCache> {
    const cache = new GgufCache(backend, this.#model, choice);
    await cache.cache.ready;
    return cache;
  }

  fingerprint(): Promise<string> {
    return this.#model.fingerprint();
  }
}

/** nsnquant's cache with a stopwatch at its attention. */
class GgufCache extends NsnCache implements ChatCache {
  readonly #model: Model;
  attentionMs = 0;

  constructor(backend: Backend, model: Model, choice: CacheChoice) {
    super(backend, model.config, choice);
    this.#model = model;
  }

  override async attend(layer: number, query: Float32Array): Promise<Float32Array> {
    const begin = performance.now();
    const out = await super.attend(layer, query);
    this.attentionMs += performance.now() - begin;
    return out;
  }

  get held(): Held {
    return { tokens: this.length, bytes: this.length === 0 ? 0 : this.bytes };
  }

  talk(options: ChatOptions): Chat {
    return new Chat(this.#model, this, options);
  }

  clear(): void {
    this.crop(0);
  }
}
