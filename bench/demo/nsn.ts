// The library behind the demo's calls: one KVCache with one sequence.
import { type Backend, type CodecName, codecs, KVCache, type Sequence } from 'nsnquant';
import { fromHalf, toHalf } from '../../src/format/half.ts';
import type { Recording } from './recording.ts';
import type { Row } from './row.ts';

export interface NsnOptions {
  keys: CodecName;
  values: CodecName;
  sinks: number;
}

const WINDOW = 64; // tokens that are sealed together

export function openCache(backend: Backend, recording: Recording, { keys, values, sinks }: NsnOptions): KVCache {
  const { layers, kvHeads, queryHeads, headDim, rope, tokens } = recording;
  return new KVCache(backend, {
    layers: layers.length,
    kvHeads,
    queryHeads,
    headDim,
    ...(rope && { rope }),
    keys,
    values,
    sinks,
    capacity: tokens,
    sequences: 1,
    maxAppend: 1
  });
}

export class NsnRow implements Row {
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly #recording: Recording;
  readonly #sinks: number;
  readonly #cache: KVCache;
  readonly #sequence: Sequence;
  readonly #held: { keys: Float32Array; length: number; stale: boolean }[];

  constructor(backend: Backend, recording: Recording, options: NsnOptions) {
    this.keys = options.keys;
    this.values = options.values;
    this.#recording = recording;
    this.#sinks = options.sinks;
    this.#cache = openCache(backend, recording, options);
    this.#sequence = this.#cache.sequence();
    this.#held = recording.layers.map(({ keys }) => ({ keys: new Float32Array(keys.length), length: 0, stale: false }));
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    this.#sequence.append(layer, keys, values);
    const held = this.#held[layer]!;
    // Decoding everything for every query would cost tokens² work: only sealing changes what was appended before.
    const sinceSinks = held.length - this.#sinks;
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

  /** The sequence's bytes and the codebooks it needs, f16 [256, channels] each. */
  get bytes(): number {
    const books = new Set([this.keys, this.values]);
    return [...books].reduce((bytes, name) => bytes + 2 * codecs[name].codebook.length, this.#sequence.bytes);
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
