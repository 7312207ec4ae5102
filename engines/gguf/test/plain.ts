// Decoders by their published formulas: plain loops in f64, all tokens at once. Shares no code with the engine.

export interface Plain {
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly epsilon: number;
  /** Radians that a pair of channels turns from one token to the next; 0 in a layer without RoPE. */
  turn(layer: number, pair: number): number;
  /** Channels of a head that turn. */
  readonly turned: number;
  /** Whether channels i and i + turned / 2 are a pair, else 2i and 2i + 1. */
  readonly halves: boolean;
  /** What turned channels are multiplied by besides. */
  readonly turnScale: number;
  /** Positions that a query sees, its own among them. */
  window(layer: number): number;
  /** What q·k is multiplied by. */
  readonly scale: number;
  readonly softcap: number;
  readonly finalSoftcap: number;
  readonly activation: (x: number) => number;
  readonly embeddingScale: number;
}

/** Tensors by name, rows one after the other. */
export type Weights = ReadonlyMap<string, Float32Array>;

export const silu = (x: number): number => x / (1 + Math.exp(-x));
export const gelu = (x: number): number => 0.5 * x * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3)));
const cap = (x: number, most: number): number => (most === Infinity ? x : most * Math.tanh(x / most));
const dot = (a: Float64Array, b: ArrayLike<number>, at = 0): number => a.reduce((sum, value, i) => sum + value * b[at + i]!, 0);

/** Logits of the last token. */
export function plainLogits(model: Plain, weights: Weights, tokens: readonly number[]): Float64Array {
  const { layers, heads, kvHeads, headDim, epsilon } = model;
  const optional = (name: string): Float32Array | undefined => weights.get(name);
  const get = (name: string): Float32Array => weights.get(name)!;
  const times = (x: Float64Array, matrix: Float32Array, bias?: Float32Array): Float64Array =>
    Float64Array.from({ length: matrix.length / x.length }, (_, row) => dot(x, matrix, row * x.length) + (bias?.[row] ?? 0));
  const norm = (x: Float64Array, weight: Float32Array | undefined): Float64Array =>
    weight ? x.map((value, i) => (value / Math.sqrt(dot(x, x) / x.length + epsilon)) * weight[i]!) : x;
  const plus = (a: Float64Array, b: Float64Array): Float64Array => a.map((value, i) => value + b[i]!);
  const turned = (head: Float64Array, layer: number, position: number): Float64Array => {
    const out = head.slice();
    for (let pair = 0; pair < model.turned / 2; pair++) {
      if (model.turn(layer, pair) === 0) continue;
      const [i, j] = model.halves ? [pair, pair + model.turned / 2] : [2 * pair, 2 * pair + 1];
      const [cos, sin] = [Math.cos(position * model.turn(layer, pair)), Math.sin(position * model.turn(layer, pair))];
      out[i] = model.turnScale * (head[i]! * cos - head[j]! * sin);
      out[j] = model.turnScale * (head[i]! * sin + head[j]! * cos);
    }
    return out;
  };
  const split = (x: Float64Array, count: number): Float64Array[] =>
    Array.from({ length: count }, (_, n) => x.slice(n * headDim, (n + 1) * headDim));

  const embeddings = get('token_embd.weight');
  const width = get('output_norm.weight').length;
  let xs: Float64Array[] = tokens.map(token =>
    Float64Array.from(embeddings.subarray(token * width, (token + 1) * width), value => value * model.embeddingScale)
  );
  for (let layer = 0; layer < layers; layer++) {
    const name = (part: string): string => `blk.${layer}.${part}`;
    const projected = (x: Float64Array, part: string): Float64Array =>
      times(x, get(name(`${part}.weight`)), optional(name(`${part}.bias`)));
    const seen = xs.map((x, position) => {
      const normed = norm(x, get(name('attn_norm.weight')));
      const packed = optional(name('attn_qkv.weight'));
      const all = packed && times(normed, packed);
      const [qEnd, kEnd] = [heads * headDim, (heads + kvHeads) * headDim];
      const q = all ? all.slice(0, qEnd) : projected(normed, 'attn_q');
      const k = all ? all.slice(qEnd, kEnd) : projected(normed, 'attn_k');
      const v = all ? all.slice(kEnd) : projected(normed, 'attn_v');
      const prepared = (head: Float64Array, part: string): Float64Array => turned(norm(head, optional(name(part))), layer, position);
      return {
        q: split(q, heads).map(head => prepared(head, 'attn_q_norm.weight')),
        k: split(k, kvHeads).map(head => prepared(head, 'attn_k_norm.weight')),
        v: split(v, kvHeads)
      };
    });
    xs = xs.map((x, t) => {
      const attention = new Float64Array(heads * headDim);
      for (const [head, q] of seen[t]!.q.entries()) {
        const kvHead = Math.floor(head / (heads / kvHeads));
        const from = Math.max(0, t + 1 - model.window(layer));
        const terms = seen.slice(from, t + 1).map(({ k }) => Math.exp(cap(model.scale * dot(q, k[kvHead]!), model.softcap)));
        const total = terms.reduce((sum, term) => sum + term, 0);
        for (const [s, term] of terms.entries()) {
          for (const [i, value] of seen[from + s]!.v[kvHead]!.entries()) attention[head * headDim + i]! += (term / total) * value;
        }
      }
      const middle = plus(x, norm(projected(attention, 'attn_output'), optional(name('post_attention_norm.weight'))));
      const normed = norm(middle, get(name('ffn_norm.weight')));
      const up = times(normed, get(name('ffn_up.weight')));
      const inner = get(name('ffn_down.weight')).length / width;
      const gate = optional(name('ffn_gate.weight')) ? times(normed, get(name('ffn_gate.weight'))) : up.slice(0, inner);
      const gated = up.slice(-inner).map((value, i) => value * model.activation(gate[i]!));
      return plus(middle, norm(times(gated, get(name('ffn_down.weight'))), optional(name('post_ffw_norm.weight'))));
    });
  }
  const head = optional('output.weight') ?? embeddings;
  return times(norm(xs.at(-1)!, get('output_norm.weight')), head).map(logit => cap(logit, model.finalSoftcap));
}
