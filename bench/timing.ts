// Times of competitors, interleaved in one process: benchmark.js samples each for a moment, round after round, and the
// fastest sample counts. Machines are noisy; the minimum is what the code can do.

import Benchmark from 'benchmark';

export interface Rounds {
  readonly rounds: number;
  /** Seconds that one competitor is sampled for in one round. */
  readonly seconds: number;
}

/** Nanoseconds of one call of every function, by name. */
export function race(competitors: Readonly<Record<string, () => unknown>>, { rounds, seconds }: Rounds): Record<string, number> {
  const best: Record<string, number> = {};
  for (const [name, run] of Object.entries(competitors)) {
    best[name] = Infinity;
    for (let warm = 0; warm < 3; warm++) run();
  }
  for (let round = 0; round < rounds; round++) {
    for (const [name, run] of Object.entries(competitors)) {
      const benchmark = new Benchmark(name, run, { maxTime: seconds, minTime: seconds / 8, minSamples: 3, initCount: 1 });
      benchmark.run();
      const error = (benchmark as unknown as { error?: Error }).error;
      if (error) throw error;
      best[name] = Math.min(best[name]!, ...benchmark.stats.sample.map(time => time * 1e9));
    }
  }
  return best;
}
