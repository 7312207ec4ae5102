// Registers tests with uvu and counts what became of them. Must never let a file end well that ran no test, or not all.

type Body = () => void | Promise<void>;
/** What uvu queues for a suite. It resolves even where a hook threw: then failures is true and passed is below total. */
type Run = () => Promise<[failures: string | true, passed: number, skipped: number, total: number]>;

export interface Register {
  (title: string, run: Body): void;
  /** For a test that this runtime cannot run; the reason is printed and the count says so. */
  skip(title: string, reason: string): void;
}

// Left to itself uvu 0.5.6 exits 0 when a hook throws and when nothing was run. As for its own command line, two globals keep
// it from starting by itself, so that finish() starts it; they must be there before uvu is evaluated.
if ('UVU_QUEUE' in globalThis) throw new Error('expected uvu to be imported by tools/group.ts alone, got another import of it');
const queue: Run[] = [];
Object.assign(globalThis, { UVU_DEFER: 1, UVU_QUEUE: [queue] });
const uvu = await import('uvu');

/** Set-up that several tests share stands above them, with top-level await: where it throws, the whole file fails. */
export function group(name: string, body: (test: Register) => void): void {
  const suite = uvu.suite(name);
  let count = 0;
  let open = true;
  const add = (title: string) => {
    // uvu took its list when the group was closed; a test inside a test would be lost without a word.
    if (!open) throw new Error(`"${title}" expected to be registered by the body of group "${name}", got it later`);
    count++;
  };
  const test = (title: string, run: Body) => {
    add(title);
    suite(title, async () => {
      try {
        await run();
      } catch (error) {
        // uvu breaks on what is not an Error, and drops the tests that follow.
        throw error instanceof Error ? error : new Error(`threw ${error}`);
      }
    });
  };
  test.skip = (title: string, reason: string) => {
    add(title);
    suite.skip();
    console.log(`"${title}" skipped: ${reason}`);
  };
  const result: unknown = body(test);
  if (result instanceof Promise) throw new TypeError(`"${name}" expected a synchronous body, got an async one`);
  open = false;
  if (count === 0) throw new Error(`"${name}" registers no tests`);
  suite.run();
}

let seen = 0;

/** For the end of each of several files: one that registers nothing counts as a test that failed, though others register some. */
export function registered(file: string): void {
  if (queue.length === seen) {
    const none: Run = async () => [`${file} registers no tests\n`, 0, 0, 1];
    queue.push(none);
  }
  seen = queue.length;
}

/** Runs what was registered and prints the counts as the last line. test/run.ts calls it after each test file. */
export async function finish(): Promise<void> {
  let passed = 0;
  let failed = 0;
  let skipped = 0;
  for (const run of queue) {
    const [failures, done, skips, total] = await run();
    passed += done;
    failed += total - done;
    skipped += skips;
    if (failures !== true) console.log(failures);
    else if (done < total) console.log(`${total - done} of ${total} tests did not run, and uvu does not say why`);
  }
  if (passed + failed + skipped === 0) {
    failed++;
    console.log('no test is registered');
  }
  // Node, Deno and Bun have a process to fail; a page has only the line.
  if (failed > 0 && typeof process !== 'undefined') process.exitCode = 1;
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
}
