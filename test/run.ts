// `npm test`: runs every test file in every runtime, against the package as npm would install it.
import { availableParallelism } from 'node:os';
import { program } from 'commander';
import { type Lane, type Left, lanes, type Runtime } from './lanes.ts';
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

/** A test file in one runtime, or several in one process or page of it. */
interface Run {
  readonly lane: Lane;
  readonly runtime: Runtime;
  readonly files: readonly string[];
}

interface Result extends Outcome {
  readonly lane: string;
  /** Names of the test files. */
  readonly what: string;
  readonly files: number;
  readonly seconds: number;
}

/** About how many seconds a file takes with a software adapter, measured on two cores; those of less than ten are left out. */
const secondsOf: Readonly<Record<string, Readonly<Record<string, number>>>> = {
  chromium: {
    ...{ shapes: 80, formats: 35, kernels: 25, learning: 20, bounds: 20 },
    // In one page each.
    ...{ attend: 45, lessons: 35, histories: 30, masks: 25, windows: 25, cache: 15, damaged: 10, evict: 10, grow: 10, odd: 10 },
    ...{ choose: 25, webgpu: 25 }
  },
  node: {
    ...{ selftest: 70, examples: 60, kernels: 40, choose: 30, webgpu: 30, bundlers: 25, magnitudes: 25, bounds: 25, processes: 20 },
    ...{ demo: 20, histories: 20, shapes: 20, masks: 20, windows: 20, grow: 20, learning: 20, lessons: 20, 'webgpu-null': 20 },
    ...{ reader: 15, damaged: 15, types: 12, layout: 12, attend: 10, formats: 10 }
  },
  deno: { attend: 40, webgpu: 30, formats: 20, learning: 20 },
  bun: {
    ...{ kernels: 35, bounds: 20, histories: 15, shapes: 15, magnitudes: 15, learning: 15, masks: 10, windows: 15, lessons: 15 },
    ...{ layout: 12, grow: 10, damaged: 10, formats: 10 }
  }
};

/**
 * Left out by --quick where they are not named: other people's tools, a dozen processes, and every pair of codecs at every head dimension, half a
 * minute of what kernels and attend say of fewer.
 */
const slow = ['bundlers', 'engines', 'processes', 'shapes', 'types'];
const files = testFiles.filter(name => file?.includes(shortName(name)) ?? !(quick && slow.includes(shortName(name))));
// A file that was renamed would lose its place in silence.
refuseUnknown('test/run.ts', Object.keys(secondsOf), laneNames);
refuseUnknown('test/run.ts', [...Object.values(secondsOf).flatMap(Object.keys), ...slow], fileNames);
for (const { files = [], together = [], leaves = [] } of lanes) {
  const elsewhere = leaves.flatMap(({ files = [], gpuBut = [] }) => [...files, ...gpuBut]);
  refuseUnknown('test/lanes.ts', [...files, ...together.flat(), ...elsewhere], fileNames);
  // What is left to others is told a process, not a file.
  for (const { gpuBut } of leaves) {
    const mixed = gpuBut && together.find(names => new Set(names.map(name => gpuBut.includes(name))).size > 1);
    if (mixed) program.error(`"test/lanes.ts" expected ${mixed.join(', ')} together on a GPU, or none of them`);
  }
  refuseUnknown(
    'test/lanes.ts',
    leaves.map(({ to }) => to),
    laneNames
  );
}

const results: Result[] = [];
const problems: string[] = [];
/** Lanes that are required and that this machine lacks. */
let missing = 0;

if (quick) process.env['NSN_WITHOUT_WEBGPU'] = '--quick opens no GPU';
install();
await Promise.all(files.map(file => bundle(file, [file])));
const chosen = lanes.filter(({ name }) => (quick ? name === 'node' : (lane?.includes(name) ?? true)));
const running = new Map((await Promise.all(chosen.map(opened))).flat());
const runs = chosen.filter(({ name }) => running.has(name)).flatMap(runsOf);
// Of all lanes at once, the longest first: the last workers end together. Each file's output is printed whole when it ends.
const queue = runs.toSorted((a, b) => secondsOfRun(b) - secondsOfRun(a));
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

/** What a lane leaves to others, of those that run. */
function leftBy({ leaves = [] }: Lane): readonly Left[] {
  return leaves.filter(({ to, gpuBut }) => running.has(to) && (!gpuBut || running.get(to)!.hasAdapter));
}

/** The test files of a lane. Those that need child processes or look at the repository say the same everywhere: once, in Node, is enough. */
function filesOf({ name, files: own }: Lane): readonly string[] {
  return files.filter(file => own?.includes(shortName(file)) ?? (name === 'node' || !file.endsWith('.node.test.ts')));
}

/** A lane with its runtime; nothing where this machine lacks it. */
async function opened(lane: Lane): Promise<readonly (readonly [name: string, runtime: Runtime])[]> {
  if (filesOf(lane).length === 0) return [];
  try {
    const runtime = await lane.open();
    console.log(`${lane.name} ${runtime.version}`);
    return [[lane.name, runtime]];
  } catch (error) {
    const message = (error as Error).message.trim().split('\n')[0]!;
    const fails = required.includes(lane.name) || required.includes('all');
    if (fails) missing++;
    problems.push(`${lane.name} ${fails ? 'failed' : 'skipped'}: ${message}`);
    return [];
  }
}

/** What a lane runs, and in words what it leaves to others. */
function runsOf(lane: Lane): readonly Run[] {
  const left = leftBy(lane);
  for (const { to, files = [], backends = [], gpuBut } of left) {
    const what = [...backends, ...files.map(name => `${name}.test.ts`), ...(gpuBut ? [`WebGPU but in ${gpuBut.join(', ')}`] : [])];
    console.log(`${lane.name} leaves to ${to}: ${what.join(', ')}`);
  }
  const own = filesOf(lane).filter(file => !left.some(({ files }) => files?.includes(shortName(file))));
  const together = (lane.together ?? []).map(names => own.filter(file => names.includes(shortName(file))));
  const alone = own.filter(file => !together.flat().includes(file)).map(file => [file]);
  const runtime = running.get(lane.name)!;
  return [...together, ...alone].filter(files => files.length > 0).map(files => ({ lane, runtime, files }));
}

function secondsOfRun({ lane, files }: Run): number {
  return files.reduce((sum, file) => sum + (secondsOf[lane.name]?.[shortName(file)] ?? 0), 0);
}

async function perform({ lane, runtime, files }: Run): Promise<Result> {
  const [file] = files as [string];
  const variables: Record<string, string> = {};
  for (const { to, backends, gpuBut } of leftBy(lane)) {
    if (backends) variables['NSN_LEFT'] = backends.join();
    if (!gpuBut || file.endsWith('.node.test.ts')) continue;
    if (gpuBut.includes(shortName(file))) variables['NSN_FEW_SHAPES'] = `the lane ${to} has more`;
    else variables['NSN_WITHOUT_WEBGPU'] = `the lane ${to} runs these tests on a GPU`;
  }
  // Others may be reading the bundle of the first alone.
  const name = files.length > 1 ? `${lane.name}-${file}` : file;
  if (files.length > 1) await bundle(name, files);
  if (lane.name === 'chromium') await bundleForPage(name);
  const began = performance.now();
  const outcome = await runtime.run(bundled(name), timeout * 1000 * files.length, variables);
  const what = files.length > 1 ? files.map(shortName).join(', ') : file;
  return { ...outcome, lane: lane.name, what, files: files.length, seconds: (performance.now() - began) / 1000 };
}

function report(result: Result): void {
  const { lane, what, seconds, output, passed, failed, problem } = result;
  results.push(result);
  console.log(`── ${lane} ${what}, ${seconds.toFixed(1)} s\n${output}`);
  if (problem !== undefined) console.log(problem);
  if (failed > 0) problems.push(`${lane} ${what} failed: ${problem?.split('\n')[0] ?? `${failed} of ${passed + failed} tests`}`);
}

/** The last line has the counts of all. */
function summarize(): void {
  const sum = (some: readonly Result[], of: 'passed' | 'failed' | 'skipped' | 'seconds' | 'files') =>
    some.reduce((sum, result) => sum + result[of], 0);
  const slowest = results.toSorted((a, b) => b.seconds - a.seconds).slice(0, 10);
  if (results.length > slowest.length) {
    console.log('\nthe slowest:');
    for (const { lane, what, seconds } of slowest) console.log(`${seconds.toFixed(1).padStart(7)} s  ${lane} ${what}`);
  }
  console.log();
  for (const name of running.keys()) {
    const own = results.filter(({ lane }) => lane === name);
    console.log(
      `${name}: ${sum(own, 'passed')} passed, ${sum(own, 'failed')} failed in ${sum(own, 'files')} files, ${sum(own, 'seconds').toFixed(1)} s of a worker`
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
