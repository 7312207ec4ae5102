// Attention by its definition, with all that models do to logits, and the roundings by which it is exact or naive: `f64` checks the
// reference; `f32`, every operation rounded, is what a kernel's error is measured against.

/** Applied after every operation: `f64` or `f32`, no other. In the innermost loops they are told apart: calls of either take V8 five to eight times as long. */
export type Round = (x: number) => number;
export const f64: Round = x => x;
export const f32: Round = Math.fround;

export type Numbers = ArrayLike<number>;

/** Rounded to f32 or not, as the operations are. */
export const array = (length: number) => new Float64Array(length);

export function dot(x: Numbers, xAt: number, y: Numbers, yAt: number, length: number, round: Round): number {
  let sum = 0;
  if (round === f64) for (let i = 0; i < length; i++) sum += x[xAt + i]! * y[yAt + i]!;
  else for (let i = 0; i < length; i++) sum = Math.fround(sum + Math.fround(x[xAt + i]! * y[yAt + i]!));
  return sum;
}

/** x += p·y. */
export function add(x: Float64Array, xAt: number, p: number, y: Numbers, yAt: number, length: number, round: Round): void {
  if (round === f64) for (let i = 0; i < length; i++) x[xAt + i]! += p * y[yAt + i]!;
  else for (let i = 0; i < length; i++) x[xAt + i] = Math.fround(x[xAt + i]! + Math.fround(p * y[yAt + i]!));
}

/** Heads and channels, and what a layer does to logits; what is left out, or is as much as nothing, is not done. */
export interface AttentionShape {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  /** Default: headDim. */
  readonly valueDim?: number;
  /** Newest tokens that a query sees. */
  readonly window?: number;
  /** First tokens that it sees too. */
  readonly keptSinks?: number;
  /** Positions that are gone, `to` the first after them. */
  readonly evicted?: { readonly from: number; readonly to: number } | undefined;
  /** The positions of keys, ascending. Default: 0 on. The queries' are the last. */
  readonly positions?: Numbers | undefined;
  readonly softcap?: number;
  /** [queryHeads] each. */
  readonly slopes?: Numbers | undefined;
  readonly sinkLogits?: Numbers | undefined;
}

/** Whether a query at a position sees a key at another. */
export function sees({ window = Infinity, keptSinks = 0, evicted }: AttentionShape, query: number, key: number): boolean {
  if (evicted && key >= evicted.from && key < evicted.to) return false;
  return key <= query && (query - key < window || key < keptSinks);
}

/** What a kernel's rounding may be off by, besides that of f32. */
export interface Slack {
  /** Of the logit of query row r (token · queryHeads + head) and token t. */
  logit(row: number, token: number): number;
  /** Of weights and values that are rounded to integers, in windows that a row sees all of. */
  readonly windows?: { readonly first: number; readonly count: number; readonly share: number };
  /** Of the sums that values are mixed from: the first coded token, the norms and the mean of every window and KV head, a share. */
  readonly means?: {
    readonly first: number;
    readonly windows: readonly (readonly { readonly s1: Numbers; readonly o: Numbers }[])[];
    readonly share: number;
  };
}

/**
 * Attention of the newest queries [n, queryHeads, headDim] over keys [tokens, kvHeads, headDim] and values [tokens, kvHeads, valueDim].
 *
 * @returns  the output [n, queryHeads, valueDim], the softmax's log-sum-exp [n, queryHeads] and, to first order, how far `slack` can
 *           move them: Σ p·logit·|v − out|, and for every window share · √(Σp · max p) · ‖V‖₂ of the channel's tokens, and
 *           share · (Σ p·s1) · |o|; the log-sum-exp by Σ p·logit
 */
export function attention(
  queries: Numbers,
  keys: Numbers,
  values: Numbers,
  shape: AttentionShape,
  scale: number,
  round: Round,
  slack?: Slack
): { out: Float64Array; lse: Float64Array; moved: Float64Array; lseMoved: Float64Array } {
  const { kvHeads, queryHeads, headDim, valueDim = headDim, softcap = 0, slopes, sinkLogits, positions } = shape;
  const tokens = keys.length / (kvHeads * headDim);
  const rows = queries.length / headDim;
  const out = array(rows * valueDim);
  const lse = array(rows);
  const moved = array(rows * valueDim);
  const lseMoved = array(rows);
  const p = array(tokens);
  for (let row = 0; row < rows; row++) {
    const newest = tokens - rows / queryHeads + Math.floor(row / queryHeads);
    const at = (t: number) => (positions ? positions[t]! : t);
    const inSight = (t: number) => sees(shape, at(newest), at(t));
    const head = Math.floor((row % queryHeads) / (queryHeads / kvHeads));
    const keyAt = (t: number) => (t * kvHeads + head) * headDim;
    const valueAt = (t: number) => (t * kvHeads + head) * valueDim;
    const query = Float64Array.from({ length: headDim }, (_, i) => round(queries[row * headDim + i]! * scale));
    const seen = Array.from({ length: newest + 1 }, (_, t) => t).filter(inSight);
    const sinkLogit = sinkLogits?.[row % queryHeads] ?? -Infinity;
    let most = sinkLogit;
    for (const t of seen) {
      let logit = dot(query, 0, keys, keyAt(t), headDim, round);
      if (softcap > 0) logit = round(softcap * round(Math.tanh(round(logit / softcap))));
      if (slopes) logit = round(logit + round(slopes[row % queryHeads]! * (at(t) - at(newest))));
      p[t] = logit;
      most = Math.max(most, logit);
    }
    let sum = round(Math.exp(round(sinkLogit - most)));
    for (const t of seen) {
      p[t] = round(Math.exp(round(p[t]! - most)));
      sum = round(sum + p[t]!);
    }
    lse[row] = round(most + round(Math.log(sum)));
    const to = row * valueDim;
    for (const t of seen) add(out, to, p[t]!, values, valueAt(t), valueDim, round);
    for (let i = 0; i < valueDim; i++) out[to + i] = round(out[to + i]! / sum);
    if (!slack) continue;
    for (const t of seen) {
      const by = (p[t]! / sum) * slack.logit(row, t);
      if (by === 0) continue;
      lseMoved[row]! += by;
      for (let i = 0; i < valueDim; i++) moved[to + i]! += by * Math.abs(values[valueAt(t) + i]! - out[to + i]!);
    }
    for (let window = 0; window < (slack.windows?.count ?? 0); window++) {
      const begin = slack.windows!.first + 64 * window;
      if (newest < begin + 63) break;
      if (!inSight(begin)) continue;
      const weights = p.subarray(begin, begin + 64);
      const by = (slack.windows!.share * Math.sqrt(weights.reduce((a, b) => a + b) * Math.max(...weights))) / sum;
      for (let i = 0; i < valueDim; i++) {
        let squares = 0;
        for (let t = begin; t < begin + 64; t++) squares += values[valueAt(t) + i]! ** 2;
        moved[to + i]! += by * Math.sqrt(squares);
      }
    }
    slack.means?.windows.forEach((heads, window) => {
      const begin = slack.means!.first + 64 * window;
      const { s1, o } = heads[head]!;
      let weight = 0;
      for (let t = begin; t < begin + 64; t++) if (inSight(t)) weight += (p[t]! / sum) * s1[t - begin]!;
      for (let i = 0; i < valueDim; i++) moved[to + i]! += slack.means!.share * weight * Math.abs(o[i]!);
    });
  }
  return { out, lse, moved, lseMoved };
}
