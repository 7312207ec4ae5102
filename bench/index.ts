// npm run bench: every verb, and attention against dense baselines of our own, in one process. Prints Markdown.

import { execFileSync, spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { cpus } from 'node:os';
import { Command, InvalidArgumentError, Option } from 'commander';
import { openBackend, type WasmVariant } from 'nsnquant';
import { softwareVulkan } from '../tools/chromium.ts';
import { attendTable, coldTable, walkTable } from './attend.ts';
import type { Context } from './context.ts';
import { NO_ADAPTER, openGpu } from './gpu/device.ts';
import { verbsTable } from './kernels.ts';
import { layersTable } from './layers.ts';
import { prefixesTable } from './prefixes.ts';
import { promptTable } from './prompt.ts';
import { webGpuTable } from './webgpu.ts';

const { variant, quick, only, headDim, queryHeads, gpuMemory, out } = new Command('bench')
  .description('Times kernels and attention; the tables of BENCHMARKS.md.')
  .addOption(new Option('--variant <name>', 'binary to time').choices(['scalar', 'simd128', 'relaxed']).default('simd128'))
  .addOption(
    new Option('--only <table>', 'one table').choices(['verbs', 'attend', 'walk', 'cold', 'prompt', 'layers', 'prefixes', 'webgpu'])
  )
  .addOption(new Option('--head-dim <n>', 'one head dimension of the attend and prompt tables').choices(['64', '128']))
  .addOption(new Option('--query-heads <n>', 'one number of query heads of the attend table').choices(['1', '3', '4', '8']))
  .addOption(new Option('--gpu-memory <GiB>', 'what one cell of the webgpu table may fill').argParser(positive).default(8))
  .option('--quick', 'fewer shapes and shorter sampling, to see that it runs')
  .option('--out <file>', 'write the Markdown there too')
  .parse()
  .opts<{ variant: WasmVariant; quick?: boolean; only?: string; headDim?: string; queryHeads?: string; gpuMemory: number; out?: string }>();

const lines: string[] = [];
const print = (text: string): void => {
  console.log(text);
  lines.push(text);
};

await openBackend({ variant }); // refuses at once what this engine cannot run
const tables = {
  verbs: verbsTable,
  attend: attendTable,
  walk: walkTable,
  cold: coldTable,
  prompt: promptTable,
  layers: layersTable,
  prefixes: prefixesTable,
  webgpu: webGpuTable
};
const gpu = only && only !== 'webgpu' ? 'not asked for' : await openGpu();
if (gpu === NO_ADAPTER) onSoftwareVulkan();
print(machine());
const context: Context = {
  variant,
  quick: quick ?? false,
  headDim: headDim ? Number(headDim) : undefined,
  queryHeads: queryHeads ? Number(queryHeads) : undefined,
  gpu,
  gpuMemory,
  print,
  progress: text => process.stderr.write(`\r${text.padEnd(78)}`)
};
for (const [name, table] of Object.entries(tables)) {
  if (only && only !== name) continue;
  await table(context);
  process.stderr.write(`${'\r'.padEnd(80)}\r`);
}
if (out) writeFileSync(out, `${lines.join('\n')}\n`);

function positive(text: string): number {
  const number = Number(text);
  if (!(number > 0)) throw new InvalidArgumentError('Expected a positive number.');
  return number;
}

/** Starts again where the tests find SwiftShader, a CPU that acts as a GPU: the loader reads its environment once. Returns if there is none. */
function onSoftwareVulkan(): void {
  const variables = softwareVulkan();
  if (Object.keys(variables).length === 0) return;
  const { status } = spawnSync(process.execPath, [...process.execArgv, ...process.argv.slice(1)], {
    env: { ...process.env, ...variables },
    stdio: 'inherit'
  });
  process.exit(status ?? 1);
}

function machine(): string {
  const { bun, deno } = process.versions;
  const runtime = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : `Node ${process.version}`;
  return [
    `${cpus()[0]?.model.trim()}, ${cpus().length} cores · ${runtime} (V8 ${process.versions.v8}) · wasm ${variant}` +
      `${typeof gpu === 'string' ? '' : ` · WebGPU ${gpu.name}`}` +
      ` · commit ${commit()} · ${new Date().toISOString().slice(0, 10)}`,
    'One thread, WebGPU apart. Fastest of all samples, competitors interleaved.'
  ].join('\n');
}

function commit(): string {
  try {
    return execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return 'unknown';
  }
}
