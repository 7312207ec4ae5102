// compress(): puts a cache under a model of transformers.js, which goes on as if its session had not changed.

import { DynamicCache, env, type PreTrainedModel, Tensor } from '@huggingface/transformers';
import { type Backend, type KVCache, openBackend, type Sequence } from 'nsnquant';
import type { InferenceSession, Tensor as RuntimeTensor } from 'onnxruntime-common';
import { checkObject } from './check.ts';
import { type Located, locate } from './locate.ts';
import type { ModelCacheOptions } from './model.ts';
import { openOnnx } from './open.ts';
import { pastInputs, pastLayers } from './past.ts';
import { float, integer, join, message, text } from './protobuf.ts';
import type { OnnxRuntime } from './runtime.ts';
import { CompressedSession, Past, pastOf, type Replaced, rowOf } from './session.ts';
import type { ExternalData, Source } from './source.ts';

/** What `compress` is told: where the model's file is, and how nsnquant keeps tokens. */
export interface CompressOptions extends ModelCacheOptions {
  /**
   * What `from_pretrained` was given: the model's name or folder; its files are found where transformers.js has them. Or the ONNX file itself,
   * where it was loaded with a file name or revision of its own.
   */
  readonly source: Source;
  /** Files of external data by the names in the model, where they do not lie beside it. */
  readonly externalData?: ExternalData;
  /** Threads of each call. Default 1. */
  readonly threads?: number;
  /** Where the cut model runs. Default: `webgpu` for a model that was loaded for it in a browser, else `cpu`. */
  readonly provider?: 'cpu' | 'webgpu';
  /** Where the cache is, with `webgpu` on the same device. By default one is opened, and disposed with the model. */
  readonly backend?: Backend;
}

/** What is under a compressed model. */
export interface CompressedModel {
  /** The cache of all conversations: says how many bytes it takes, and restores saved sequences. */
  readonly cache: KVCache;
  /**
   * The sequence behind `past_key_values` of one row: to save, measure or decode it. It goes when the past is disposed.
   *
   * @throws {RangeError} if the past is of another model, of several rows, or not the newest of its conversation
   */
  readonly sequenceOf: (past: DynamicCache) => Sequence;
  /** `past_key_values` to go on from a sequence of `cache`, which is the past's from then on, and goes with it. */
  readonly pastOf: (sequence: Sequence) => DynamicCache;
}

/**
 * Puts nsnquant's cache under a model of transformers.js. `generate()`, pipelines, streamers, stopping criteria and `past_key_values`
 * work as before; what they hand on as past stands for tokens in the cache. The model's own session is given back: weights are in memory
 * once, but for the time of this call. `model.dispose()` gives everything back.
 *
 * Rows of a batch may be padded on the left, which costs nothing here. `past_key_values` that were handed on to a later call may be used
 * again: that goes on from a fork.
 *
 * @param model  a decoder for text: what `AutoModelForCausalLM.from_pretrained` gives, or a pipeline's `model`
 * @throws {TypeError | RangeError} for options of the wrong kind or value, or a model that is not understood; it is as it was then
 *
 * @example
 * const source = 'onnx-community/SmolLM2-135M-Instruct';
 * const generator = await pipeline('text-generation', source);
 * const { cache } = await compress(generator.model, { source, capacity: 8192 });
 */
export async function compress(model: PreTrainedModel, options: CompressOptions): Promise<CompressedModel> {
  checkObject('options', options);
  const { source, externalData, threads, provider, backend: given, ...cacheOptions } = options;
  const replaced = sessionOf(model);
  const onnx = env.backends.onnx as { readonly wasm?: { readonly proxy?: boolean }; readonly webgpu?: { readonly device?: unknown } };
  if (onnx.wasm?.proxy) throw new RangeError('"env.backends.onnx.wasm.proxy" expected false (a worker cannot be handed a cache), got true');
  const runtime = { ...(await runtimeOf(replaced)), env: onnx };
  const isFile = typeof source !== 'string' || /^\w{2,}:|\.onnx$/.test(source); // and no drive's letter
  const located: Located = isFile ? { source } : await locate(source, model, replaced);
  const opened = await openOnnx(located.source, {
    runtime,
    externalData: { ...located.externalData, ...externalData },
    provider: provider ?? (replaced.config?.device === 'webgpu' && onnx.webgpu?.device ? 'webgpu' : 'cpu'),
    ...(threads === undefined ? {} : { threads })
  });
  let backend = given;
  try {
    checkSame(model, opened.layers);
    backend ??= await openBackend(opened.device ? { device: opened.device } : { prefer: 'wasm' });
    const cache = opened.cache(backend, cacheOptions);
    const session = new CompressedSession(replaced, opened, cache, runtime.Tensor, async () => {
      await opened.release();
      cache.dispose();
      if (!given) backend!.dispose();
    });
    (model.sessions as Record<string, unknown>)['model'] = session;
    await replaced.release();
    return { cache, sequenceOf, pastOf: sequence => dynamicCacheOf(session, sequence) };
  } catch (error) {
    if (!given) backend?.dispose();
    await opened.release();
    throw error;
  }
}

function sequenceOf(past: DynamicCache): Sequence {
  const tensors = Object.entries(past).map(([name, { ort_tensor }]) => [name, ort_tensor]) as [string, RuntimeTensor][];
  const found = pastOf(Object.fromEntries(tensors));
  if (found?.rows.length !== 1) throw new RangeError(`"past" expected one row of this model, got ${found?.rows.length ?? 'none'}`);
  const { sequence, padding } = found.rows[0]!;
  const length = found.columns - padding;
  if (sequence.length !== length) {
    throw new RangeError(`"past" expected the newest of its conversation (${sequence.length} tokens), got ${length} tokens`);
  }
  return sequence;
}

function dynamicCacheOf(session: CompressedSession, sequence: Sequence): DynamicCache {
  const row = rowOf(sequence, 0);
  const past = new Past([row], row.padding + sequence.length);
  const tensors = Object.entries(session.tensors(past, 'past_key_values'));
  return new DynamicCache(Object.fromEntries(tensors.map(([name, tensor]) => [name, new Tensor(tensor as never)])));
}

/** The session of a model that takes tokens and its past, and no images or sounds. */
function sessionOf(model: PreTrainedModel): Replaced {
  if (typeof model?.sessions !== 'object') throw new TypeError(`"model" expected a model of transformers.js, got ${typeof model}`);
  const names = Object.keys(model.sessions);
  if (names.join() !== 'model') throw new RangeError(`"model" expected a decoder of one session, got ${names.join(', ')}`);
  const session = (model.sessions as Record<string, Replaced | CompressedSession>)['model']!;
  if (session instanceof CompressedSession) throw new TypeError('"model" expected one that is not compressed yet, got one that is');
  return session;
}

/**
 * The very ONNX Runtime that transformers.js has loaded. Its class of sessions is the session's; that of tensors is told by a result alone:
 * in Node transformers.js makes its own of another copy.
 */
async function runtimeOf(replaced: Replaced): Promise<OnnxRuntime> {
  const Session = replaced.constructor as unknown as OnnxRuntime['InferenceSession'];
  const zero = [...text(1, 'value_float'), ...float(2, 0), ...integer(20, 1)];
  const graph = [
    ...message(1, [...text(2, 'zero'), ...text(4, 'Constant'), ...message(5, zero)]),
    ...text(2, 'zero'),
    ...message(12, text(1, 'zero'))
  ];
  const session = await Session.create(join([...integer(1, 8), ...message(7, graph), ...message(8, integer(2, 13))]), {
    logSeverityLevel: 3
  });
  const result = (await session.run({}))['zero'] as InferenceSession.OnnxValueMapType[string] & object;
  await session.release();
  return { InferenceSession: Session, Tensor: result.constructor as OnnxRuntime['Tensor'] };
}

/** A file of another model would give plainly wrong words. */
function checkSame(model: PreTrainedModel, layers: readonly { readonly kvHeads?: number; readonly headDim?: number }[]): void {
  const said = pastLayers(pastInputs(model)).map(({ heads, keyDim }) => `${heads} × ${keyDim}`);
  const got = layers.map(({ kvHeads, headDim }) => `${kvHeads} × ${headDim}`);
  if (said.join() !== got.join()) {
    throw new RangeError(`"source" expected the model's file (${said.length} layers of ${said[0]}), got ${got.length} of ${got[0]}`);
  }
}
