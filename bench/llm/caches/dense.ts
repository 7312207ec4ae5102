// Attention over keys and values that lie there as f32, by the host engine: for the raw cache and for the formats it is compared with.

import { encodeModel, type HostOptions, type Node, type OnnxRuntime, Session } from '@nsnquant/gguf/host';

export interface Heads {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  /** Layer by layer; a cap is the same in all. */
  readonly attention: readonly { readonly window?: number; readonly softcap?: number }[];
}

export class DenseAttention {
  readonly #session: Session;
  readonly #heads: Heads;
  /** By window. */
  readonly #masks = new Map<number, { tokens: number; length: number; data: Float32Array }>();

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
   * @param window positions that a query sees, its own among them
   */
  async attend(query: Float32Array, keys: Float32Array, values: Float32Array, window = Infinity): Promise<Float32Array> {
    const { kvHeads, queryHeads, headDim } = this.#heads;
    const tokens = query.length / (queryHeads * headDim);
    const length = keys.length / (kvHeads * headDim);
    const result = await this.#session.run({
      query: { data: query, shape: [tokens, queryHeads * headDim] },
      keys: { data: keys, shape: [length, kvHeads, headDim] },
      values: { data: values, shape: [length, kvHeads, headDim] },
      mask: { data: this.#causal(tokens, length, window), shape: [tokens, length] }
    });
    return result['attention']!;
  }

  release(): Promise<void> {
    return this.#session.release();
  }

  /** All layers of a window ask for the same mask, one after another. */
  #causal(tokens: number, length: number, window: number): Float32Array {
    const made = this.#masks.get(window);
    if (made?.tokens === tokens && made.length === length) return made.data;
    const data = new Float32Array(tokens * length);
    for (let t = 0; t < tokens; t++) {
      const end = length - tokens + t + 1;
      data.fill(-Infinity, t * length + end, (t + 1) * length);
      data.fill(-Infinity, t * length, t * length + Math.max(0, end - window));
    }
    this.#masks.set(window, { tokens, length, data });
    return data;
  }
}

/** softmax(q·kᵀ/√d, capped, + mask)·v, the query heads of a KV head as rows of one matrix. */
function attentionGraph({ kvHeads, queryHeads, headDim, attention }: Heads): Uint8Array {
  const softcap = attention[0]?.softcap;
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
      { name: 'cap', shape: [1], data: Float32Array.of(softcap ?? 1) },
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
      ...(softcap === undefined
        ? []
        : [node('Div', ['logits', 'cap'], 'small'), node('Tanh', ['small'], 'bounded'), node('Mul', ['bounded', 'cap'], 'capped')]),
      node('Add', [softcap === undefined ? 'logits' : 'capped', 'mask'], 'masked'),
      node('Softmax', ['masked'], 'probabilities', { axis: -1 }),
      node('Transpose', ['values'], 'v by head', { perm: [1, 0, 2] }),
      node('Unsqueeze', ['v by head', 'axis of heads'], 'v'),
      node('MatMul', ['probabilities', 'v'], 'by head'),
      node('Transpose', ['by head'], 'by token', { perm: [2, 0, 1, 3] }),
      node('Reshape', ['by token', 'all channels'], 'attention out')
    ]
  });
}
