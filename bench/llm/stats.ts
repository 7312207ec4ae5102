// Summary numbers of per-token measurements and their confidence intervals. Pure arithmetic.
import { random } from '../../tools/numbers.ts';

/** Measurements of one method, one entry a position, sequences one after another. */
export interface TokenStats {
  /** −ln p of the token that follows. */
  readonly nll: Float64Array;
  /** The same by the raw cache. */
  readonly rawNll: Float64Array;
  /** KL(raw ‖ method) in nats. */
  readonly kld: Float64Array;
  /** 1 where both find the same token likeliest. */
  readonly same: Float64Array;
}

export interface Summary {
  readonly ppl: number;
  readonly pplRatio: number;
  readonly kld: number;
  readonly kldP99: number;
  readonly top1: number;
}

export type Intervals = Readonly<Record<keyof Summary, readonly [low: number, high: number]>>;

export function summarize({ nll, rawNll, kld, same }: TokenStats): Summary {
  return {
    ppl: Math.exp(mean(nll)),
    pplRatio: Math.exp(mean(nll) - mean(rawNll)),
    kld: mean(kld),
    kldP99: quantile(kld, 0.99),
    top1: mean(same)
  };
}

/**
 * 95 % intervals by block bootstrap: blocks of consecutive positions are drawn with replacement, since neighbors are alike
 * (they share their cache), and the summary is taken anew; the 2.5 and 97.5 % quantiles of many draws bound the interval.
 */
export function bootstrap(stats: TokenStats, { blockLength = 64, draws = 1000, seed = 1 } = {}): Intervals {
  const length = stats.nll.length;
  const blocks = Math.ceil(length / blockLength);
  const next = random(seed);
  const series = Object.entries(stats) as [keyof TokenStats, Float64Array][];
  const summaries = Array.from({ length: draws }, () => {
    const chosen = Array.from({ length: blocks }, () => Math.floor(next() * blocks) * blockLength);
    const size = chosen.reduce((sum, begin) => sum + Math.min(blockLength, length - begin), 0);
    const drawn = Object.fromEntries(
      series.map(([name, all]) => {
        const out = new Float64Array(size);
        let at = 0;
        for (const begin of chosen) {
          const block = all.subarray(begin, begin + blockLength);
          out.set(block, at);
          at += block.length;
        }
        return [name, out];
      })
    ) as unknown as TokenStats;
    return summarize(drawn);
  });
  const interval = (key: keyof Summary): [number, number] => {
    const values = Float64Array.from(summaries, summary => summary[key]);
    return [quantile(values, 0.025), quantile(values, 0.975)];
  };
  return { ppl: interval('ppl'), pplRatio: interval('pplRatio'), kld: interval('kld'), kldP99: interval('kldP99'), top1: interval('top1') };
}

export function mean(values: Float64Array): number {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

/** Linear between the order statistics. */
export function quantile(values: Float64Array, q: number): number {
  const sorted = values.slice().sort();
  const at = q * (sorted.length - 1);
  const low = Math.floor(at);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low]! + (at - low) * (sorted[high]! - sorted[low]!);
}

/** ln p of a token, by its row of logits. */
export function logProbability(logits: Float32Array, token: number): number {
  const max = logits.reduce((most, logit) => Math.max(most, logit), -Infinity);
  return logits[token]! - max - Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit - max), 0));
}

export function join(parts: readonly TokenStats[]): TokenStats {
  const all = (name: keyof TokenStats): Float64Array => Float64Array.from(parts.flatMap(part => [...part[name]]));
  return { nll: all('nll'), rawNll: all('rawNll'), kld: all('kld'), same: all('same') };
}
