// The quality results as a Markdown table, as one HTML file that needs nothing else, and as an image.

import { InputError } from '@nsnquant/gguf';
import { NSN, OTHER, PAGE, type Point, plot, standalone } from '../plot.ts';
import { escapeHtml, short, type Table, toHtml } from '../table.ts';
import { isNsn, type MethodOptions, methodName } from './caches/methods.ts';
import { type Intervals, mean, type Summary } from './stats.ts';

/** A row, as --json writes it. */
export interface Result extends Summary {
  readonly text: string;
  readonly keys: string;
  readonly values: string;
  readonly options: MethodOptions;
  /** Everything counted after the whole sequence. */
  readonly bitsPerElement: number;
  /** Coded tokens alone, metadata included. */
  readonly codedBits: number | null;
  /** 95 % intervals. */
  readonly ci: Intervals;
}

const FRAME = { width: 960, height: 720, name: 'mean KLD, nats', type: 'log' } as const;

export function resultTable(results: readonly Result[]): Table {
  return {
    headers: ['method', 'bits', 'coded bits', 'PPL', 'PPL ratio', '95 %', 'mean KLD', '95 %', 'KLD p99', 'same top-1', '95 %'],
    textColumns: 1,
    rows: results.map(result => {
      const { ci } = result;
      return [
        methodName(result),
        result.bitsPerElement.toFixed(2),
        result.codedBits?.toFixed(2) ?? '–',
        result.ppl.toFixed(2),
        result.pplRatio.toFixed(4),
        interval(ci.pplRatio, x => x.toFixed(3)),
        short(result.kld),
        interval(ci.kld, short),
        short(result.kldP99),
        percent(result.top1),
        interval(ci.top1, percent)
      ];
    })
  };
}

export function writeReport(facts: readonly string[], results: readonly Result[]): string {
  const texts = [...new Set(results.map(({ text }) => text))];
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Quality of a quantized cache</title>
<style>
  :root { color-scheme: light dark; --ink: ${PAGE.light.ink}; --line: #d5dae0; --page: ${PAGE.light.page}; }
  @media (prefers-color-scheme: dark) { :root { --ink: ${PAGE.dark.ink}; --line: #3a424b; --page: ${PAGE.dark.page}; } }
  body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
  figure { margin: 0; max-width: 60rem; }
  figure svg { display: block; width: 100%; height: auto; }
  p { overflow-wrap: anywhere; margin: 0.2rem 0; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.3rem 0.9rem 0.3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
  .text { text-align: left; }
</style>
<h1>Quality of a quantized cache</h1>
${facts.map(fact => `<p>${escapeHtml(fact)}</p>`).join('\n')}
<p><small>Full: everything counted after the whole sequence; hollow: coded tokens alone, where a long context comes to.</small></p>
${texts
  .map(text =>
    section(
      text,
      results.filter(result => result.text === text)
    )
  )
  .join('\n')}
</html>
`;
}

/** Mean KLD of all texts, which are equally long, against the bits of coded windows. */
export function drawFrontier(results: readonly Result[]): string {
  const names = new Set(results.filter(({ kld, codedBits }) => kld > 0 && codedBits !== null).map(methodName));
  if (names.size === 0) throw new InputError('"--plot" expected a method that codes something and differs from raw, got none');
  const points = [...names].map((name): Point => {
    const ofMethod = results.filter(result => methodName(result) === name);
    const { codedBits } = ofMethod[0]!;
    return {
      name,
      kind: isNsn(ofMethod[0]!) ? NSN : OTHER,
      y: mean(Float64Array.from(ofMethod, ({ kld }) => kld)),
      bits: codedBits!,
      codedBits: null
    };
  });
  return standalone(plot(points, FRAME));
}

function section(text: string, results: readonly Result[]): string {
  const points = results
    .filter(({ kld }) => kld > 0)
    .map(
      (result): Point => ({
        name: methodName(result),
        kind: isNsn(result) ? NSN : OTHER,
        y: result.kld,
        bits: result.bitsPerElement,
        codedBits: result.codedBits
      })
    );
  return `<h2>${escapeHtml(text)}</h2>
<figure role="img" aria-label="KL divergence against bits per element">${points.length === 0 ? '' : plot(points, FRAME)}</figure>
${toHtml(resultTable(results))}`;
}

function interval([low, high]: readonly [number, number], format: (x: number) => string): string {
  return `${format(low)}–${format(high)}`;
}

function percent(x: number): string {
  return `${(100 * x).toFixed(1)} %`;
}
