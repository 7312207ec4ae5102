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

/** What is read before a step of `raceCold`: about the weights of one layer of a small model. */
const OTHER_BYTES = 18e6;

/**
 * Nanoseconds of one pass of every function over `steps` steps, by name, when before each step other memory is read, which is not
 * timed: what a layer of a model finds in caches after its weights went through them. Passes take turns, the fastest counts.
 */
export function raceCold(
  competitors: Readonly<Record<string, (step: number) => unknown>>,
  { steps, rounds }: { readonly steps: number; readonly rounds: number }
): Record<string, number> {
  const other = new Float64Array(OTHER_BYTES / 8).fill(1);
  const best: Record<string, number> = {};
  let sum = 0;
  for (const [name, run] of Object.entries(competitors)) {
    best[name] = Infinity;
    for (let step = 0; step < steps; step++) run(step);
  }
  for (let round = 0; round < rounds; round++) {
    for (const [name, run] of Object.entries(competitors)) {
      let time = 0;
      for (let step = 0; step < steps; step++) {
        for (let line = 0; line < other.length; line += 8) sum += other[line]!;
        const start = performance.now();
        run(step);
        time += performance.now() - start;
      }
      best[name] = Math.min(best[name]!, time * 1e6);
    }
  }
  if (sum === 0) throw new Error('nothing was read'); // and an engine may not leave the reading out
  return best;
}
