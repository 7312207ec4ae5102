// The graphs of everything that is not attention. A segment is what lies between two attentions: the end of one layer and the
// beginning of the next, so that a layer costs one call of the host engine instead of two.
import type { Config } from './config.ts';
import { dequantize, type TensorType } from './dequantize.ts';
import type { Gguf } from './gguf.ts';
import { type Attribute, type Constant, encodeModel, type Graph, type Node, type Port } from './onnx.ts';
import { BLOCK, hasOffsets, isSmall, repack } from './small.ts';

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
 *   cos, sin   f32 [tokens, pairs], of every token's angles; missing in a layer without RoPE
 */
export async function* modelGraphs(gguf: Gguf, smallWeights: boolean): AsyncGenerator<Uint8Array> {
  yield await headGraph(gguf, smallWeights);
  const { layers } = gguf.config;
  for (let segment = 0; segment <= layers; segment++) {
    const builder = new Builder(gguf, `segment ${segment}`, smallWeights);
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

/** Queries, keys and values, their norms, and RoPE. */
async function beginningOfLayer(builder: Builder, layer: number, x: string): Promise<void> {
  const { gguf } = builder;
  const { width, queryHeads, kvHeads, headDim, queryScale, attention, architecture } = gguf.config;
  const { rope } = attention[layer]!;
  const name = (part: string): string => `blk.${layer}.attn_${part}`;
  const sizes = [queryHeads * headDim, kvHeads * headDim, kvHeads * headDim];
  const rows = ['q', 'k', 'v'].map((part, i) => [name(part), sizes[i]!] as const);
  const packed = name('qkv.weight');
  const weights = gguf.has(packed)
    ? await builder.weights(packed, width, sizes[0]! + 2 * sizes[1]!)
    : await builder.weightRows(
        rows.map(([part, count]) => [`${part}.weight`, count]),
        width
      );
  const biases = await builder.biases(rows);
  const all = builder.add('Unsqueeze', [builder.project(x, weights, biases), builder.integers([0])]);
  const parts = ['q part', 'k part', 'v part'] as const;
  builder.node({ op: 'Split', inputs: [all, builder.integers(sizes)], outputs: parts, attributes: { axis: 2 } });

  const normalized = async (part: string, norm: string, heads: number): Promise<string> =>
    gguf.has(norm) ? builder.headNorm(part, await builder.weights(norm, headDim), heads * headDim) : part;
  let q = await normalized(parts[0], name('q_norm.weight'), queryHeads);
  let k = await normalized(parts[1], name('k_norm.weight'), kvHeads);
  if (queryScale !== 1) q = builder.add('Mul', [q, builder.number(queryScale)]);
  if (rope !== 'none') {
    const pairs = rope.invFreq.length;
    const angles = [builder.integers([0]), builder.input('cos', pairs), builder.input('sin', pairs)];
    const rotated = (part: string, heads: number): string =>
      builder.add(
        'RotaryEmbedding',
        [part, ...angles],
        {
          interleaved: architecture.interleaved ? 1 : 0,
          num_heads: heads,
          rotary_embedding_dim: 2 * pairs === headDim ? 0 : 2 * pairs
        },
        'com.microsoft'
      );
    q = rotated(q, queryHeads);
    k = rotated(k, kvHeads);
  }
  builder.output('q', q, [1, 'tokens', sizes[0]!]);
  builder.output('k', k, [1, 'tokens', sizes[1]!]);
  builder.output('v', parts[2], [1, 'tokens', sizes[2]!]);
}

/** Output projection, feed-forward network, and the norm of what comes next. */
async function endOfLayer(builder: Builder, layer: number, x: string, nextNorm: string): Promise<{ x: string; normalized: string }> {
  const { gguf } = builder;
  const { width, inner, queryHeads, headDim, architecture } = gguf.config;
  const name = (part: string): string => `blk.${layer}.${part}.weight`;
  const normalized = async (part: string, norm: string): Promise<string> =>
    gguf.has(norm) ? builder.norm(part, await builder.weights(norm, width)) : part;
  const attention = builder.input('attention', queryHeads * headDim);
  const weights = await builder.weights(name('attn_output'), queryHeads * headDim, width);
  const projected = builder.project(attention, weights, await builder.biases([[`blk.${layer}.attn_output`, width]]));
  const before = builder.addNorm(
    await normalized(projected, name('post_attention_norm')),
    x,
    await builder.weights(name('ffn_norm'), width)
  );

  // Where there is no gate of its own, its rows lie above those of "up".
  const gateAndUp = builder.project(
    before.normalized,
    gguf.has(name('ffn_gate'))
      ? await builder.weightRows(
          [
            [name('ffn_gate'), inner],
            [name('ffn_up'), inner]
          ],
          width
        )
      : await builder.weights(name('ffn_up'), width, 2 * inner)
  );
  builder.node({ op: 'Split', inputs: [gateAndUp, builder.integers([inner, inner])], outputs: ['gate', 'up'], attributes: { axis: 1 } });
  const gate = architecture.gelu
    ? builder.add('FastGelu', ['gate'], {}, 'com.microsoft')
    : builder.add('Mul', ['gate', builder.add('Sigmoid', ['gate'])]);
  const gated = builder.add('Mul', [gate, 'up']);
  const down = builder.project(gated, await builder.weights(name('ffn_down'), inner, width));
  return builder.addNorm(await normalized(down, name('post_ffw_norm')), before.x, await builder.weights(nextNorm, width));
}

/** Hidden states to logits. Models that tie their embeddings have no matrix of their own for it. */
async function headGraph(gguf: Gguf, smallWeights: boolean): Promise<Uint8Array> {
  const { width, vocabulary, finalSoftcap } = gguf.config;
  const builder = new Builder(gguf, 'head', smallWeights);
  const weights = await builder.weights(gguf.has('output.weight') ? 'output.weight' : 'token_embd.weight', width, vocabulary);
  let logits = builder.project(builder.input('hidden', width), weights);
  if (finalSoftcap > 0) {
    const cap = builder.number(finalSoftcap);
    logits = builder.add('Mul', [builder.add('Tanh', [builder.add('Div', [logits, cap])]), cap]);
  }
  builder.output('logits', logits, ['tokens', vocabulary]);
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
  readonly #smallWeights: boolean;
  /** Matrices that stay in 4 bits, by name. */
  readonly #small = new Map<string, { readonly rows: number; readonly columns: number; readonly offsets: boolean }>();

  constructor(gguf: Gguf, name: string, smallWeights: boolean) {
    this.#smallWeights = smallWeights;
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
    if (rows !== undefined) return this.weightRows([[tensor, rows]], columns);
    this.#constants.push({ name: tensor, shape: [columns], data: await this.gguf.floats(tensor, columns) });
    return tensor;
  }

  /** Several matrices, one below the other: one multiplication serves them all. */
  async weightRows(tensors: readonly (readonly [name: string, rows: number])[], columns: number): Promise<string> {
    const name = tensors.map(([tensor]) => tensor).join(' ');
    const parts = [];
    for (const [tensor, rows] of tensors) parts.push({ rows, ...(await this.gguf.packed(tensor, columns, rows)) });
    if (this.#smallWeights && parts.every(({ type }) => isSmall(type))) {
      this.#keepSmall(name, columns, parts);
    } else {
      const rows = parts.map(part => dequantize(part.type, part.data, columns * part.rows));
      const data = rows.length === 1 ? rows[0]! : joined(rows, Float32Array);
      this.#constants.push({ name, shape: [data.length / columns, columns], data });
    }
    return name;
  }

  #keepSmall(name: string, columns: number, parts: readonly { type: TensorType; data: Uint8Array; rows: number }[]): void {
    const weights = parts.map(({ type, data }) => repack(type, data));
    const rows = parts.reduce((sum, part) => sum + part.rows, 0);
    const offsets = parts.some(({ type }) => hasOffsets(type));
    const blocks = columns / BLOCK;
    this.#small.set(name, { rows, columns, offsets });
    this.#constants.push(
      {
        name,
        shape: [rows, blocks, BLOCK / 2],
        data: joined(
          weights.map(({ codes }) => codes),
          Uint8Array
        )
      },
      {
        name: `${name} scales`,
        shape: [rows * blocks],
        data: joined(
          weights.map(({ scales }) => scales),
          Float32Array
        )
      }
    );
    if (offsets) {
      this.#constants.push({
        name: `${name} offsets`,
        shape: [rows, blocks],
        data: joined(
          weights.map(part => part.offsets),
          Float32Array
        )
      });
    }
  }

  /** The biases of such matrices, 0 where a file has none; undefined if it has none at all. `names` are without their ".bias". */
  async biases(names: readonly (readonly [name: string, rows: number])[]): Promise<string | undefined> {
    if (!names.some(([name]) => this.gguf.has(`${name}.bias`))) return undefined;
    const data: number[] = [];
    for (const [name, rows] of names) {
      data.push(...(this.gguf.has(`${name}.bias`) ? await this.gguf.floats(`${name}.bias`, rows) : new Float32Array(rows)));
    }
    const name = `${names.map(([part]) => part).join(' ')} bias`;
    this.#constants.push({ name, shape: [data.length], data: Float32Array.from(data) });
    return name;
  }

  number(value: number): string {
    const name = `constant ${this.#constants.length}`;
    this.#constants.push({ name, shape: [1], data: Float32Array.of(value) });
    return name;
  }

  integers(values: readonly number[]): string {
    const name = `constant ${this.#constants.length}`;
    this.#constants.push({ name, shape: [values.length], data: BigInt64Array.from(values, BigInt) });
    return name;
  }

  /** x · Wᵀ + b: GGUF keeps matrices [outputs, inputs], which Gemm takes as they are. */
  project(x: string, weights: string, biases?: string): string {
    const small = this.#small.get(weights);
    const also = biases === undefined ? [] : [biases];
    if (!small) return this.add('Gemm', [x, weights, ...also], { transB: 1 });
    const { rows: N, columns: K, offsets } = small;
    const sizes = { N, K, bits: 4, block_size: BLOCK, accuracy_level: 0 };
    const product = this.add('MatMulNBits', [x, weights, `${weights} scales`], sizes, 'com.microsoft');
    if (!offsets) return biases === undefined ? product : this.add('Add', [product, biases]);
    const sums = this.add('ReduceSum', [this.add('Reshape', [x, this.integers([-1, K / BLOCK, BLOCK])]), this.integers([2])], {
      keepdims: 0
    });
    return this.add('Add', [product, this.add('Gemm', [sums, `${weights} offsets`, ...also], { transB: 1 })]);
  }

  norm(x: string, weights: string): string {
    return this.add('SimplifiedLayerNormalization', [x, weights], { axis: -1, epsilon: { float: this.#config.epsilon } });
  }

  /** Each head of [1, tokens, channels] by itself. */
  headNorm(x: string, weights: string, channels: number): string {
    const headDim = this.#config.headDim;
    const heads = this.add('Reshape', [x, this.integers([-1, headDim])]);
    return this.add('Reshape', [this.norm(heads, weights), this.integers([1, -1, channels])]);
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

function joined<T extends Float32Array | Uint8Array>(parts: readonly T[], Kind: new (length: number) => T): T {
  const all = new Kind(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}
