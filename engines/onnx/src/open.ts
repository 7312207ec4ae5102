// openOnnx(): reads a file, cuts its graph, and opens a session for every segment.

import type { LayerOptions } from 'nsnquant';
import type { InferenceSession } from 'onnxruntime-common';
import { type Attention, layerOf, type Rotary } from './attention.ts';
import { checkInteger, checkOneOf, checkOptions } from './check.ts';
import { positionsIn, type Turn, turnOf } from './chosen.ts';
import { constantOf, type Numbers } from './constants.ts';
import { type Cut, cutGraph, type Segment } from './cut.ts';
import { checkFeeds, feedsOf } from './feeds.ts';
import { INT64, type Model, type Port, type Read, readModel } from './graph.ts';
import { type Run, windowOf } from './mask.ts';
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
  const opener = new Opener(runtime, model, cut, files.read, {
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
  readonly #read: Read;
  readonly #options: InferenceSession.SessionOptions;
  readonly #sessions: Session[] = [];
  readonly #turns = new Map<string, Turn>();
  /** Types and shapes by value, as far as they are known. */
  readonly #ports: Map<string, Port>;

  constructor(runtime: OnnxRuntime, model: Model, cut: Cut, read: Read, options: InferenceSession.SessionOptions) {
    this.#runtime = runtime;
    this.#model = model;
    this.#cut = cut;
    this.#read = read;
    this.#options = options;
    this.#ports = new Map(cut.feeds).set(KEPT, { name: KEPT, type: INT64, shape: ['nsnquant.kept'] });
  }

  async open(): Promise<OnnxModel> {
    await this.#findTurns();
    const contextLength = this.#contextLength();
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
    const layers = await Promise.all(attentions.map(attention => this.#completeLayer(attention)));
    const feeds = new Map([...this.#ports].filter(([name]) => name === KEPT || this.#cut.feeds.has(name)));
    // Sessions have nodes and constants now.
    const emptied = segments.map(segment => ({ ...segment, nodes: [], tensors: [] }));
    const cut = { ...this.#cut, attentions, segments: emptied, feeds, tried: new Map(), chosen: new Map(), turns: this.#turns };
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
    const { logits, tried } = this.#cut;
    const location = (name: string) => [name, name === logits || tried.has(name) ? 'cpu' : 'gpu-buffer'] as const;
    const outputs = onGpu ? { preferredOutputLocation: Object.fromEntries(parts.outputs.map(location)) } : {};
    return openSession(this.#runtime, this.#model, { ...parts, inputs }, this.#read, { ...this.#options, ...outputs });
  }

  async #findTurns(): Promise<void> {
    for (const [name, chosen] of this.#cut.chosen) {
      this.#turns.set(name, await this.#tryOut(chosen.condition, run => turnOf(chosen, run)));
    }
  }

  #contextLength(): number {
    const lengths = this.#cut.attentions.map(({ rotary }) => {
      if (!rotary) return Infinity;
      return this.#turns.get(positionsIn(rotary.cos))?.positions ?? this.#model.tensors.get(rotary.cos)?.shape[0] ?? Infinity;
    });
    return Math.min(...lengths);
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
      if (!windows.has(known))
        windows.set(
          known,
          this.#tryOut(mask, run => windowOf(title, run, causal, contextLength))
        );
      const narrowest = Math.min(window, await windows.get(known)!);
      attentions.push({ ...attention, window: narrowest === Infinity ? undefined : narrowest });
    }
    return attentions;
  }

  /** Runs what was cut out to be tried: on so many tokens behind so many. */
  async #tryOut<Result>(name: string, trial: (run: Run) => Promise<Result>): Promise<Result> {
    const segment = this.#cut.tried.get(name)!;
    const session = await this.#session(segment);
    const run = async (past: number, tokens: number) => {
      const each = <Value>(value: (n: number) => Value) => Array.from({ length: tokens }, (_, n) => value(n));
      const row = { kept: [], ids: each(() => 0), positions: each(n => past + n), past, lengths: each(() => past + tokens) };
      const feeds = await feedsOf(this.#runtime, this.#cut, segment.inputs, row, this.#read);
      return (await session.run(Object.fromEntries(feeds)))[name]!;
    };
    try {
      return await trial(run);
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

  /** A layer's options with what stands in constants of the graph. */
  async #completeLayer(attention: Attention): Promise<LayerOptions> {
    const { rotary, sinks, queryHeads, title } = attention;
    const layer = layerOf(attention);
    const rope = rotary && (await this.#ropeOf(rotary));
    const sinkLogits = sinks === 'zero' ? new Float32Array(queryHeads) : sinks && (await this.#constant(sinks.name))?.data;
    if (sinks && !sinkLogits) throw new RangeError(`"${title}" expected a constant as head_sink, got a value that is computed`);
    return { ...layer, ...(rope ? { rope } : {}), ...(sinkLogits ? { sinkLogits } : {}) };
  }

  /**
   * The cache codes better where it knows how keys were rotated, and as well as it can where not. It takes one set of frequencies: of two
   * tables that are chosen by length the later one's, as @nsnquant/gguf takes the long factors for long conversations. Keys of SmolLM2
   * that were rotated by the short and by the long factors of Phi-3.5, plain nsn3, are off by 0.102 and 0.084 so; by 0.085 and 0.102 with
   * the earlier one's, by 0.103 and 0.096 without any.
   */
  async #ropeOf({ cos, sin, interleaved }: Rotary): Promise<LayerOptions['rope']> {
    const [cosines, sines] = await Promise.all([cos, sin].map(name => this.#constant(name)));
    const invFreq = cosines && sines && frequencies(tableOf(cosines), tableOf(sines));
    return invFreq && { invFreq, interleaved };
  }

  /** A constant's numbers; of two tables that are chosen by length the later one's. */
  #constant(name: string): Promise<Numbers | undefined> {
    const turn = this.#turns.get(positionsIn(name));
    const later = turn && this.#cut.chosen.get(positionsIn(name))?.tables[turn.starts[1] === 0 ? 0 : 1];
    return constantOf(later ?? this.#model.tensors.get(name), this.#read);
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

function tableOf({ data, shape }: Numbers): Table {
  const [positions = 0, pairs = 0] = shape;
  return { data, positions, pairs };
}
