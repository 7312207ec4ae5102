// The tokenizer that a GGUF file defines: its vocabulary and merges handed to @huggingface/tokenizers. Runs in a browser.
import { Tokenizer } from '@huggingface/tokenizers';
import type { Gguf } from './gguf.ts';
import { InputError } from './source.ts';

/** What a file says of its tokens. */
export interface Vocabulary {
  readonly tokenizer: Tokenizer;
  /** Tokens; what a model has of logits beyond them is padding. */
  readonly size: number;
  /** Tokens at which an answer ends. */
  readonly stops: ReadonlySet<number>;
  /** What every prompt begins with; empty where nothing is asked for. */
  readonly start: string;
  /** The special tokens' texts, as templates call them; empty where the file has none. */
  readonly special: Readonly<Record<'bos_token' | 'eos_token' | 'unk_token' | 'pad_token', string>>;
  /** The same text for people and for the model, but none of it read as a control token. */
  literal(text: string): string;
}

const byteLevel = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };

const split = (pattern: string) => [
  { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
  { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: false }
];

const llama3 = split(
  "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
);

/** How text is cut before merging, by GGUF's names for it (llama-vocab.cpp). */
const preTokenizers: Readonly<Record<string, readonly object[]>> = {
  'gpt-2': [byteLevel],
  smollm: [{ type: 'Digits', individual_digits: true }, byteLevel],
  'llama-bpe': llama3,
  llama3,
  'llama-v3': llama3
};

/** llama.cpp's token types that stand for themselves in text. */
const CONTROL = 3;
const USER_DEFINED = 4;

/** Texts of tokens that end a turn, whatever the file says of them; llama.cpp knows them so, too (llama-vocab.cpp). */
const END_OF_TURN = [
  ...['<|eot_id|>', '<|eom_id|>', '<|end_of_text|>', '<|im_end|>', '<|end|>', '<|endoftext|>', '<|end_of_turn|>', '<end_of_turn>'],
  ...['<end_of_utterance>', '</s>', '<EOT>', '_<EOT>', '[EOT]', '[EOS]', '<｜end▁of▁sentence｜>']
];

/** A noncharacter of Unicode, which no text has: put into a control token's text it keeps it from being one, and is taken out. */
const BREAK = '\ufdd0';

export function openTokenizer({ metadata, file, config }: Gguf): Vocabulary {
  const model = metadata['tokenizer.ggml.model'];
  const pre = String(metadata['tokenizer.ggml.pre'] ?? 'gpt-2');
  const preTokenizer = Object.hasOwn(preTokenizers, pre) ? preTokenizers[pre] : undefined;
  if (model !== 'gpt2' || !preTokenizer) {
    throw new InputError(
      `${file}: tokenizer expected gpt2 with one of ${Object.keys(preTokenizers).join(', ')}, got ${String(model)} with ${pre}`
    );
  }
  const tokens = metadata['tokenizer.ggml.tokens'] as string[] | undefined;
  const merges = metadata['tokenizer.ggml.merges'] as string[] | undefined;
  if (!tokens || !merges) throw new InputError(`${file}: tokenizer expected tokens and merges, got a file without them`);
  if (tokens.length > config.vocabulary) {
    throw new InputError(
      `${file}: tokenizer expected at most ${config.vocabulary} tokens (rows of token_embd.weight), got ${tokens.length}`
    );
  }

  const named = (name: string): number | undefined => {
    const id = metadata[`tokenizer.ggml.${name}_token_id`];
    return id !== undefined && Number(id) < tokens.length ? Number(id) : undefined;
  };
  const textOf = (name: string): string => tokens[named(name) ?? tokens.length] ?? '';
  const byText = END_OF_TURN.map(text => tokens.indexOf(text)).filter(id => id >= 0);
  const stops = new Set([...['eos', 'eot', 'eom'].map(named).filter(id => id !== undefined), ...byText]);

  const types = (metadata['tokenizer.ggml.token_type'] ?? []) as number[];
  const isControl = (id: number): boolean => types[id] === CONTROL || stops.has(id) || id === named('bos');
  const control = tokens.filter((text, id) => text !== '' && isControl(id));
  const isLlama3 = preTokenizer === llama3;
  return {
    tokenizer: new Tokenizer(
      {
        added_tokens: tokens.flatMap((content, id) =>
          isControl(id) || types[id] === USER_DEFINED
            ? [{ id, content, special: isControl(id), single_word: false, lstrip: false, rstrip: false, normalized: false }]
            : []
        ),
        normalizer: null,
        pre_tokenizer: { type: 'Sequence', pretokenizers: [{ type: 'Replace', pattern: { String: BREAK }, content: '' }, ...preTokenizer] },
        post_processor: null,
        decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
        model: {
          type: 'BPE',
          vocab: Object.fromEntries(tokens.map((token, id) => [token, id])),
          merges,
          // Llama 3's vocabulary holds words that no merge makes.
          ignore_merges: isLlama3
        }
      },
      { clean_up_tokenization_spaces: false }
    ),
    size: tokens.length,
    stops,
    // Where the file does not say, Llama 3 begins with it and the others do not, as in llama.cpp.
    start: (metadata['tokenizer.ggml.add_bos_token'] ?? isLlama3) ? textOf('bos') : '',
    special: { bos_token: textOf('bos'), eos_token: textOf('eos'), unk_token: textOf('unknown'), pad_token: textOf('padding') },
    literal: breaker(control)
  };
}

/** Puts BREAK behind the first character of every control token, wherever one begins: they may overlap. */
function breaker(control: readonly string[]): (text: string) => string {
  if (control.length === 0) return text => text;
  const begins = new RegExp(`(?=${control.map(text => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|')})[^]`, 'g');
  return text => text.replace(begins, `$&${BREAK}`);
}
