// The uncut model, run whole by ONNX Runtime with its own attention.
import type { InferenceSession, Tensor } from 'onnxruntime-common';
import { numbersOf } from '../src/constants.ts';
import type { OnnxRuntime } from '../src/runtime.ts';
import { type Exported, HEAD_DIM } from './exports.ts';

export class Whole {
  readonly #runtime: OnnxRuntime;
  readonly #session: InferenceSession;
  #pasts: Record<string, Tensor>;
  length = 0;

  private constructor(runtime: OnnxRuntime, session: InferenceSession, { layers, kvHeads, half }: Exported) {
    this.#runtime = runtime;
    this.#session = session;
    this.#pasts = {};
    for (let layer = 0; layer < layers; layer++) {
      for (const side of ['key', 'value']) {
        const shape = [1, kvHeads, 0, HEAD_DIM];
        const { Tensor } = runtime;
        this.#pasts[`${layer}.${side}`] = half
          ? new Tensor('float16', new Uint16Array(), shape)
          : new Tensor('float32', new Float32Array(), shape);
      }
    }
  }

  static async open(runtime: OnnxRuntime, exported: Exported, external?: string): Promise<Whole> {
    const externalData = external ? [{ path: external, data: exported.weights }] : [];
    const options = { intraOpNumThreads: 1, logSeverityLevel: 3 as const, externalData, executionProviders: ['cpu'] };
    return new Whole(runtime, await runtime.InferenceSession.create(exported.model, options), exported);
  }

  /** f32 [tokens, vocabulary] */
  async forward(tokens: readonly number[]): Promise<Float32Array> {
    const { Tensor } = this.#runtime;
    const total = this.length + tokens.length;
    const list = (values: readonly number[]) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
    const feeds: Record<string, Tensor> = { input_ids: list(tokens), attention_mask: list(new Array(total).fill(1)) };
    if (this.#session.inputNames.includes('position_ids')) feeds['position_ids'] = list(tokens.map((_, i) => this.length + i));
    if (this.#session.inputNames.includes('num_logits_to_keep'))
      feeds['num_logits_to_keep'] = new Tensor('int64', BigInt64Array.of(0n), []);
    for (const [name, tensor] of Object.entries(this.#pasts)) feeds[`past_key_values.${name}`] = tensor;
    const results = await this.#session.run(feeds);
    for (const name of Object.keys(this.#pasts)) this.#pasts[name] = results[`present.${name}`] as Tensor;
    this.length = total;
    return Float32Array.from(numbersOf(results['logits'] as Tensor));
  }

  release(): Promise<void> {
    return this.#session.release();
  }
}
