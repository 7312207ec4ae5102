// forward(): batches, calls that fail, calls at once, and nsnquant's own cache.

import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { CODED_LOGITS, CUT_F32, RAW_F16 } from '../../../test/tolerance.ts';
import { group } from '../../../tools/group.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import { openOnnx } from '../src/index.ts';
import { exportDecoder, VOCABULARY } from './exports.ts';
import { RawSequence } from './raw.ts';

const backend = await openBackend({ prefer: 'wasm' });
const model = await openOnnx(exportDecoder({ headNorms: true }).model, { runtime });
const masked = await openOnnx(exportDecoder({ attention: 'Attention', mask: 'later' }).model, { runtime });
const keeping = await openOnnx(exportDecoder({ keeps: true }).model, { runtime });
const turning = await openOnnx(exportDecoder({ longRope: { original: 16, by: 'attention_mask' } }).model, { runtime });
const moving = await openOnnx(exportDecoder({ longRope: { original: 16, by: 'moving' }, headNorms: true }).model, { runtime });
const halves = await openOnnx(exportDecoder({ half: true }).model, { runtime });
const tokens = Array.from({ length: 150 }, (_, n) => (n * n * 7 + 3 * n) % VOCABULARY);

group('forward', test => {
  test('a batch gives what its sequences give one by one, whatever their lengths', async () => {
    for (const each of [model, masked, keeping, turning, moving]) {
      const lists = [tokens.slice(0, 9), tokens.slice(20, 21), tokens.slice(30, 34)];
      const batch = lists.map(() => new RawSequence(each.layers));
      const single = lists.map(() => new RawSequence(each.layers));
      for (const which of ['all', 'last'] as const) {
        const together = await each.forward(lists, batch, { logits: which });
        for (const [n, list] of lists.entries()) {
          const alone = await each.forward(list, single[n]!, { logits: which });
          assert.is(together[n]!.length, VOCABULARY * (which === 'all' ? list.length : 1));
          assert.is(together[n]!.length, alone.length);
          assert.ok(relativeL2(together[n]!, alone) < CUT_F32);
        }
      }
      assert.equal(
        batch.map(({ length }) => length),
        [18, 2, 8]
      );
    }
  });

  test("nsnquant's cache gives the logits of exact attention while its tokens are raw, and comes near them when they are coded", async () => {
    for (const each of [model, halves, turning]) {
      const sequence = each.cache(backend, { capacity: 192 }).sequence();
      const exact = new RawSequence(each.layers);
      const prompt = [
        await each.forward(tokens, sequence, { logits: 'all' }),
        await each.forward(tokens, exact, { logits: 'all' })
      ] as const;
      assert.ok(relativeL2(...prompt) < RAW_F16, `${relativeL2(...prompt)}`);
      const next = [await each.forward([7], sequence), await each.forward([7], exact)] as const;
      assert.ok(sequence.sealed.tokens > 0);
      const off = relativeL2(...next);
      assert.ok(off > RAW_F16 && off < CODED_LOGITS, `${off}`);
    }
  });

  test('keys keep the table of the call that they came with, while they are raw and when they are coded', async () => {
    const sequence = turning.cache(backend, { capacity: 192 }).sequence();
    const exact = new RawSequence(turning.layers);
    for (const [from, to] of [
      [0, 12],
      [12, 16],
      [16, 17],
      [17, 60],
      [60, 150]
    ] as const) {
      const part = tokens.slice(from, to);
      const off = relativeL2(await turning.forward(part, sequence), await turning.forward(part, exact));
      assert.ok(off < (sequence.sealed.tokens > 0 ? CODED_LOGITS : RAW_F16), `${off}`);
    }
  });

  test('calls at once wait for one another', async () => {
    const [one, other] = [new RawSequence(model.layers), new RawSequence(model.layers)];
    const results = await Promise.all([model.forward([1, 2], one), model.forward([3], one), model.forward([1, 2, 3], other)]);
    assert.is(one.length, 3);
    assert.ok(relativeL2(results[1]!, results[2]!) < CUT_F32);
  });

  test('a call that throws leaves sequences as they were', async () => {
    const cache = model.cache(backend, { capacity: 32, sequences: 3 });
    const [one, other] = [cache.sequence(), cache.sequence()];
    await model.forward([tokens.slice(0, 8), tokens.slice(0, 4)], [one, other]);
    const fork = one.fork();
    const before = await model.forward([5], fork);
    fork.dispose();
    try {
      await model.forward([[1, 2], tokens.slice(0, 30)], [one, other]);
      assert.unreachable('there is no room for 30');
    } catch (error) {
      assert.match(`${error}`, /RangeError: "capacity" expected at most 32 tokens/);
    }
    assert.equal([one.length, other.length], [8, 4]);
    assert.equal(await model.forward([5], one), before);
  });

  test('a sequence twice in a batch, and a model that was released, are refused', async () => {
    const other = await openOnnx(exportDecoder().model, { runtime });
    const sequence = new RawSequence(other.layers);
    const refused = async (run: () => Promise<unknown>): Promise<string> => {
      try {
        await run();
      } catch (error) {
        return (error as Error).message;
      }
      return 'done';
    };
    assert.is(
      await refused(() => other.forward([[1], [2]], [sequence, sequence])),
      '"sequences" expected distinct sequences, got one again'
    );
    await other.release();
    await other.release();
    assert.is(await refused(() => other.forward([1], sequence)), '"model" expected to be open, got one that was released');
  });

  test('tokens that the model does not have are refused', async () => {
    const sequence = new RawSequence(model.layers);
    for (const [list, message] of [
      [[VOCABULARY], `"tokens[0]" expected integer from 0 to ${VOCABULARY - 1}, got ${VOCABULARY}`],
      [[1, 0.5], `"tokens[1]" expected integer from 0 to ${VOCABULARY - 1}, got 0.5`],
      [[], '"tokens" expected length from 1 to 512 (positions of the model), got 0'],
      [new Array(513).fill(1), '"tokens" expected length from 1 to 512 (positions of the model), got 513']
    ] as const) {
      try {
        await model.forward(list, sequence);
        assert.unreachable(message);
      } catch (error) {
        assert.is((error as Error).message, message);
      }
    }
    assert.is(sequence.length, 0);
  });
});
