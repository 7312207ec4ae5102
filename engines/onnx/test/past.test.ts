// A model's own past, compressed and expanded: what was coded aside, it goes on as if nothing had happened.
import { DynamicCache, Tensor } from '@huggingface/transformers';
import { openBackend } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { fromHalf } from '../src/constants.ts';
import { PastStore } from '../src/transformers.ts';

import { forward, generate, idsOf, openFolder, prompt } from './transformers.ts';

const backend = await openBackend({ prefer: 'wasm' });

async function refused(call: () => unknown, message: RegExp): Promise<void> {
  try {
    await call();
  } catch (error) {
    assert.ok(message.test((error as Error).message), (error as Error).message);
    return;
  }
  assert.unreachable(`expected ${message}`);
}

/** Nothing is coded: tokens are as f16 kept them. */
const raw = { capacity: 2048, recent: 8 };

for (const half of [false, true]) {
  const folder = await openFolder({ half });
  const model = await folder.load();

  group(`PastStore, ${half ? 'f16' : 'f32'}`, test => {
    test('a past is compressed turn by turn, and what it is expanded to gives the same tokens', async () => {
      const store = new PastStore(model, backend, raw);
      const first = await generate(model, prompt(30));
      const chat = await store.compress(first.past_key_values);
      assert.is(chat.length, 30 + 11);
      const next = [...idsOf(first), ...prompt(7, 1)];
      const expected = await generate(model, next, { past_key_values: first.past_key_values });
      const past = await store.expand(chat);
      const actual = await generate(model, next, { past_key_values: past });
      assert.equal(idsOf(actual), idsOf(expected));
      assert.is(await store.compress(actual.past_key_values, chat), chat);
      assert.is(chat.length, 42 + 7 + 11);
      store.cache.dispose();
    });

    test('expanded tensors are the numbers that came, rounded to f16, in the type that is asked for', async () => {
      const store = new PastStore(model, backend, raw);
      const { past } = await forward(model, [prompt(90)]);
      const chat = await store.compress(firstOf(past, 20));
      await store.compress(past, chat);
      const bits = await store.expand(chat, 'float16');
      const floats = await store.expand(chat, 'float32');
      for (const name of Object.keys(past)) {
        assert.equal(bits[name]!.dims, past[name]!.dims);
        if (half) assert.equal(bitsOf(bits[name]!), bitsOf(past[name]!));
        else assert.ok(rounds(floats[name]!.data as Float32Array, past[name]!.data as Float32Array));
        assert.ok(rounds(floats[name]!.data as Float32Array, Float32Array.from(bitsOf(bits[name]!), fromHalf)));
      }
      store.cache.dispose();
    });

    test('what is coded is small; forks and files go on from it', async () => {
      const store = new PastStore(model, backend, { capacity: 2048 });
      const { past } = await forward(model, [prompt(452)]);
      const chat = await store.compress(past);
      assert.is(chat.sealed.tokens, 448); // after 4 sinks
      assert.ok(chat.sealed.bytes < (448 * 3 * 2 * (32 + 32) * 2) / 3, `${chat.sealed.bytes}`);
      const copies = [chat.fork(), store.cache.restore(await chat.save())];
      const expected = await store.expand(chat, 'float16');
      for (const copy of copies) {
        const actual = await store.expand(copy, 'float16');
        for (const name of Object.keys(past)) assert.equal(bitsOf(actual[name]!), bitsOf(expected[name]!));
      }
      store.cache.dispose();
    });

    test('a past of another model, of several rows, or shorter than the sequence is refused, and nothing changes', async () => {
      const store = new PastStore(model, backend, { capacity: 128, sequences: 1 });
      const { past } = await forward(model, [prompt(20)]);
      const { past: two } = await forward(model, [prompt(20), prompt(20)]);
      await refused(() => store.compress(two), /^"past_key_values.0.key" expected dims 1,2,20,32, got 2,2,20,32$/);
      const other = (past: DynamicCache, name: string) => new DynamicCache({ ...past, [name]: past['past_key_values.0.key']! });
      await refused(
        () => store.compress(other(past, 'past_conv.0')),
        /^"past" expected only past_key_values.0.key to past_key_values.2.value, got past_conv.0$/
      );
      await refused(() => store.compress(new DynamicCache()), /^"past" expected a Tensor past_key_values.0.key, got undefined$/);
      const { past: long } = await forward(model, [prompt(129)]);
      await refused(() => store.compress(long), /128/);
      const chat = await store.compress(past);
      await refused(() => store.compress(long, chat), /128/);
      assert.is(chat.length, 20);
      const { past: short } = await forward(model, [prompt(19)]);
      await refused(() => store.compress(short, chat), /^"past" expected at least 20 tokens \(those of the sequence\), got 19$/);
      if (!half) {
        const infinite = new DynamicCache({ ...(await forward(model, [prompt(21)])).past });
        const { dims } = infinite['past_key_values.1.value']!;
        infinite['past_key_values.1.value'] = new Tensor('float32', new Float32Array(2 * 21 * 32).fill(Infinity), dims);
        await refused(() => store.compress(infinite, chat), /from −65504 to 65504, got Infinity/);
        assert.is(chat.length, 20);
        assert.is(chat.tokens(0), 20);
      }
      await refused(() => store.expand(chat, 'int8' as never), /^"type" expected float32 or float16, got int8$/);
      store.cache.dispose();
    });

    test('the model is given back', async () => {
      await model.dispose();
      await folder.remove();
    });
  });
}

function bitsOf({ data }: Tensor): number[] {
  const { buffer, byteOffset, length } = data as Uint16Array;
  return Array.from(new Uint16Array(buffer, byteOffset, length));
}

/** Whether every number is the other rounded to f16: half a step of it, 2⁻¹¹ of the number or 2⁻²⁵, is the most that it may be off. */
function rounds(actual: Float32Array, expected: Float32Array): boolean {
  return (
    actual.length === expected.length &&
    actual.every((x, n) => Math.abs(x - expected[n]!) <= Math.max(Math.abs(expected[n]!) * 2 ** -11, 2 ** -25))
  );
}

/** The first tokens of a past. */
function firstOf(past: DynamicCache, tokens: number): DynamicCache {
  const cut = Object.entries(past).map(([name, tensor]) => [name, tensor.slice(null, null, [0, tokens], null)]);
  return new DynamicCache(Object.fromEntries(cut));
}
