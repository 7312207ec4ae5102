// Interleaved samples of competitors. Knows nothing of what they do.

export interface Samples {
  /** Milliseconds of one walk, a sample each: the mean of `walks`. */
  readonly times: number[];
  readonly walks: number;
}

export interface RaceOptions {
  /** Of every competitor. */
  readonly samples: number;
  /** After which a round is the last, once there are `FEWEST`. */
  readonly seconds: number;
  /** Of the clock that walks are timed by; 0 where one walk is long enough. */
  readonly resolutionMs: number;
}

const FEWEST = 5;
/** A sample goes on until it took so many ticks of the clock: a page's may tick in whole milliseconds. */
const TICKS = 25;
const MOST_WALKS = 64;

/**
 * Times competitors in turn, there and back, round after round, after two walks of each that warm up.
 *
 * @param walk      resolves to the milliseconds of one walk
 * @param progress  told the share that is done
 * @returns         the samples of each, or what it threw: the others go on
 */
export async function race<C>(
  competitors: readonly C[],
  walk: (competitor: C) => Promise<number>,
  { samples, seconds, resolutionMs }: RaceOptions,
  progress: (share: number) => void = () => {}
): Promise<Map<C, Samples | Error>> {
  const results = new Map<C, Samples | Error>();
  const attempt = async (competitor: C, run: () => Promise<void>): Promise<void> => {
    if (results.get(competitor) instanceof Error) return;
    await run().catch((error: unknown) => {
      results.set(competitor, error instanceof Error ? error : new Error(String(error)));
    });
  };
  for (const competitor of competitors) {
    await attempt(competitor, async () => {
      await walk(competitor);
      const ms = await walk(competitor);
      const walks = resolutionMs === 0 ? 1 : Math.ceil((TICKS * resolutionMs) / Math.max(ms, resolutionMs / 2));
      results.set(competitor, { times: [], walks: Math.min(MOST_WALKS, walks) });
    });
  }
  const end = performance.now() + 1000 * seconds;
  for (let round = 0; round < samples && (round < FEWEST || performance.now() < end); round++) {
    for (const competitor of round % 2 === 0 ? competitors : competitors.toReversed()) {
      await attempt(competitor, async () => {
        const { times, walks } = results.get(competitor) as Samples;
        let sum = 0;
        for (let n = 0; n < walks; n++) sum += await walk(competitor);
        times.push(sum / walks);
      });
    }
    progress((round + 1) / samples);
  }
  return results;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  return (sorted[(sorted.length - 1) >> 1]! + sorted[sorted.length >> 1]!) / 2;
}

/** The tick of `performance.now()`, in milliseconds: the least difference over a few. */
export function clockTick(): number {
  let tick = Infinity;
  for (let n = 0; n < 10; n++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    tick = Math.min(tick, now - start);
  }
  return tick;
}
