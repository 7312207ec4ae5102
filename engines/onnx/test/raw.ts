// A sequence that keeps keys and values as they come and attends in f64: what a cut model is compared with, without any cache's error.
import type { LayerOptions } from 'nsnquant';
import { fromHalf } from '../src/constants.ts';
import type { KeyValues } from '../src/model.ts';

type Floats = Float32Array | Uint16Array;
/** What openOnnx() says of a layer: nothing stands beside the list that it would have to be without. */
type Layer = { [Name in keyof Required<LayerOptions>]: Exclude<Required<LayerOptions>[Name], 'none'> };

export class RawSequence implements KeyValues {
  readonly #layers: readonly LayerOptions[];
  readonly #keys: number[][];
  readonly #values: number[][];

  constructor(layers: readonly LayerOptions[]) {
    this.#layers = layers;
    this.#keys = layers.map(() => []);
    this.#values = layers.map(() => []);
  }

  get length(): number {
    return Math.min(...this.#layers.map(({ kvHeads, headDim }, n) => this.#keys[n]!.length / (kvHeads! * headDim!)));
  }

  append: KeyValues['append'] = (layer, keys, values) => {
    for (const key of numbers(keys as Floats)) this.#keys[layer]!.push(key);
    for (const value of numbers(values as Floats)) this.#values[layer]!.push(value);
  };

  crop(length: number): void {
    for (const [n, { kvHeads, headDim, valueDim }] of this.#layers.entries()) {
      this.#keys[n]!.length = Math.min(this.#keys[n]!.length, length * kvHeads! * headDim!);
      this.#values[n]!.length = Math.min(this.#values[n]!.length, length * kvHeads! * valueDim!);
    }
  }

  attend = ((layer: number, query: unknown, options: unknown) => {
    const { kvHeads, queryHeads, headDim, valueDim, window = Infinity, softcap, sinkLogits, slopes } = this.#layers[layer]! as Layer;
    const { scale = 1 / Math.sqrt(headDim), out } = options as { scale?: number; out: Floats };
    const queries = numbers(query as Floats);
    const [keys, values] = [this.#keys[layer]!, this.#values[layer]!];
    const total = keys.length / (kvHeads * headDim);
    const tokens = queries.length / (queryHeads * headDim);
    for (let row = 0; row < tokens * queryHeads; row++) {
      const head = row % queryHeads;
      const kvHead = Math.floor((head * kvHeads) / queryHeads);
      const position = total - tokens + Math.floor(row / queryHeads);
      const first = Math.max(0, position - window + 1);
      const logits = Array.from({ length: position - first + 1 }, (_, i) => {
        let sum = 0;
        for (let c = 0; c < headDim; c++) sum += queries[row * headDim + c]! * keys[((first + i) * kvHeads + kvHead) * headDim + c]!;
        const logit = softcap ? softcap * Math.tanh((sum * scale) / softcap) : sum * scale;
        return logit + (slopes ? slopes[head]! * (first + i - position) : 0);
      });
      const weights = logits.map(Math.exp);
      const all = weights.reduce((sum, weight) => sum + weight, sinkLogits ? Math.exp(sinkLogits[head]!) : 0);
      for (let c = 0; c < valueDim; c++) {
        const mixed = weights.reduce((sum, weight, i) => sum + weight * values[((first + i) * kvHeads + kvHead) * valueDim + c]!, 0);
        out[row * valueDim + c] = out instanceof Uint16Array ? half(mixed / all) : mixed / all;
      }
    }
    return { read: async () => out };
  }) as KeyValues['attend'];
}

function numbers(data: Floats): readonly number[] {
  return Array.from(data, value => (data instanceof Uint16Array ? fromHalf(value) : value));
}

/** The nearest f16. */
function half(value: number): number {
  const magnitude = Math.abs(value);
  const exponent = Math.max(-14, Math.floor(Math.log2(magnitude)));
  const steps = Math.round((magnitude / 2 ** exponent) * 1024);
  return (value < 0 ? 0x8000 : 0) + ((exponent + 14) << 10) + steps;
}
