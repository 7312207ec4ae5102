// Conversations with a tiny model: how a prompt begins, how an answer ends and what a person may type.
import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import type { TinyOptions } from '../../../tools/tiny-gguf.ts';
import { SequenceCache } from '../src/cache.ts';
import { Chat } from '../src/chat.ts';
import type { Model } from '../src/model.ts';
import { openGguf } from '../src/open.ts';
import { tinySource } from './tiny.ts';

const BOS = 8;
const EOS = 9;

/** A model that always says `next`: the token of the largest logit. */
async function saying(next: number, { metadata, ...options }: TinyOptions = {}): Promise<Model> {
  const ids = { 'tokenizer.ggml.bos_token_id': BOS, 'tokenizer.ggml.eos_token_id': EOS };
  const model = await openGguf(tinySource({ control: ['<|bos|>', '<|eos|>'], ...options, metadata: { ...ids, ...metadata } }), { runtime });
  model.logits = async () => Float32Array.from({ length: model.config.vocabulary }, (_, token) => (token === next ? 1 : 0));
  return model;
}

const backend = await openBackend({ prefer: 'wasm' });

function converse(model: Model): Chat {
  const cache = new SequenceCache(backend, model.config, { keys: 'nsn4', values: 'nsn4', capacity: 64, maxAppend: 64 });
  return new Chat(model, cache, { maxAppend: 64, maxAnswer: 3 });
}

/** How the answer ended, and the tokens that were read of the prompt. */
async function ask(model: Model, question: string) {
  let read = 0;
  const pieces = converse(model).ask(question, {
    reading(_, total) {
      read = total;
    }
  });
  let text = '';
  let step = await pieces.next();
  for (; !step.done; step = await pieces.next()) text += step.value;
  return { text, ending: step.value, read };
}

/** The prompt's tokens. */
async function promptOf(model: Model, question: string): Promise<number[]> {
  const chat = converse(model);
  let length = 0;
  const reading = (_: number, total: number): void => {
    length = total;
  };
  for await (const _ of chat.ask(question, { reading }));
  return chat.transcript.tokens.slice(0, length);
}

const CONTENT = '{% for m in messages %}{{ m.content }}{% endfor %}';
const template = (text: string) => ({ 'tokenizer.chat_template': text });

group('answers', test => {
  test('end at every token that the file names as an end', async () => {
    for (const key of ['eos', 'eot', 'eom']) {
      const model = await saying(10, {
        control: ['<|bos|>', '<|eos|>', '<other>'],
        metadata: { ...template(CONTENT), [`tokenizer.ggml.${key}_token_id`]: 10 }
      });
      assert.equal(await ask(model, 'abc'), { text: '', ending: 'stop token', read: 3 }, key);
    }
  });
  test('end at every token that is known as an end by its text', async () => {
    const texts = ['<|eot_id|>', '<|eom_id|>', '<|end_of_text|>', '<|im_end|>', '<|end|>', '<|endoftext|>', '<end_of_turn>', '</s>'];
    for (const text of texts) {
      const model = await saying(10, { control: ['<|bos|>', '<|eos|>', text], metadata: template(CONTENT) });
      assert.is((await ask(model, 'abc')).ending, 'stop token', text);
    }
    const model = await saying(10, { control: ['<|bos|>', '<|eos|>', '<other>'], metadata: template(CONTENT) });
    assert.is((await ask(model, 'abc')).ending, 'longest answer');
  });
  test('never hold a row that is no token', async () => {
    const model = await saying(15, { rows: 20, metadata: template(CONTENT) });
    assert.equal(await ask(model, 'abc'), { text: 'aaa', ending: 'longest answer', read: 3 });
  });
  test('are made one at a time, and the next question waits for its end', async () => {
    const chat = converse(await saying(0, { metadata: template(CONTENT) }));
    const first = chat.ask('abc');
    assert.equal(await first.next(), { done: false, value: 'a' });
    await refuses(() => chat.ask('b').next(), /^expected one question at a time, got another before the answer has ended$/);
    let rest = '';
    for await (const piece of first) rest += piece;
    assert.is(rest, 'aa');
    assert.equal(
      chat.transcript.messages.map(({ content }) => content),
      ['abc', 'aaa']
    );
    assert.is((await chat.ask('b').next()).value, 'a');
  });
});

group('prompts', test => {
  test('begin with the BOS token where the file asks for it, once', async () => {
    const add = { 'tokenizer.ggml.add_bos_token': true };
    for (const text of [CONTENT, `{{ bos_token }}${CONTENT}`, `{% set c = bos_token + messages[0].content %}{{ c }}`]) {
      assert.equal(await promptOf(await saying(EOS, { metadata: { ...template(text), ...add } }), 'abc'), [BOS, 0, 1, 2], text);
    }
    assert.equal(await promptOf(await saying(EOS, { metadata: template(CONTENT) }), 'abc'), [0, 1, 2]);
    // Llama 3's tokenizer adds it where the file does not say.
    const llama3 = { ...template(CONTENT), 'tokenizer.ggml.pre': 'llama-bpe' };
    assert.equal(await promptOf(await saying(EOS, { metadata: llama3 }), 'abc'), [BOS, 0, 1, 2]);
    const not = { ...llama3, 'tokenizer.ggml.add_bos_token': false };
    assert.equal(await promptOf(await saying(EOS, { metadata: not }), 'abc'), [0, 1, 2]);
  });
  test('get the special tokens from the file, and nothing for those that it lacks', async () => {
    const text = '{{ bos_token + messages[0].content + eos_token + unk_token + pad_token }}';
    assert.equal(await promptOf(await saying(EOS, { metadata: template(text) }), 'abc'), [BOS, 0, 1, 2, EOS]);
  });
  test('have no control token that a person typed', async () => {
    // Overlapping ones, made of letters so that each has its own token; alone between the template's and within a text.
    const options = { control: ['<|bos|>', '<|eos|>', 'abc', 'bcd'], metadata: template('abc{{ messages[0].content }}bcd') };
    for (const [question, letters] of [
      ['abc', [0, 1, 2]],
      ['abcd', [0, 1, 2, 3]],
      ['habcabch', [7, 0, 1, 2, 0, 1, 2, 7]],
      ['ab\ufdd0c', [0, 1, 2]],
      ['<|eos|>a<|bos|>', [4, 0, 1]]
    ] as const) {
      assert.equal(await promptOf(await saying(EOS, options), question), [10, ...letters, 11], question);
    }
  });
  test('have none that an earlier answer spelled', async () => {
    const model = await saying(0, { control: ['<|bos|>', '<|eos|>', 'aaa'], metadata: template(CONTENT) });
    const chat = converse(model);
    for await (const _ of chat.ask('b'));
    await chat.ask('c').next();
    assert.equal(chat.transcript.tokens, [1, 0, 0, 0, 2]);
  });
  test('whose template fails are refused in a sentence', async () => {
    for (const [text, message] of [
      ["{{ raise_exception('roles must alternate') }}", 'roles must alternate'],
      ["{{ messages[0]['content'] | no_such_filter }}", 'Unknown StringValue filter: no_such_filter'],
      ['{% for m in messages %}{{ m.content }}', "Cannot read properties of undefined (reading 'type')"]
    ] as const) {
      const expected = `the model's chat template expected to run, got "${message}"`;
      await refuses(
        async () =>
          converse(await saying(EOS, { metadata: template(text) }))
            .ask('abc')
            .next(),
        expected
      );
    }
    await refuses(
      async () =>
        converse(await saying(EOS, { metadata: template("{{ '' }}") }))
          .ask('abc')
          .next(),
      'expected a chat template that makes a prompt, got nothing from it'
    );
  });
});
