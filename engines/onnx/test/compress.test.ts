// A compressed model of transformers.js says what the model itself says.

import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import {
  AutoModelForCausalLM,
  env,
  type PreTrainedModel,
  pipeline,
  random,
  StoppingCriteria,
  TextStreamer
} from '@huggingface/transformers';
import { openBackend } from 'nsnquant';
import * as assert from 'uvu/assert';
import { CUT_F16, RAW_F16 } from '../../../test/tolerance.ts';
import { group } from '../../../tools/group.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import { compress } from '../src/transformers.ts';
import { VOCABULARY } from './exports.ts';
import { forward, type Generated, generate, idsOf, list, openFolder, prompt } from './transformers.ts';

const folder = await openFolder();
const backend = await openBackend({ prefer: 'wasm' });
const whole = await folder.load();
const model = await folder.load();
/** Nothing here is long enough to be coded, but where a test says so. */
const raw = { source: folder.file, capacity: 4096, recent: 8, sequences: 6, backend };
const compressed = await compress(model, raw);

async function refused(call: () => Promise<unknown>, message: RegExp): Promise<void> {
  try {
    await call();
  } catch (error) {
    assert.match((error as Error).message, message);
    return;
  }
  assert.unreachable(`expected ${message}`);
}

function near(actual: Float32Array, expected: Float32Array, tolerance = RAW_F16): void {
  const off = relativeL2(actual, expected);
  assert.ok(off < tolerance, `${off}`);
}

group('compress()', test => {
  test('generate() gives the tokens of the model itself, over turns with past_key_values', async () => {
    let [expected, actual]: (Generated | undefined)[] = [];
    for (const turn of [prompt(40), prompt(9, 1), prompt(30, 2)]) {
      const [before, own] = [expected ? idsOf(expected) : [], actual ? idsOf(actual) : []];
      expected = await generate(whole, [...before, ...turn], expected ? { past_key_values: expected.past_key_values } : {});
      actual = await generate(model, [...own, ...turn], actual ? { past_key_values: actual.past_key_values } : {});
      assert.equal(idsOf(actual), idsOf(expected));
      assert.is(actual.past_key_values.get_seq_length(), expected.past_key_values.get_seq_length());
    }
    assert.is(compressed.sequenceOf(actual!.past_key_values).length, 40 + 9 + 30 + 3 * 12 - 1);
    await actual!.past_key_values.dispose();
  });

  test('forward() gives logits of every token, and a past goes on as often as it is handed in', async () => {
    const [expected, actual] = [await forward(whole, [prompt(70)]), await forward(model, [prompt(70)])];
    near(actual.logits, expected.logits);
    for (const seed of [3, 4]) {
      const next = [prompt(5, seed)];
      const outputs = await forward(model, next, actual.past);
      near(outputs.logits, (await forward(whole, next, expected.past)).logits);
      await outputs.past.dispose();
    }
    await actual.past.dispose();
  });

  test('streamers hear the same, and stopping criteria stop at the same token', async () => {
    class AtToken extends StoppingCriteria {
      readonly seen: number[] = [];
      override _call(ids: number[][]): boolean[] {
        this.seen.push(ids[0]!.length);
        return ids.map(row => row.length >= 47);
      }
    }
    const hear = async (model: PreTrainedModel) => {
      const texts: string[] = [];
      const streamer = new TextStreamer(folder.tokenizer, { skip_prompt: true, callback_function: text => void texts.push(text) });
      const stop = new AtToken();
      const { past_key_values } = await generate(model, prompt(40), { streamer, stopping_criteria: stop });
      await past_key_values.dispose();
      return { texts, seen: stop.seen };
    };
    const actual = await hear(model);
    assert.equal(actual, await hear(whole));
    assert.is(actual.seen.at(-1), 47);
  });

  test('processors of logits, samplers and what stands for beams choose the same tokens', async () => {
    const token = idsOf(await generate(whole, prompt(40)))[41]!;
    for (const options of [
      { repetition_penalty: 1.5 },
      { no_repeat_ngram_size: 2 },
      { bad_words_ids: [[token]] },
      { eos_token_id: token },
      { eos_token_id: token, min_new_tokens: 5 },
      { do_sample: true, top_k: 5, temperature: 0.7 },
      { num_beams: 2 } // of which transformers.js 4.3 follows one
    ]) {
      const chosen: number[][] = [];
      for (const each of [whole, model]) {
        random.seed(1);
        const generated = await generate(each, prompt(40), options);
        chosen.push(idsOf(generated));
        await generated.past_key_values.dispose();
      }
      assert.equal(chosen[1], chosen[0], JSON.stringify(options));
    }
  });

  test('pipelines answer chats by their template as before, one or several', async () => {
    const generator = await pipeline('text-generation', folder.id, { dtype: 'fp32' });
    const chats = ['what is it', 'well hello how are you there'].map(content => [{ role: 'user', content }]);
    const ask = async (chat: unknown) => JSON.stringify(await generator(chat as never, { max_new_tokens: 9, do_sample: false } as never));
    const expected = [await ask(chats[0]), await ask(chats[1])];
    await compress(generator.model, raw);
    assert.equal([await ask(chats[0]), await ask(chats[1])], expected);
    // The model itself answers a padded row otherwise than it does alone: GroupQueryAttention does not see where padding is.
    assert.is(await ask(chats), `[${expected.join()}]`);
    await generator.dispose();
  });

  test('rows that are padded give what each gives alone, turn by turn', async () => {
    const prompts = [prompt(12), prompt(20, 5)];
    const next = [prompt(3, 6), prompt(3, 7)];
    const padded = [[...new Array(8).fill(0), ...prompts[0]!], prompts[1]!];
    const mask = (columns: number) => [8, 0].map(padding => Array.from({ length: columns }, (_, n) => (n < padding ? 0 : 1)));
    const first = await forward(model, padded, undefined, mask(20));
    const second = await forward(model, next, first.past, mask(23));
    for (const row of [0, 1]) {
      const alone = await forward(whole, [prompts[row]!]);
      near(first.logits.subarray((row === 0 ? 8 : 20) * VOCABULARY, (row + 1) * 20 * VOCABULARY), alone.logits);
      near(
        second.logits.subarray(row * 3 * VOCABULARY, (row + 1) * 3 * VOCABULARY),
        (await forward(whole, [next[row]!], alone.past)).logits
      );
    }
    assert.ok(first.logits.subarray(0, 8 * VOCABULARY).every(logit => logit === 0));
    await second.past.dispose();
    await first.past.dispose();
  });

  test('a conversation is saved, and goes on from what was restored', async () => {
    const first = await generate(model, prompt(40));
    const bytes = await compressed.sequenceOf(first.past_key_values).save();
    const next = [...idsOf(first), ...prompt(4, 8)];
    const expected = await generate(model, next, { past_key_values: first.past_key_values });
    const past = compressed.pastOf(compressed.cache.restore(bytes));
    const actual = await generate(model, next, { past_key_values: past });
    assert.equal(idsOf(actual), idsOf(expected));
    const { sequenceOf, pastOf } = compressed;
    const other = pastOf(sequenceOf(past));
    await past.dispose();
    assert.is(sequenceOf(other).length, other.get_seq_length());
    await other.dispose();
    await expected.past_key_values.dispose();
  });

  test('sequences are given back when a past is disposed, when nobody asked for it, and when nobody holds it any more', async () => {
    const sequences: number[] = [];
    for (let n = 0; n < 8; n++) {
      await model.generate({ input_ids: list([prompt(10)]), max_new_tokens: 3 } as never);
      sequences.push(compressed.cache.free);
    }
    assert.equal(sequences, new Array(8).fill(4096));
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc') as () => void;
    for (let n = 0; n < 5; n++) await forward(model, [prompt(10)]);
    for (let n = 0; n < 100 && compressed.cache.free < 4096; n++) {
      collect();
      await new Promise(resolve => setTimeout(resolve, 1));
    }
    assert.is(compressed.cache.free, 4096);
  });

  test("a model's file is found by what it was loaded from: a folder, or a name in the cache on disk", async () => {
    const [{ cacheDir }, other] = [env, await openFolder({ half: true, external: 'model_fp16.onnx_data' })];
    try {
      env.cacheDir = other.path;
      for (const [source, found, itself] of [
        [folder.id, await folder.load(), whole],
        ['models/tiny', await AutoModelForCausalLM.from_pretrained('models/tiny', { dtype: 'fp16' }), await other.load()]
      ] as const) {
        await compress(found, { ...raw, source });
        const expected = (await forward(itself, [prompt(30)])).logits;
        near((await forward(found, [prompt(30)])).logits, expected, itself === whole ? RAW_F16 : 2 * CUT_F16);
        await found.dispose();
      }
      await refused(
        () => compress(whole, { ...raw, source: 'models/none' }),
        /^"source" expected the model's folder, .*, got models\/none: there is no/
      );
    } finally {
      env.cacheDir = cacheDir;
      await other.remove();
    }
  });

  test('long prompts are coded, in less than a third of f16', async () => {
    const coded = await folder.load();
    const { sequenceOf } = await compress(coded, { source: folder.file, capacity: 4096 });
    const first = await forward(coded, [prompt(450)]);
    const second = await forward(coded, [prompt(1)], first.past);
    const { bytes, tokens } = sequenceOf(second.past).sealed;
    assert.is(tokens, 6 * 64); // after 4 sinks
    assert.ok(bytes < (tokens * 3 * 2 * (32 + 32) * 2) / 3, `${bytes}`);
    await coded.dispose();
  });

  for (const [title, options, config, tolerance] of [
    ['counts positions itself', { headNorms: true }, {}, RAW_F16],
    ['counts positions from 1', { headNorms: true }, { model_type: 'gemma3_text', architectures: ['Gemma3ForCausalLM'] }, RAW_F16],
    ['has windows, and softcaps', { attributes: () => ({ local_window_size: 20, softcap: { float: 3 } }) }, {}, RAW_F16],
    ['is of f16', { half: true }, {}, 2 * CUT_F16]
  ] as const) {
    test(`a model that ${title} gives the logits that it gives itself`, async () => {
      const other = await openFolder(options, config);
      const [itself, own] = [await other.load(), await other.load()];
      await compress(own, { ...raw, source: other.file });
      const [expected, actual] = [await forward(itself, [prompt(40)]), await forward(own, [prompt(40)])];
      near(actual.logits, expected.logits, tolerance);
      near((await forward(own, [prompt(9)], actual.past)).logits, (await forward(itself, [prompt(9)], expected.past)).logits, tolerance);
      await Promise.all([itself.dispose(), own.dispose(), other.remove()]);
    });
  }

  test('masks with gaps, a past from elsewhere, and other files are refused, and change nothing', async () => {
    await refused(
      () => forward(model, [prompt(4)], undefined, [[0, 1, 0, 1]]),
      /^"attention_mask" expected padding before the tokens of row 0 only, got 0 at 2$/
    );
    await refused(
      () =>
        forward(model, [prompt(2), prompt(2)], undefined, [
          [1, 1],
          [0, 0]
        ]),
      /^"attention_mask" expected a token in row 1, got padding alone$/
    );
    const { past } = await forward(model, [prompt(4)]);
    await refused(
      () => forward(model, [prompt(1)], past, [[0, 1, 1, 1, 1]]),
      /^"attention_mask" expected 0 columns of padding in row 0, as before, got 1$/
    );
    await refused(() => forward(model, [prompt(1), prompt(1)], past), /^"input_ids" expected 1 rows \(those of past_key_values\), got 2$/);
    const elsewhere = await forward(whole, [prompt(4)]);
    await refused(
      () => forward(model, [prompt(1)], elsewhere.past),
      /^"past_key_values.0.key" expected a past of this compressed model, got 4 tokens from elsewhere$/
    );
    assert.is(compressed.sequenceOf(past).length, 4);
    await past.dispose();
    await refused(() => forward(model, [prompt(1)], past), /disposed/);
    assert.is(compressed.cache.free, 4096);
    await refused(() => compress({} as never, raw), /^"model" expected a model of transformers.js, got object$/);
    await refused(() => compress(whole, undefined as never), /^"options" expected object, got undefined$/);
    await refused(
      () => compress(whole, { ...raw, source: undefined as never }),
      /^"model" expected bytes, a Blob, a URL or a path, got undefined$/
    );
    await refused(() => compress(whole, { ...raw, capicity: 1 } as never), /^"options" expected only .*, got capicity$/);
    await refused(() => compress(model, raw), /^"model" expected one that is not compressed yet, got one that is$/);
    const deeper = await openFolder({ layers: 4 });
    await refused(
      () => compress(whole, { ...raw, source: deeper.file }),
      /^"source" expected the model's file \(3 layers of 2 × 32\), got 4 of 2 × 32$/
    );
    await deeper.remove();
    await generate(whole, prompt(4)); // has its session
  });

  test('dispose() gives everything back', async () => {
    await model.dispose();
    assert.throws(() => compressed.cache.sequence(), /disposed/);
    await whole.dispose();
    backend.dispose();
    await folder.remove();
  });
});
