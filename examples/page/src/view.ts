// The page's elements and what is written into them. Decides nothing.

import type { Ending, Message } from '@nsnquant/gguf';
import { type CodecName, codecs } from 'nsnquant';
import type { Held, ModelFacts } from './chat-model.ts';
import type { Attention, CacheFacts, Settings } from './conversation.ts';
import type { Gpu } from './support.ts';
import { count, duration, mebibytes, rate } from './text.ts';

/** `blocked`: nothing can run in this browser; `opening`: a cache is made; `busy`: a question is answered, which can be stopped. */
export type State = 'empty' | 'blocked' | 'loading' | 'ready' | 'opening' | 'busy';

export const backendNames: Readonly<Record<Attention, string>> = { wasm: 'WebAssembly', webgpu: 'WebGPU' };

const MOST_ROOM = 32_768;
const USUAL_ROOM = 8192;

const find = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;

export const elements = {
  file: find<HTMLInputElement>('file'),
  folder: find<HTMLInputElement>('folder'),
  document: find<HTMLInputElement>('document'),
  change: find<HTMLButtonElement>('change'),
  cancel: find<HTMLButtonElement>('cancel'),
  offers: find('offers'),
  examples: find('examples'),
  log: find('log'),
  composer: find<HTMLFormElement>('composer'),
  question: find<HTMLTextAreaElement>('question'),
  send: find<HTMLButtonElement>('send'),
  stop: find<HTMLButtonElement>('stop'),
  restart: find<HTMLButtonElement>('restart'),
  settings: find<HTMLFieldSetElement>('settings'),
  keys: find<HTMLSelectElement>('keys'),
  values: find<HTMLSelectElement>('values'),
  attention: find<HTMLSelectElement>('attention'),
  capacity: find<HTMLSelectElement>('capacity'),
  temperature: find<HTMLSelectElement>('temperature'),
  longest: find<HTMLInputElement>('longest'),
  bytesPlot: find('bytes-plot'),
  speedPlot: find('speed-plot'),
  legend: find('legend')
};
const error = find('error');
const stage = document.querySelector<HTMLElement>('.stage')!;
const curtain = document.querySelector<HTMLElement>('.curtain')!;
error.querySelector('button')!.addEventListener('click', () => {
  complain(undefined);
});

export function getState(): State {
  return document.body.dataset['state'] as State;
}

export function setState(state: State): void {
  const hasModel = state === 'ready' || state === 'opening' || state === 'busy';
  document.body.dataset['state'] = state;
  document.body.toggleAttribute('data-model', hasModel);
  elements.change.hidden = !hasModel;
  elements.settings.disabled = state !== 'ready';
  elements.restart.disabled = state !== 'ready';
  elements.send.disabled = state !== 'ready';
  elements.file.disabled = state === 'blocked';
  elements.folder.disabled = state === 'blocked';
}

/** A sentence that stays until it is dismissed or the next action begins. */
export function complain(text: string | undefined): void {
  error.hidden = text === undefined;
  error.querySelector('p')!.textContent = text ?? '';
}

export function setStatus(text: string): void {
  find('status').textContent = text;
}

export function setLoading(name: string, share: number | undefined, text: string): void {
  const bar = find<HTMLProgressElement>('loading-bar');
  find('loading-title').textContent = name;
  find('loading-text').textContent = text;
  if (share === undefined) bar.removeAttribute('value');
  else bar.value = share;
}

export function showCurtain(shown: boolean): void {
  curtain.hidden = !shown;
}

export function showModel(file: string, facts: ModelFacts | undefined): void {
  document.querySelector<HTMLElement>('.model')!.hidden = !facts;
  if (!facts) return;
  const { layers, queryHeads, kvHeads, headDim, context, weights } = facts;
  find('model-name').textContent = file.replace(/\.gguf$/i, '');
  find('model-facts').textContent =
    `${count(layers, 'layer')} · ${count(queryHeads, 'query head')} on ${count(kvHeads)} × ${headDim}${weights && ` · ${weights}`}`;
  const rooms = [1024, 2048, 4096, 8192, 16_384, MOST_ROOM].filter(tokens => tokens < context);
  if (context <= MOST_ROOM) rooms.push(context);
  elements.capacity.replaceChildren(...rooms.map(tokens => new Option(count(tokens), String(tokens))));
  elements.capacity.value = String(rooms.findLast(tokens => tokens <= USUAL_ROOM));
}

export function listCodecs(): void {
  const usual = 'nsn3'; // the library's own
  for (const select of [elements.keys, elements.values]) {
    const options = Object.values(codecs).map(
      ({ name, bits }) => new Option(`${name}, ${count(bits, 'bit')}`, name, name === usual, name === usual)
    );
    select.replaceChildren(...options.reverse());
  }
}

export function listAttention(gpu: Gpu | undefined): void {
  const option = new Option(
    gpu?.usable ? `WebGPU${gpu.software ? ' (software, slow)' : ''}` : `WebGPU (${gpu?.reason ?? 'looking for it'})`,
    'webgpu'
  );
  option.disabled = !gpu?.usable;
  const chosen = elements.attention.value || 'wasm';
  elements.attention.replaceChildren(new Option(backendNames.wasm, 'wasm'), option);
  elements.attention.value = chosen;
}

export function readSettings(): Settings {
  const { attention, keys, values, capacity } = elements;
  return {
    attention: attention.value as Attention,
    keys: keys.value as CodecName,
    values: values.value as CodecName,
    capacity: Number(capacity.value)
  };
}

export function writeSettings({ attention, keys, values, capacity }: Settings): void {
  elements.attention.value = attention;
  elements.keys.value = keys;
  elements.values.value = values;
  elements.capacity.value = String(capacity);
}

/** What the settings come to. */
export function noteCache(
  { variant, reason, bitsPerElement, allocatedBytes, f16BytesPerToken, capacity }: CacheFacts,
  attention: Attention,
  unread: number
): void {
  const bits = document.createElement('b');
  bits.textContent = `${bitsPerElement.toFixed(2)} bits an element`;
  const lines = [
    `, ${mebibytes(allocatedBytes)} reserved (f16: ${mebibytes(f16BytesPerToken * capacity)})`,
    `\n${backendNames[attention]} ${variant}: ${reason}`,
    ...(unread === 0 ? [] : [`\nA new cache: the next question first reads the conversation, ${count(unread, 'token')}, into it.`])
  ];
  find('note').replaceChildren(bits, ...lines);
}

export function showHeld({ tokens, bytes }: Held, { capacity, f16BytesPerToken, bitsPerElement }: CacheFacts): void {
  const f16 = tokens * f16BytesPerToken;
  find('tile-context').textContent = count(tokens);
  find('sub-context').textContent = `of ${count(capacity, 'token')}`;
  find('tile-cache').textContent = tokens === 0 ? '–' : mebibytes(bytes);
  find('sub-cache').textContent = tokens === 0 ? 'empty' : `f16: ${mebibytes(f16)}`;
  find('tile-ratio').textContent = tokens === 0 ? '–' : `${(f16 / bytes).toFixed(1)} ×`;
  find('sub-ratio').textContent = `${(16 / bitsPerElement).toFixed(1)} × in the long run`;
}

export function showSpeed(text: string, sub: string): void {
  find('tile-speed').textContent = text;
  find('sub-speed').textContent = sub;
}

export interface Answer {
  append(text: string): void;
  /** The line below an answer that ended. */
  close(facts: string): void;
  /** Takes question and answer out of the log again. */
  remove(): void;
}

export function addExchange(question: string): Answer {
  const asked = document.createElement('li');
  asked.className = 'question';
  asked.append(paragraph(question));
  const answer = document.createElement('li');
  answer.className = 'answer open';
  const text = paragraph('');
  answer.append(text);
  elements.log.append(asked, answer);
  scrollDown(true);
  return {
    append(piece) {
      text.append(piece);
      scrollDown(false);
    },
    close(facts) {
      answer.classList.remove('open');
      const line = document.createElement('small');
      line.textContent = facts;
      answer.append(line);
      scrollDown(false);
    },
    remove() {
      asked.remove();
      answer.remove();
    }
  };
}

/** The document that a conversation begins with; what it returns writes the line below its name. */
export function addDocument(name: string): (facts: string) => void {
  const item = document.createElement('li');
  const line = document.createElement('small');
  item.className = 'document';
  item.append(paragraph(name), line);
  elements.log.append(item);
  return facts => {
    line.textContent = facts;
  };
}

/** How far a document was read, and what it takes in the cache. */
export function documentFacts(done: number, total: number, ms: number, { tokens, bytes }: Held, { f16BytesPerToken }: CacheFacts): string {
  const read = done < total ? `${count(done)} of ${count(total, 'token')} read` : `${count(total, 'token')} read`;
  return `${read} in ${duration(ms)} · ${mebibytes(bytes)} of cache, where f16 takes ${mebibytes(tokens * f16BytesPerToken)}`;
}

/** A conversation from before. */
export function showMessages(messages: readonly Message[]): void {
  let answer: Answer | undefined;
  for (const { role, content } of messages) {
    if (role === 'system') addDocument(content.split('\n', 1)[0]!)('kept from before');
    if (role === 'user') answer = addExchange(content);
    if (role !== 'assistant') continue;
    answer?.append(content);
    answer?.close('kept from before');
  }
}

/** `tokens` took `ms`; one more came before them, out of a prompt of which `read` tokens were read. */
export function answerFacts(read: number, tokens: number, ms: number, ending: Ending, run: string): string {
  const ended: Record<Ending, string> = {
    'stop token': '',
    'longest answer': ' · cut: the longest answer',
    capacity: ' · cut: no room for more context',
    aborted: ' · stopped'
  };
  return `${count(read, 'token')} read · ${count(tokens + 1, 'token')}${ms > 0 ? `, ${rate(tokens, ms)} a second` : ''} · ${run}${ended[ending]}`;
}

function paragraph(text: string): HTMLParagraphElement {
  const element = document.createElement('p');
  element.textContent = text;
  return element;
}

/** Follows the text unless the person scrolled away from it. Narrow pages scroll as a whole. */
function scrollDown(always: boolean): void {
  const scroller = stage.scrollHeight > stage.clientHeight ? stage : document.documentElement;
  if (scroller === stage && (always || stage.scrollHeight - stage.scrollTop - stage.clientHeight < 120))
    stage.scrollTop = stage.scrollHeight;
  else if (scroller !== stage && always) elements.composer.scrollIntoView({ block: 'end' });
}
