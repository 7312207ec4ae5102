// Attention over keys and values that lie there as f32, by the host engine: for the raw cache and for the formats it is compared with.

import { encodeModel, type HostOptions, type Node, type OnnxRuntime, Session } from '@nsnquant/gguf/host';

export interface Heads {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
}

export class DenseAttention {
  readonly #session: Session;
  readonly #heads: Heads;
  #mask = { tokens: 0, length: 0, data: new Float32Array() };

  private constructor(session: Session, heads: Heads) {
    this.#session = session;
    this.#heads = heads;
  }

  static async open(runtime: OnnxRuntime, heads: Heads, options?: HostOptions): Promise<DenseAttention> {
    return new DenseAttention(await Session.open(runtime, attentionGraph(heads), options), heads);
  }

  /**
   * @param query  f32 [tokens, queryHeads, headDim]: the newest positions; causal
   * @param keys   f32 [length, kvHeads, headDim]
   * @param values as keys
   */
  async attend(query: Float32Array, keys: Float32Array, values: Float32Array): Promise<Float32Array> {
    const { kvHeads, queryHeads, headDim } = this.#heads;
    const tokens = query.length / (queryHeads * headDim);
    const length = keys.length / (kvHeads * headDim);
    const result = await this.#session.run({
      query: { data: query, shape: [tokens, queryHeads * headDim] },
      keys: { data: keys, shape: [length, kvHeads, headDim] },
      values: { data: values, shape: [length, kvHeads, headDim] },
      mask: { data: this.#causal(tokens, length), shape: [tokens, length] }
    });
    return result['attention']!;
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  /** All layers ask for the same mask, one after another. */
  #causal(tokens: number, length: number): Float32Array {
    if (this.#mask.tokens !== tokens || this.#mask.length !== length) {
      const data = new Float32Array(tokens * length);
      for (let t = 0; t < tokens; t++) data.fill(-Infinity, t * length + length - tokens + t + 1, (t + 1) * length);
      this.#mask = { tokens, length, data };
    }
    return this.#mask.data;
  }
}

/** softmax(q·kᵀ/√d + mask)·v, the query heads of a KV head as rows of one matrix. */
function attentionGraph({ kvHeads, queryHeads, headDim }: Heads): Uint8Array {
  const group = queryHeads / kvHeads;
  const integers = (name: string, values: number[]) => ({ name, shape: [values.length], data: BigInt64Array.from(values, BigInt) });
  const node = (op: string, inputs: string[], output: string, attributes?: Node['attributes']): Node => ({
    op,
    inputs,
    outputs: [output],
    ...(attributes && { attributes })
  });
  return encodeModel({
    name: 'attention',
    inputs: [
      { name: 'query', shape: ['tokens', queryHeads * headDim] },
      { name: 'keys', shape: ['length', kvHeads, headDim] },
      { name: 'values', shape: ['length', kvHeads, headDim] },
      { name: 'mask', shape: ['tokens', 'length'] }
    ],
    outputs: [{ name: 'attention out', shape: ['tokens', queryHeads * headDim] }],
    constants: [
      { name: 'scale', shape: [1], data: Float32Array.of(1 / Math.sqrt(headDim)) },
      integers('heads apart', [-1, kvHeads, group, headDim]),
      integers('axis of heads', [1]),
      integers('all channels', [-1, queryHeads * headDim])
    ],
    nodes: [
      node('Mul', ['query', 'scale'], 'scaled'),
      node('Reshape', ['scaled', 'heads apart'], 'q by token'),
      node('Transpose', ['q by token'], 'q', { perm: [1, 2, 0, 3] }), // [kvHeads, group, tokens, headDim]
      node('Transpose', ['keys'], 'k by head', { perm: [1, 2, 0] }), // [kvHeads, headDim, length]
      node('Unsqueeze', ['k by head', 'axis of heads'], 'k'),
      node('MatMul', ['q', 'k'], 'logits'),
      node('Add', ['logits', 'mask'], 'masked'),
      node('Softmax', ['masked'], 'probabilities', { axis: -1 }),
      node('Transpose', ['values'], 'v by head', { perm: [1, 0, 2] }),
      node('Unsqueeze', ['v by head', 'axis of heads'], 'v'),
      node('MatMul', ['probabilities', 'v'], 'by head'),
      node('Transpose', ['by head'], 'by token', { perm: [2, 0, 1, 3] }),
      node('Reshape', ['by token', 'all channels'], 'attention out')
    ]
  });
}
