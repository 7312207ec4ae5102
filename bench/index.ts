// npm run bench: every verb, and attention against dense baselines of our own, in one process. Prints Markdown.

import { execFileSync } from 'node:child_process';
import { cpus } from 'node:os';
import { writeFileSync } from 'node:fs';
import { Command, Option } from 'commander';
import { openBackend, type WasmVariant } from 'nsnquant';
import { attendTable, walkTable } from './attend.ts';
import { verbsTable } from './kernels.ts';

const { variant, quick, only, headDim, queryHeads, out } = new Command('bench')
  .description('Times kernels and attention; the tables of the README.')
  .addOption(new Option('--variant <name>', 'binary to time').choices(['scalar', 'simd128', 'relaxed']).default('simd128'))
  .addOption(new Option('--only <table>', 'one table').choices(['verbs', 'attend', 'walk']))
  .addOption(new Option('--head-dim <n>', 'one head dimension of the attend table').choices(['64', '128']))
  .addOption(new Option('--query-heads <n>', 'one number of query heads of the attend table').choices(['1', '3', '4', '8']))
  .option('--quick', 'fewer shapes and shorter sampling, to see that it runs')
  .option('--out <file>', 'write the Markdown there too')
  .parse().opts<{ variant: WasmVariant; quick?: boolean; only?: string; headDim?: string; queryHeads?: string; out?: string }>();

const lines: string[] = [];
const print = (text: string): void => {
  console.log(text);
  lines.push(text);
};

await openBackend({ variant });   // refuses at once what this engine cannot run
print(machine());
const tables = { verbs: verbsTable, attend: attendTable, walk: walkTable };
for (const [name, table] of Object.entries(tables)) {
  if (only && only !== name) continue;
  await table({ variant, quick: quick ?? false, headDim: headDim ? Number(headDim) : undefined, queryHeads: queryHeads ? Number(queryHeads) : undefined, print, progress: text => process.stderr.write(`\r${text.padEnd(78)}`) });
  process.stderr.write('\r'.padEnd(80) + '\r');
}
if (out) writeFileSync(out, lines.join('\n') + '\n');

function machine(): string {
  const { bun, deno } = process.versions;
  const runtime = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : `Node ${process.version}`;
  return [
    `${cpus()[0]?.model.trim()}, ${cpus().length} cores · ${runtime} (V8 ${process.versions.v8}) · wasm ${variant}`
      + ` · commit ${commit()} · ${new Date().toISOString().slice(0, 10)}`,
    'One thread. Fastest of all samples, competitors interleaved.'
  ].join('\n');
}

function commit(): string {
  try {
    return execFileSync('git', ['describe', '--always', '--dirty'], { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] }).trim();
  } catch {
    return 'unknown';
  }
}
