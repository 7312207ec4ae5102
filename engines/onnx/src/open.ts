// openOnnx(): reads a file, cuts its graph, and opens a session for every segment.

import type { LayerOptions } from 'nsnquant';
import type { InferenceSession } from 'onnxruntime-common';
import { type Attention, layerOf, type Rotary } from './attention.ts';
import { checkInteger, checkOneOf, checkOptions } from './check.ts';
import { type Constants, constantsOf, type Numbers } from './constants.ts';
import { type Cut, cutGraph, type Segment } from './cut.ts';
import { checkFeeds, feedsOf } from './feeds.ts';
import { INT64, type Model, type Port, type Read, readModel } from './graph.ts';
import { windowOf } from './mask.ts';
import { OnnxModel } from './model.ts';
import { frequencies, type Table } from './rope.ts';
import { type Device, type OnnxRuntime, openSession, type Session, type SessionParts } from './runtime.ts';
import { KEPT, keepingRows, TOKENS } from './sharing.ts';
import { type ExternalData, openFiles, type Source } from './source.ts';

export interface OnnxOptions {
  /** The module `onnxruntime-node` or `onnxruntime-web`. */
  readonly runtime: OnnxRuntime;
  /** Threads of each call. Default 1. In a browser it is `env.wasm.numThreads` that counts. */
  readonly threads?: number;
  /**
   * Where segments run. On `webgpu`, of `onnxruntime-web/webgpu`, what passes between segments and a cache stays on the GPU, and the
   * cache must be on the same device: `openBackend({ device: model.device })`. Default `cpu`.
   */
  readonly provider?: 'cpu' | 'webgpu';
  /** Files of external data by the names in the model, where they do not lie beside it. */
  readonly externalData?: ExternalData;
}

const OPTIONS = ['runtime', 'threads', 'provider', 'externalData'] as const satisfies readonly (keyof OnnxOptions)[];

/**
 * Opens a decoder and cuts it at its attentions.
 *
 * @param source  bytes, a Blob, a URL, or in Node a path
 * @throws {RangeError} if the graph has no attention with a past, or anything that is not understood; the message names it
 * @throws {TypeError}  if an option is of the wrong kind
 *
 * @example
 * const model = await openOnnx('model.onnx', { runtime: await import('onnxruntime-node') });
 * const chat = model.cache(await openBackend(), { capacity: 8192 }).sequence();
 * const logits = await model.forward([1, 15, 7], chat); // f32 [1, vocabulary]
 */
export async function openOnnx(source: Source, options: OnnxOptions): Promise<OnnxModel> {
  checkOptions('options', options, OPTIONS);
  const { runtime, threads = 1, externalData = {}, provider = 'cpu' } = options;
  if (typeof runtime?.InferenceSession?.create !== 'function') {
    throw new TypeError(`"runtime" expected the module onnxruntime-node or onnxruntime-web, got ${typeof runtime}`);
  }
  checkInteger('threads', threads, 1, 1024);
  checkOneOf('provider', provider, ['cpu', 'webgpu']);
  const files = await openFiles(source, externalData);
  const model = await readModel(files.model);
  const cut = cutGraph(model);
  checkFeeds(cut);
  const opener = new Opener(runtime, model, cut, constantsOf(model, files.read), files.read, {
    executionProviders: [provider],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    // Each would keep an arena of its own for its longest prompt: after 1,000 tokens of a model of SmolLM2-135M's shape, f32, the process
    // had 1,713 MiB with arenas and 988 without, and tokens took 86 and 90 ms at least (the whole model's: 1,248 MiB).
    enableCpuMemArena: false,
    logSeverityLevel: 3,
    // Each of the sessions has threads of its own: waiting busily they would take the processors from one another.
    extra: { session: { intra_op: { allow_spinning: '0' } } }
  });
  try {
    return await opener.open();
  } catch (error) {
    await opener.release();
    throw error;
  }
}

/** A model while its sessions are opened, one after another: each says of which types and shapes its values are. */
class Opener {
  readonly #runtime: OnnxRuntime;
  readonly #model: Model;
  readonly #cut: Cut;
  readonly #constants: Constants;
  readonly #read: Read;
  readonly #options: InferenceSession.SessionOptions;
  readonly #sessions: Session[] = [];
  /** Types and shapes by value, as far as they are known. */
  readonly #ports: Map<string, Port>;

  constructor(runtime: OnnxRuntime, model: Model, cut: Cut, constants: Constants, read: Read, options: InferenceSession.SessionOptions) {
    this.#runtime = runtime;
    this.#model = model;
    this.#cut = cut;
    this.#constants = constants;
    this.#read = read;
    this.#options = options;
    this.#ports = new Map(cut.feeds).set(KEPT, { name: KEPT, type: INT64, shape: ['nsnquant.kept'] });
  }

  async open(): Promise<OnnxModel> {
    const contextLength = await this.#contextLength();
    const masked = await this.#withMasks(contextLength);
    const attentions: Attention[] = [];
    const segments: Segment[] = [];
    for (const [level, cut] of this.#cut.segments.entries()) {
      const last = level === this.#cut.segments.length - 1;
      const segment = (last && keepingRows(cut, this.#ports)) || cut;
      segments.push(segment);
      const session = await this.#session(segment);
      this.#sessions.push(session);
      for (const [name, port] of session.outputs) this.#ports.set(name, port);
      for (const layer of segment.attentions) {
        const attention = this.#withHeads(masked[layer]!);
        attentions[layer] = attention;
        const { output, query, queryHeads, valueDim, apart } = attention;
        const sizes = apart ? [queryHeads, valueDim] : [queryHeads * valueDim];
        this.#ports.set(output, { name: output, type: this.#ports.get(query)!.type, shape: [1, TOKENS, ...sizes] });
      }
    }
    const layers = await Promise.all(attentions.map(attention => completeLayer(attention, this.#constants)));
    const feeds = new Map([...this.#ports].filter(([name]) => name === KEPT || this.#cut.feeds.has(name)));
    const cut = { ...this.#cut, attentions, segments, feeds };
    const config = { vocabulary: this.#vocabulary(), contextLength };
    return new OnnxModel(
      this.#runtime,
      cut,
      this.#sessions,
      layers,
      config,
      cut.rows.size > 0 ? this.#read : undefined,
      await this.#device()
    );
  }

  async release(): Promise<void> {
    await Promise.all(this.#sessions.map(session => session.release()));
  }

  /** The GPU's device, which ONNX Runtime has once a session is open. */
  async #device(): Promise<Device | undefined> {
    if (!this.#options.executionProviders!.includes('webgpu')) return undefined;
    const device = await this.#runtime.env?.webgpu?.device;
    if (device) return device as Device;
    throw new RangeError('"runtime" expected onnxruntime-web/webgpu, got a module without a GPUDevice');
  }

  #session(parts: Omit<SessionParts, 'inputs'> & { readonly inputs: readonly string[] }): Promise<Session> {
    const inputs = parts.inputs.map(name => this.#ports.get(name)!);
    const onGpu = this.#options.executionProviders!.includes('webgpu');
    const { logits, masks } = this.#cut;
    const location = (name: string) => [name, name === logits || masks.has(name) ? 'cpu' : 'gpu-buffer'] as const;
    const outputs = onGpu ? { preferredOutputLocation: Object.fromEntries(parts.outputs.map(location)) } : {};
    return openSession(this.#runtime, this.#model, { ...parts, inputs }, this.#read, { ...this.#options, ...outputs });
  }

  async #contextLength(): Promise<number> {
    const tables = this.#cut.attentions.map(async ({ rotary }) => rotary && (await this.#constants(rotary.cos))?.shape[0]);
    return Math.min(...(await Promise.all(tables)).map(positions => positions ?? Infinity));
  }

  /** Attentions with the windows that their masks have. */
  async #withMasks(contextLength: number): Promise<Attention[]> {
    const windows = new Map<string, Promise<number>>();
    const attentions: Attention[] = [];
    for (const attention of this.#cut.attentions) {
      const { mask, causal, title, window = Infinity } = attention;
      if (mask === undefined) {
        if (!causal) throw new RangeError(`"${title}" expected to be causal, or a mask that is, got neither`);
        attentions.push(attention);
        continue;
      }
      const known = `${causal} ${mask}`;
      if (!windows.has(known)) windows.set(known, this.#windowOf(title, mask, causal, contextLength));
      const narrowest = Math.min(window, await windows.get(known)!);
      attentions.push({ ...attention, window: narrowest === Infinity ? undefined : narrowest });
    }
    return attentions;
  }

  async #windowOf(title: string, mask: string, causal: boolean, contextLength: number): Promise<number> {
    const segment = this.#cut.masks.get(mask)!;
    const session = await this.#session(segment);
    const run = async (past: number, tokens: number) => {
      const row = { kept: [], ids: new Array(tokens).fill(0), positions: Array.from({ length: tokens }, (_, i) => past + i), past };
      const feeds = await feedsOf(this.#runtime, this.#cut, segment.inputs, row, this.#read);
      return (await session.run(Object.fromEntries(feeds)))[mask]!;
    };
    try {
      return await windowOf(title, run, causal, contextLength);
    } finally {
      await session.release();
    }
  }

  /** Heads of queries, where their shape alone says how many. */
  #withHeads(attention: Attention): Attention {
    if (attention.queryHeads > 0) return attention;
    const heads = this.#ports.get(attention.query)!.shape?.[2];
    if (typeof heads === 'number') return { ...attention, queryHeads: heads };
    throw new RangeError(
      `"${attention.title}" expected queries with a known number of heads, got [${this.#ports.get(attention.query)!.shape}]`
    );
  }

  #vocabulary(): number {
    const { logits } = this.#cut;
    const said = this.#model.outputs.find(({ name }) => name === logits)?.shape;
    for (const shape of [this.#ports.get(logits)!.shape, said]) {
      const vocabulary = shape?.at(-1);
      if (typeof vocabulary === 'number') return vocabulary;
    }
    throw new RangeError(`"${logits}" expected a known number of tokens, got [${said}]`);
  }
}

/** A layer's options with what stands in constants of the graph. */
async function completeLayer(attention: Attention, constants: Constants): Promise<LayerOptions> {
  const { rotary, sinks, queryHeads, title } = attention;
  const layer = layerOf(attention);
  const rope = rotary && (await ropeOf(rotary, constants));
  const sinkLogits = sinks === 'zero' ? new Float32Array(queryHeads) : sinks && (await constants(sinks.name))?.data;
  if (sinks && !sinkLogits) throw new RangeError(`"${title}" expected a constant as head_sink, got a value that is computed`);
  return { ...layer, ...(rope ? { rope } : {}), ...(sinkLogits ? { sinkLogits } : {}) };
}

/** The cache codes better where it knows how keys were rotated, and as well as it can where not. */
async function ropeOf({ cos, sin, interleaved }: Rotary, constants: Constants): Promise<LayerOptions['rope']> {
  const [cosines, sines] = await Promise.all([constants(cos), constants(sin)]);
  const invFreq = cosines && sines && frequencies(tableOf(cosines), tableOf(sines));
  return invFreq && { invFreq, interleaved };
}

function tableOf({ data, shape }: Numbers): Table {
  const [positions = 0, pairs = 0] = shape;
  return { data, positions, pairs };
}
