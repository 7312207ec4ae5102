// What running one test file in one runtime came to, read from what it printed. Must never take silence for success.
import { stripVTControlCharacters } from 'node:util';

export interface Outcome {
  readonly output: string;
  readonly passed: number;
  readonly failed: number;
  readonly skipped: number;
  /** Why the file failed beyond its tests: it crashed, hung, or never finished. */
  readonly problem: string | undefined;
}

/** The line that finish() in tools/group.ts prints. */
const counts = /^(\d+) passed, (\d+) failed(?:, (\d+) skipped)?\n?$/gm;

/** `problem`: what the runtime itself reported, such as its exit code; none if it ended well. */
export function outcome(printed: string, problem: string | undefined): Outcome {
  const text = stripVTControlCharacters(printed);
  const last = [...text.matchAll(counts)].at(-1);
  const passed = Number(last?.[1] ?? 0);
  const failed = Number(last?.[2] ?? 0);
  const skipped = Number(last?.[3] ?? 0);
  // The exit code says nothing new about a file that counted its own failures.
  if (last === undefined) problem ??= 'ended before its tests did';
  else if (failed > 0) problem = undefined;
  return { output: text.replace(counts, '').trimEnd(), passed, failed: failed + (problem ? 1 : 0), skipped, problem };
}
