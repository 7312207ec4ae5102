// `npm test`: runs every test file in every runtime, against the package as npm would install it.
import { availableParallelism } from 'node:os';
import { program } from 'commander';
import { type Lane, lanes, type Runtime } from './lanes.ts';
import type { Outcome } from './outcome.ts';
import { bundle, bundled, bundleForPage, install, testFiles } from './sandbox.ts';

const list = (text: string) =>
  text
    .split(',')
    .map(item => item.trim())
    .filter(item => item !== '');
const { lane, file, quick, timeout } = program
  .option('--lane <names>', `only these, comma separated: ${lanes.map(lane => lane.name).join(', ')}`, list)
  .option('--file <names>', 'only these test files, comma separated, without .test.ts or .node.test.ts', list)
  .option('--quick', 'in Node alone, without a GPU: what a change is tried with between two edits')
  .option('--timeout <seconds>', 'for each file in each lane', Number, 900)
  .addHelpText(
    'after',
    '\nNSN_REQUIRE=chromium,deno,webgpu,consumers,python,redis (or all) makes a lane, a device, test/consumers, numpy or redis-server that is missing here a failure.\nNSN_ADAPTER=own runs WebGPU on the adapter that the machine offers, instead of SwiftShader.'
  )
  .parse()
  .opts<{ lane?: string[]; file?: string[]; quick?: true; timeout: number }>();
const required = list(process.env['NSN_REQUIRE'] ?? '');

const laneNames = lanes.map(lane => lane.name);
const fileNames = testFiles.map(shortName);
refuseUnknown('--lane', lane, laneNames);
refuseUnknown('--file', file, fileNames);
// The model is bench/llm's and examples/page's.
refuseUnknown('NSN_REQUIRE', required, [...laneNames, 'webgpu', 'consumers', 'python', 'redis', 'model', 'all']);
if (quick && lane) program.error('"--lane" expected without --quick, which is the lane node');
if (!(timeout > 0)) program.error('"--timeout" expected seconds above 0');

/** One test file in one runtime. */
interface Run {
  readonly lane: Lane;
  readonly runtime: Runtime;
  readonly file: string;
}

interface Result extends Outcome {
  readonly lane: string;
  readonly file: string;
  readonly seconds: number;
}

/** About how many seconds a file takes with a software adapter, measured on two cores; those of less than ten are left out. */
const secondsOf: Readonly<Record<string, number>> = {
  shapes: 180,
  attend: 120,
  webgpu: 60,
  examples: 120,
  selftest: 50,
  refusals: 30,
  odd: 30,
  lessons: 100,
  learning: 60,
  profiles: 45,
  choose: 50,
  cache: 50,
  types: 12,
  bundlers: 25,
  'webgpu-null': 20,
  kernels: 15,
  coding: 12,
  magnitudes: 15,
  prefixes: 30,
  processes: 30,
  storages: 12,
  histories: 15,
  damaged: 12
};

/**
 * Left out by --quick where they are not named: other people's tools, a dozen processes, and every pair of codecs at every head dimension, half a
 * minute of what kernels and attend say of fewer.
 */
const slow = ['bundlers', 'processes', 'shapes', 'types'];
const files = testFiles.filter(name => file?.includes(shortName(name)) ?? !(quick && slow.includes(shortName(name))));
// A file that was renamed would lose its place in silence.
refuseUnknown('test/run.ts', [...Object.keys(secondsOf), ...slow], fileNames);
for (const { files, gpuElsewhere } of lanes) refuseUnknown('test/lanes.ts', [...(files ?? []), ...(gpuElsewhere?.files ?? [])], fileNames);

const results: Result[] = [];
const problems: string[] = [];
/** Lanes that are required and that this machine lacks. */
let missing = 0;

if (quick) process.env['NSN_WITHOUT_WEBGPU'] = '--quick opens no GPU';
install();
await Promise.all(files.map(bundle));
const runs = (await Promise.all(lanes.filter(({ name }) => (quick ? name === 'node' : (lane?.includes(name) ?? true))).map(runsOf))).flat();
const running = new Map(runs.map(({ lane, runtime }) => [lane.name, runtime]));
// Of all lanes at once, the longest first: the last workers end together. Each file's output is printed whole when it ends.
const queue = runs.toSorted((a, b) => (secondsOf[shortName(b.file)] ?? 0) - (secondsOf[shortName(a.file)] ?? 0));
await Promise.all(
  Array.from({ length: Math.min(availableParallelism(), 4) }, async () => {
    for (let next = queue.shift(); next; next = queue.shift()) report(await perform(next));
  })
);
for (const runtime of running.values()) await runtime.close();
summarize();

function shortName(file: string): string {
  return file.replace(/(\.node)?\.test\.ts$/, '');
}

function refuseUnknown(where: string, names: readonly string[] | undefined, known: readonly string[]): void {
  for (const name of names ?? []) {
    if (!known.includes(name)) program.error(`"${where}" expected ${known.join(', ')}, got ${name}`);
  }
}

/** What a lane runs; nothing where this machine lacks it. */
async function runsOf(lane: Lane): Promise<Run[]> {
  // Files that need child processes or look at the repository say the same everywhere: once, in Node, is enough.
  const own = files.filter(file => lane.files?.includes(shortName(file)) ?? (lane.name === 'node' || !file.endsWith('.node.test.ts')));
  if (own.length === 0) return [];
  try {
    const runtime = await lane.open();
    console.log(`${lane.name} ${runtime.version}`);
    return own.map(file => ({ lane, runtime, file }));
  } catch (error) {
    const message = (error as Error).message.trim().split('\n')[0]!;
    const fails = required.includes(lane.name) || required.includes('all');
    if (fails) missing++;
    problems.push(`${lane.name} ${fails ? 'failed' : 'skipped'}: ${message}`);
    return [];
  }
}

async function perform({ lane, runtime, file }: Run): Promise<Result> {
  const variables: Record<string, string> = {};
  const elsewhere = lane.gpuElsewhere;
  if (elsewhere && running.get(elsewhere.lane)?.hasAdapter && elsewhere.files.includes(shortName(file))) {
    variables['NSN_WITHOUT_WEBGPU'] = `the lane ${elsewhere.lane} runs these tests on a GPU`;
  }
  if (lane.name === 'chromium') await bundleForPage(file);
  const began = performance.now();
  const outcome = await runtime.run(bundled(file), timeout * 1000, variables);
  return { ...outcome, lane: lane.name, file, seconds: (performance.now() - began) / 1000 };
}

function report(result: Result): void {
  const { lane, file, seconds, output, passed, failed, problem } = result;
  results.push(result);
  console.log(`── ${lane} ${file}, ${seconds.toFixed(1)} s\n${output}`);
  if (problem !== undefined) console.log(problem);
  if (failed > 0) problems.push(`${lane} ${file} failed: ${problem?.split('\n')[0] ?? `${failed} of ${passed + failed} tests`}`);
}

/** The last line has the counts of all. */
function summarize(): void {
  const sum = (some: readonly Result[], of: 'passed' | 'failed' | 'skipped' | 'seconds') =>
    some.reduce((sum, result) => sum + result[of], 0);
  const slowest = results.toSorted((a, b) => b.seconds - a.seconds).slice(0, 10);
  if (results.length > slowest.length) {
    console.log('\nthe slowest:');
    for (const { lane, file, seconds } of slowest) console.log(`${seconds.toFixed(1).padStart(7)} s  ${lane} ${file}`);
  }
  console.log();
  for (const name of running.keys()) {
    const own = results.filter(({ lane }) => lane === name);
    console.log(
      `${name}: ${sum(own, 'passed')} passed, ${sum(own, 'failed')} failed in ${own.length} files, ${sum(own, 'seconds').toFixed(1)} s of a worker`
    );
  }
  for (const problem of problems) console.log(problem);
  const [passed, skipped] = [sum(results, 'passed'), sum(results, 'skipped')];
  let failed = sum(results, 'failed') + missing;
  if (passed + failed === 0) {
    failed++;
    console.log('no test ran');
  }
  process.exitCode = failed > 0 ? 1 : 0;
  console.log(`${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ''}`);
}
