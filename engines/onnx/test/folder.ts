// A model's folder as transformers.js loads it: a decoder of exports.ts, and a tokenizer of as many letters as it has logits.
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type DecoderOptions, exportDecoder, HEAD_DIM, KV_HEADS, POSITIONS, QUERY_HEADS, VOCABULARY } from './exports.ts';

const SPECIAL = ['<s>', '</s>', '<|start|>', '<|end|>'];
/** A space, a new line, what ASCII prints, and letters of other languages. */
const LETTERS = Array.from(
  { length: VOCABULARY - SPECIAL.length },
  (_, n) => ' \n'[n] ?? String.fromCodePoint(n < 96 ? 0x1f + n : 0x41 + n)
);

const template =
  "{% for message in messages %}{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>' }}{% endfor %}" +
  "{% if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{% endif %}";

export interface Folder {
  /** Where `models` is. */
  readonly path: string;
  /** The model's own folder. */
  readonly id: string;
  /** The model's file. */
  readonly file: string;
  remove(): Promise<void>;
}

/** @param own  of config.json, in place of a Llama's */
export async function writeFolder(options: DecoderOptions = {}, own: object = {}): Promise<Folder> {
  const path = await mkdtemp(join(tmpdir(), 'nsnquant-'));
  const id = join(path, 'models', 'tiny');
  await mkdir(join(id, 'onnx'), { recursive: true });
  const { model, weights, layers } = exportDecoder(options);
  const file = join(id, 'onnx', options.half ? 'model_fp16.onnx' : 'model.onnx');
  await writeFile(file, model);
  if (options.external) await writeFile(join(id, 'onnx', options.external), weights);
  const config = {
    architectures: ['LlamaForCausalLM'],
    model_type: 'llama',
    hidden_size: QUERY_HEADS * HEAD_DIM,
    head_dim: HEAD_DIM,
    num_attention_heads: QUERY_HEADS,
    num_key_value_heads: KV_HEADS,
    num_hidden_layers: layers,
    max_position_embeddings: POSITIONS,
    vocab_size: VOCABULARY,
    bos_token_id: 0,
    eos_token_id: 1,
    'transformers.js_config': { use_external_data_format: options.external !== undefined },
    ...own
  };
  const tokens = [...SPECIAL, ...LETTERS];
  const tokenizer = {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: SPECIAL.map((content, id) => ({
      id,
      content,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true
    })),
    normalizer: null,
    pre_tokenizer: null,
    post_processor: null,
    decoder: { type: 'Fuse' },
    model: { type: 'BPE', vocab: Object.fromEntries(tokens.map((token, id) => [token, id])), merges: [], unk_token: 'a', fuse_unk: false }
  };
  const files: Record<string, object> = {
    'config.json': config,
    'generation_config.json': { bos_token_id: 0, eos_token_id: 1, pad_token_id: 1 },
    'tokenizer.json': tokenizer,
    'tokenizer_config.json': {
      tokenizer_class: 'PreTrainedTokenizerFast',
      bos_token: '<s>',
      eos_token: '</s>',
      pad_token: '</s>',
      chat_template: template
    }
  };
  for (const [name, content] of Object.entries(files)) await writeFile(join(id, name), JSON.stringify(content));
  return { path, id, file, remove: () => rm(path, { recursive: true }) };
}
