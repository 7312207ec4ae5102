// The tokenizer that a GGUF file defines: its vocabulary and merges handed to @huggingface/tokenizers. Runs in a browser.
import { Tokenizer } from '@huggingface/tokenizers';
import type { Gguf } from './gguf.ts';
import { InputError } from './source.ts';

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };

const split = (pattern: string) => ({
  type: 'Sequence',
  pretokenizers: [
    { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
    { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false }
  ]
});

/** How text is cut before merging, by GGUF's name for it (llama-vocab.cpp). */
const preTokenizers: Readonly<Record<string, object>> = {
  'gpt-2': byteLevel,
  smollm: { type: 'Sequence', pretokenizers: [{ type: 'Digits', individual_digits: true }, byteLevel] },
  'llama-bpe': split(
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
  )
};

/** llama.cpp's token types that stand for themselves in text. */
const CONTROL = 3;
const USER_DEFINED = 4;

export function openTokenizer({ metadata }: Gguf): Tokenizer {
  const model = metadata['tokenizer.ggml.model'];
  const pre = metadata['tokenizer.ggml.pre'] ?? 'gpt-2';
  const preTokenizer = preTokenizers[String(pre)];
  if (model !== 'gpt2' || !preTokenizer) {
    throw new InputError(
      `tokenizer expected gpt2 with one of ${Object.keys(preTokenizers).join(', ')}, got ${String(model)} with ${String(pre)}`
    );
  }
  const tokens = metadata['tokenizer.ggml.tokens'] as string[] | undefined;
  const merges = metadata['tokenizer.ggml.merges'] as string[] | undefined;
  if (!tokens || !merges) throw new InputError('tokenizer expected tokens and merges, got a file without them');
  const types = (metadata['tokenizer.ggml.token_type'] ?? []) as number[];
  const added = tokens.flatMap((content, id) =>
    types[id] === CONTROL || types[id] === USER_DEFINED
      ? [{ id, content, special: types[id] === CONTROL, single_word: false, lstrip: false, rstrip: false, normalized: false }]
      : []
  );
  return new Tokenizer(
    {
      added_tokens: added,
      normalizer: null,
      pre_tokenizer: preTokenizer,
      post_processor: null,
      decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
      model: {
        type: 'BPE',
        vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
        merges,
        // Llama 3's vocabulary holds words that no merge makes.
        ignore_merges: pre === 'llama-bpe'
      }
    },
    { clean_up_tokenization_spaces: false }
  );
}
