// Attention of one position over a cache, in f64 and in the plainest way: what every method in the demo is judged by.

export interface Heads {
  kvHeads: number;
  queryHeads: number; // query head h reads KV head floor(h / (queryHeads / kvHeads))
  headDim: number;
  scale: number; // logits are scale · ⟨q, k⟩
}

/**
 * out ← ln softmax(scale · ⟨q, k⟩) over the first `tokens` keys.
 *
 *   out    f64 [queryHeads, tokens]
 *   query  f32 [queryHeads, headDim]
 *   keys   f32 [tokens, kvHeads, headDim]
 */
export function logProbabilities(out: Float64Array, query: Float32Array, keys: Float32Array, tokens: number, heads: Heads): void {
  const { kvHeads, queryHeads, headDim, scale } = heads;
  const group = queryHeads / kvHeads;
  const row = kvHeads * headDim;
  for (let head = 0; head < queryHeads; head++) {
    const q = query.subarray(head * headDim, (head + 1) * headDim);
    const logits = out.subarray(head * tokens, (head + 1) * tokens);
    let k = Math.floor(head / group) * headDim;
    let max = -Infinity;
    for (let t = 0; t < tokens; t++, k += row) {
      let dot = 0;
      for (let i = 0; i < headDim; i++) dot += q[i]! * keys[k + i]!;
      const logit = scale * dot;
      logits[t] = logit;
      if (logit > max) max = logit;
    }
    let sum = 0;
    for (let t = 0; t < tokens; t++) sum += Math.exp(logits[t]! - max);
    const logSum = max + Math.log(sum);
    for (let t = 0; t < tokens; t++) logits[t] = logits[t]! - logSum;
  }
}

/**
 * out ← Σ over tokens of p · v.
 *
 *   out     f64 [queryHeads, headDim]
 *   logP    f64 [queryHeads, tokens], from logProbabilities()
 *   values  f32 [tokens, kvHeads, headDim]
 */
export function mix(out: Float64Array, logP: Float64Array, values: Float32Array, tokens: number, heads: Heads): void {
  const { kvHeads, queryHeads, headDim } = heads;
  const group = queryHeads / kvHeads;
  const row = kvHeads * headDim;
  out.fill(0);
  for (let head = 0; head < queryHeads; head++) {
    const o = out.subarray(head * headDim, (head + 1) * headDim);
    let v = Math.floor(head / group) * headDim;
    for (let t = 0; t < tokens; t++, v += row) {
      const p = Math.exp(logP[head * tokens + t]!);
      for (let i = 0; i < headDim; i++) o[i] = o[i]! + p * values[v + i]!;
    }
  }
}

/** KL(p ‖ q) in nats, summed over the query heads of one position. Both f64 [queryHeads, tokens], logarithms. */
export function divergence(logP: Float64Array, logQ: Float64Array, length: number): number {
  let sum = 0;
  for (let i = 0; i < length; i++) sum += Math.exp(logP[i]!) * (logP[i]! - logQ[i]!);
  return sum;
}
