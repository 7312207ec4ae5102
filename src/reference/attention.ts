// Attention of one query in f64 over plain keys and values, with all that models do to logits: the specification of every backend's
// `attend`. Knows no codes and no pages.

/** Where a query and its keys are, and what a layer does to their logits. What is left out is not done. */
export interface LogitOptions {
  /** Position of the query: it sees keys up to its own. Default: that of the last key. */
  readonly position?: number;
  /** Positions of the keys, [tokens]. Default: 0, 1, 2 and so on. */
  readonly positions?: ArrayLike<number>;
  /** Newest tokens that the query sees, itself among them. Default: all. */
  readonly window?: number;
  /** First positions that it sees too, however far behind. Default: none. */
  readonly sinks?: number;
  /** c > 0: logits become c·tanh(logit / c). */
  readonly softcap?: number;
  /** ALiBi: slope · (key position − query position) is added to every logit. */
  readonly slope?: number;
  /** A logit that the softmax counts besides those of the keys, and that has no value. */
  readonly sinkLogit?: number;
}

/** What attention of one query comes to. */
export interface Attended {
  /** f64 [valueDim] */
  readonly out: Float64Array;
  /** Natural logarithm of the softmax's denominator, Σ exp(logit), with that of the sink logit. */
  readonly lse: number;
}

/**
 * Attention of one query over plain keys and values, f64: softmax(q·K)·V. Where nothing is seen, and there is no sink logit, `out` is 0
 * and `lse` −∞.
 *
 * @param query   [headDim], already multiplied by the query scale
 * @param keys    [tokens, headDim]
 * @param values  [tokens, valueDim]
 * @example
 * import { attend } from 'nsnquant/reference';
 * const { out, lse } = attend([1, 0], [1, 0, 0, 1], [10, 20], { window: 2 });
 */
export function attend(
  query: ArrayLike<number>,
  keys: ArrayLike<number>,
  values: ArrayLike<number>,
  { positions, position, window = Infinity, sinks = 0, softcap = 0, slope = 0, sinkLogit = -Infinity }: LogitOptions = {}
): Attended {
  const headDim = query.length;
  const tokens = keys.length / headDim;
  const valueDim = values.length / tokens;
  const positionOf = (t: number): number => (positions ? positions[t]! : t);
  const own = position ?? positionOf(tokens - 1);

  const logits = Float64Array.from({ length: tokens }, (_, t) => {
    const at = positionOf(t);
    if (at > own || (at <= own - window && at >= sinks)) return -Infinity;
    let logit = 0;
    for (let i = 0; i < headDim; i++) logit += query[i]! * keys[t * headDim + i]!;
    if (softcap > 0) logit = softcap * Math.tanh(logit / softcap);
    return logit + slope * (at - own);
  });

  let max = sinkLogit;
  for (const logit of logits) max = Math.max(max, logit);
  const out = new Float64Array(valueDim);
  if (max === -Infinity) return { out, lse: max };
  let sum = Math.exp(sinkLogit - max);
  for (let t = 0; t < tokens; t++) {
    const p = Math.exp(logits[t]! - max);
    sum += p;
    for (let i = 0; i < valueDim; i++) out[i]! += p * values[t * valueDim + i]!;
  }
  return { out: out.map(x => x / sum), lse: max + Math.log(sum) };
}
