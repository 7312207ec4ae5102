// How text is cut before bytes are merged, by GGUF's names for it (llama-vocab.cpp). Plain data.

export interface PreTokenizer {
  /** What @huggingface/tokenizers takes. */
  readonly pieces: readonly object[];
  /** A piece that is a token as a whole stays one, even where no merge makes it. */
  readonly words: boolean;
  /** Prompts begin with BOS where the file does not say. */
  readonly bos: boolean;
}

const byteLevel = (use_regex: boolean) => ({ type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex });

const split = (pattern: string): readonly object[] => [
  { type: 'Split', pattern: { Regex: pattern }, behavior: 'Isolated', invert: false },
  byteLevel(false)
];

const SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const REST = '\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+';

/** Words with the character before them, up to `digits` digits at a time, and punctuation with the lines that end after it. */
const words = (digits: string, letters = '\\p{L}', notSign = '\\p{L}\\p{N}'): readonly object[] =>
  split(`${SUFFIX}|[^\\r\\n\\p{L}\\p{N}]?[${letters}]+|\\p{N}${digits}| ?[^\\s${notSign}]+[\\r\\n]*|${REST}`);

/** As words(), but a capital begins a word. */
const capitals = (digits: string, suffix: string): readonly object[] => {
  const upper = '[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]';
  const lower = '[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]';
  const before = '[^\\r\\n\\p{L}\\p{N}]?';
  return split(
    `${before}${upper}*${lower}+${suffix}|${before}${upper}+${lower}*${suffix}|\\p{N}${digits}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|${REST}`
  );
};

const gpt2: PreTokenizer = { pieces: [byteLevel(true)], words: false, bos: false };
const digits: PreTokenizer = { ...gpt2, pieces: [{ type: 'Digits', individual_digits: true }, byteLevel(true)] };
const three: PreTokenizer = { ...gpt2, pieces: words('{1,3}') };
const llama3: PreTokenizer = { ...three, words: true, bos: true };
const qwen2: PreTokenizer = { ...gpt2, pieces: words('') };
const qwen35: PreTokenizer = { ...gpt2, pieces: words('', '\\p{L}\\p{M}', '\\p{L}\\p{M}\\p{N}') };
const gpt4o: PreTokenizer = { ...gpt2, pieces: capitals('{1,3}', `${SUFFIX}?`) };

export const preTokenizers: Readonly<Record<string, PreTokenizer>> = {
  ...{ 'gpt-2': gpt2, 'phi-2': gpt2, mpt: gpt2, olmo: gpt2, jais: gpt2 },
  ...{ smollm: digits, starcoder: digits, refact: digits, 'command-r': digits, codeshell: digits, exaone: digits },
  ...{ 'llama-bpe': llama3, llama3, 'llama-v3': llama3, falcon3: llama3, pixtral: llama3 },
  ...{ 'smaug-bpe': three, dbrx: three, glm4: three },
  ...{ qwen2, 'deepseek-r1-qwen': qwen2, stablelm2: qwen2, qwen35 },
  ...{ tekken: { pieces: capitals('', ''), words: true, bos: true }, 'gpt-4o': gpt4o, llama4: gpt4o }
};

/** What a file means that names none: files from before there were names. */
export const UNSAID = 'gpt-2';
