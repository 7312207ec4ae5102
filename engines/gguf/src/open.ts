// The door: a GGUF file, wherever it is, to a model that runs. Runs in a browser.
import { readGguf } from './gguf.ts';
import { modelGraphs } from './graphs.ts';
import { type HostOptions, type OnnxRuntime, Session } from './host.ts';
import { Model } from './model.ts';
import { checkOptions } from './options.ts';
import { InputError } from './source.ts';
import { type GgufFile, openSources, type SourceOptions } from './sources.ts';
import { openTokenizer } from './tokenizer.ts';

/** What `openGguf` takes. */
export interface OpenOptions extends HostOptions, SourceOptions {
  /** `onnxruntime-node`, `onnxruntime-web` or what else is like them. */
  readonly runtime: OnnxRuntime;
  /** Bytes that the runtime can hold of weights, which it takes as f32. Default: any number. */
  readonly weightBytes?: number;
  /**
   * Tokens of the longest conversation: what a model that has other RoPE factors for long ones goes by (Phi-3). Default: as many as the
   * model was made for.
   */
  readonly context?: number;
  /**
   * Whether matrices of Q4_0, Q4_1 and Q4_K stay in 4 bits: with their scales a fifth of the memory of f32; one token takes two thirds of
   * the time, prompts about the same. Sums are in f32, as with f32 weights. Default: with `onnxruntime-node`; in WebAssembly f32 is faster.
   */
  readonly smallWeights?: boolean;
  /** Called with 0 to 1. */
  readonly progress?: (done: number) => void;
}

const OPTIONS = [
  'runtime',
  'threads',
  'weightBytes',
  'smallWeights',
  'context',
  'progress',
  'downloaded'
] as const satisfies readonly (keyof OpenOptions)[];

/**
 * Opens a model. Of a split one, give the path or URL of any part, which must be named as llama-gguf-split names them, or all parts in order.
 *
 * @param file  in Node its path; its URL, of which only ranges are fetched where the server gives them; a Blob or File; its bytes; or
 *              anything that reads like a file
 * @throws {TypeError}  for an option that is unknown, or a file that is no such thing
 * @throws {RangeError} for a `context` that is no number of tokens
 * @throws {InputError} for a file that the engine cannot run as it is meant, in a sentence that names what it is
 *
 * @example
 * const model = await openGguf(file, { runtime });
 * console.log(model.config.name, model.config.context, await model.fingerprint());
 */
export async function openGguf(file: GgufFile | readonly GgufFile[], options: OpenOptions): Promise<Model> {
  checkOptions(options, OPTIONS);
  const { context } = options;
  if (context !== undefined && !(Number.isInteger(context) && context >= 1)) {
    throw new RangeError(`"context" expected integer of at least 1, got ${context}`);
  }
  const sources = await openSources(file, options);
  const gguf = await readGguf(sources, context);
  const { runtime, weightBytes = Infinity, smallWeights = isNative(runtime) } = options;
  if (gguf.floatBytes > weightBytes) {
    throw new InputError(
      `${gguf.file}: expected weights of at most ${gigabytes(weightBytes)} as f32, which is what fits here, got ${gigabytes(gguf.floatBytes)}; a smaller model will work`
    );
  }
  const vocabulary = openTokenizer(gguf);
  const { width, vocabulary: rows, layers } = gguf.config;
  const embeddings = await gguf.packed('token_embd.weight', width, rows);
  const sessions: Session[] = [];
  for await (const graph of modelGraphs(gguf, smallWeights)) {
    sessions.push(await Session.open(runtime, graph, options));
    options.progress?.(sessions.length / (layers + 2));
  }
  return new Model(gguf, vocabulary, sessions, embeddings);
}

/** onnxruntime-node says so. In WebAssembly a token takes 8 times as long with 4-bit weights as with f32, 128 tokens 1.25 times. */
function isNative(runtime: OnnxRuntime & { readonly env?: { readonly versions?: { readonly node?: string } } }): boolean {
  return runtime.env?.versions?.node !== undefined;
}

function gigabytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toPrecision(3)} GiB`;
}
