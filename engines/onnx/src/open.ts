// openOnnx(): reads a file, cuts its graph, and opens a session for every segment.

import type { LayerOptions } from 'nsnquant';
import type { InferenceSession } from 'onnxruntime-common';
import { type Attention, layerOf, POSITIONS, type Rotary } from './attention.ts';
import { type Constants, constantsOf, type Numbers } from './constants.ts';
import { type Cut, cutGraph, type PastShape } from './cut.ts';
import { type Port, readModel } from './graph.ts';
import { type OnnxConfig, OnnxModel } from './model.ts';
import { frequencies, type Table } from './rope.ts';
import { INT32, INT64, type OnnxRuntime, openSession, type Session } from './runtime.ts';
import { type ExternalData, openFiles, type Source } from './source.ts';

export interface OnnxOptions {
  /** The module `onnxruntime-node` or `onnxruntime-web`. */
  readonly runtime: OnnxRuntime;
  /** Threads of each call. Default 1. In a browser it is `env.wasm.numThreads` that counts. */
  readonly threads?: number;
  /** Files of external data by the names in the model, where they do not lie beside it. */
  readonly externalData?: ExternalData;
}

/**
 * Opens a decoder and cuts it at its attentions.
 *
 * @param source  bytes, a Blob, a URL, or in Node a path
 * @throws {RangeError} if the graph has no attention with a past, or anything that is not understood; the message names it
 */
export async function openOnnx(source: Source, options: OnnxOptions): Promise<OnnxModel> {
  const { runtime, threads = 1, externalData = {} } = options;
  const files = await openFiles(source, externalData);
  const model = await readModel(files.model);
  const cut = cutGraph(model);
  for (const port of cut.feeds.values()) checkFeed(port, cut.pastShapes);
  const constants = constantsOf(model, tensor => files.read(tensor));
  const layers = await Promise.all(cut.attentions.map(attention => completeLayer(attention, constants)));
  const sessions: Session[] = [];
  const ports = new Map(cut.feeds);
  const sessionOptions: InferenceSession.SessionOptions = {
    executionProviders: ['cpu'],
    intraOpNumThreads: threads,
    interOpNumThreads: 1,
    logSeverityLevel: 3,
    // Each of the sessions has threads of its own: waiting busily they would take the processors from one another.
    extra: { session: { intra_op: { allow_spinning: '0' } } }
  };
  try {
    for (const segment of cut.segments) {
      const inputs = segment.inputs.map(name => ports.get(name)!);
      const session = await openSession(runtime, model, { ...segment, inputs }, tensor => files.read(tensor), sessionOptions);
      sessions.push(session);
      for (const [name, port] of session.outputs) ports.set(name, port);
      for (const layer of segment.attentions) {
        const { output, query, queryHeads, valueDim } = cut.attentions[layer]!;
        ports.set(output, { name: output, type: ports.get(query)!.type, shape: [1, 'tokens', queryHeads * valueDim] });
      }
    }
    return new OnnxModel(runtime, cut, sessions, layers, await configOf(cut, ports, constants));
  } catch (error) {
    await Promise.all(sessions.map(session => session.release()));
    throw error;
  }
}

/** Inputs that a graph may have besides its past. */
const FEEDS = ['input_ids', 'position_ids', 'attention_mask', 'num_logits_to_keep', POSITIONS];

function checkFeed({ name, type, shape }: Port, pastShapes: ReadonlyMap<string, PastShape>): void {
  if (pastShapes.has(name)) return;
  if (!FEEDS.includes(name))
    throw new RangeError(`"${name}" expected ${FEEDS.slice(0, -1).join(', ')} or a past, got an input of the graph`);
  if (type !== INT32 && type !== INT64) throw new RangeError(`"${name}" expected int64 or int32, got type ${type} of ONNX`);
  if (name !== 'num_logits_to_keep' && shape && shape.length !== 2) {
    throw new RangeError(`"${name}" expected shape [batch, tokens], got [${shape}]`);
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
  return { data, positions: shape[0]!, pairs: shape[1]! };
}

async function configOf({ attentions, logits }: Cut, ports: ReadonlyMap<string, Port>, constants: Constants): Promise<OnnxConfig> {
  const vocabulary = ports.get(logits)!.shape?.at(-1);
  if (typeof vocabulary !== 'number')
    throw new RangeError(`"${logits}" expected a known number of tokens, got [${ports.get(logits)!.shape}]`);
  const tables = await Promise.all(attentions.map(async ({ rotary }) => rotary && (await constants(rotary.cos))?.shape[0]));
  return { vocabulary, contextLength: Math.min(...tables.map(positions => positions ?? Infinity)) };
}
