// `npm run table -- FILE...`: rows for BENCHMARKS.md of the files that the page made. They come from strangers: what is not understood is
// refused, and no text of theirs can be more than text.
import { readFileSync } from 'node:fs';
import { basename } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Command } from 'commander';
import { toMarkdown } from '../../bench/table.ts';
import { type MethodName, methods, models, type Place, places } from './src/methods.ts';
import { type Cell, FORMAT, type Gpu, type Report } from './src/report.ts';
import { browserName, digits, gpuName, integer, systemName } from './src/text.ts';

const LONGEST = 80;

/** Text without what means something in Markdown or HTML. */
function plain(text: string): string {
  return text
    .replace(/[^\p{L}\p{N} .,()+/:'-]/gu, ' ')
    .replace(/ +/g, ' ')
    .trim()
    .slice(0, LONGEST);
}

/** @throws {Error} where it is no such file */
export function readReport(name: string, text: string): Report {
  const expected = (what: string, got: unknown): never => {
    throw new Error(`"${name}" expected ${what}, got ${plain(String(got))}`);
  };
  let report: Report;
  try {
    report = JSON.parse(text);
  } catch (error) {
    return expected('JSON', (error as Error).message);
  }
  if (report?.format !== FORMAT) expected(`format ${FORMAT}`, report?.format);
  for (const field of ['version', 'commit', 'date', 'device'] as const) {
    if (typeof report[field] !== 'string') expected(`${field} as text`, typeof report[field]);
  }
  if (!Object.hasOwn(models, report.model)) expected(`model ${Object.keys(models).join(' or ')}`, report.model);
  if (typeof report.browser?.userAgent !== 'string') expected('browser.userAgent as text', typeof report.browser?.userAgent);
  const { wasm, gpu } = report.facts ?? {};
  const texts = (holder: object | undefined, ...names: string[]): boolean =>
    names.every(name => typeof (holder as Record<string, unknown> | undefined)?.[name] === 'string');
  if (!texts(wasm, 'variant') && !texts(wasm, 'missing')) expected('facts.wasm.variant as text', wasm);
  if (!texts(gpu, 'vendor', 'architecture', 'device', 'description', 'clock') && !texts(gpu, 'missing'))
    expected('facts.gpu as texts', gpu);
  if (!Array.isArray(report.cells)) expected('a list of cells', typeof report.cells);
  for (const [n, { place, tokens, method, result }] of report.cells.entries()) {
    const cell = `cells[${n}]`;
    if (!Object.hasOwn(places, place)) expected(`${cell}.place ${Object.keys(places).join(' or ')}`, place);
    if (!Number.isInteger(tokens) || tokens < 1) expected(`${cell}.tokens of at least 1`, tokens);
    if (!methods.some(({ name }) => name === method)) expected(`${cell}.method ${methods.map(known => known.name).join(', ')}`, method);
    const kind: string | undefined = result?.kind;
    if (kind !== 'measured' && kind !== 'failed' && kind !== 'missing') expected(`${cell}.result.kind measured, failed or missing`, kind);
    if (result.kind === 'measured' && !(Number.isFinite(result.milliseconds) && result.milliseconds > 0))
      expected(`${cell}.result.milliseconds as a number above 0`, result.milliseconds);
  }
  return report;
}

/** A row for each file, place and context in which anything was measured: microseconds, and speed against f16. */
export function tableOf(reports: readonly Report[]): string {
  const others = methods.map(({ name }) => name).filter(name => name !== 'f16');
  const rows = reports.flatMap(report =>
    (Object.keys(places) as Place[]).flatMap(place => {
      const here = report.cells.filter(cell => cell.place === place);
      const contexts = [...new Set(here.filter(({ result }) => result.kind === 'measured').map(({ tokens }) => tokens))];
      return contexts
        .sort((a, b) => a - b)
        .map(tokens => {
          const at = (method: MethodName): Cell['result'] | undefined =>
            here.find(cell => cell.tokens === tokens && cell.method === method)?.result;
          return [
            ...described(report, place),
            integer(tokens),
            micro(at('f16')),
            ...others.flatMap(name => [micro(at(name)), against(at('f16'), at(name))])
          ];
        });
    })
  );
  return toMarkdown({
    headers: ['device', 'browser', 'on', 'a layer of', 'commit', 'tokens', 'f16', ...others.flatMap(name => [name, '×'])],
    rows,
    textColumns: 5
  });
}

function described({ device, browser, facts, model, version, commit }: Report, place: Place): string[] {
  const system = plain([device, systemName(browser)].filter(text => text !== '').join(', '));
  const name = plain(browserName(browser));
  const made = plain(commit === '' ? version : commit);
  if (place === 'wasm') return [system, name, `WebAssembly ${plain('missing' in facts.wasm ? '' : facts.wasm.variant)}`, model, made];
  return [system, name, `WebGPU: ${'missing' in facts.gpu ? '' : onGpu(facts.gpu)}`, model, made];
}

function onGpu(gpu: Gpu): string {
  return plain(`${gpuName(gpu)}${gpu.software ? ' (a CPU)' : ''}, ${gpu.clock}`);
}

/** Microseconds of one layer. */
function micro(result: Cell['result'] | undefined): string {
  if (result?.kind === 'measured') return digits(1000 * result.milliseconds);
  return result?.kind === 'failed' ? 'wrong' : '–';
}

function against(f16: Cell['result'] | undefined, result: Cell['result'] | undefined): string {
  return f16?.kind === 'measured' && result?.kind === 'measured' ? (f16.milliseconds / result.milliseconds).toFixed(2) : '–';
}

function main(): void {
  const command = new Command('table')
    .description("Rows for BENCHMARKS.md of the measuring page's files: microseconds of one layer's attention, and × against f16.")
    .argument('<files...>', 'what the page let people download')
    .parse();
  try {
    console.log(tableOf(command.args.map(path => readReport(basename(path), readFileSync(path, 'utf8')))));
  } catch (error) {
    command.error((error as Error).message);
  }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) main();
