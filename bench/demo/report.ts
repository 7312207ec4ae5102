// The demo's result as one HTML file that needs nothing else: plots, tables, the machine, the command.
import { NSN, OTHER, type Point, plot } from '../plot.ts';
import { escapeHtml, toHtml } from '../table.ts';
import { type Measured, nameOf, type TitledTable } from './tables.ts';

export interface Report {
  title: string;
  /** What was measured, where and how: name and text. */
  facts: readonly (readonly [name: string, text: string])[];
  results: readonly Measured[];
  /** The results' table first. */
  tables: readonly TitledTable[];
  notes: readonly string[];
}

export function renderReport({ title, facts, results, tables, notes }: Report): string {
  const [resultTable, ...otherTables] = tables;
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${escapeHtml(title)}</title>
<style>
  :root { color-scheme: light dark; --ink: #1b1f24; --soft: #59626d; --line: #d5dae0; --page: #ffffff; }
  @media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --soft: #9aa5b1; --line: #3a424b; --page: #14171b; } }
  body { margin: 0 auto; max-width: 72rem; padding: 1.5rem; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; }
  h1 { font-size: 1.5rem; margin: 0 0 0.75rem; }
  h2 { font-size: 1.1rem; margin: 2rem 0 0.5rem; }
  dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.15rem 1rem; margin: 0; }
  dt, figcaption, li { color: var(--soft); }
  dd { margin: 0; overflow-wrap: anywhere; }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
  figure { margin: 0; }
  figure svg { display: block; width: 100%; height: auto; }
  figcaption { font-size: 0.9rem; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.3rem 0.7rem 0.3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
  .text { text-align: left; }
  ol { padding-left: 1.2rem; font-size: 0.9rem; }
</style>
<h1>${escapeHtml(title)}</h1>
<dl>
${facts.map(([name, text]) => `  <dt>${escapeHtml(name)}</dt><dd>${escapeHtml(text)}</dd>`).join('\n')}
</dl>
<h2>Error and time against bits</h2>
<div class="plots">
${figure('Error of the attention output', results, 'outputError', { name: 'output error (relative L2)', type: 'log' })}
${figure('Time of attention', results, 'attendNs', { name: 'attend, ns per token and KV head', type: 'value' })}
</div>
<p><small>Full: everything counted at this length; hollow: coded tokens alone, where a long context comes to.</small></p>
${titled(resultTable!)}
<ol>
${notes.map(note => `  <li>${escapeHtml(note)}</li>`).join('\n')}
</ol>
${otherTables.map(titled).join('\n')}
</html>
`;
}

/** A plot of what can be plotted, and in words what cannot. */
function figure(
  title: string,
  results: readonly Measured[],
  key: 'outputError' | 'attendNs',
  axis: { name: string; type: 'value' | 'log' }
): string {
  const drawable = (y: number | null): y is number => y !== null && (axis.type === 'value' || y > 0);
  const points = results.flatMap((result): Point[] => {
    const y = result[key];
    if (!drawable(y)) return [];
    const kind = result.keys.startsWith('nsn') ? NSN : OTHER;
    return [{ name: nameOf(result), kind, y, bits: result.bitsPerElement, codedBits: result.codedBits }];
  });
  const left = results
    .filter(result => !drawable(result[key]))
    .map(result => `${nameOf(result)} (${result[key] === null ? 'not measured' : result[key]})`);
  const caption = left.length === 0 ? title : `${title}. Not drawn: ${left.join(', ')}`;
  return `<figure role="img" aria-label="${escapeHtml(title)} against bits per element">
${points.length === 0 ? '' : plot(points, { width: 560, height: 400, ...axis })}
<figcaption>${escapeHtml(caption)}</figcaption>
</figure>`;
}

function titled(table: TitledTable): string {
  return `<h2>${escapeHtml(table.title)}</h2>
${toHtml(table)}`;
}
