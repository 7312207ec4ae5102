// The graphs of everything that is not attention. A segment is what lies between two attentions: the end of one layer and the
// beginning of the next, so that a layer costs one call of the host engine instead of two.
import type { Config } from './config.ts';
import type { Gguf } from './gguf.ts';
import { type Attribute, type Constant, encodeModel, type Graph, type Node, type Port } from './onnx.ts';

/**
 * The model's graphs: the head, then layers + 1 segments in order. Each is made when it is asked for: one is in memory at a time.
 * The head is the largest by far: coming first, it leaves the others the memory that reading it took.
 *
 *   head           hidden                  → logits
 *   first segment  x, cos, sin             → q, k, v
 *   inner          x, attention, cos, sin  → x, q, k, v
 *   last           x, attention            → hidden      (after the final norm)
 *
 *   x          f32 [tokens, width]
 *   attention  f32 [tokens, queryHeads · headDim]
 *   q, k, v    f32 [1, tokens, heads · headDim], q and k after RoPE
 *   cos, sin   f32 [tokens, pairs], of every token's angles
 */
export async function* modelGraphs(gguf: Gguf): AsyncGenerator<Uint8Array> {
  yield await headGraph(gguf);
  const { layers } = gguf.config;
  for (let segment = 0; segment <= layers; segment++) {
    const builder = new Builder(gguf, `segment ${segment}`);
    const x = builder.input('x', gguf.config.width);
    let normalized: string;
    if (segment === 0) {
      normalized = builder.norm(x, await builder.weights('blk.0.attn_norm.weight', gguf.config.width));
    } else {
      const next = segment < layers ? `blk.${segment}.attn_norm.weight` : 'output_norm.weight';
      const end = await endOfLayer(builder, segment - 1, x, next);
      normalized = end.normalized;
      if (segment < layers) builder.output('x', end.x, ['tokens', gguf.config.width]);
    }
    if (segment < layers) await beginningOfLayer(builder, segment, normalized);
    else builder.output('hidden', normalized, ['tokens', gguf.config.width]);
    yield builder.encode();
  }
}

/** Queries, keys and values, and RoPE. */
async function beginningOfLayer(builder: Builder, layer: number, x: string): Promise<void> {
  const { width, queryHeads, kvHeads, headDim, rope } = builder.gguf.config;
  const sizes = [queryHeads * headDim, kvHeads * headDim, kvHeads * headDim];
  const [q, k, v] = ['q', 'k', 'v'].map((_, i) => `part ${i}`) as [string, string, string];
  const weights = await builder.weightRows(
    ['q', 'k', 'v'].map((name, i) => [`blk.${layer}.attn_${name}.weight`, sizes[i]!]),
    width
  );
  const all = builder.add('Unsqueeze', [builder.project(x, weights), builder.integers([0])]);
  builder.node({ op: 'Split', inputs: [all, builder.integers(sizes)], outputs: [q, k, v], attributes: { axis: 2 } });

  const pairs = rope.invFreq.length;
  const angles = [builder.integers([0]), builder.input('cos', pairs), builder.input('sin', pairs)];
  const rotated = (part: string, heads: number): string =>
    builder.add(
      'RotaryEmbedding',
      [part, ...angles],
      {
        interleaved: 1,
        num_heads: heads,
        rotary_embedding_dim: 2 * pairs === headDim ? 0 : 2 * pairs
      },
      'com.microsoft'
    );
  builder.output('q', rotated(q, queryHeads), [1, 'tokens', sizes[0]!]);
  builder.output('k', rotated(k, kvHeads), [1, 'tokens', sizes[1]!]);
  builder.output('v', v, [1, 'tokens', sizes[2]!]);
}

/** Output projection, feed-forward network, and the norm of what comes next. */
async function endOfLayer(builder: Builder, layer: number, x: string, nextNorm: string): Promise<{ x: string; normalized: string }> {
  const { width, inner, queryHeads, headDim } = builder.gguf.config;
  const name = (part: string): string => `blk.${layer}.${part}.weight`;
  const attention = builder.input('attention', queryHeads * headDim);
  const projected = builder.project(attention, await builder.weights(name('attn_output'), queryHeads * headDim, width));
  const before = builder.addNorm(projected, x, await builder.weights(name('ffn_norm'), width));

  const gateAndUp = builder.project(
    before.normalized,
    await builder.weightRows(
      [
        [name('ffn_gate'), inner],
        [name('ffn_up'), inner]
      ],
      width
    )
  );
  builder.node({ op: 'Split', inputs: [gateAndUp, builder.integers([inner, inner])], outputs: ['gate', 'up'], attributes: { axis: 1 } });
  const gated = builder.add('Mul', [builder.add('Mul', ['gate', builder.add('Sigmoid', ['gate'])]), 'up']);
  const down = builder.project(gated, await builder.weights(name('ffn_down'), inner, width));
  return builder.addNorm(down, before.x, await builder.weights(nextNorm, width));
}

/** Hidden states to logits. Models that tie their embeddings have no matrix of their own for it. */
async function headGraph(gguf: Gguf): Promise<Uint8Array> {
  const { width, vocabulary } = gguf.config;
  const builder = new Builder(gguf, 'head');
  const weights = await builder.weights(gguf.has('output.weight') ? 'output.weight' : 'token_embd.weight', width, vocabulary);
  builder.output('logits', builder.project(builder.input('hidden', width), weights), ['tokens', vocabulary]);
  return builder.encode();
}

/** A graph under construction. Names of intermediate results are numbers; a weight's name is its tensor's. */
class Builder {
  readonly gguf: Gguf;
  readonly #config: Config;
  readonly #name: string;
  readonly #inputs: Port[] = [];
  readonly #outputs: Port[] = [];
  readonly #constants: Constant[] = [];
  readonly #nodes: Node[] = [];

  constructor(gguf: Gguf, name: string) {
    this.gguf = gguf;
    this.#config = gguf.config;
    this.#name = name;
  }

  input(name: string, columns: number): string {
    this.#inputs.push({ name, shape: ['tokens', columns] });
    return name;
  }

  output(name: string, from: string, shape: Port['shape']): void {
    const outputName = `${name} out`;
    this.node({ op: 'Identity', inputs: [from], outputs: [outputName] });
    this.#outputs.push({ name: outputName, shape });
  }

  node(node: Node): void {
    this.#nodes.push(node);
  }

  /** A node with one output; returns its name. */
  add(op: string, inputs: readonly string[], attributes?: Record<string, Attribute>, domain?: string): string {
    const output = `${this.#nodes.length}`;
    this.node({ op, inputs, outputs: [output], ...(attributes && { attributes }), ...(domain !== undefined && { domain }) });
    return output;
  }

  async weights(tensor: string, columns: number, rows?: number): Promise<string> {
    const data = await this.gguf.floats(tensor, columns, rows);
    this.#constants.push({ name: tensor, shape: rows === undefined ? [columns] : [rows, columns], data });
    return tensor;
  }

  /** Several matrices, one below the other: one multiplication serves them all. */
  async weightRows(tensors: readonly (readonly [name: string, rows: number])[], columns: number): Promise<string> {
    const rows = tensors.reduce((sum, [, count]) => sum + count, 0);
    const data = new Float32Array(rows * columns);
    let at = 0;
    for (const [name, count] of tensors) {
      data.set(await this.gguf.floats(name, columns, count), at);
      at += count * columns;
    }
    const name = tensors.map(([tensor]) => tensor).join(' ');
    this.#constants.push({ name, shape: [rows, columns], data });
    return name;
  }

  integers(values: readonly number[]): string {
    const name = `constant ${this.#constants.length}`;
    this.#constants.push({ name, shape: [values.length], data: BigInt64Array.from(values, BigInt) });
    return name;
  }

  /** x · Wᵀ: GGUF keeps matrices [outputs, inputs], which Gemm takes as they are. */
  project(x: string, weights: string): string {
    return this.add('Gemm', [x, weights], { transB: 1 });
  }

  norm(x: string, weights: string): string {
    return this.add('SimplifiedLayerNormalization', [x, weights], { axis: -1, epsilon: { float: this.#config.epsilon } });
  }

  /** The sum of two and its norm. */
  addNorm(a: string, b: string, weights: string): { x: string; normalized: string } {
    const normalized = `normalized ${this.#nodes.length}`;
    const x = `sum ${this.#nodes.length}`;
    this.node({
      op: 'SkipSimplifiedLayerNormalization',
      inputs: [a, b, weights],
      outputs: [normalized, '', '', x],
      attributes: { epsilon: { float: this.#config.epsilon } },
      domain: 'com.microsoft'
    });
    return { x, normalized };
  }

  encode(): Uint8Array {
    const graph: Graph = { name: this.#name, inputs: this.#inputs, outputs: this.#outputs, constants: this.#constants, nodes: this.#nodes };
    return encodeModel(graph);
  }
}
