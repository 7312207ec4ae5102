// A decoder whose attention is done by a cache: segments run by ONNX Runtime, and between each two an append and an attend.

import { type Backend, type CacheOptions, KVCache, type LayerOptions, type Sequence } from 'nsnquant';
import type { Tensor } from 'onnxruntime-common';
import { fromHalf } from './constants.ts';
import type { Cut } from './cut.ts';
import { feedsOf, takesBatches } from './feeds.ts';
import type { OnnxRuntime, Session } from './runtime.ts';

export interface ForwardOptions {
  /** Of the last token of every sequence, or of all. Default `last`. */
  readonly logits?: 'last' | 'all';
}

/** What a graph says of a model. */
export interface OnnxConfig {
  /** Tokens that there are logits of. */
  readonly vocabulary: number;
  /** Positions that its tables of rotations have; Infinity where it has none. */
  readonly contextLength: number;
}

/** What forward() asks of a sequence: nsnquant's, or anything that keeps keys and values as it does. */
export type KeyValues = Pick<Sequence, 'length' | 'append' | 'attend' | 'crop'>;

/** Options of a cache but for its layers, which are the model's. */
export type ModelCacheOptions = Omit<CacheOptions, 'layers'>;

/** An open decoder. Made by `openOnnx`. */
export class OnnxModel {
  /** Attention of every layer, as `new KVCache` takes it. */
  readonly layers: readonly LayerOptions[];
  readonly config: OnnxConfig;
  readonly #runtime: OnnxRuntime;
  readonly #cut: Cut;
  readonly #sessions: readonly Session[];
  /** Those of the graph that segments take. */
  readonly #inputs: ReadonlySet<string>;
  /** Whether tokens of several sequences may stand in one row. */
  readonly #takesBatches: boolean;
  /** The call that runs: the next one waits for it. */
  #last: Promise<unknown> = Promise.resolve();

  /** @internal */
  constructor(runtime: OnnxRuntime, cut: Cut, sessions: readonly Session[], layers: readonly LayerOptions[], config: OnnxConfig) {
    this.#runtime = runtime;
    this.#cut = cut;
    this.#sessions = sessions;
    this.#inputs = new Set(cut.segments.flatMap(({ inputs }) => inputs.filter(name => cut.feeds.has(name))));
    this.#takesBatches = takesBatches(this.#inputs);
    this.layers = layers;
    this.config = config;
  }

  /** A cache for this model. */
  cache(backend: Backend, options: ModelCacheOptions): KVCache {
    return new KVCache(backend, { ...options, layers: this.layers });
  }

  /**
   * Runs tokens through the model. They go on from where the sequence ends, and are in it afterwards; if the call throws, they are not.
   * Calls wait for one another.
   *
   * @param tokens     numbers of tokens; of a batch a list for every sequence, of any lengths
   * @param sequences  one of a cache with this model's `layers`; of a batch distinct ones
   * @returns          f32 [tokens, vocabulary], of the last token or of all; of a batch one for every sequence
   */
  forward(tokens: ArrayLike<number>, sequence: KeyValues, options?: ForwardOptions): Promise<Float32Array>;
  forward(tokens: readonly ArrayLike<number>[], sequences: readonly KeyValues[], options?: ForwardOptions): Promise<Float32Array[]>;
  async forward(
    tokens: ArrayLike<number> | readonly ArrayLike<number>[],
    sequences: KeyValues | readonly KeyValues[],
    options: ForwardOptions = {}
  ): Promise<Float32Array | Float32Array[]> {
    const single = !Array.isArray(sequences);
    const batch = (single ? [sequences] : sequences) as readonly KeyValues[];
    const lists = (single ? [tokens] : tokens) as readonly ArrayLike<number>[];
    const run = this.#last.then(() => this.#forward(lists, batch, options.logits ?? 'last'));
    this.#last = run.catch(() => {});
    const results = await run;
    return single ? results[0]! : results;
  }

  /** Gives the sessions back. Waits for calls that run. */
  async release(): Promise<void> {
    await this.#last;
    await Promise.all(this.#sessions.map(session => session.release()));
  }

  async #forward(lists: readonly ArrayLike<number>[], sequences: readonly KeyValues[], which: 'last' | 'all'): Promise<Float32Array[]> {
    this.#check(lists, sequences);
    const lengths = sequences.map(sequence => sequence.length);
    try {
      if (this.#takesBatches || sequences.length === 1) return await this.#run(lists, sequences, which);
      const results: Float32Array[] = [];
      for (let n = 0; n < sequences.length; n++) results.push(...(await this.#run([lists[n]!], [sequences[n]!], which)));
      return results;
    } catch (error) {
      sequences.forEach((sequence, n) => {
        sequence.crop(lengths[n]!);
      });
      throw error;
    }
  }

  async #run(lists: readonly ArrayLike<number>[], sequences: readonly KeyValues[], which: 'last' | 'all'): Promise<Float32Array[]> {
    const counts = lists.map(list => list.length);
    const row = {
      ids: lists.flatMap(list => Array.from(list)),
      positions: lists.flatMap((list, n) => Array.from(list, (_, i) => sequences[n]!.length + i)),
      past: sequences[0]!.length
    };
    const values = feedsOf(this.#runtime, this.#cut, this.#inputs, row);
    for (const [level, { inputs, outputs, attentions }] of this.#cut.segments.entries()) {
      const feeds = Object.fromEntries(inputs.map(name => [name, values.get(name)!]));
      const results = await this.#sessions[level]!.run(feeds);
      for (const name of outputs) values.set(name, results[name]!);
      for (const layer of attentions) values.set(this.#cut.attentions[layer]!.output, await this.#attend(layer, values, sequences, counts));
    }
    const logits = values.get(this.#cut.logits)!;
    return this.#rows(logits, counts, which);
  }

  async #attend(layer: number, values: ReadonlyMap<string, Tensor>, sequences: readonly KeyValues[], counts: readonly number[]) {
    const { query, key, value, queryHeads, kvHeads, headDim, valueDim, scale, apart } = this.#cut.attentions[layer]!;
    const tokens = counts.reduce((sum, count) => sum + count, 0);
    const [queries, keys, results] = [values.get(query)!, values.get(key)!, values.get(value)!];
    const type = queries.type as 'float32' | 'float16';
    const data = type === 'float16' ? new Uint16Array(tokens * queryHeads * valueDim) : new Float32Array(tokens * queryHeads * valueDim);
    let from = 0;
    const reads = sequences.map((sequence, n) => {
      const to = from + counts[n]!;
      const of = (tensor: { readonly data: Tensor['data'] }, width: number): Float32Array =>
        (tensor.data as Float32Array).subarray(from * width, to * width);
      sequence.append(layer, of(keys, kvHeads * headDim), of(results, kvHeads * valueDim));
      const out = of({ data }, queryHeads * valueDim);
      const output = sequence.attend(layer, of(queries, queryHeads * headDim), { out, ...(scale === undefined ? {} : { scale }) });
      from = to;
      return output.read();
    });
    await Promise.all(reads);
    return new this.#runtime.Tensor(type, data, [1, tokens, ...(apart ? [queryHeads, valueDim] : [queryHeads * valueDim])]);
  }

  #rows({ data, type }: Tensor, counts: readonly number[], which: 'last' | 'all'): Float32Array[] {
    const { vocabulary } = this.config;
    let from = 0;
    return counts.map(count => {
      const to = from + count;
      const rows = (data as Float32Array | Uint16Array).subarray((which === 'last' ? to - 1 : from) * vocabulary, to * vocabulary);
      from = to;
      return type === 'float16' ? Float32Array.from(rows, half => fromHalf(half)) : Float32Array.from(rows);
    });
  }

  #check(lists: readonly ArrayLike<number>[], sequences: readonly KeyValues[]): void {
    if (lists.length !== sequences.length || lists.length === 0) {
      throw new RangeError(`"tokens" expected length ${Math.max(1, sequences.length)} (one list for each sequence), got ${lists.length}`);
    }
    const { contextLength, vocabulary } = this.config;
    lists.forEach((list, n) => {
      const { length } = sequences[n]!;
      if (list.length === 0 || length + list.length > contextLength) {
        throw new RangeError(`"tokens" expected length from 1 to ${contextLength - length} (positions of the model), got ${list.length}`);
      }
      for (let i = 0; i < list.length; i++) {
        const token = list[i]!;
        if (Number.isInteger(token) && token >= 0 && token < vocabulary) continue;
        throw new RangeError(`"tokens[${i}]" expected integer from 0 to ${vocabulary - 1}, got ${token}`);
      }
    });
  }
}
