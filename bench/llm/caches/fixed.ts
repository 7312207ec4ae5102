// Dense attention by WebAssembly SIMD (bench/baselines): the fastest that keys and values in f32 or int8 are read on a CPU from JavaScript.
// For timing alone: its length is fixed, tokens that are appended are not kept.

import type { Cache, Config } from '@nsnquant/gguf';
import { openDense } from '../../baselines/compile.ts';
import type { DenseCell, Kind } from '../../baselines/dense.ts';
import type { WindowedCache } from './windowed.ts';

export class FixedCache implements Cache {
  readonly #config: Config;
  readonly #cell: DenseCell;
  readonly #form: string;
  #length: number;

  private constructor(config: Config, cell: DenseCell, form: string, length: number) {
    this.#config = config;
    this.#cell = cell;
    this.#form = form;
    this.#length = length;
  }

  /** Takes over what `from` holds. */
  static async open(config: Config, kind: Kind, relaxed: boolean, from: WindowedCache): Promise<FixedCache> {
    const { layers, kvHeads, queryHeads, headDim } = config;
    const groups = queryHeads / kvHeads;
    const cell = (await openDense({ relaxed, headDims: [headDim] })).cell({
      kind,
      headDim,
      groups,
      tokens: from.length,
      heads: layers * kvHeads
    });
    for (let layer = 0; layer < layers; layer++) {
      const { keys, values } = from.held(layer);
      for (let head = 0; head < kvHeads; head++) {
        cell.fill(layer * kvHeads + head, ofHead(keys, head, config), ofHead(values, head, config));
      }
    }
    // No form is the fastest everywhere: one pass over all heads decides.
    const query = new Float32Array(groups * headDim).fill(0.1);
    const out = query.slice();
    const times = cell.forms.map(form => {
      const pass = (): number => {
        const begin = performance.now();
        for (let head = 0; head < layers * kvHeads; head++) cell.attend(head, query, out, form);
        return performance.now() - begin;
      };
      return Math.min(pass(), pass(), pass());
    });
    return new FixedCache(config, cell, cell.forms[times.indexOf(Math.min(...times))]!, from.length);
  }

  get length(): number {
    return this.#length;
  }

  get bytes(): number {
    return this.#cell.headBytes * this.#config.layers * this.#config.kvHeads;
  }

  append(layer: number): void {
    if (layer === this.#config.layers - 1) this.#length++;
  }

  async attend(layer: number, query: Float32Array): Promise<Float32Array> {
    const { kvHeads, queryHeads, headDim } = this.#config;
    const size = (queryHeads / kvHeads) * headDim;
    const out = new Float32Array(query.length);
    for (let head = 0; head < kvHeads; head++) {
      this.#cell.attend(
        layer * kvHeads + head,
        query.subarray(head * size, (head + 1) * size),
        out.subarray(head * size, (head + 1) * size),
        this.#form
      );
    }
    return out;
  }
}

/** f32 [tokens, headDim] of one head. */
function ofHead(all: Float32Array, head: number, { kvHeads, headDim }: Config): Float32Array {
  const tokens = all.length / (kvHeads * headDim);
  const out = new Float32Array(tokens * headDim);
  for (let t = 0; t < tokens; t++) {
    const at = (t * kvHeads + head) * headDim;
    out.set(all.subarray(at, at + headDim), t * headDim);
  }
  return out;
}
