// A transformers.js model folder as a model that chats: its own tokenizer and generate(), over @nsnquant/onnx's cache.
import {
  AutoModelForCausalLM,
  AutoTokenizer,
  type DynamicCache,
  env,
  LogLevel,
  type PreTrainedModel,
  Tensor
} from '@huggingface/transformers';
import {
  type AskOptions,
  blobSource,
  type ChatOptions,
  type Ending,
  fingerprint,
  InputError,
  type Message,
  readTranscript,
  type Transcript,
  toMetadata
} from '@nsnquant/gguf';
import { type CompressedModel, compress } from '@nsnquant/onnx/transformers';
import type { Backend, KVCache, Sequence } from 'nsnquant';
import { codebookBytes } from '../../../bench/bytes.ts';
import { type CacheChoice, type ChatCache, type ChatModel, GIB, type Held, type ModelFacts, type Talk } from './chat-model.ts';
import { fileOf, type ModelFolder } from './sources.ts';

type Tokenizer = Awaited<ReturnType<typeof AutoTokenizer.from_pretrained>>;

const onnx = env.backends.onnx as { readonly wasm: { wasmPaths: string; numThreads: number } };
onnx.wasm.wasmPaths = new URL('transformers/', import.meta.url).href; // the build that transformers.js is made for
onnx.wasm.numThreads = 1; // more would need cross-origin isolation
env.useWasmCache = false; // it would run the runtime's script from a blob
env.useBrowserCache = false;
env.logLevel = LogLevel.NONE; // it prints every input of a call that is refused

/** The whole model and the cut one are there for a moment. */
const WEIGHT_BYTES = 1.5 * GIB;
/**
 * Files by what transformers.js calls their type, the smallest first. None of 8-bit integers: they are scaled by all tokens of a call
 * together, and an answer would depend on how its prompt was read.
 */
const WEIGHTS = { q4: 'model_q4', q4f16: 'model_q4f16', fp16: 'model_fp16', fp32: 'model' } as const;
const NEEDED = ['config.json', 'tokenizer.json', 'tokenizer_config.json'] as const;
/** Kept out of every text: a noncharacter of Unicode. */
const BREAK = '\ufdd0';

interface Weights {
  readonly dtype: keyof typeof WEIGHTS;
  readonly name: string;
  readonly file: Blob;
  /** External data by the names that the file has for it. */
  readonly data: Readonly<Record<string, Blob>>;
}

/** @throws {InputError} if the folder lacks something, or is too large */
export async function openFolderModel(folder: ModelFolder): Promise<ChatModel> {
  const weights = await findWeights(folder);
  env.fetch = async url => {
    const path = String(url).split('/resolve/main/')[1]!;
    if (!(path in folder.files)) return new Response(null, { status: 404 });
    const blob = await fileOf(folder, path);
    return new Response(blob, { headers: { 'content-length': String(blob.size) } });
  };
  const tokenizer = await AutoTokenizer.from_pretrained('folder');
  if (!tokenizer.chat_template) throw new InputError(`${folder.name}: expected a tokenizer with a chat template, got one without`);
  const load = (): Promise<PreTrainedModel> =>
    AutoModelForCausalLM.from_pretrained('folder', {
      dtype: weights.dtype,
      device: 'wasm',
      use_external_data_format: Object.keys(weights.data).length
    });
  return new FolderModel(folder, weights, tokenizer, load, await load());
}

async function findWeights(folder: ModelFolder): Promise<Weights> {
  const { name, files } = folder;
  const missing = NEEDED.filter(path => !(path in files));
  if (missing.length > 0)
    throw new InputError(`${name}: expected a folder of a model with ${NEEDED.join(', ')}, got one without ${missing.join(', ')}`);
  const there = Object.keys(files).filter(path => /^onnx\/model[^/]*\.onnx$/.test(path));
  const found = Object.entries(WEIGHTS).find(([, file]) => there.includes(`onnx/${file}.onnx`));
  if (!found) {
    const known = Object.values(WEIGHTS).map(file => `${file}.onnx`);
    throw new InputError(
      `${name}: expected one of ${known.join(', ')} in its folder onnx, got ${there.map(path => path.slice(5)).join(', ') || 'none'}`
    );
  }
  const [dtype, file] = found;
  const path = `onnx/${file}.onnx`;
  const paths = Object.keys(files).filter(other => other.startsWith(`${path}_data`));
  const data = Object.fromEntries(await Promise.all(paths.map(async path => [path.slice(5), await fileOf(folder, path)] as const)));
  const weights = {
    dtype: dtype as Weights['dtype'],
    name: path + (there.length > 1 ? `, of ${there.length} in the folder` : ''),
    file: await fileOf(folder, path),
    data
  };
  const bytes = [weights.file, ...Object.values(data)].reduce((sum, { size }) => sum + size, 0);
  if (bytes > WEIGHT_BYTES)
    throw new InputError(`${name}: expected at most ${WEIGHT_BYTES} bytes of weights (a tab's memory), got ${bytes} in ${path}`);
  return weights;
}

class FolderModel implements ChatModel {
  readonly facts: ModelFacts;
  readonly name: string;
  readonly tokenizer: Tokenizer;
  /** Tokens that end a turn. */
  readonly stops: ReadonlySet<number>;
  readonly #folder: ModelFolder;
  readonly #weights: Weights;
  readonly #load: () => Promise<PreTrainedModel>;
  readonly #control: readonly string[];
  /** Loaded, and under no cache yet. */
  #whole: PreTrainedModel | undefined;
  #mark: Promise<string> | undefined;

  constructor(folder: ModelFolder, weights: Weights, tokenizer: Tokenizer, load: () => Promise<PreTrainedModel>, model: PreTrainedModel) {
    const { config, generation_config: generation } = model as unknown as {
      readonly config: Readonly<Record<string, unknown>>;
      readonly generation_config: { readonly eos_token_id?: number | readonly number[] | null } | null;
    };
    const context = config['max_position_embeddings'];
    const queryHeads = config['num_attention_heads'];
    if (typeof context !== 'number' || typeof queryHeads !== 'number')
      throw new InputError(`${folder.name}: config.json expected max_position_embeddings and num_attention_heads, got one without`);
    const session = (model.sessions as Record<string, { inputMetadata: readonly { name: string; shape: readonly unknown[] }[] }>)['model']!;
    const keys = session.inputMetadata.filter(({ name }) => /^past_key_values\..*key$/.test(name));
    const [, kvHeads, , headDim] = (keys[0]?.shape ?? []) as number[];
    if (typeof kvHeads !== 'number' || typeof headDim !== 'number')
      throw new InputError(`${folder.name}: expected a decoder with a past of known heads and channels, got ${keys.length} pasts`);
    this.facts = { layers: keys.length, queryHeads, kvHeads, headDim, context, weights: weights.name };
    this.name = folder.name;
    this.tokenizer = tokenizer;
    this.stops = new Set(
      [generation?.eos_token_id ?? config['eos_token_id'], tokenizer.eos_token_id].flat().filter(id => typeof id === 'number')
    );
    this.#control = tokenizer.all_special_tokens;
    this.#folder = folder;
    this.#weights = weights;
    this.#load = load;
    this.#whole = model;
  }

  /** A model takes one cache: each one but the first loads the folder again. */
  async open(backend: Backend, choice: CacheChoice): Promise<ChatCache> {
    const model = this.#whole ?? (await this.#load());
    this.#whole = model;
    const { file, data } = this.#weights;
    const compressed = await compress(model, { ...choice, source: file, externalData: data, backend, provider: 'cpu', sequences: 2 }); // one is a saved one that is loaded
    this.#whole = undefined;
    try {
      await compressed.cache.ready;
    } catch (error) {
      await model.dispose();
      throw error;
    }
    return new FolderCache(this, model, compressed);
  }

  fingerprint(): Promise<string> {
    this.#mark ??= (async () => {
      const { file, data } = this.#weights;
      const texts = await Promise.all(NEEDED.map(path => fileOf(this.#folder, path)));
      return fingerprint([...texts, file, ...Object.values(data)].map(blob => blobSource(blob, this.name)));
    })();
    return this.#mark;
  }

  /** Tokens of the conversation up to where the answer begins. What a person types never becomes a control token. */
  prompt(messages: readonly Message[]): number[] {
    const literal = (text: string): string =>
      this.#control.reduce((text, control) => text.replaceAll(control, control[0] + BREAK + control.slice(1)), text.replaceAll(BREAK, ''));
    const said = messages.map(({ role, content }) => ({ role, content: literal(content) }));
    const text = this.tokenizer.apply_chat_template(said, { tokenize: false, add_generation_prompt: true }) as string;
    return text.split(BREAK).flatMap(part => this.tokenizer.encode(part, { add_special_tokens: false }));
  }
}

/** A compressed model with one conversation in its cache. */
class FolderCache implements ChatCache {
  readonly attentionMs = undefined; // within generate()
  readonly cache: KVCache;
  readonly model: FolderModel;
  readonly #model: PreTrainedModel;
  readonly #compressed: CompressedModel;
  #sequence: Sequence;
  /** The sequence goes with the last past that stands for it: this one stays. */
  #hold: DynamicCache;

  constructor(model: FolderModel, under: PreTrainedModel, compressed: CompressedModel) {
    this.model = model;
    this.cache = compressed.cache;
    this.#model = under;
    this.#compressed = compressed;
    this.#sequence = this.cache.sequence();
    this.#hold = compressed.pastOf(this.#sequence);
  }

  get length(): number {
    return this.#sequence.length;
  }

  get held(): Held {
    const { length, bytes } = this.#sequence;
    return { tokens: length, bytes: length === 0 ? 0 : bytes + codebookBytes(this.cache.shape) };
  }

  talk(options: ChatOptions): Talk {
    return new FolderTalk(this, options);
  }

  /** The token after these, of which the cache holds the first ones. A call makes one: between two the worker hears whether to stop. */
  async next(tokens: readonly number[], temperature: number): Promise<number> {
    const row = (values: readonly number[]): Tensor => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
    const { sequences, past_key_values } = (await this.#model.generate({
      input_ids: row(tokens),
      attention_mask: row(tokens.map(() => 1)),
      past_key_values: this.#compressed.pastOf(this.#sequence),
      ...(temperature > 0 ? { do_sample: true, temperature } : { do_sample: false }),
      max_new_tokens: 1,
      return_dict_in_generate: true
    } as never)) as unknown as { readonly sequences: Tensor; readonly past_key_values: DynamicCache };
    await past_key_values.dispose();
    return Number(sequences.data.at(-1));
  }

  /** Forgets the tokens from position `length` on; all of them where a window has given back what would be needed. */
  crop(length: number): void {
    try {
      this.#sequence.crop(length);
    } catch (error) {
      if (!(error instanceof RangeError)) throw error;
      this.#sequence.crop(0);
    }
  }

  save(metadata: Readonly<Record<string, string>>): Promise<Uint8Array> {
    return this.#sequence.save({ metadata });
  }

  /** Goes on with what save() gave. Where that is refused it holds what it held. */
  async restore(bytes: Uint8Array): Promise<void> {
    const before = this.#hold;
    this.#sequence = this.cache.restore(bytes);
    this.#hold = this.#compressed.pastOf(this.#sequence);
    await before.dispose();
  }

  clear(): void {
    this.#sequence.crop(0);
  }

  dispose(): void {
    void this.#model.dispose(); // with its cache; nobody waits for what is given back
  }
}

class FolderTalk implements Talk {
  readonly #cache: FolderCache;
  readonly #options: { readonly maxAppend: number; readonly maxAnswer: number; readonly temperature: number };
  #messages: readonly Message[] = [];
  /** What the cache holds, token by token. */
  #tokens: readonly number[] = [];

  constructor(cache: FolderCache, { maxAppend = 64, maxAnswer = 512, temperature = 0 }: ChatOptions) {
    this.#cache = cache;
    this.#options = { maxAppend, maxAnswer, temperature };
  }

  get transcript(): Transcript {
    return { messages: this.#messages, tokens: this.#tokens };
  }

  resume({ messages, tokens }: Transcript): void {
    this.#messages = messages;
    this.#tokens = tokens;
  }

  async *ask(question: string, { signal, reading }: AskOptions = {}): AsyncGenerator<string, Ending> {
    const { model } = this.#cache;
    const { capacity } = this.#cache.cache.shape;
    const { maxAppend, maxAnswer, temperature } = this.#options;
    const messages: Message[] = [...this.#messages, { role: 'user', content: question }];
    const prompt = model.prompt(messages);
    if (prompt.length >= capacity) {
      throw new InputError(
        `expected a conversation of fewer than ${capacity} tokens (the cache's capacity), got ${prompt.length}; shorten the question, start anew, or open a larger cache`
      );
    }
    let same = 0;
    while (same < this.#tokens.length && same < prompt.length - 1 && this.#tokens[same] === prompt[same]) same++;
    this.#cache.crop(same);
    same = this.#cache.length;
    this.#tokens = prompt.slice(0, same);
    let next = 0;
    while (this.#tokens.length < prompt.length) {
      next = await this.#next(prompt.slice(0, this.#tokens.length + maxAppend), temperature);
      await reading?.(this.#tokens.length - same, prompt.length - same);
      if (signal?.aborted) return 'aborted';
    }
    const answer: number[] = [];
    let shown = '';
    let ending: Ending | undefined;
    while (!ending) {
      if (model.stops.has(next)) {
        ending = 'stop token';
        break;
      }
      answer.push(next);
      const text = model.tokenizer.decode(answer, { skip_special_tokens: true });
      // A letter of several bytes may still be incomplete.
      if (!text.endsWith('\ufffd')) {
        yield text.slice(shown.length);
        shown = text;
      }
      if (signal?.aborted) ending = 'aborted';
      else if (answer.length >= maxAnswer) ending = 'longest answer';
      else if (this.#tokens.length >= capacity) ending = 'capacity';
      else next = await this.#next([...prompt, ...answer], temperature);
    }
    if (ending === 'aborted' && shown === '') return ending;
    this.#messages = [...messages, { role: 'assistant', content: shown }];
    return ending;
  }

  async save(): Promise<Uint8Array> {
    return this.#cache.save(toMetadata(this.transcript, await this.#mark()));
  }

  async load(bytes: Uint8Array): Promise<void> {
    const transcript = readTranscript(bytes, await this.#mark());
    await this.#cache.restore(bytes);
    this.resume(transcript);
  }

  async #next(tokens: readonly number[], temperature: number): Promise<number> {
    const next = await this.#cache.next(tokens, temperature);
    this.#tokens = tokens;
    return next;
  }

  async #mark() {
    return { name: this.#cache.model.name, fingerprint: await this.#cache.model.fingerprint() };
  }
}
