// Runs a model over a text with a cache, and compares what it predicts with the raw cache's predictions, token by token.

import type { Cache, Model } from '@nsnquant/gguf';
import { encodeModel, type HostOptions, type Node, type OnnxRuntime, Session } from '@nsnquant/gguf/host';
import { WINDOW } from './caches/cache.ts';
import { openCache, type Resources, raw } from './caches/methods.ts';
import type { TokenStats } from './stats.ts';

/** Tokens of a call where no window has to be coded in between. */
const RAW_CHUNK = 256;

/**
 * Calls that end where windows do: coding happens between calls, so that every token sees what it would see if tokens came
 * one by one: its own window raw, all earlier ones coded. The first call has two windows: nsnquant keeps them raw until it has learned
 * from both, and no method shall be worse off.
 */
export function* windowChunks(tokens: number, sinks: number): Generator<[from: number, to: number]> {
  for (let from = 0; from < tokens; ) {
    const to = Math.min(tokens, from === 0 ? longestChunk(sinks) : from + WINDOW);
    yield [from, to];
    from = to;
  }
}

/** Tokens of the longest of these calls, the first. */
export function longestChunk(sinks: number): number {
  return sinks + 2 * WINDOW;
}

/** `tokens` tokens of a text as the model takes them: behind BOS where it wants one, without which Gemma predicts nothing. */
export function sequenceOf(model: Model, ids: readonly number[], from: number, tokens: number): number[] {
  const start = model.encode(model.vocabulary.start);
  return [...start, ...ids.slice(from, from + tokens - start.length)];
}

/** Logits f32 [tokens, vocabulary] of the raw cache. */
export async function rawLogits(model: Model, resources: Resources, tokens: readonly number[]): Promise<Float32Array> {
  const { vocabulary } = model.config;
  const cache = openCache(raw, resources, tokens.length, RAW_CHUNK);
  const all = new Float32Array(tokens.length * vocabulary);
  for (let from = 0; from < tokens.length; from += RAW_CHUNK) {
    all.set(await model.logits(await model.forward(tokens.slice(from, from + RAW_CHUNK), cache)), from * vocabulary);
  }
  cache.dispose();
  return all;
}

/** Every position but the last, whose next token is not known. */
export async function measure(
  model: Model,
  compare: Compare,
  cache: Cache,
  sinks: number,
  tokens: readonly number[],
  rawAll: Float32Array
): Promise<TokenStats> {
  const { vocabulary, width } = model.config;
  const count = tokens.length - 1;
  const stats = {
    nll: new Float64Array(count),
    rawNll: new Float64Array(count),
    kld: new Float64Array(count),
    same: new Float64Array(count)
  };
  for (const [from, to] of windowChunks(tokens.length, sinks)) {
    const hidden = await model.forward(tokens.slice(from, to), cache);
    const end = Math.min(to, count);
    if (end <= from) break;
    const logits = await model.logits(hidden.subarray(0, (end - from) * width));
    const rawLogits = rawAll.subarray(from * vocabulary, end * vocabulary);
    const { kld, best, rawBest, logSum, rawLogSum } = await compare.run(rawLogits, logits, vocabulary);
    for (let i = 0; i < end - from; i++) {
      const target = i * vocabulary + tokens[from + i + 1]!;
      stats.nll[from + i] = logSum[i]! - logits[target]!;
      stats.rawNll[from + i] = rawLogSum[i]! - rawLogits[target]!;
      stats.kld[from + i] = kld[i]!;
      stats.same[from + i] = best[i] === rawBest[i] ? 1 : 0;
    }
  }
  return stats;
}

/** Two tables of logits, row by row; by the host engine, as it is a hundred million exponentials a sequence. */
export class Compare {
  readonly #session: Session;

  private constructor(session: Session) {
    this.#session = session;
  }

  static async open(runtime: OnnxRuntime, options?: HostOptions): Promise<Compare> {
    return new Compare(await Session.open(runtime, compareGraph(), options));
  }

  async run(
    rawLogits: Float32Array,
    logits: Float32Array,
    vocabulary: number
  ): Promise<Record<'kld' | 'best' | 'rawBest' | 'logSum' | 'rawLogSum', Float32Array>> {
    const shape = [logits.length / vocabulary, vocabulary];
    return (await this.#session.run({ raw: { data: rawLogits, shape }, other: { data: logits, shape } })) as Awaited<
      ReturnType<Compare['run']>
    >;
  }
}

function compareGraph(): Uint8Array {
  const node = (op: string, inputs: string[], output: string, attributes?: Node['attributes']): Node => ({
    op,
    inputs,
    outputs: [output],
    ...(attributes && { attributes })
  });
  const row = { keepdims: 0 };
  // ln Σ eˣ is how far LogSoftmax moved the largest logit.
  const one = (name: string, best: string, logSum: string): Node[] => [
    node('LogSoftmax', [name], `ln ${name}`, { axis: -1 }),
    node('ArgMax', [name], `place ${name}`, { axis: -1, keepdims: 0 }),
    node('Cast', [`place ${name}`], best, { to: 1 }),
    node('ReduceMax', [name, 'last axis'], `max ${name}`, row),
    node('ReduceMax', [`ln ${name}`, 'last axis'], `max ln ${name}`, row),
    node('Sub', [`max ${name}`, `max ln ${name}`], logSum)
  ];
  const outputs = ['kld', 'best', 'rawBest', 'logSum', 'rawLogSum'];
  return encodeModel({
    name: 'compare',
    inputs: ['raw', 'other'].map(name => ({ name, shape: ['tokens', 'vocabulary'] })),
    outputs: outputs.map(name => ({ name, shape: ['tokens'] })),
    constants: [{ name: 'last axis', shape: [1], data: BigInt64Array.of(-1n) }],
    nodes: [
      ...one('raw', 'rawBest', 'rawLogSum'),
      ...one('other', 'best', 'logSum'),
      node('Exp', ['ln raw'], 'p'),
      node('Sub', ['ln raw', 'ln other'], 'difference'),
      node('Mul', ['p', 'difference'], 'terms'),
      node('ReduceSum', ['terms', 'last axis'], 'kld', row)
    ]
  });
}
