// A tiny model loaded by transformers.js, and what tests ask of it.
import { AutoModelForCausalLM, AutoTokenizer, DynamicCache, env, LogLevel, type PreTrainedModel, Tensor } from '@huggingface/transformers';
import { type DecoderOptions, VOCABULARY } from './exports.ts';
import { type Folder, writeFolder } from './folder.ts';

export interface Loaded extends Folder {
  /** Another instance of the model. */
  load(): Promise<PreTrainedModel>;
  readonly tokenizer: Awaited<ReturnType<typeof AutoTokenizer.from_pretrained>>;
}

export async function openFolder(options: DecoderOptions = {}, config: object = {}): Promise<Loaded> {
  const folder = await writeFolder(options, config);
  env.allowRemoteModels = false;
  env.logLevel = LogLevel.NONE; // it prints every input of a call that is refused
  const load = () => AutoModelForCausalLM.from_pretrained(folder.id, { dtype: options.half ? 'fp16' : 'fp32' });
  return { ...folder, load, tokenizer: await AutoTokenizer.from_pretrained(folder.id) };
}

export function list(rows: readonly (readonly number[])[]): Tensor {
  return new Tensor('int64', BigInt64Array.from(rows.flat(), BigInt), [rows.length, rows[0]!.length]);
}

/** Tokens, none of them a control token. */
export function prompt(length: number, seed = 0): number[] {
  return Array.from({ length }, (_, n) => 4 + ((n * n * 7 + 3 * n + 11 * seed) % (VOCABULARY - 4)));
}

export interface Generated {
  readonly sequences: Tensor;
  readonly past_key_values: DynamicCache;
}

/** Greedy, without an end but that of the length. */
export async function generate(model: PreTrainedModel, ids: readonly number[], options: object = {}): Promise<Generated> {
  const inputs = {
    input_ids: list([ids]),
    attention_mask: list([ids.map(() => 1)]),
    max_new_tokens: 12,
    eos_token_id: null,
    return_dict_in_generate: true,
    ...options
  };
  return (await model.generate(inputs as never)) as unknown as Generated;
}

export function idsOf({ sequences }: Generated): number[] {
  return Array.from(sequences.data as BigInt64Array, Number);
}

export interface Outputs {
  readonly logits: Float32Array;
  readonly past: DynamicCache;
}

/** One call of the model; `mask` and the past's columns of it are ones by default. */
export async function forward(
  model: PreTrainedModel,
  rows: readonly (readonly number[])[],
  past?: DynamicCache,
  mask = rows.map(row => new Array<number>((past?.get_seq_length() ?? 0) + row.length).fill(1))
): Promise<Outputs> {
  const inputs = { input_ids: list(rows), attention_mask: list(mask), ...(past ? { past_key_values: past } : {}) };
  const { logits, ...presents } = (await model(inputs as never)) as Record<string, Tensor>;
  const entries = Object.entries(presents).map(([name, tensor]) => [name.replace('present', 'past_key_values'), tensor]);
  return { logits: logits!.to('float32').data as Float32Array, past: new DynamicCache(Object.fromEntries(entries)) };
}
