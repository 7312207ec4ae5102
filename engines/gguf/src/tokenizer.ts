// The tokenizer that a GGUF file defines, handed to @huggingface/tokenizers: byte-level BPE, or SentencePiece. Runs in a browser.
import { Tokenizer } from '@huggingface/tokenizers';
import type { Gguf } from './gguf.ts';
import { type PreTokenizer, preTokenizers, UNSAID } from './pretokenizers.ts';
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

/** llama.cpp's types of tokens. Those that are not normal are made by no merge. */
const NORMAL = 1;
const UNKNOWN = 2;
const CONTROL = 3;
const USER_DEFINED = 4;

/** Texts of tokens that end a turn, whatever the file says of them; llama.cpp knows them so, too (llama-vocab.cpp). */
const END_OF_TURN = [
  ...['<|eot_id|>', '<|eom_id|>', '<|end_of_text|>', '<|im_end|>', '<|end|>', '<|endoftext|>', '<|end_of_turn|>', '<end_of_turn>'],
  ...['<end_of_utterance>', '</s>', '<EOT>', '_<EOT>', '[EOT]', '[EOS]', '<｜end▁of▁sentence｜>']
];

/** A noncharacter of Unicode, which no text has: put into a control token's text it keeps it from being one, and is taken out. */
const BREAK = '\ufdd0';

/** How SentencePiece writes a space. */
const SPACE = '▁';

/** The ids that a SentencePiece vocabulary has where its file does not say. */
const SENTENCE_PIECE_IDS: Readonly<Record<string, number>> = { unknown: 0, bos: 1, eos: 2 };

/** What is told apart by the kind of vocabulary. */
interface Kind {
  readonly normalizer: object | null;
  readonly pretokenizers: readonly object[];
  readonly model: object;
  readonly decoder: object;
  /** Whether prompts begin with BOS where the file does not say, as llama.cpp has it. */
  readonly bos: boolean;
}

/** @throws {InputError} for a vocabulary of another kind, cut by rules that are not known here, or larger than the model's */
export function openTokenizer({ metadata, file, config }: Gguf): Vocabulary {
  const model = metadata['tokenizer.ggml.model'];
  const tokens = metadata['tokenizer.ggml.tokens'] as string[] | undefined;
  if (!tokens) throw new InputError(`${file}: tokenizer expected tokens, got a file without them`);
  if (tokens.length > config.vocabulary) {
    throw new InputError(
      `${file}: tokenizer expected at most ${config.vocabulary} tokens (rows of token_embd.weight), got ${tokens.length}`
    );
  }
  const isSentencePiece = model === 'llama';

  const named = (name: string): number | undefined => {
    const id = metadata[`tokenizer.ggml.${name}_token_id`] ?? (isSentencePiece ? SENTENCE_PIECE_IDS[name] : undefined);
    return id !== undefined && Number(id) < tokens.length ? Number(id) : undefined;
  };
  const textOf = (name: string): string => tokens[named(name) ?? tokens.length] ?? '';
  const byText = END_OF_TURN.map(text => tokens.indexOf(text)).filter(id => id >= 0);
  const stops = new Set([...['eos', 'eot', 'eom'].map(named).filter(id => id !== undefined), ...byText]);
  const types = (metadata['tokenizer.ggml.token_type'] ?? []) as number[];
  const others = new Set([named('bos'), isSentencePiece ? named('unknown') : undefined]);
  const isControl = (id: number): boolean => types[id] === CONTROL || types[id] === UNKNOWN || stops.has(id) || others.has(id);
  const control = tokens.filter((text, id) => text !== '' && isControl(id));

  const vocab = Object.fromEntries(tokens.map((token, id) => [token, id]));
  const kind = isSentencePiece
    ? sentencePiece(file, metadata, tokens, id => !isControl(id) && (types[id] ?? NORMAL) === NORMAL)
    : bytePairs(file, metadata);
  const tokenizer = new Tokenizer(
    {
      added_tokens: tokens.flatMap((content, id) =>
        content !== '' && (isControl(id) || types[id] === USER_DEFINED)
          ? [{ id, content, special: isControl(id), single_word: false, lstrip: false, rstrip: false, normalized: false }]
          : []
      ),
      normalizer: kind.normalizer,
      pre_tokenizer: {
        type: 'Sequence',
        pretokenizers: [{ type: 'Replace', pattern: { String: BREAK }, content: '' }, ...kind.pretokenizers]
      },
      post_processor: null,
      decoder: kind.decoder,
      model: { type: 'BPE', vocab, unk_token: textOf('unknown') || null, ...kind.model }
    },
    { clean_up_tokenization_spaces: false }
  );
  // As words they could be found whole in text, past what literal() does.
  for (const text of control) tokenizer.model?.tokens_to_ids.delete(text);
  return {
    tokenizer,
    size: tokens.length,
    stops,
    start: (metadata['tokenizer.ggml.add_bos_token'] ?? kind.bos) ? textOf('bos') : '',
    special: { bos_token: textOf('bos'), eos_token: textOf('eos'), unk_token: textOf('unknown'), pad_token: textOf('padding') },
    literal: breaker(control)
  };
}

/** GPT-2's kind: text is cut by a pattern, and the bytes of a piece are merged in the order that the file gives. */
function bytePairs(file: string, metadata: Gguf['metadata']): Kind {
  const pre = String(metadata['tokenizer.ggml.pre'] ?? UNSAID);
  const known: PreTokenizer | undefined = Object.hasOwn(preTokenizers, pre) ? preTokenizers[pre] : undefined;
  const model = metadata['tokenizer.ggml.model'];
  if (model !== 'gpt2' || !known) {
    throw new InputError(
      `${file}: tokenizer expected llama, or gpt2 with one of ${Object.keys(preTokenizers).join(', ')}, got ${String(model)} with ${pre}`
    );
  }
  const merges = metadata['tokenizer.ggml.merges'] as string[] | undefined;
  if (!merges) throw new InputError(`${file}: tokenizer expected merges, got a file without them`);
  return {
    normalizer: null,
    pretokenizers: known.pieces,
    model: { merges, ignore_merges: known.words },
    decoder: { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true },
    bos: known.bos
  };
}

/** SentencePiece's: nothing is cut, the two neighbors whose union has the highest score are joined, and what is no token becomes its bytes. */
function sentencePiece(file: string, metadata: Gguf['metadata'], tokens: readonly string[], isNormal: (id: number) => boolean): Kind {
  const scores = metadata['tokenizer.ggml.scores'] as number[] | undefined;
  if (scores?.length !== tokens.length) {
    throw new InputError(`${file}: tokenizer expected ${tokens.length} scores (one for each token), got ${scores?.length ?? 'none'}`);
  }
  const prefix = metadata['tokenizer.ggml.add_space_prefix'] ?? true;
  const spaces = { type: 'Replace', pattern: { String: ' ' }, content: SPACE };
  return {
    normalizer: prefix ? { type: 'Sequence', normalizers: [{ type: 'Prepend', prepend: SPACE }, spaces] } : spaces,
    pretokenizers: [],
    model: { merges: mergesByScore(tokens, scores, isNormal), byte_fallback: true, fuse_unk: true },
    decoder: {
      type: 'Sequence',
      decoders: [
        { type: 'Replace', pattern: { String: SPACE }, content: ' ' },
        { type: 'ByteFallback' },
        { type: 'Fuse' },
        ...(prefix ? [{ type: 'Strip', content: ' ', start: 1, stop: 0 }] : [])
      ]
    },
    bos: true
  };
}

/** Every way to join two pieces to a token, tokens of higher scores first: so BPE does what SentencePiece does. */
function mergesByScore(tokens: readonly string[], scores: readonly number[], isNormal: (id: number) => boolean): [string, string][] {
  const normal = tokens.map((text, id) => ({ text, score: scores[id]!, id })).filter(({ id }) => isNormal(id));
  normal.sort((a, b) => b.score - a.score || a.id - b.id);
  const known = new Set(normal.map(({ text }) => text));
  const isPiece = (text: string): boolean => known.has(text) || text.length === (text.codePointAt(0)! > 0xffff ? 2 : 1);
  const merges: [string, string][] = [];
  for (const { text } of normal) {
    for (let at = 1; at < text.length; at++) {
      const [left, right] = [text.slice(0, at), text.slice(at)];
      if (isPiece(left) && isPiece(right)) merges.push([left, right]);
    }
  }
  return merges;
}

/** Puts BREAK behind the first character of every control token, wherever one begins: they may overlap. */
function breaker(control: readonly string[]): (text: string) => string {
  if (control.length === 0) return text => text;
  const begins = new RegExp(`(?=${control.map(text => text.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('|')})[^]`, 'g');
  return text => text.replace(begins, `$&${BREAK}`);
}
