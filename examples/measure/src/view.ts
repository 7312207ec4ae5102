// The page's elements and what is written into them. Decides nothing.

import type { WasmVariant } from 'nsnquant';
import type { Plan } from './measurement.ts';
import { type BudgetName, type MethodName, type ModelName, models, places } from './methods.ts';
import type { Cell, Facts, Report } from './report.ts';
import { duration, gpuName, integer, percent } from './text.ts';

/** A median of so many times the least sample is not what a device does when left alone: there 1.01 to 1.10 were measured. */
const UNEVEN = 1.5;

/** `opening`: the browser is asked what it has. */
export type State = 'opening' | 'ready' | 'busy' | 'done';

const find = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

export const elements = {
  budget: find<HTMLFieldSetElement>('budget'),
  model: find<HTMLSelectElement>('model'),
  start: find<HTMLButtonElement>('start'),
  stop: find<HTMLButtonElement>('stop'),
  bar: find<HTMLProgressElement>('bar'),
  status: find('status'),
  error: find('error'),
  facts: find('facts'),
  results: find('results'),
  plots: find('plots'),
  end: find('end'),
  device: find<HTMLInputElement>('device'),
  download: find<HTMLButtonElement>('download'),
  share: find<HTMLButtonElement>('share')
};

export function setState(state: State): void {
  document.body.dataset['state'] = state;
  elements.start.disabled = state === 'opening';
  elements.start.textContent = state === 'done' ? 'Measure again' : 'Measure';
  elements.budget.disabled = elements.model.disabled = state === 'busy';
}

/** A sentence that stays until the next action begins. */
export function complain(text: string | undefined): void {
  elements.error.hidden = text === undefined;
  elements.error.textContent = text ?? '';
}

export function setProgress(text: string, share: number): void {
  elements.bar.value = share;
  elements.status.textContent = text;
}

export function listModels(): void {
  elements.model.replaceChildren(
    ...Object.entries(models).map(
      ([name, { kvHeads, group, headDim }]) => new Option(`${name}: ${kvHeads * group} query heads on ${kvHeads} × ${headDim}`, name)
    )
  );
}

export const chosenModel = (): ModelName => elements.model.value as ModelName;

export function chosenBudget(): BudgetName {
  return elements.budget.querySelector<HTMLInputElement>('input:checked')!.value as BudgetName;
}

const variants: Readonly<Record<WasmVariant, string>> = {
  relaxed: 'relaxed SIMD',
  simd128: 'SIMD, without relaxed SIMD, which this browser lacks: attention is slower than it could be',
  scalar: 'no SIMD in this browser: the codecs are several times slower, and the dense kernels do not run'
};

export function showFacts({ wasm, gpu }: Facts): void {
  const clock = { 'timestamp-query': "timed by the GPU's timestamps", 'wall clock': 'timed by the wall clock over many dispatches' };
  const facts: readonly (readonly [name: string, text: string])[] = [
    [places.wasm, 'missing' in wasm ? wasm.missing : variants[wasm.variant]],
    [
      places.webgpu,
      'missing' in gpu
        ? `not here: ${gpu.missing}`
        : `${gpuName(gpu)}, ${clock[gpu.clock]}${gpu.software ? '; a CPU that acts as a GPU, so it is not measured unless the address says places=webgpu' : ''}`
    ],
    ['Clock', crossOriginIsolated ? 'of microseconds: this page is isolated' : 'coarse: this page is not isolated, so samples take longer']
  ];
  elements.facts.replaceChildren(
    ...facts.map(([name, text]) => {
      const row = document.createElement('div');
      row.append(element('dt', name), element('dd', text));
      return row;
    })
  );
}

export function showEnd({ stopped, hidden, seconds, cells }: Report): void {
  const count = (kind: string): number => cells.filter(({ result }) => result.kind === kind).length;
  const parts = [
    `${stopped ? 'Stopped' : 'Done'} after ${integer(seconds)} s: ${count('measured')} measured`,
    ...(count('failed') > 0 ? [`${count('failed')} wrong`] : []),
    ...(count('missing') > 0 ? [`${count('missing')} not measured`] : [])
  ];
  const slowed = hidden ? ' This page was hidden for a while, which slows it down: measure again to be sure.' : '';
  const times = cells.flatMap(({ result }) => (result.kind === 'measured' ? [result] : []));
  const uneven = times.filter(({ milliseconds, leastMilliseconds }) => milliseconds > UNEVEN * leastMilliseconds);
  const busy =
    2 * uneven.length > times.length ? ' Times vary widely, as if something else kept this device busy: measure again to be sure.' : '';
  elements.end.textContent = `${parts.join(', ')}.${slowed || busy}`;
}

/** A table for each place; or a sentence, where nothing at all could be measured. */
export function showCells(plan: Plan, cells: readonly Cell[]): void {
  elements.results.replaceChildren(
    ...plan.places.map(place => {
      const here = cells.filter(cell => cell.place === place);
      const told = reasons(here);
      const empty = told.length === 1 && here.every(({ result }) => result.kind === 'missing');
      const section = element('section', '', empty ? 'card whole' : 'card');
      section.style.order = String(2 * Object.keys(places).indexOf(place));
      section.append(element('h2', places[place]));
      if (empty) section.append(element('p', told[0]!.text, 'missing'));
      else {
        section.append(element('p', 'time · speed against f16 · error', 'soft'), tableOf(plan, here));
        for (const { text, of, failed } of told)
          section.append(element('p', `${text} (${of.join(', ')})`, failed ? 'reason failed' : 'reason'));
      }
      return section;
    })
  );
}

function tableOf({ methods, budget }: Plan, cells: readonly Cell[]): HTMLElement {
  const table = document.createElement('table');
  const head = table.createTHead().insertRow();
  head.append(element('th', 'tokens'), ...budget.tokens.map(tokens => element('th', integer(tokens))));
  const body = table.createTBody();
  for (const { name, kept } of methods) {
    const row = body.insertRow();
    row.className = typeof kept === 'string' ? 'dense' : '';
    row.append(element('th', name));
    if (name === 'nsn3') row.firstElementChild!.append(element('small', 'default'));
    for (const tokens of budget.tokens) row.append(cellOf(method => resultOf(cells, tokens, method), name));
  }
  return table;
}

function resultOf(cells: readonly Cell[], tokens: number, method: MethodName): Cell['result'] | undefined {
  return cells.find(cell => cell.tokens === tokens && cell.method === method)?.result;
}

function cellOf(at: (method: MethodName) => Cell['result'] | undefined, method: MethodName): HTMLElement {
  const [result, f16] = [at(method), at('f16')];
  if (!result) return element('td', '', 'waiting');
  if (result.kind === 'failed') return element('td', 'wrong', 'failed');
  if (result.kind === 'missing') return element('td', 'not measured', 'missing');
  const times = f16?.kind === 'measured' ? f16.milliseconds / result.milliseconds : undefined;
  const line = element('div', '');
  line.append(
    element('b', duration(result.milliseconds)),
    element('span', times === undefined ? '' : `${times.toFixed(2)} ×`, times !== undefined && times > 1 ? 'faster' : ''),
    element('small', percent(result.error))
  );
  const cell = element('td', '');
  cell.append(line);
  return cell;
}

/** Why cells have no time, each reason once with the cells that it is of. */
function reasons(cells: readonly Cell[]): { readonly text: string; readonly of: string[]; readonly failed: boolean }[] {
  const told = new Map<string, { text: string; of: string[]; failed: boolean }>();
  for (const { tokens, method, result } of cells) {
    if (result.kind === 'measured') continue;
    const failed = result.kind === 'failed';
    const text = `${failed ? 'Wrong' : 'Not measured'}: ${result.reason}`;
    if (!told.has(text)) told.set(text, { text, of: [], failed });
    told.get(text)!.of.push(`${method} at ${integer(tokens)}`);
  }
  return [...told.values()];
}

function element(tag: string, text: string, className = ''): HTMLElement {
  const made = document.createElement(tag);
  made.textContent = text;
  if (className !== '') made.className = className;
  return made;
}
