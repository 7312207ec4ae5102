// `npm test`: runs every test file in every runtime, against the package as npm would install it.
import { availableParallelism } from 'node:os';
import { program } from 'commander';
import { type Lane, lanes } from './lanes.ts';
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
    '\nNSN_REQUIRE=chromium,deno,webgpu (or all) makes a lane, or a device, that is missing here a failure.\nNSN_ADAPTER=own runs WebGPU on the adapter that the machine offers, instead of SwiftShader.'
  )
  .parse()
  .opts<{ lane?: string[]; file?: string[]; quick?: true; timeout: number }>();
const required = list(process.env.NSN_REQUIRE ?? '');

const laneNames = lanes.map(lane => lane.name);
const fileNames = testFiles.map(shortName);
refuseUnknown('--lane', lane, laneNames);
refuseUnknown('--file', file, fileNames);
refuseUnknown('NSN_REQUIRE', required, [...laneNames, 'webgpu', 'all']);
if (quick && lane) program.error('"--lane" expected without --quick, which is the lane node');
if (!(timeout > 0)) program.error('"--timeout" expected seconds above 0');

const totals = { passed: 0, failed: 0, skipped: 0 };
const problems: string[] = [];
const files = testFiles.filter(name => file?.includes(shortName(name)) ?? true);

if (quick) process.env.NSN_WITHOUT_WEBGPU = '--quick opens no GPU';
install();
for (const file of files) await bundle(file);
for (const chosen of lanes) {
  if (quick ? chosen.name === 'node' : (lane?.includes(chosen.name) ?? true)) await runLane(chosen);
}

for (const problem of problems) console.log(problem);
if (totals.passed + totals.failed === 0) {
  totals.failed++;
  console.log('no test ran');
}
process.exitCode = totals.failed > 0 ? 1 : 0;
console.log(`${totals.passed} passed, ${totals.failed} failed${totals.skipped > 0 ? `, ${totals.skipped} skipped` : ''}`);

function shortName(file: string): string {
  return file.replace(/(\.node)?\.test\.ts$/, '');
}

/** Files that take the longest, on a software adapter a minute or more, begin first: the last workers then end together. */
function minutes(file: string): number {
  return ({ shapes: 3, attend: 2, cache: 1, choose: 1, errors: 1, examples: 1, webgpu: 1 } as Record<string, number>)[shortName(file)] ?? 0;
}

function refuseUnknown(where: string, names: readonly string[] | undefined, known: readonly string[]): void {
  for (const name of names ?? []) {
    if (!known.includes(name)) program.error(`"${where}" expected ${known.join(', ')}, got ${name}`);
  }
}

async function runLane({ name, open }: Lane): Promise<void> {
  // Files that need child processes or look at the repository say the same everywhere: once, in Node, is enough.
  const queue = files.filter(file => name === 'node' || !file.endsWith('.node.test.ts')).sort((a, b) => minutes(b) - minutes(a));
  if (queue.length === 0) return;
  const runtime = await open().catch((error: Error) => {
    const fails = required.includes(name) || required.includes('all');
    if (fails) totals.failed++;
    problems.push(`${name} ${fails ? 'failed' : 'skipped'}: ${error.message.trim().split('\n')[0]}`);
  });
  if (!runtime) return;

  console.log(`\n${name} ${runtime.version}`);
  const fileCount = queue.length;
  const before = { ...totals };
  const started = performance.now();
  // A few files at a time, each one's output printed whole when it ends.
  const worker = async () => {
    for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
      if (name === 'chromium') await bundleForPage(file);
      const began = performance.now();
      const outcome = await runtime.run(bundled(file), timeout * 1000);
      report(name, file, outcome, secondsSince(began));
    }
  };
  await Promise.all(Array.from({ length: Math.min(availableParallelism(), 4) }, worker));
  await runtime.close();

  console.log(
    `${name}: ${totals.passed - before.passed} passed, ${totals.failed - before.failed} failed in ${fileCount} files, ${secondsSince(started)}`
  );
}

function secondsSince(start: number): string {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`;
}

function report(lane: string, file: string, { output, passed, failed, skipped, problem }: Outcome, took: string): void {
  totals.passed += passed;
  totals.failed += failed;
  totals.skipped += skipped;
  console.log(`── ${lane} ${file}, ${took}\n${output}`);
  if (problem !== undefined) console.log(problem);
  if (failed > 0) problems.push(`${lane} ${file} failed: ${problem?.split('\n')[0] ?? `${failed} of ${passed + failed} tests`}`);
}
