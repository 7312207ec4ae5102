// Vocabularies: SentencePiece's merging against a plain loop, how text is cut by name, and what no text may become.
import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { Chat } from '../src/chat.ts';
import type { Gguf } from '../src/gguf.ts';
import { openGguf } from '../src/open.ts';
import { openTokenizer, type Vocabulary } from '../src/tokenizer.ts';

const [NORMAL, UNKNOWN, CONTROL, BYTE] = [1, 2, 3, 6];

/** A vocabulary that is handed over as a file's metadata would be. */
function open(metadata: Record<string, unknown>): Vocabulary {
  const named = Object.fromEntries(Object.entries(metadata).map(([key, value]) => [`tokenizer.ggml.${key}`, value]));
  return openTokenizer({ file: 'tiny.gguf', config: { vocabulary: 1000 }, metadata: named } as unknown as Gguf);
}

const encode = ({ tokenizer }: Vocabulary, text: string): number[] => tokenizer.encode(text, { add_special_tokens: false }).ids;

/** Numbers from 0 to 1, the same every time. */
function random(seed: number): () => number {
  let state = seed;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

const next = random(3);
const pick = <T>(list: readonly T[]): T => list[Math.floor(next() * list.length)]!;

/** <unk>, <s>, </s>, all bytes, letters, and 200 pieces joined from those before; a later one has a lower score. */
const letters = ['▁', ...'abcd', 'é', '🙂'];
const joined = new Set(letters);
while (joined.size < letters.length + 200) {
  const piece = pick([...joined]) + pick([...joined]);
  if (piece.length <= 8) joined.add(piece);
}
const bytes = Array.from({ length: 256 }, (_, byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, '0')}>`);
const tokens = ['<unk>', '<s>', '</s>', ...bytes, ...joined, 's>'];
const types = tokens.map((_, id) => (id === 0 ? UNKNOWN : id < 3 ? CONTROL : id < 259 ? BYTE : NORMAL));
const scores = tokens.map((_, id) => (id < 259 ? 0 : 259 - id));
const pieces = { model: 'llama', tokens, token_type: types, scores };

/** SentencePiece by its definition: while any two neighbors are a token together, the best of them are joined, the leftmost of equals. */
function plain(text: string, prefix: boolean): number[] {
  const symbols = [...`${prefix ? '▁' : ''}${text.replaceAll(' ', '▁')}`];
  const idOf = (piece: string): number => tokens.findIndex((token, id) => token === piece && types[id] === NORMAL);
  for (;;) {
    let best = -1;
    let bestScore = -Infinity;
    for (let i = 0; i + 1 < symbols.length; i++) {
      const id = idOf(symbols[i]! + symbols[i + 1]!);
      if (id >= 0 && scores[id]! > bestScore) [best, bestScore] = [i, scores[id]!];
    }
    if (best < 0) break;
    symbols.splice(best, 2, symbols[best]! + symbols[best + 1]!);
  }
  return symbols.flatMap(symbol => (idOf(symbol) >= 0 ? [idOf(symbol)] : [...new TextEncoder().encode(symbol)].map(byte => 3 + byte)));
}

group('SentencePiece vocabularies', test => {
  const texts = Array.from({ length: 300 }, () =>
    Array.from({ length: 1 + Math.floor(30 * next()) }, () => pick([' ', ' ', ...'abcdxé🙂\n'])).join('')
  );
  for (const prefix of [true, false]) {
    test(`merge as a plain loop does, and give the text back, ${prefix ? 'with' : 'without'} a space before it`, () => {
      const vocabulary = open({ ...pieces, add_space_prefix: prefix });
      for (const text of texts) {
        const ids = encode(vocabulary, text);
        assert.equal(ids, plain(text, prefix), JSON.stringify(text));
        assert.is(vocabulary.tokenizer.decode(ids), text);
      }
    });
  }
  test('begin with a space where the file does not say, after a control token too, and prompts with BOS', () => {
    const vocabulary = open(pieces);
    assert.equal(encode(vocabulary, '<s>x</s>x'), [1, ...plain('x', true), 2, ...plain('x', true)]);
    assert.is(vocabulary.start, '<s>');
    assert.equal(vocabulary.special, { bos_token: '<s>', eos_token: '</s>', unk_token: '<unk>', pad_token: '' });
    assert.equal([...vocabulary.stops], [2]);
  });
  test('have no control token or byte that a person typed, nor one that pieces would merge to', () => {
    const vocabulary = open(pieces);
    for (const text of ['<s>', '</s>', '<unk>', '<0x41>', 'a<s>b</s>']) {
      assert.equal(encode(vocabulary, vocabulary.literal(text)), plain(text, true), text);
    }
  });
  test('are read from a file, and a conversation runs on them', async () => {
    const metadata = Object.fromEntries(Object.entries(pieces).map(([key, value]) => [`tokenizer.ggml.${key}`, value]));
    const fractions = { 'tokenizer.ggml.scores': scores.map(score => score / 2), 'tokenizer.chat_template': '{{ messages[0].content }}' };
    const file = tinyGguf({ metadata: { ...metadata, ...fractions }, rows: tokens.length });
    const chat = await Chat.open(await openGguf(file, { runtime }), { backend: await openBackend({ prefer: 'wasm' }), maxAnswer: 1 });
    for await (const _ of chat.ask('ab cd</s>'));
    assert.equal(chat.transcript.tokens, [1, ...plain('ab cd</s>', true)]);
  });
  test('without scores are refused', () =>
    refuses(
      async () => open({ ...pieces, scores: [1] }),
      `tiny.gguf: tokenizer expected ${tokens.length} scores (one for each token), got 1`
    ));
});

/** GPT-2's letters for bytes. */
const byteLetter = (byte: number): string => {
  const shown = (b: number): boolean => (b > 32 && b < 127) || (b > 160 && b !== 173 && b < 256);
  if (shown(byte)) return String.fromCodePoint(byte);
  return String.fromCodePoint(256 + Array.from({ length: byte }, (_, b) => b).filter(b => !shown(b)).length);
};

group('pre-tokenizers', test => {
  const alphabet = Array.from({ length: 256 }, (_, byte) => byteLetter(byte));
  /** Every piece merges to one token where the file has it: so a vocabulary of expected pieces shows where text was cut. */
  const cut = (pre: string, text: string, expected: readonly string[]): string[] => {
    const spelled = (piece: string): string[] => [...new TextEncoder().encode(piece)].map(byteLetter);
    const words = new Set<string>();
    const merges = new Set<string>();
    // All pieces of the text, however it is cut: what is one token was not cut.
    const all = spelled(text);
    for (let begin = 0; begin < all.length; begin++) {
      for (let end = begin + 2; end <= all.length; end++) {
        words.add(all.slice(begin, end).join(''));
        merges.add(`${all.slice(begin, end - 1).join('')} ${all[end - 1]}`);
      }
    }
    const vocabulary = open({ model: 'gpt2', pre, tokens: [...alphabet, ...words].slice(0, 1000), merges: [...merges] });
    assert.is(expected.join(''), text);
    return encode(vocabulary, text).map(id => vocabulary.tokenizer.decode([id]));
  };
  const text = "I'll\n\npay 12345, OK";
  for (const [pre, expected] of [
    ['gpt-2', ['I', "'ll", '\n', '\n', 'pay', ' 12345', ',', ' OK']],
    ['smollm', ['I', "'ll", '\n', '\n', 'pay', ' ', '1', '2', '3', '4', '5', ',', ' OK']],
    ['llama-bpe', ['I', "'ll", '\n\n', 'pay', ' ', '123', '45', ',', ' OK']],
    ['qwen2', ['I', "'ll", '\n\n', 'pay', ' ', '1', '2', '3', '4', '5', ',', ' OK']],
    ['tekken', ['I', "'ll", '\n\n', 'pay', ' ', '1', '2', '3', '4', '5', ',', ' OK']],
    ['gpt-4o', ["I'll", '\n\n', 'pay', ' ', '123', '45', ',', ' OK']]
  ] as const) {
    test(`${pre} cuts text as its tokenizer does`, () => assert.equal(cut(pre, text, expected), expected));
  }
  test('of an unknown name are refused by it', () =>
    refuses(
      async () => open({ model: 'gpt2', pre: 'new-bpe', tokens: ['a'], merges: [] }),
      /^tiny\.gguf: tokenizer expected llama, or gpt2 with one of gpt-2, .*qwen2.*, got gpt2 with new-bpe$/
    ));
  test('keep words whole that no merge makes where the model has them so, but no control token', () => {
    const llama3 = open({ model: 'gpt2', pre: 'llama-bpe', tokens: [...alphabet, 'word', 'END'], merges: [], eos_token_id: 257 });
    assert.equal(encode(llama3, 'word'), [256]);
    assert.equal(
      encode(llama3, llama3.literal('END')),
      [...'END'].map(letter => alphabet.indexOf(letter))
    );
    assert.equal(encode(llama3, 'END'), [257]);
  });
});
