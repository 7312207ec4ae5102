// A row of the demo that holds keys and values in a format of today's engines.
import { type Format, half } from '../baselines/ggml.ts';
import { mix } from './attention.ts';
import type { Recording } from './recording.ts';
import type { Row } from './row.ts';

const RAW_BYTES = 2; // raw tokens are kept in f16, as in the cache

/** Which tokens a baseline keeps raw. */
export interface Protocol {
  /** Tokens that are coded together, when the next comes, as the cache does; 1 codes each as it comes, as llama.cpp does. */
  window: number;
  /** First tokens that stay raw for good. */
  sinks: number;
}

export class BaselineRow implements Row {
  readonly keys: string;
  readonly values: string;
  readonly balance = null;
  readonly #format: Format;
  readonly #recording: Recording;
  readonly #protocol: Protocol;
  readonly #layers: { keys: Float32Array; values: Float32Array; length: number; coded: number }[];

  constructor(format: Format, recording: Recording, protocol: Protocol) {
    this.keys = this.values = format.name;
    this.#format = format;
    this.#recording = recording;
    this.#protocol = protocol;
    const elements = recording.tokens * recording.kvHeads * recording.headDim;
    this.#layers = recording.layers.map(() => ({
      keys: new Float32Array(elements),
      values: new Float32Array(elements),
      length: 0,
      coded: protocol.sinks
    }));
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    const held = this.#layers[layer]!;
    const row = keys.length;
    const { window } = this.#protocol;
    if (window > 1 && held.length === held.coded + window) this.#code(held, window);
    const stored = window === 1 ? (x: Float32Array) => x : (x: Float32Array) => x.map(half); // a raw window is f16
    held.keys.set(stored(keys), held.length * row);
    held.values.set(stored(values), held.length * row);
    held.length++;
    if (window === 1) this.#code(held, 1);
  }

  async attend(layer: number, query: Float32Array, logP: Float64Array): Promise<ArrayLike<number>> {
    const { values, length } = this.#layers[layer]!;
    const out = new Float64Array(query.length);
    mix(out, logP, values, length, this.#recording);
    return out;
  }

  async heldKeys(layer: number): Promise<Float32Array> {
    return this.#layers[layer]!.keys;
  }

  get bytes(): number {
    const { kvHeads, headDim } = this.#recording;
    return this.#layers.reduce((bytes, { length, coded }) => {
      const codedTokens = coded - this.#protocol.sinks;
      return bytes + 2 * kvHeads * (codedTokens * this.#format.headBytes(headDim) + (length - codedTokens) * RAW_BYTES * headDim);
    }, 0);
  }

  get codedBits(): number {
    const { headDim } = this.#recording;
    return (8 * this.#format.headBytes(headDim)) / headDim;
  }

  dispose(): void {}

  #code(held: { keys: Float32Array; values: Float32Array; coded: number }, tokens: number): void {
    const { kvHeads, headDim } = this.#recording;
    const row = kvHeads * headDim;
    const end = (held.coded + tokens) * row;
    for (let at = held.coded * row; at < end; at += headDim) {
      this.#format.roundTrip(held.keys.subarray(at, at + headDim));
      this.#format.roundTrip(held.values.subarray(at, at + headDim));
    }
    held.coded += tokens;
  }
}
