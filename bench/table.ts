// Tables of text and numbers, as Markdown and as HTML.

export interface Table {
  readonly headers: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** Columns of text, from the left; the others hold numbers. */
  readonly textColumns: number;
}

export function toMarkdown({ headers, rows, textColumns }: Table): string {
  const widths = headers.map((header, column) => Math.max(...[header, ...rows.map(row => row[column]!)].map(cell => cell.length)));
  const pad = (cell: string, column: number): string =>
    column < textColumns ? cell.padEnd(widths[column]!) : cell.padStart(widths[column]!);
  const line = (cells: readonly string[]): string => `| ${cells.map(pad).join(' | ')} |`;
  const rule = widths.map((width, column) => (column < textColumns ? '-'.repeat(width) : `${'-'.repeat(width - 1)}:`));
  return [line(headers), line(rule), ...rows.map(line)].join('\n');
}

/** Cells of text have the class "text". A wide table scrolls in the class "scroll". */
export function toHtml({ headers, rows, textColumns }: Table): string {
  const cells = (tag: 'th' | 'td', row: readonly string[]): string =>
    row.map((cell, column) => `<${tag}${column < textColumns ? ' class="text"' : ''}>${escapeHtml(cell)}</${tag}>`).join('');
  return `<div class="scroll"><table>
<thead><tr>${cells('th', headers)}</tr></thead>
<tbody>
${rows.map(row => `<tr>${cells('td', row)}</tr>`).join('\n')}
</tbody>
</table></div>`;
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"]/g, letter => `&#${letter.charCodeAt(0)};`);
}

/** Digits that mean something: three, but never an exponent for what is near 1. */
export function short(x: number): string {
  if (x === 0) return '0';
  return Math.abs(x) < 1e-4 ? x.toExponential(1) : `${Number(x.toPrecision(3))}`;
}
