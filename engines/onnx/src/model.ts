// A decoder whose attention is done by a cache: segments run by ONNX Runtime, and between each two an append and an attend.

import { type Backend, type CacheOptions, KVCache, type LayerOptions, type Sequence } from 'nsnquant';
import type { Tensor } from 'onnxruntime-common';
import { type Attend, attendInArrays, attendInBuffers } from './attending.ts';
import { checkOneOf, checkOptions } from './check.ts';
import { numbersOf } from './constants.ts';
import type { Cut } from './cut.ts';
import { feedsOf, takesBatches } from './feeds.ts';
import type { Read } from './graph.ts';
import type { Device, OnnxRuntime, Session } from './runtime.ts';
import { KEPT } from './sharing.ts';

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
  /** Where it runs on a GPU, the device, for `openBackend({ device })`: sequences must be in its memory then. */
  readonly device: Device | undefined;
  readonly #runtime: OnnxRuntime;
  readonly #cut: Cut;
  /** Of rows that are looked up call by call; else the file, which may be in memory, is not held. */
  readonly #read: Read | undefined;
  readonly #sessions: readonly Session[];
  /** Those of the graph that segments take. */
  readonly #inputs: ReadonlySet<string>;
  /** After every segment which values nothing takes any more. */
  readonly #done: readonly (readonly string[])[];
  readonly #attend: Attend;
  /** Whether tokens of several sequences may stand in one row. */
  readonly #takesBatches: boolean;
  /** The call that runs: the next one waits for it. */
  #last: Promise<unknown> = Promise.resolve();
  #released = false;

  /** @internal */
  constructor(
    runtime: OnnxRuntime,
    cut: Cut,
    sessions: readonly Session[],
    layers: readonly LayerOptions[],
    config: OnnxConfig,
    read: Read | undefined,
    device: Device | undefined
  ) {
    this.device = device;
    this.#runtime = runtime;
    this.#cut = cut;
    this.#read = read;
    this.#sessions = sessions;
    this.#inputs = new Set(cut.segments.flatMap(({ inputs }) => inputs.filter(name => cut.feeds.has(name))));
    this.#done = doneAfter(cut);
    this.#attend = device ? attendInBuffers(runtime, device) : attendInArrays(runtime);
    this.#takesBatches = takesBatches(cut, this.#inputs);
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
   * @throws {RangeError} if a token, or the number of tokens, is beyond what model or cache have
   *
   * @example
   * const [a, b] = await model.forward([[5], [8]], [chat, branch]);
   */
  forward(tokens: ArrayLike<number>, sequence: KeyValues, options?: ForwardOptions): Promise<Float32Array>;
  forward(tokens: readonly ArrayLike<number>[], sequences: readonly KeyValues[], options?: ForwardOptions): Promise<Float32Array[]>;
  async forward(
    tokens: ArrayLike<number> | readonly ArrayLike<number>[],
    sequences: KeyValues | readonly KeyValues[],
    options: ForwardOptions = {}
  ): Promise<Float32Array | Float32Array[]> {
    checkOptions('options', options, ['logits']);
    if (this.#released) throw new TypeError('"model" expected to be open, got one that was released');
    checkOneOf('logits', options.logits ?? 'last', ['last', 'all']);
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
    if (this.#released) return;
    this.#released = true;
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
      kept: keptOf(counts, which),
      past: sequences[0]!.length,
      lengths: counts.flatMap((count, n) => new Array<number>(count).fill(sequences[n]!.length + count))
    };
    const values = await feedsOf(this.#runtime, this.#cut, this.#inputs, row, this.#read);
    const frees = new Map<string, () => void>();
    try {
      for (const [level, { inputs, outputs, attentions }] of this.#cut.segments.entries()) {
        const results = await this.#sessions[level]!.run(Object.fromEntries(inputs.map(name => [name, values.get(name)!])));
        for (const name of outputs) {
          values.set(name, results[name]!);
          frees.set(name, () => results[name]!.dispose());
        }
        for (const layer of attentions) {
          const attention = this.#cut.attentions[layer]!;
          const { tensor, free } = await this.#attend(layer, attention, values, { sequences, counts });
          values.set(attention.output, tensor);
          frees.set(attention.output, free);
        }
        for (const name of this.#done[level]!) {
          frees.get(name)?.();
          frees.delete(name);
          values.delete(name);
        }
      }
      return this.#rows(values.get(this.#cut.logits)!, counts, which);
    } finally {
      for (const free of frees.values()) free();
    }
  }

  #rows({ data, type }: Tensor, counts: readonly number[], which: 'last' | 'all'): Float32Array[] {
    const { vocabulary } = this.config;
    const all = !this.#inputs.has(KEPT);
    let token = 0;
    let row = 0;
    return counts.map(count => {
      const size = which === 'last' ? 1 : count;
      token += count;
      const first = all ? token - size : row;
      row += size;
      const rows = (data as Float32Array).subarray(first * vocabulary, (first + size) * vocabulary);
      return new Float32Array(numbersOf({ data: rows, type }));
    });
  }

  #check(lists: readonly ArrayLike<number>[], sequences: readonly KeyValues[]): void {
    if (lists.length !== sequences.length || lists.length === 0) {
      throw new RangeError(`"tokens" expected length ${Math.max(1, sequences.length)} (one list for each sequence), got ${lists.length}`);
    }
    if (new Set(sequences).size < sequences.length) throw new RangeError('"sequences" expected distinct sequences, got one again');
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

/** Numbers of the tokens that logits are wanted of. */
function keptOf(counts: readonly number[], which: 'last' | 'all'): number[] {
  const tokens = counts.reduce((sum, count) => sum + count, 0);
  if (which === 'all') return Array.from({ length: tokens }, (_, n) => n);
  let to = 0;
  return counts.map(count => {
    to += count;
    return to - 1;
  });
}

/** Of every segment the values that neither it nor its attentions leave to later ones. */
function doneAfter({ segments, attentions, logits }: Cut): string[][] {
  const last = new Map<string, number>();
  for (const [level, segment] of segments.entries()) {
    const taken = segment.attentions.flatMap(layer => {
      const { query, key, value } = attentions[layer]!;
      return [query, key, value];
    });
    for (const name of [...segment.inputs, ...segment.outputs, ...taken]) last.set(name, level);
  }
  return segments.map((_, level) => [...last].filter(([name, at]) => at === level && name !== logits).map(([name]) => name));
}
