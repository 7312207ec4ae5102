// What the page in Chromium runs of transformers.js: its build for browsers, with a cache under a model.
import { AutoModelForCausalLM, env, type PreTrainedModel, Tensor } from '@huggingface/transformers';
import { openBackend } from 'nsnquant';
import { compress, PastStore } from '../../src/transformers.ts';

env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = '/models/';
const { wasm } = env.backends.onnx as { readonly wasm: { wasmPaths: string; numThreads: number } };
wasm.wasmPaths = `${location.origin}/ort/`;
wasm.numThreads = 1;

const ids = Array.from({ length: 30 }, (_, n) => 4 + ((n * n * 7) % 200));

async function generate(model: PreTrainedModel, ids: readonly number[], past?: unknown) {
  const list = (values: readonly number[]) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const inputs = { input_ids: list(ids), attention_mask: list(ids.map(() => 1)), ...(past ? { past_key_values: past } : {}) };
  const options = { ...inputs, max_new_tokens: 8, eos_token_id: null, return_dict_in_generate: true };
  const { sequences, past_key_values } = (await model.generate(options as never)) as unknown as {
    sequences: Tensor;
    past_key_values: never;
  };
  return { ids: Array.from(sequences.data as BigInt64Array, Number), past: past_key_values };
}

export interface Turns {
  readonly own: readonly number[];
  readonly stored: readonly number[];
  readonly compressed: readonly number[];
  /** The backend under the compressed model. */
  readonly backend: string;
}

/** Tokens of two turns: the model's own, those with its past compressed between them, and those of the compressed model. */
async function turns(device: 'wasm' | 'webgpu'): Promise<Turns> {
  const load = () => AutoModelForCausalLM.from_pretrained('tiny', { dtype: 'fp32', device });
  const next = [7, 5, 90];
  const whole = await load();
  const first = await generate(whole, ids);
  const store = new PastStore(whole, await openBackend({ prefer: 'wasm' }), { capacity: 256, recent: 2 });
  const chat = await store.compress(first.past);
  const { ids: own } = await generate(whole, [...first.ids, ...next], first.past);
  const { ids: stored } = await generate(whole, [...first.ids, ...next], await store.expand(chat));
  const model = await load();
  const { cache } = await compress(model, { source: 'tiny', capacity: 256, recent: 2 });
  const before = await generate(model, ids);
  const { ids: compressed } = await generate(model, [...before.ids, ...next], before.past);
  await Promise.all([whole.dispose(), model.dispose()]);
  return { own, stored, compressed, backend: cache.backend.name };
}

Object.assign(globalThis, { turns, ready: true });
