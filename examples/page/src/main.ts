// The page: a model is chosen, questions are asked, settings change. Never computes; that is the worker's.

import type { Held } from './chat-model.ts';
import type { CacheFacts, Report, Settings } from './conversation.ts';
import { Ended, Engine } from './engine.ts';
import { Plots } from './plots.ts';
import { type Chosen, droppedFolder, folderOf, readText } from './sources.ts';
import { findGpu, missingWebAssembly } from './support.ts';
import { count, duration, mebibytes, rate, sentence } from './text.ts';
import * as view from './view.ts';

const EXAMPLES = ['What is the capital of France?', 'Explain how a rainbow forms.', 'Write a short story about a lighthouse keeper.'];
const EMPTY: Held = { tokens: 0, bytes: 0 };

const { elements } = view;
const plots = new Plots(elements.bytesPlot, elements.speedPlot, elements.legend);

let engine: Engine | undefined;
let settings: Settings;
let cache: CacheFacts;
let held = EMPTY;

async function load(chosen: Chosen): Promise<void> {
  if (view.getState() === 'blocked') return;
  close();
  const opening = new Engine();
  engine = opening;
  view.complain(undefined);
  view.setState('loading');
  view.setLoading(chosen.name, undefined, 'files' in chosen ? 'Reading the folder' : 'Reading the header');
  try {
    const model = await opening.open(chosen, share => {
      view.setLoading(chosen.name, share, `Preparing the weights, ${Math.floor(share * 100)} %`);
    });
    view.showModel(chosen.name, model);
    view.setLoading(chosen.name, undefined, 'Making the cache');
    elements.attention.value = 'wasm';
    if (!(await resume(opening))) {
      await useCache(opening);
      view.setStatus('Ready');
    }
    view.setState('ready');
    elements.question.focus();
  } catch (error) {
    if (engine !== opening) return; // another was chosen meanwhile, or it was cancelled
    close();
    view.complain(sentence(error));
  }
}

/** Back to choosing a model. */
function close(): void {
  engine?.end();
  engine = undefined;
  held = EMPTY;
  elements.log.replaceChildren();
  plots.clear();
  view.showModel('', undefined);
  view.showSpeed('–', '');
  view.setState('empty');
}

/** A cache as the settings say, in the place of the one before. */
async function useCache(on: Engine): Promise<void> {
  const chosen = view.readSettings();
  showCache(chosen, await on.configure(chosen), EMPTY);
}

function showCache(chosen: Settings, facts: CacheFacts, holds: Held): void {
  settings = chosen;
  cache = facts;
  held = holds;
  plots.begin(runName(), cache.bytesPerToken, cache.f16BytesPerToken);
  view.noteCache(cache, settings.attention, cache.unread);
  view.showHeld(held, cache);
}

/** Goes on with the conversation that this browser keeps; false where there is none, or it is refused. */
async function resume(on: Engine): Promise<boolean> {
  try {
    const resumed = await on.resume();
    if (!resumed) return false;
    const { messages, loadMs, checkMs, readMs } = resumed;
    view.writeSettings(resumed.settings);
    showCache(resumed.settings, resumed.cache, resumed.held);
    plots.add(held);
    view.showMessages(messages);
    view.setStatus(
      `Goes on with ${count(held.tokens, 'token')}: read anew in some ${duration(readMs)} → loaded in ${duration(loadMs)}, ` +
        `once the model was seen to be the same (${duration(checkMs)})`
    );
    return true;
  } catch (error) {
    if (engine !== on || on.failed) throw error;
    view.complain(`${sentence(error)}. The conversation that was kept does not go on; a new one begins.`);
    return false;
  }
}

/** Keeps the conversation, and says so. An answer is none the worse where that fails. */
async function keep(on: Engine): Promise<string> {
  view.setStatus('Keeping the conversation');
  try {
    return `Ready; the conversation is kept in this browser, ${mebibytes(await on.keep())}`;
  } catch (error) {
    if (engine !== on || on.failed) throw error;
    view.complain(`${sentence(error)}. The conversation is not kept.`);
    return 'Ready';
  }
}

function runName(): string {
  return `${settings.keys}/${settings.values}, ${view.backendNames[settings.attention]}`;
}

async function changeSettings(): Promise<void> {
  const on = engine!;
  view.complain(undefined);
  view.setState('opening');
  view.setStatus(
    elements.attention.value === 'webgpu' ? 'Opening the cache on the GPU; compiling its shaders may take a while' : 'Opening the cache'
  );
  try {
    await useCache(on);
    view.setStatus('Ready');
  } catch (error) {
    if (!stillOpen(on, error)) return;
    view.writeSettings(settings);
    view.complain(`${sentence(error)}. The cache before stays in use.`);
    view.setStatus('Ready');
  }
  view.setState('ready');
}

async function ask(question: string): Promise<void> {
  const on = engine!;
  view.complain(undefined);
  view.setState('busy');
  elements.question.value = '';
  const answer = view.addExchange(question);
  let promptRate = '';
  let read = 0;
  let pieces = 0;
  let tokens = 0; // but the first, which comes out of the prompt itself
  let ms = 0;
  let attentionMs = 0;
  const listen = (report: Report): void => {
    if (engine !== on) return;
    held = report.held;
    view.showHeld(held, cache);
    if (report.kind === 'reading') {
      const { done, total } = report;
      read = done;
      ms += report.ms;
      promptRate = `prompt ${rate(done, ms)}/s`;
      view.noteCache(cache, settings.attention, 0);
      view.setStatus(done < total ? `Reading, ${count(done)} of ${count(total, 'token')}` : 'Answering');
      plots.add(held);
      if (done === total) ms = 0;
      return;
    }
    pieces++;
    answer.append(report.text);
    if (report.tokens === 0) return;
    tokens += report.tokens;
    ms += report.ms;
    attentionMs += report.attentionMs ?? NaN;
    const attention = Number.isNaN(attentionMs) ? '' : `attention ${Math.round((100 * attentionMs) / ms)} %, `;
    view.showSpeed(`${rate(tokens, ms)}/s`, attention + promptRate);
    plots.add(held, report.ms / report.tokens);
  };
  view.setStatus('Reading');
  try {
    const temperature = Number(elements.temperature.value);
    const ending = await on.ask(question, { temperature, maxAnswer: elements.longest.valueAsNumber }, listen);
    if (engine !== on) return;
    if (ending === 'aborted' && pieces === 0) {
      answer.remove();
      elements.question.value = question;
      view.setStatus('Stopped before the answer');
    } else {
      answer.close(view.answerFacts(read, tokens, ms, ending, runName()));
      view.setStatus(await keep(on));
    }
  } catch (error) {
    if (!stillOpen(on, error)) return;
    answer.remove();
    elements.question.value = question;
    view.complain(sentence(error));
    view.setStatus('Ready');
  }
  view.setState('ready');
  elements.question.focus();
}

/** Begins a new conversation with a text, and reads it. */
async function readDocument(file: File): Promise<void> {
  const on = engine!;
  view.complain(undefined);
  view.setState('busy');
  view.setStatus(`Reading ${file.name}`);
  let begin = 0;
  let show: ((facts: string) => void) | undefined;
  const listen = (report: Report): void => {
    if (engine !== on || report.kind !== 'reading') return;
    if (!show) elements.log.replaceChildren();
    show ??= view.addDocument(file.name);
    held = report.held;
    show(view.documentFacts(report.done, report.total, performance.now() - begin, held, cache));
    view.showHeld(held, cache);
    view.noteCache(cache, settings.attention, 0);
    view.setStatus(`Reading ${file.name}, ${Math.floor((100 * report.done) / report.total)} %`);
    plots.add(held);
  };
  try {
    const text = await readText(file);
    begin = performance.now();
    await on.read(`${file.name}\n\n${text}`, listen);
    view.setStatus(await keep(on));
  } catch (error) {
    if (!stillOpen(on, error)) return;
    view.complain(sentence(error));
    view.setStatus('Ready');
  }
  view.setState('ready');
  elements.question.focus();
}

/** A model, or a text for the one that is there. */
function take(file: File): void {
  const state = view.getState();
  if (/\.gguf$/i.test(file.name) || (state !== 'ready' && state !== 'opening' && state !== 'busy')) load(file);
  else if (state === 'ready') readDocument(file);
  else view.complain(`${file.name}: expected a text while nothing else is done, got it too early`);
}

/** Whether the page goes on with this engine after an error: not where the worker itself is gone. */
function stillOpen(on: Engine, error: unknown): boolean {
  if (engine !== on || error instanceof Ended) return false;
  if (!on.failed) return true;
  close();
  view.complain(sentence(error));
  return false;
}

async function restart(): Promise<void> {
  const on = engine!;
  view.setState('opening'); // nothing can be asked meanwhile
  try {
    await on.restart();
  } catch (error) {
    if (!stillOpen(on, error)) return;
    view.complain(sentence(error));
    view.setState('ready');
    return;
  }
  elements.log.replaceChildren();
  held = EMPTY;
  view.showHeld(held, cache);
  view.noteCache(cache, settings.attention, 0);
  view.complain(undefined);
  view.setStatus('Ready');
  view.setState('ready');
  elements.question.focus();
}

/** A line of models.json: a GGUF file, or a folder with the paths of its files. */
interface Offered {
  readonly name: string;
  readonly bytes: number;
  readonly url: string;
  readonly files?: readonly string[];
}

function offeredAt({ name, url, files }: Offered): Chosen {
  const at = (path: string): string => new URL(path, location.href).href;
  return files
    ? { name, files: Object.fromEntries(files.map(path => [path, at(`${url}/${path.split('/').map(encodeURIComponent).join('/')}`)])) }
    : { name, url: at(url) };
}

async function listOffers(): Promise<void> {
  const offers = await fetch('models.json')
    .then(response => (response.ok ? (response.json() as Promise<Offered[]>) : []))
    .catch(() => []); // a server that offers nothing: the page works with files alone
  elements.offers.replaceChildren(
    ...offers.map(offer => {
      const item = document.createElement('li');
      const button = document.createElement('button');
      const size = document.createElement('span');
      button.type = 'button';
      size.textContent = mebibytes(offer.bytes);
      button.append(offer.name, size);
      button.addEventListener('click', () => load(offeredAt(offer)));
      item.append(button);
      return item;
    })
  );
  elements.offers.parentElement!.hidden = offers.length === 0;
}

function listen(): void {
  elements.file.addEventListener('change', () => {
    const [file] = elements.file.files!;
    elements.file.value = ''; // the same file can be chosen again
    if (file) load(file);
  });
  elements.folder.addEventListener('change', () => {
    const files = [...elements.folder.files!];
    elements.folder.value = '';
    if (files.length > 0) load(folderOf(files));
  });
  elements.document.addEventListener('change', () => {
    const [file] = elements.document.files!;
    elements.document.value = '';
    if (file) take(file);
  });
  let over = 0;
  const drag = (event: DragEvent, step: number): void => {
    if (!event.dataTransfer?.types.includes('Files')) return;
    event.preventDefault();
    over += step;
    view.showCurtain(over > 0);
  };
  addEventListener('dragenter', event => drag(event, 1));
  addEventListener('dragleave', event => drag(event, -1));
  addEventListener('dragover', event => drag(event, 0));
  addEventListener('drop', event => {
    drag(event, -over);
    const [file] = event.dataTransfer?.files ?? [];
    const entry = event.dataTransfer?.items[0]?.webkitGetAsEntry(); // gone once the event is over
    if (entry?.isDirectory) droppedFolder(entry as FileSystemDirectoryEntry).then(load, error => view.complain(sentence(error)));
    else if (file) take(file);
  });
  elements.cancel.addEventListener('click', close);
  elements.change.addEventListener('click', close);
  elements.restart.addEventListener('click', restart);
  elements.stop.addEventListener('click', () => engine?.stop());
  for (const select of [elements.keys, elements.values, elements.attention, elements.capacity])
    select.addEventListener('change', changeSettings);
  elements.composer.addEventListener('submit', event => {
    event.preventDefault();
    const question = elements.question.value.trim();
    if (question !== '' && view.getState() === 'ready' && elements.longest.reportValidity()) ask(question);
  });
  elements.question.addEventListener('keydown', event => {
    if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    elements.composer.requestSubmit();
  });
  addEventListener('keydown', event => {
    if (event.key === 'Escape' && view.getState() === 'busy') engine?.stop();
  });
  elements.examples.replaceChildren(
    ...EXAMPLES.map(text => {
      const item = document.createElement('li');
      const button = document.createElement('button');
      button.type = 'button';
      button.textContent = text;
      button.addEventListener('click', () => {
        if (view.getState() === 'ready') ask(text);
      });
      item.append(button);
      return item;
    })
  );
}

view.listCodecs();
view.listAttention(undefined);
view.setState('empty');
listen();
const missing = missingWebAssembly();
if (missing !== undefined) {
  view.setState('blocked');
  view.complain(missing);
}
await listOffers();
view.listAttention(await findGpu());
