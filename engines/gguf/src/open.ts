// The door: a GGUF file, wherever it is, to a model that runs. Runs in a browser.
import { readGguf } from './gguf.ts';
import { modelGraphs } from './graphs.ts';
import { type HostOptions, type OnnxRuntime, Session } from './host.ts';
import { Model } from './model.ts';
import { InputError, openSource, type Source } from './source.ts';
import { openTokenizer } from './tokenizer.ts';

/** What `openGguf` takes. */
export interface OpenOptions extends HostOptions {
  /** `onnxruntime-node`, `onnxruntime-web` or what else is like them. */
  readonly runtime: OnnxRuntime;
  /** Bytes that the runtime can hold of weights, which it takes as f32. Default: any number. */
  readonly weightBytes?: number;
  /** Called with 0 to 1. */
  readonly progress?: (done: number) => void;
}

/**
 * Opens a model.
 *
 * @param file  a Blob (`await openAsBlob(path)` of `node:fs`, or a file that a person chose), a URL, or what reads like one: a server
 *              must answer requests for ranges
 * @throws {InputError} for a file that the engine cannot run as it is meant, in a sentence that names what it is
 * @example
 * import { openAsBlob } from 'node:fs';
 * import * as runtime from 'onnxruntime-node';
 * import { openGguf } from '@nsnquant/gguf';
 *
 * const model = await openGguf(await openAsBlob('model.gguf'), { runtime });
 */
export async function openGguf(file: Source | Blob | URL | string, options: OpenOptions): Promise<Model> {
  const source = await openSource(file);
  const gguf = await readGguf(source);
  const { runtime, weightBytes = Infinity } = options;
  if (gguf.floatBytes > weightBytes) {
    throw new InputError(
      `${source.name}: expected weights of at most ${gigabytes(weightBytes)} as f32, which is what fits here, got ${gigabytes(gguf.floatBytes)}; a smaller model will work`
    );
  }
  const vocabulary = openTokenizer(gguf);
  const { width, vocabulary: rows, layers } = gguf.config;
  const embeddings = await gguf.packed('token_embd.weight', width, rows);
  const sessions: Session[] = [];
  for await (const graph of modelGraphs(gguf)) {
    sessions.push(await Session.open(runtime, graph, options));
    options.progress?.(sessions.length / (layers + 2));
  }
  return new Model(gguf, vocabulary, sessions, embeddings);
}

function gigabytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toPrecision(3)} GiB`;
}
