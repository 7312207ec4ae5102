// The cache of every format that has no attention of its own: windows go through the format and back to f32, attention is dense.
// Raw tail (of a format with longer windows, up to one of them), sinks and the moment of coding are nsnquant's, so that formats differ by nothing else.

import type { Config } from '@nsnquant/gguf';
import { half } from '../../baselines/ggml.ts';
import type { HeldCache } from './cache.ts';
import type { DenseAttention } from './dense.ts';
import type { Side, WindowFormat } from './formats.ts';

export interface WindowedOptions {
  readonly capacity: number;
  readonly keys: WindowFormat;
  /** Its windows are as long as those of keys. */
  readonly values: WindowFormat;
  /** First tokens that stay raw for good. */
  readonly sinks: number;
}

interface Layer {
  readonly keys: Float32Array;
  readonly values: Float32Array;
  length: number;
  coded: number; // windows
}

export class WindowedCache implements HeldCache {
  readonly #config: Config;
  readonly #attention: DenseAttention;
  readonly #options: WindowedOptions;
  readonly #row: number;
  readonly #layers: readonly Layer[];

  constructor(config: Config, attention: DenseAttention, options: WindowedOptions) {
    this.#config = config;
    this.#attention = attention;
    this.#options = options;
    this.#row = config.kvHeads * config.headDim;
    const elements = options.capacity * this.#row;
    this.#layers = Array.from({ length: config.layers }, () => ({
      keys: new Float32Array(elements),
      values: new Float32Array(elements),
      length: 0,
      coded: 0
    }));
  }

  get length(): number {
    return Math.min(...this.#layers.map(({ length }) => length));
  }

  append(layer: number, keys: Float32Array, values: Float32Array): void {
    const held = this.#layers[layer]!;
    const { sinks, capacity } = this.#options;
    const { window } = this.#options.keys;
    const tokens = keys.length / this.#row;
    if (held.length + tokens > capacity)
      throw new RangeError(`"keys" expected at most ${capacity - held.length} tokens (the capacity is ${capacity}), got ${tokens}`);
    while (held.length >= sinks + (held.coded + 1) * window) this.#code(held);
    // A raw window is f16, as in nsnquant; what counts as raw altogether stays as it is.
    const exact = this.#options.keys.raw;
    held.keys.set(exact ? keys : keys.map(half), held.length * this.#row);
    held.values.set(exact ? values : values.map(half), held.length * this.#row);
    held.length += tokens;
  }

  attend(layer: number, query: Float32Array): Promise<Float32Array> {
    const { keys, values } = this.held(layer);
    return this.#attention.attend(query, keys, values, this.#config.attention[layer]!.window);
  }

  get bytes(): number {
    const { keys, values, sinks } = this.#options;
    const rawBytes = keys.raw ? 4 : 2;
    // Complete windows count as coded, as in nsnquant, whose layers code them while the next layer runs.
    const windows = (length: number): number => Math.floor(Math.max(0, length - sinks) / keys.window);
    // Behind a sliding window they are given back.
    const gone = (layer: number, length: number): number =>
      Math.max(0, Math.floor((length + 1 - (this.#config.attention[layer]!.window ?? Infinity) - sinks) / keys.window));
    return (
      this.#layers.reduce(
        (sum, { length }, layer) =>
          sum +
          (windows(length) - gone(layer, length)) * this.#windowBytes +
          (length - windows(length) * keys.window) * this.#row * 2 * rawBytes,
        0
      ) +
      keys.tableBytes +
      (values === keys ? 0 : values.tableBytes)
    );
  }

  get codedBits(): number | null {
    return this.#layers[0]!.coded === 0 ? null : (8 * this.#windowBytes) / (2 * this.#options.keys.window * this.#row);
  }

  crop(length: number): void {
    const { keys, sinks } = this.#options;
    for (const layer of this.#layers) {
      // Nothing was lost where nothing is coded.
      if (keys.raw) layer.coded = Math.min(layer.coded, Math.floor(Math.max(0, length - sinks) / keys.window));
      const coded = layer.coded === 0 ? 0 : sinks + layer.coded * keys.window;
      if (length < coded || length > layer.length)
        throw new RangeError(`"length" expected integer from ${coded} to ${layer.length}, got ${length}`);
      layer.length = length;
    }
  }

  dispose(): void {}

  /** Keys and values of a layer, f32 [length, kvHeads, headDim]. */
  held(layer: number): { keys: Float32Array; values: Float32Array } {
    const { keys, values, length } = this.#layers[layer]!;
    return { keys: keys.subarray(0, length * this.#row), values: values.subarray(0, length * this.#row) };
  }

  /** Keys and values, all heads. */
  get #windowBytes(): number {
    const { kvHeads, headDim } = this.#config;
    const { keys, values } = this.#options;
    return kvHeads * (keys.windowBytes(headDim, 'keys') + values.windowBytes(headDim, 'values'));
  }

  #code(held: Layer): void {
    const { keys, values, sinks } = this.#options;
    const from = sinks + held.coded * keys.window;
    this.#roundTrip(keys, 'keys', held.keys, from);
    this.#roundTrip(values, 'values', held.values, from);
    held.coded++;
  }

  #roundTrip(format: WindowFormat, side: Side, all: Float32Array, from: number): void {
    if (format.raw) return;
    const { kvHeads, headDim } = this.#config;
    const window = new Float32Array(format.window * headDim);
    for (let head = 0; head < kvHeads; head++) {
      const at = (token: number): number => ((from + token) * kvHeads + head) * headDim;
      for (let t = 0; t < format.window; t++) window.set(all.subarray(at(t), at(t) + headDim), t * headDim);
      format.roundTrip(window, headDim, side);
      for (let t = 0; t < format.window; t++) all.set(window.subarray(t * headDim, (t + 1) * headDim), at(t));
    }
  }
}
