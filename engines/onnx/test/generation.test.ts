// What generate() may be asked for, over the model itself and over two compressed ones: of raw tokens, which must give the same tokens, and
// of the default codecs, which must give as many. The cases are those that transformers.js tries its own models with.

import {
  DynamicCache,
  LogitsProcessor,
  LogitsProcessorList,
  type PreTrainedModel,
  pipeline,
  random,
  StoppingCriteria,
  StoppingCriteriaList,
  Tensor,
  TextStreamer
} from '@huggingface/transformers';
import { openBackend } from 'nsnquant';
import * as assert from 'uvu/assert';
import { RAW_F16 } from '../../../test/tolerance.ts';
import { group } from '../../../tools/group.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import { compress } from '../src/transformers.ts';
import { VOCABULARY } from './exports.ts';
import { forward, type Generated, generate, idsOf, openFolder } from './transformers.ts';

const folder = await openFolder();
const { tokenizer } = folder;
tokenizer.padding_side = 'left';
const backend = await openBackend({ prefer: 'wasm' });
const whole = await folder.load();
const raw = await folder.load();
const coded = await folder.load();
const shared = { source: folder.file, capacity: 1024, backend };
const { cache } = await compress(raw, { ...shared, recent: 8 });
const { cache: codes, sequenceOf } = await compress(coded, shared);

const text = 'hello world, this is a test';
/** Of which the default codecs code windows: balance is learned from the first 128 tokens after the sinks. */
const long = text.repeat(10).slice(0, 260);

type Rows = number[][];

async function rowsOf(model: PreTrainedModel, input: string | string[], options: object): Promise<Rows> {
  random.seed(42);
  const inputs = tokenizer(input, { padding: true });
  const tensor = (await model.generate({ ...inputs, ...options } as never)) as Tensor;
  return (tensor.tolist() as bigint[][]).map(row => row.map(Number));
}

/** Rows of the model itself, after the one of raw tokens gave the same. */
async function same(input: string | string[], options: object, name = JSON.stringify(options)): Promise<Rows> {
  const expected = await rowsOf(whole, input, options);
  assert.equal(await rowsOf(raw, input, options), expected, name);
  return expected;
}

/** What greedy decoding of `text` goes on with: told to stop or to avoid a token, a model must have wanted it. */
const wanted = (await rowsOf(whole, text, { max_new_tokens: 12, eos_token_id: null }))[0]!.slice(text.length);

group('generate() of a compressed model', test => {
  test('is as long as lengths say, which default to 20 tokens in all', async () => {
    for (const [input, options, length] of [
      ['hello', { eos_token_id: null }, 20],
      ['hello', { eos_token_id: null, max_length: 10 }, 10],
      [text, { eos_token_id: null, max_new_tokens: 5 }, text.length + 5],
      [text, { eos_token_id: null, max_new_tokens: 5, max_length: 8 }, text.length + 5],
      [long, { eos_token_id: null, max_new_tokens: 5 }, long.length + 5]
    ] as const) {
      assert.is((await same(input, options))[0]!.length, length);
      assert.is((await rowsOf(coded, input, options))[0]!.length, length);
    }
  });

  test('ends at any of several tokens, but not before it is long enough', async () => {
    // The first time that a token is wanted is where it would end.
    const [first, later] = [wanted[0]!, wanted.find((token, n) => n > 3 && wanted.indexOf(token) === n)!];
    const ends = { eos_token_id: [first, later], max_new_tokens: 12 };
    assert.is((await same(text, ends))[0]!.length, text.length + 1);
    assert.is((await same(text, { ...ends, eos_token_id: later }))[0]!.length, text.length + wanted.indexOf(later) + 1);
    for (const longer of [{ min_new_tokens: 3 }, { min_length: text.length + 3 }]) {
      const [row] = await same(text, { ...ends, ...longer });
      assert.ok(row!.length > text.length + 3 && row![text.length] !== first, JSON.stringify(longer));
    }
  });

  test('passes by bad words: one, many, in part, and longer than the text', async () => {
    const evens = Array.from({ length: VOCABULARY / 2 }, (_, n) => [2 * n]);
    for (const bad of [[[wanted[0]!], [wanted[1]!, wanted[2]!]], [...evens, wanted.slice(1, 3)], [wanted.slice(0, 3)]]) {
      const [row] = await same(text, { bad_words_ids: bad, max_new_tokens: 8, eos_token_id: null });
      assert.not.equal(row!.slice(text.length), wanted.slice(0, 8), JSON.stringify(bad));
    }
    const [row] = await same('hello', { bad_words_ids: [[...new Array(40).fill(0), wanted[0]!]], max_new_tokens: 8, eos_token_id: null });
    assert.equal([row], await rowsOf(whole, 'hello', { max_new_tokens: 8, eos_token_id: null }));
  });

  test('forces tokens, and mixes processors and samplers, from the same seed to the same tokens', async () => {
    for (const options of [
      { forced_bos_token_id: 9 },
      { forced_eos_token_id: 7 },
      { forced_bos_token_id: 9, repetition_penalty: 1.3, no_repeat_ngram_size: 2 },
      { suppress_tokens: wanted.slice(0, 2) },
      { begin_suppress_tokens: wanted.slice(0, 1) },
      { do_sample: true },
      { do_sample: true, temperature: 0.5 },
      { do_sample: true, top_k: 3, repetition_penalty: 1.2 },
      { do_sample: true, top_p: 0.5, temperature: 1.5, bad_words_ids: [[wanted[0]!]] },
      { do_sample: true, num_return_sequences: 2 } // of which transformers.js 4.3 gives one
    ]) {
      const all = { max_new_tokens: 8, eos_token_id: null, ...options };
      assert.is((await same(text, all))[0]!.length, text.length + 8);
      assert.is((await rowsOf(coded, long, all))[0]!.length, long.length + 8);
    }
  });

  test("a sampler's tokens are those of its seed", async () => {
    const draw = async (seed: number) => {
      random.seed(seed);
      const drawn = await generate(raw, [5, 6, 7], { do_sample: true });
      await drawn.past_key_values.dispose();
      return idsOf(drawn);
    };
    assert.equal(await draw(42), await draw(42));
    assert.not.equal(await draw(42), await draw(123));
  });

  test("rows of a batch are what they are alone, padded or not, and the caller's processors see each step of all", async () => {
    class Recording extends LogitsProcessor {
      readonly steps: string[] = [];
      override _call(ids: bigint[][], logits: Tensor): Tensor {
        this.steps.push(`${logits.dims} after ${ids.map(({ length }) => length)}`);
        return logits;
      }
    }
    const options = { max_new_tokens: 4, eos_token_id: null };
    const hear = async (model: PreTrainedModel) => {
      const recording = new Recording();
      const logits_processor = new LogitsProcessorList();
      logits_processor.push(recording);
      return [await rowsOf(model, ['hello', 'world'], { ...options, logits_processor }), recording.steps] as const;
    };
    const expected = await hear(whole);
    assert.equal(await hear(raw), expected);
    assert.equal(
      expected[1],
      [5, 6, 7, 8].map(length => `2,${VOCABULARY} after ${length},${length}`)
    );

    // The model itself does not see where padding is.
    const alone = [await rowsOf(whole, 'hello', options), await rowsOf(whole, text, options)].map(([row]) => row!);
    const padded = [...new Array(text.length - 5).fill(tokenizer.pad_token_id), ...alone[0]!];
    assert.equal(await rowsOf(raw, ['hello', text], options), [padded, alone[1]!]);
    const lengths = (await rowsOf(coded, ['hello', long], options)).map(({ length }) => length);
    assert.equal(lengths, [long.length + 4, long.length + 4]);
  });

  test('streamers are handed the prompt, then each token, then the end; with and without the prompt and control tokens', async () => {
    class Recording extends TextStreamer {
      readonly calls: (string | string[])[] = [];
      override put(rows: bigint[][]): void {
        this.calls.push(rows.map(String));
        super.put(rows);
      }
      override end(): void {
        this.calls.push('end');
        super.end();
      }
    }
    for (const settings of [{}, { skip_prompt: true }, { skip_prompt: true, skip_special_tokens: false }]) {
      const hear = async (model: PreTrainedModel, input: string) => {
        const texts: string[] = [];
        const streamer = new Recording(tokenizer, { ...settings, callback_function: (part: string) => void texts.push(part) });
        await rowsOf(model, input, { max_new_tokens: 6, eos_token_id: null, streamer });
        return [streamer.calls, texts] as const;
      };
      const expected = await hear(whole, text);
      assert.equal(await hear(raw, text), expected);
      assert.is(expected[0].length, 1 + 6 + 1);
      assert.is((await hear(coded, long))[0].length, 1 + 6 + 1);
    }
  });

  test("stops at the first of a list of criteria, its own or the caller's", async () => {
    class Longer extends StoppingCriteria {
      readonly least: number;
      constructor(least: number) {
        super();
        this.least = least;
      }
      override _call(ids: number[][]): boolean[] {
        return ids.map(({ length }) => length >= this.least);
      }
    }
    const list = new StoppingCriteriaList();
    list.extend([new Longer(text.length + 3), new Longer(text.length + 9)] as never);
    for (const [stopping_criteria, tokens] of [
      [new Longer(text.length + 1), 1],
      [list, 3],
      [new Longer(text.length + 9), 5]
    ] as const) {
      const rows = await same(text, { max_new_tokens: 5, eos_token_id: null, stopping_criteria }, `${tokens} tokens`);
      assert.is(rows[0]!.length, text.length + tokens);
    }
  });

  test('goes on from past_key_values as from the whole text', async () => {
    for (const model of [raw, coded]) {
      const first = await generate(model, encode(text), { max_new_tokens: 5 });
      assert.instance(first.past_key_values, DynamicCache);
      const next = [...idsOf(first), ...encode(' and')];
      const options = { max_new_tokens: 3 };
      const { past_key_values } = first;
      const [from, anew, expected] = [
        await generate(model, next, { ...options, past_key_values }),
        await generate(model, next, options),
        await generate(whole, next, options)
      ];
      assert.equal(idsOf(from), idsOf(anew));
      assert.equal(idsOf(from), idsOf(expected)); // too short to be coded
      for (const each of [from, anew]) await each.past_key_values.dispose();
    }
    const first = await generate(coded, encode(long));
    assert.ok(sequenceOf(first.past_key_values).sealed.tokens > 0);
    const { past_key_values } = first;
    const second = await generate(coded, [...idsOf(first), ...encode(long.slice(0, 70))], { max_new_tokens: 3, past_key_values });
    assert.is(idsOf(second).length, 260 + 12 + 70 + 3);
    assert.is(second.past_key_values.get_seq_length(), 260 + 12 + 70 + 2);
    await second.past_key_values.dispose();
  });

  test('asked for no new token gives the prompt and one, as the model itself does', async () => {
    const none = async (model: PreTrainedModel): Promise<Generated> => generate(model, encode(text), { max_new_tokens: 0 });
    const [expected, actual] = [await none(whole), await none(raw)];
    assert.equal(idsOf(actual), idsOf(expected));
    assert.instance(actual.past_key_values, DynamicCache);
    assert.is(actual.past_key_values.get_seq_length(), expected.past_key_values.get_seq_length());
    await actual.past_key_values.dispose();
  });

  test('a call gives logits of all tokens, or of as many of the last as it is told', async () => {
    const all = (await forward(whole, [encode(text)])).logits;
    for (const [kept, rows] of [
      [0, text.length],
      [1, 1],
      [3, 3]
    ] as const) {
      const num_logits_to_keep = new Tensor('int64', BigInt64Array.of(BigInt(kept)), []);
      const { logits, ...presents } = (await raw({ ...tokenizer(text), num_logits_to_keep } as never)) as { logits: Tensor };
      await new DynamicCache(presents).dispose();
      assert.equal(logits.dims, [1, rows, VOCABULARY]);
      const off = relativeL2(logits.data as Float32Array, all.subarray(-rows * VOCABULARY));
      assert.ok(off < RAW_F16, `${kept}: ${off}`);
    }
  });

  test('pipelines take a text, several, and chats, and give the whole text or what is new', async () => {
    const [expected, actual] = [
      await pipeline('text-generation', folder.id, { dtype: 'fp32' }),
      await pipeline('text-generation', folder.id, { dtype: 'fp32' })
    ];
    await compress(actual.model, { ...shared, recent: 8 });
    const chat = [
      { role: 'system', content: 'a' },
      { role: 'user', content: 'b' }
    ];
    for (const [input, options] of [
      ['hello', {}],
      [['hello'], {}],
      ['hello', { return_full_text: false }],
      [['hello'], { return_full_text: false }],
      [['hello', 'world'], {}],
      [chat, {}],
      [[chat], {}],
      [chat, { return_full_text: false }]
    ] as const) {
      const ask = async (generator: typeof expected) => generator(input as never, { max_new_tokens: 3, ...options } as never);
      assert.equal(await ask(actual), await ask(expected), JSON.stringify([input, options]));
    }
    await Promise.all([expected.dispose(), actual.dispose()]);
  });

  test('gives back every sequence that nobody holds', async () => {
    assert.equal(
      [cache, codes].map(({ free }) => free),
      [1024, 1024]
    );
    await Promise.all([whole, raw, coded].map(model => model.dispose()));
    backend.dispose();
    await folder.remove();
  });
});

function encode(words: string): number[] {
  return tokenizer.encode(words);
}
