// Weights that stay in 4 bits: the same numbers in another order, and a model whose logits are those of f32 weights.
import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { SequenceCache } from '../src/cache.ts';
import { dequantize, tensorTypes } from '../src/dequantize.ts';
import type { OnnxRuntime } from '../src/host.ts';
import { openGguf } from '../src/open.ts';
import { isSmall, repack } from '../src/small.ts';

const backend = await openBackend({ prefer: 'wasm' });

group('4-bit weights', test => {
  for (const type of Object.values(tensorTypes).filter(isSmall)) {
    test(`of ${type.name} are scale · (code − 8) + offset`, () => {
      const data = Uint8Array.from({ length: 3 * type.bytes }, (_, i) => i * i * 37 + i * 11 + 5);
      const view = new DataView(data.buffer);
      for (let block = 0; block < 3; block++) {
        view.setUint16(block * type.bytes, 0x2e66 + block, true);
        if (type.name !== 'Q4_0') view.setUint16(block * type.bytes + 2, 0xb000 + block, true);
      }
      const expected = dequantize(type, data, 3 * type.block);
      const { codes, scales, offsets } = repack(type, data);
      for (const [i, value] of expected.entries()) {
        const code = (codes[i >> 1]! >> (i & 1 ? 4 : 0)) & 15;
        const block = Math.floor(i / 32);
        const got = scales[block]! * (code - 8) + offsets[block]!;
        // Three roundings to f32, of numbers as large as the block's largest.
        assert.ok(Math.abs(got - value) <= 16 * Math.abs(scales[block]!) * 2 ** -23, `${i}: ${got} for ${value}`);
      }
    });
  }
  test('have the names that the README gives', () =>
    assert.equal(
      Object.values(tensorTypes)
        .filter(isSmall)
        .map(({ name }) => name),
      ['Q4_0', 'Q4_1', 'Q4_K']
    ));

  test('are for the native runtime unless told otherwise', async () => {
    const file = tinyGguf({ type: 2 });
    for (const [env, expected] of [
      [{ versions: { node: '1' } }, true],
      [{ versions: { web: '1' } }, false],
      [undefined, false]
    ] as const) {
      let used = false;
      const create: OnnxRuntime['InferenceSession']['create'] = (model, options) => {
        used ||= new TextDecoder('latin1').decode(model).includes('MatMulNBits');
        return runtime.InferenceSession.create(model, options);
      };
      await openGguf(file, { runtime: { Tensor: runtime.Tensor, InferenceSession: { create }, ...(env && { env }) } as OnnxRuntime });
      assert.is(used, expected);
    }
  });

  for (const type of [2, 3]) {
    test(`give the logits of f32 weights: ${tensorTypes[type]!.name}`, async () => {
      const file = tinyGguf({ type });
      const logits = async (smallWeights: boolean) => {
        let used = 0;
        const watched: OnnxRuntime = {
          ...runtime,
          InferenceSession: {
            create(model, options) {
              if (new TextDecoder('latin1').decode(model).includes('MatMulNBits')) used++;
              return runtime.InferenceSession.create(model, options);
            }
          }
        };
        const model = await openGguf(file, { runtime: watched, smallWeights });
        const cache = new SequenceCache(backend, model.config, { capacity: 16, maxAppend: 16 });
        const hidden = await model.forward([3, 1, 4, 1, 5], cache);
        return { used, logits: await model.logits(hidden.slice(-model.config.width)) };
      };
      const [small, large] = [await logits(true), await logits(false)];
      assert.equal([small.used, large.used], [4, 0], 'the head, and each segment');
      for (const [i, logit] of large.logits.entries()) {
        assert.ok(Math.abs(small.logits[i]! - logit) < 1e-4, `logit ${i}: ${small.logits[i]} for ${logit}`);
      }
      assert.ok(large.logits.some(logit => Math.abs(logit) > 0.1));
    });
  }
});
