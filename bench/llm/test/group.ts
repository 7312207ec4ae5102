// Registers tests with uvu and counts what became of them: a file that runs no test, or not all, must not end well.
// uvu must not start by itself: these globals, set before it is evaluated, let finish() start it.
type Run = () => Promise<[failures: string | true, passed: number, skipped: number, total: number]>;
const queue: Run[] = [];
Object.assign(globalThis, { UVU_DEFER: 1, UVU_QUEUE: [queue] });
const uvu = await import('uvu');

export type Register = (title: string, run: () => void | Promise<void>) => void;

export function group(name: string, body: (test: Register) => void): void {
  const suite = uvu.suite(name);
  let count = 0;
  body((title, run) => {
    count++;
    suite(title, run);
  });
  if (count === 0) throw new Error(`"${name}" registers no tests`);
  suite.run();
}

/** Runs what was registered; the counts are the last line. */
export async function finish(): Promise<void> {
  let passed = 0;
  let failed = 0;
  for (const run of queue) {
    const [failures, done, , total] = await run();
    passed += done;
    failed += total - done;
    if (failures !== true) console.log(failures);
  }
  if (passed + failed === 0) {
    failed++;
    console.log('no test is registered');
  }
  if (failed > 0) process.exitCode = 1;
  console.log(`${passed} passed, ${failed} failed`);
}
