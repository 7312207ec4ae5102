// Conversations that go on: saved and loaded, found in a store of prefixes, in a cache that is full, after something failed.
import { openBackend } from 'nsnquant';
import { PrefixStore } from 'nsnquant/prefixes';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { Chat, type OpenChatOptions } from '../src/chat.ts';
import type { Model } from '../src/model.ts';
import { openGguf } from '../src/open.ts';

const backend = await openBackend({ prefer: 'wasm' });
const metadata = { 'tokenizer.chat_template': '{% for m in messages %}{{ m.content }}{% endfor %}', 'llama.context_length': 1024 };
const file = tinyGguf({ metadata });
const model = await openGguf(file, { runtime });
const open = (options: OpenChatOptions = {}, of: Model = model): Promise<Chat> => Chat.open(of, { backend, maxAnswer: 8, ...options });

/** The answer, how it ended, and the tokens that were read of the prompt. */
async function ask(chat: Chat, question: string) {
  let read = 0;
  const pieces = chat.ask(question, { reading: (_, total) => void (read = total) });
  let text = '';
  let step = await pieces.next();
  for (; !step.done; step = await pieces.next()) text += step.value;
  return { text, ending: step.value, read };
}

group('a saved conversation', test => {
  test('goes on as it would have, without being read again', async () => {
    const chat = await open();
    await ask(chat, 'abcdefgh'.repeat(30));
    const bytes = await chat.save();
    const again = await open();
    await again.load(bytes);
    assert.equal(again.transcript, chat.transcript);
    const next = await ask(again, 'hgf');
    assert.equal(next, await ask(chat, 'hgf'));
    assert.is(next.read, 4, 'the question, and the last answered token, which no step needed');
  });
  test('is refused under other weights of the same shape, and what was said before stays', async () => {
    const other = Uint8Array.from(file);
    other[other.length - 1]! ^= 1;
    const stranger = await openGguf(other, { runtime });
    const chat = await open();
    await ask(chat, 'abc');
    const bytes = await chat.save();
    const there = await open({}, stranger);
    await ask(there, 'hgf');
    const before = structuredClone(there.transcript);
    const [mine, theirs] = [await stranger.fingerprint(), await model.fingerprint()].map(mark => `tiny (${mark.slice(0, 12)}…)`);
    await refuses(() => there.load(bytes), `expected a conversation with ${mine}, got one with ${theirs}`);
    assert.equal(there.transcript, before);
    assert.is((await ask(there, 'a')).read, 2);
  });
  test('that is damaged, or of no conversation, is refused, and the cache holds what it held', async () => {
    const chat = await open();
    await ask(chat, 'abcdefgh'.repeat(20));
    const bytes = await chat.save();
    const damaged = Uint8Array.from(bytes);
    damaged[damaged.length - 9]! ^= 1;
    for (const wrong of [bytes.subarray(0, bytes.length - 1), damaged]) {
      try {
        await chat.load(wrong);
        assert.unreachable('expected an error');
      } catch (error) {
        assert.instance(error, RangeError);
      }
    }
    const bare = await chat.cache.sequence.save({ metadata: {} });
    await refuses(() => chat.load(bare), 'expected a saved conversation, got a sequence without its text');
    const fingerprint = await model.fingerprint();
    for (const change of [{ messages: '[{}]' }, { messages: 'no JSON' }, { tokens: '[0.5]' }, { tokens: '"abc"' }]) {
      const words = { model: 'tiny', fingerprint, messages: '[]', tokens: '[]', ...change };
      const wrong = await chat.cache.sequence.save({ metadata: words });
      await refuses(() => chat.load(wrong), 'expected a saved conversation, got a sequence without its text');
    }
    const short = await chat.cache.sequence.save({ metadata: { model: 'tiny', fingerprint, messages: '[]', tokens: '[1]' } });
    await refuses(() => chat.load(short), /^saved conversation expected 167 tokens \(as its cache\), got 1$/);
    assert.is((await ask(chat, 'a')).read, 2);
  });
  test('is neither made nor taken while an answer is', async () => {
    const chat = await open();
    const answer = chat.ask('abc');
    await answer.next();
    await refuses(() => chat.save(), /^expected one question at a time/);
    await refuses(() => chat.load(new Uint8Array()), /^expected one question at a time/);
    await answer.return('aborted');
    await chat.save();
  });
});

group('a full cache', test => {
  const long = 'abcdefgh'.repeat(25);
  test('ends the answer, and refuses the next question', async () => {
    const chat = await open({ capacity: 256, maxAnswer: 100 });
    assert.is((await ask(chat, long)).ending, 'capacity');
    assert.is(chat.cache.free, 0);
    await refuses(() => ask(chat, 'abc'), /^expected a conversation of fewer than 256 tokens \(the cache's capacity\), got 260; shorten/);
  });
  test('rolls on where it is told to, beyond the context of the model, and never holds more', async () => {
    const small = await openGguf(tinyGguf({ metadata: { ...metadata, 'llama.context_length': 512 } }), { runtime });
    const chat = await open({ maxAppend: 128, maxAnswer: 400, full: 'roll' }, small);
    for (const question of [long, 'hgfedcba'.repeat(40)]) {
      const { ending } = await ask(chat, question);
      assert.is(ending, 'longest answer');
      assert.ok(chat.cache.heldTokens <= 512);
    }
    assert.is(chat.cache.length, 200 + 400 + 320 + 399);
    assert.equal(chat.cache.sequence.ranges(0)[0], { from: 0, to: 4 });
  });
  test('that has too little to forget is refused in a sentence', async () => {
    const chat = await open({ capacity: 128, maxAppend: 128, full: 'roll' });
    await refuses(() => ask(chat, long), 'expected a cache that has room for 72 tokens once the oldest are forgotten, got 0');
  });
});

group('a store of prefixes', test => {
  const items = new Map<string, Uint8Array>();
  const storage = {
    getItemRaw: async (key: string) => items.get(key) ?? null,
    setItemRaw: async (key: string, value: Uint8Array) => void items.set(key, value),
    removeItem: async (key: string) => void items.delete(key),
    getKeys: async () => [...items.keys()]
  };
  test('spares the next conversation what it has in common with the last, and changes no answer', async () => {
    const prefixes = new PrefixStore(storage, { model: await model.fingerprint(), budget: 1e8 });
    const common = 'abcdefgh'.repeat(40);
    const first = await ask(await open({ prefixes }), `${common}abc`);
    const chat = await open({ prefixes });
    const second = await ask(chat, `${common}abc`);
    assert.equal([first.read, second.read], [323, 323 - 4 - 256]);
    assert.is(second.text, first.text);
    assert.is((await ask(chat, 'abc')).read, 4);
  });
  test('that fails is heard of, and the conversation goes on', async () => {
    const prefixes = new PrefixStore(storage, { model: await model.fingerprint(), budget: 1e8 });
    const chat = await open({ prefixes });
    const { load } = prefixes;
    prefixes.load = async () => {
      throw new Error('no storage');
    };
    try {
      await ask(chat, `${'abcdefgh'.repeat(40)}abc`);
      assert.unreachable('expected an error');
    } catch (error) {
      assert.is((error as Error).message, 'no storage');
    }
    prefixes.load = load;
    assert.equal(chat.transcript, { messages: [], tokens: [] });
    assert.is((await ask(chat, 'abc')).read, 3);
  });
});

group('a step that fails', test => {
  test('leaves the conversation as it was, and it goes on', async () => {
    const chat = await open();
    await ask(chat, 'abc');
    const before = structuredClone(chat.transcript);
    const { append } = chat.cache;
    chat.cache.append = function (layer, keys, values) {
      if (layer === 1) throw new Error('no memory');
      append.call(this, layer, keys, values);
    };
    try {
      await ask(chat, 'def');
      assert.unreachable('expected an error');
    } catch (error) {
      assert.is((error as Error).message, 'no memory');
    }
    chat.cache.append = append;
    assert.equal(chat.transcript, before);
    assert.is((await ask(chat, 'def')).read, 4);
  });
});

group('options', test => {
  test('that are unknown are refused by name', async () => {
    for (const run of [() => Chat.open(model, { maxanswer: 1 } as object), () => openGguf(file, { runtime, thread: 1 } as never)]) {
      try {
        await run();
        assert.unreachable('expected an error');
      } catch (error) {
        assert.instance(error, TypeError);
        assert.match((error as Error).message, /^"options" expected .*, got (maxanswer|thread)$/);
      }
    }
  });
  test('a system message comes before the first question', async () => {
    const chat = await open({ system: 'hh' });
    await ask(chat, 'abc');
    assert.equal(chat.transcript.tokens.slice(0, 5), [7, 7, 0, 1, 2]);
  });
});
