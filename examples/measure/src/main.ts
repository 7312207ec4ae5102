// The page: what happens when. Never measures; that is the worker's. Keeps nothing once it is closed, and sends nothing by itself.
import packageJson from 'nsnquant/package.json';
import { Ended, Engine } from './engine.ts';
import type { Plan } from './measurement.ts';
import { Plots } from './plots.ts';
import { type Browser, type Cell, type Facts, FORMAT, type Report } from './report.ts';
import { planOf } from './settings.ts';
import { integer, sentence } from './text.ts';
import * as view from './view.ts';

/** Of the repository, set by the build. */
declare const COMMIT: string;

const { elements } = view;
const plots = new Plots(elements.plots);

let facts: Facts | undefined;
let engine: Engine | undefined;
let report: Report | undefined;

async function describe(): Promise<void> {
  const describing = new Engine();
  try {
    facts = await describing.describe();
    view.showFacts(facts);
    view.setState('ready');
  } catch (error) {
    view.complain(sentence(error));
  }
  describing.end();
}

async function measure(): Promise<void> {
  let plan: Plan;
  try {
    plan = planOf(view.chosenModel(), view.chosenBudget(), new URLSearchParams(location.search));
  } catch (error) {
    view.complain(sentence(error));
    return;
  }
  view.complain(undefined);
  view.setState('busy');
  const cells: Cell[] = [];
  const show = (): void => {
    view.showCells(plan, cells);
    plots.show(plan, cells);
  };
  show();
  const begin = Date.now();
  let stopped = false;
  const watched = watchVisibility();
  const lock = await keepAwake();
  for (const [n, tokens] of plan.budget.tokens.entries()) {
    engine = new Engine();
    const say = (text: string, share: number): void =>
      view.setProgress(`${integer(tokens)} tokens, ${text}`, (n + share) / plan.budget.tokens.length);
    try {
      await engine.measure(tokens, plan, {
        progress: say,
        cell(cell) {
          cells.push(cell);
          show();
        }
      });
    } catch (error) {
      stopped = error instanceof Ended;
      if (stopped) break;
      cells.push(...unfinished(plan, tokens, cells, sentence(error)));
      show();
    }
    engine.end();
  }
  engine = undefined;
  void lock?.release();
  report = {
    format: FORMAT,
    version: packageJson.version,
    commit: COMMIT,
    date: new Date(begin).toISOString(),
    seconds: Math.round((Date.now() - begin) / 1000),
    stopped,
    hidden: watched(),
    model: plan.model,
    device: '',
    browser: await describeBrowser(),
    facts: facts!,
    cells
  };
  view.showEnd(report);
  view.setState('done');
}

/** What a worker that died left undone. */
function unfinished(plan: Plan, tokens: number, cells: readonly Cell[], reason: string): Cell[] {
  return plan.places.flatMap(place =>
    plan.methods
      .filter(({ name }) => !cells.some(cell => cell.place === place && cell.tokens === tokens && cell.method === name))
      .map(({ name }) => ({ place, tokens, method: name, result: { kind: 'missing' as const, reason } }))
  );
}

/** A hidden page is slowed down. Returns whether it has been hidden since. */
function watchVisibility(): () => boolean {
  let hidden = document.hidden;
  const note = (): void => {
    hidden ||= document.hidden;
  };
  document.addEventListener('visibilitychange', note);
  return () => {
    document.removeEventListener('visibilitychange', note);
    return hidden;
  };
}

/** A phone that dims its screen also slows down. Nothing depends on it. */
async function keepAwake(): Promise<WakeLockSentinel | undefined> {
  return (navigator as Partial<Navigator>).wakeLock?.request('screen').catch(() => undefined);
}

interface UserAgentData {
  getHighEntropyValues(hints: string[]): Promise<Record<string, unknown>>;
}

async function describeBrowser(): Promise<Browser> {
  const { userAgent, hardwareConcurrency, deviceMemory, userAgentData } = navigator as Navigator & {
    deviceMemory?: number;
    userAgentData?: UserAgentData;
  };
  const hints = await userAgentData
    ?.getHighEntropyValues(['architecture', 'bitness', 'fullVersionList', 'model', 'platformVersion'])
    .catch(() => undefined);
  return {
    userAgent,
    cores: hardwareConcurrency,
    isolated: crossOriginIsolated,
    ...(hints && { hints }),
    ...(deviceMemory !== undefined && { gibibytes: deviceMemory })
  };
}

function file(): File {
  const text = JSON.stringify({ ...report!, device: elements.device.value.trim() }, undefined, 1);
  return new File([text], `nsnquant-measure-${report!.date.slice(0, 19).replace(/\D/g, '')}.json`, { type: 'application/json' });
}

elements.start.addEventListener('click', () => void measure());
elements.stop.addEventListener('click', () => engine?.end());
elements.download.addEventListener('click', () => {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(file());
  link.download = file().name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
});
const shareable = { files: [new File(['{}'], 'a.json', { type: 'application/json' })] };
elements.share.hidden = !(navigator as Partial<Navigator>).canShare?.(shareable);
elements.share.addEventListener('click', () => {
  navigator.share({ files: [file()], title: 'nsnquant measured' }).catch((error: Error) => {
    if (error.name !== 'AbortError') view.complain(sentence(error)); // the person thought better of it
  });
});

view.setState('opening');
view.listModels();
await describe();
