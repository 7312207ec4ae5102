// The demo: real keys, values and queries through the cache, token by token, beside the formats that engines use today.
// Prints a table and writes a report. What it measures is in the other files; nothing here computes.
import { readFileSync, writeFileSync } from 'node:fs';
import { availableParallelism, cpus } from 'node:os';
import { SingleBar } from 'cli-progress';
import { Command, InvalidArgumentError, Option } from 'commander';
import { type Backend, BackendError, type CodecName, codecs, type OpenOptions, openBackend } from 'nsnquant';
import { f32, q4_0, q8_0, withHadamard } from '../baselines/ggml.ts';
import { toMarkdown } from '../table.ts';
import { BaselineRow } from './baseline.ts';
import { type NsnOptions, NsnRow } from './nsn.ts';
import { measureQuality, type Quality } from './quality.ts';
import { newestQueries, type Recording, readRecording } from './recording.ts';
import { renderReport } from './report.ts';
import { InputError } from './safetensors.ts';
import {
  type BalanceDivergences,
  balanceTable,
  layerTable,
  type Measured,
  nameOf,
  notes,
  type ProtocolErrors,
  protocolTable,
  type Result,
  resultTable
} from './tables.ts';
import { PASSES, type Times, timeDense, timeNsn } from './timing.ts';

type Pair = readonly [keys: CodecName, values: CodecName];

const CODECS: readonly Pair[] = [
  ['nsn1', 'nsn1'],
  ['nsn2', 'nsn2'],
  ['nsn3', 'nsn3'],
  ['nsn4', 'nsn4'],
  ['nsn4', 'nsn2']
];

interface Options {
  input: string;
  report: string;
  json?: string;
  sinks: number;
  codecs: readonly Pair[];
  queries?: number;
  backend: 'wasm' | 'webgpu' | 'reference';
  variant?: OpenOptions['variant'];
}

const program = new Command('demo')
  .description('Holds recorded keys and values in every format and compares bits, error and time.')
  .option('--input <file>', 'safetensors file: layers.N.k, layers.N.v, layers.N.q', 'test/fixtures/smollm2-135m-kv.safetensors')
  .option('--report <file>', 'where the HTML report goes', 'report.html')
  .option('--json <file>', 'where the results go as JSON')
  .option('--sinks <n>', 'first tokens that stay raw, 0 to 64', parseSinks, 4)
  .option(
    '--codecs <pairs>',
    'of keys and values, as nsn4/nsn2, comma separated (default: five; a software GPU wants one)',
    parseCodecs,
    CODECS
  )
  .option(
    '--queries <n>',
    'positions whose attention is compared, the newest (default: all that are recorded; a software GPU wants few)',
    parseQueries
  )
  .addOption(new Option('--backend <name>', 'where kernels run').choices(['wasm', 'webgpu', 'reference']).default('wasm'))
  .addOption(new Option('--variant <name>', 'insist on a wasm binary').choices(['scalar', 'simd128', 'relaxed']));

try {
  await demo(program.parse().opts<Options>());
} catch (error) {
  if (!isForUser(error)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}

async function demo({ input, report, json, sinks, codecs: pairs, queries, backend: prefer, variant }: Options): Promise<void> {
  if (prefer !== 'wasm' && variant !== undefined) throw new InputError(`"--variant" expected with --backend wasm, got --backend ${prefer}`);
  const recording = newestQueries(readRecording(readFileSync(input)), queries);
  const backend = await openBackend({ prefer, ...(variant && { variant }) });
  const { results, tables } = await measure(recording, backend, sinks, pairs);
  const facts = factsOf(recording, backend);
  const explained = notes(recording, sinks, PASSES);

  console.log(facts.map(([name, text]) => `${name}: ${text}`).join('\n'));
  for (const table of tables) console.log(`\n${table.title}\n\n${toMarkdown(table)}`);
  console.log(`\n${explained.map((note, i) => `${i + 1}. ${note}`).join('\n')}`);

  const title = `nsnquant on ${recording.model ?? input}`;
  writeFileSync(report, renderReport({ title, facts, results, tables, notes: explained }));
  console.log(`\nreport: ${report}`);
  if (json !== undefined) {
    writeFileSync(
      json,
      `${JSON.stringify(
        results.map(({ codedBits, ...result }): Result => result),
        null,
        2
      )}\n`
    );
    console.log(`json: ${json}`);
  }
}

async function measure(recording: Recording, backend: Backend, sinks: number, pairs: readonly Pair[]) {
  const everyToken = { window: 1, sinks: 0 };
  const window = { window: 64, sinks: 0 };
  const windowAndSinks = { window: 64, sinks };
  const protocols = [q8_0, withHadamard(q4_0)].map(format => ({
    everyToken: new BaselineRow(format, recording, everyToken),
    window: new BaselineRow(format, recording, window),
    windowAndSinks: new BaselineRow(format, recording, windowAndSinks)
  }));
  const nsnRow = (options: NsnOptions): NsnRow => new NsnRow(backend, recording, options);
  const balances = pairs.map(([keys, values]) => ({
    queries: nsnRow({ keys, values, sinks, balance: 'queries' }),
    keys: nsnRow({ keys, values, sinks, balance: 'keys' }),
    off: nsnRow({ keys, values, sinks, balance: 'off' })
  }));
  const nsn = balances.flatMap(({ queries, off }) => [queries, off]);
  const rows = [new BaselineRow(f32, recording, everyToken), ...protocols.map(({ window }) => window), ...nsn];
  const all = [...new Set([...rows, ...[...protocols, ...balances].flatMap<NsnRow | BaselineRow>(Object.values)])];

  const bar = new SingleBar({ format: '{stage} {bar} {percentage}%', clearOnComplete: true, hideCursor: true });
  const step = Math.ceil(recording.tokens / 16); // of the bar, for each row that is timed
  bar.start(recording.tokens + (2 + nsn.length) * step, 0, { stage: 'attention' });
  try {
    const qualities = await measureQuality(recording, all, () => bar.increment());
    bar.update({ stage: 'time of f32 and int8' });
    const [f32Ns, int8Ns] = await timeDense(backend, recording, ['f32', 'int8']);
    bar.increment(2 * step);
    const times: Times[] = [
      { attendNs: f32Ns ?? null, encodeNs: null },
      { attendNs: int8Ns ?? null, encodeNs: null },
      { attendNs: null, encodeNs: null },
      ...nsn.map(row => {
        bar.update({ stage: `time of ${nameOf(row)}` });
        const taken = timeNsn(backend, recording, row.options);
        bar.increment(step);
        return taken;
      })
    ];
    const elements = 2 * recording.tokens * recording.layers.length * recording.kvHeads * recording.headDim;
    const results = rows.map(
      (row, i): Measured => ({
        keys: row.keys,
        values: row.values,
        balance: row.balance,
        bitsPerElement: (8 * row.bytes) / elements,
        bytes: row.bytes,
        ...qualities[i]!,
        ...times[i]!,
        codedBits: row.codedBits
      })
    );
    const qualityOf = (row: NsnRow | BaselineRow): Quality => qualities[all.indexOf(row)]!;
    const divergences = balances.map(
      ({ queries, keys, off }): BalanceDivergences => ({
        name: nameOf(queries),
        queries: qualityOf(queries).attentionKL,
        keys: qualityOf(keys).attentionKL,
        off: qualityOf(off).attentionKL
      })
    );
    const protocolErrors = protocols.map(
      ({ everyToken, window, windowAndSinks }): ProtocolErrors => ({
        name: nameOf(window),
        everyToken: qualityOf(everyToken).outputError,
        window: qualityOf(window).outputError,
        windowAndSinks: qualityOf(windowAndSinks).outputError
      })
    );
    return {
      results,
      tables: [resultTable(results), balanceTable(divergences), layerTable(recording, results), protocolTable(protocolErrors, sinks)]
    };
  } finally {
    bar.stop();
    for (const row of all) row.dispose();
  }
}

function factsOf(recording: Recording, backend: Backend): [name: string, text: string][] {
  const { model, text, tokens, queryTokens, queryHeads, kvHeads, headDim, rope, layers } = recording;
  const { bun, deno, node, v8 } = process.versions;
  const runtime = bun ? `Bun ${bun}` : deno ? `Deno ${deno}` : `Node ${node} (V8 ${v8})`;
  return [
    ['model', model ?? 'not named in the file'],
    ['text', text ?? 'not named in the file'],
    [
      'shape',
      `${tokens} tokens, queries of the last ${queryTokens}; layers ${layers.map(({ index }) => index).join(', ')}; ${queryHeads} query heads, ${kvHeads} KV heads of ${headDim}; RoPE ${rope ? 'known' : 'not known'}`
    ],
    ['machine', `${cpus()[0]?.model.trim() ?? 'unknown CPU'}, ${availableParallelism()} cores`],
    ['runtime', runtime],
    ['kernels', `${backend.name} ${backend.variant} (${backend.reason})`],
    ['date', `${new Date().toISOString().slice(0, 19).replace('T', ' ')} UTC`],
    ['command', ['npm run demo', ...(process.argv.length > 2 ? ['--', ...process.argv.slice(2)] : [])].join(' ')]
  ];
}

function parseSinks(text: string): number {
  const sinks = Number(text);
  if (!/^\d+$/.test(text) || sinks > 64) throw new InvalidArgumentError('expected integer from 0 to 64');
  return sinks;
}

function parseCodecs(text: string): readonly Pair[] {
  return text.split(',').map(pair => {
    const names = pair.split('/');
    if (names.length !== 2 || !names.every(isCodec)) {
      throw new InvalidArgumentError(`expected pairs of ${Object.keys(codecs).join(', ')}, as nsn4/nsn2`);
    }
    return names as unknown as Pair;
  });
}

function isCodec(name: string): name is CodecName {
  return Object.hasOwn(codecs, name);
}

function parseQueries(text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new InvalidArgumentError('expected integer of at least 1');
  return Number(text);
}

/** Errors that say all there is to say: of the input, of the backend, of the file system, of the cache's limits. */
function isForUser(error: unknown): error is Error {
  return (
    error instanceof InputError ||
    error instanceof BackendError ||
    error instanceof RangeError ||
    (error instanceof Error && 'syscall' in error)
  );
}
