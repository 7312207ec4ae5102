// The library behind the demo's calls: one KVCache with one sequence.
import { type Backend, type CodecName, KVCache, type Sequence } from 'nsnquant';
import { fromHalf, toHalf } from '../../src/format/half.ts';
import { WINDOW } from '../../src/format/layout.ts';
import { LEARNED_WINDOWS } from '../../src/shape.ts';
import { codebookBytes } from '../bytes.ts';
import { queryAt } from './quality.ts';
import type { Recording } from './recording.ts';
import type { Balance, Row } from './row.ts';

export interface NsnOptions {
  keys: CodecName;
  values: CodecName;
  balance: Balance;
  sinks: number;
}

export function openCache(backend: Backend, recording: Recording, { keys, values, balance, sinks }: NsnOptions): KVCache {
  const { layers, kvHeads, queryHeads, headDim, rope, tokens } = recording;
  return new KVCache(backend, {
    layers: layers.length,
    kvHeads,
    queryHeads,
    headDim,
    ...(rope && { rope }),
    keys,
    values,
    balance: balance === 'off' ? 'off' : 'learn',
    sinks,
    capacity: tokens,
    sequences: 1,
    maxAppend: 1
  });
}

/**
 * While a sequence learns what queries weigh, others stand in for the newest position's if that was not recorded, spread evenly over
 * those that were. What they find is not read. Where keys alone are to be learned from nothing is asked.
 */
export function teach(sequence: Sequence, recording: Recording, layer: number, position: number, { balance, sinks }: NsnOptions): void {
  const learned = sinks + LEARNED_WINDOWS * WINDOW;
  if (balance !== 'queries' || position >= learned || queryAt(recording, layer, position)) return;
  const { tokens, queryTokens } = recording;
  sequence.attend(layer, queryAt(recording, layer, tokens - queryTokens + Math.floor((position * queryTokens) / learned))!);
}

export class NsnRow implements Row {
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly balance: Balance;
  readonly options: NsnOptions;
  readonly #recording: Recording;
  readonly #cache: KVCache;
  readonly #sequence: Sequence;
  readonly #held: { keys: Float32Array; length: number; stale: boolean }[];

  constructor(backend: Backend, recording: Recording, options: NsnOptions) {
    this.keys = options.keys;
    this.values = options.values;
    this.balance = options.balance;
    this.#recording = recording;
    this.options = options;
    this.#cache = openCache(backend, recording, options);
    this.#sequence = this.#cache.sequence();
    this.#held = recording.layers.map(({ keys }) => ({ keys: new Float32Array(keys.length), length: 0, stale: false }));
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    this.#sequence.append(layer, keys, values);
    const held = this.#held[layer]!;
    teach(this.#sequence, this.#recording, layer, held.length, this.options);
    // Decoding everything for every query would cost tokens² work: only sealing changes what was appended before.
    const sinceSinks = held.length - this.options.sinks;
    if (sinceSinks > 0 && sinceSinks % WINDOW === 0) held.stale = true;
    const at = held.length * keys.length;
    for (let i = 0; i < keys.length; i++) held.keys[at + i] = fromHalf(toHalf(keys[i]!)); // the raw tail is f16
    held.length++;
  }

  attend(layer: number, query: Float32Array): Promise<Float32Array> {
    return this.#sequence.attend(layer, query, { scale: this.#recording.scale }).read();
  }

  async heldKeys(layer: number): Promise<Float32Array> {
    const held = this.#held[layer]!;
    if (held.stale) {
      held.keys.set((await this.#sequence.decode(layer)).keys);
      held.stale = false;
    }
    return held.keys;
  }

  get bytes(): number {
    return this.#sequence.bytes + codebookBytes(this.#cache.shape);
  }

  get codedBits(): number | null {
    const { layers, kvHeads, headDim } = this.#recording;
    const { bytes, tokens } = this.#sequence.sealed;
    return tokens === 0 ? null : (8 * bytes) / (2 * tokens * layers.length * kvHeads * headDim);
  }

  dispose(): void {
    this.#sequence.dispose();
    this.#cache.dispose();
  }
}
