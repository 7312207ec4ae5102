// Cut models give the logits of whole ones.
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { CUT_F16, CUT_F32 } from '../../../test/tolerance.ts';
import { group } from '../../../tools/group.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import { openOnnx } from '../src/index.ts';
import { type DecoderOptions, exportDecoder } from './exports.ts';
import { RawSequence } from './raw.ts';
import { Whole } from './whole.ts';

const models: Record<string, DecoderOptions> = {
  Llama: {},
  'Llama with biases': { biases: true },
  'packed queries, keys and values': { packed: true },
  'norms of queries and keys, as in Qwen 3': { headNorms: true },
  'two windows of three and two bases, as in Gemma 3': {
    base: layer => (layer === 1 ? 1_000_000 : 10_000),
    attributes: layer => (layer === 1 ? {} : { local_window_size: 7 })
  },
  'softcap and scale': { attributes: () => ({ softcap: { float: 3 }, scale: { float: 0.25 } }) },
  'smooth softmax': { attributes: () => ({ smooth_softmax: 1 }) },
  'sink logits': { sinks: true },
  'interleaved rotation': { attributes: () => ({ rotary_interleaved: 1 }) },
  'half of the channels rotated': { pairs: 8 },
  'a number of logits to keep': { keeps: true },
  'LongRoPE as in Phi-3': { longRope: { original: 30, by: 'attention_mask' }, packed: true },
  'LongRoPE by positions, in f16': { longRope: { original: 20, by: 'position_ids' }, headNorms: true, half: true },
  'LongRoPE without an If': { longRope: { original: 20, by: 'moving' }, headNorms: true },
  'LongRoPE by shapes': { longRope: { original: 35, by: 'shapes' }, attention: 'Attention', mask: 'later' },
  f16: { half: true },
  'weights of 4 bits': { bits: 4 },
  'weights of 8 bits': { bits: 8 },
  MultiHeadAttention: { attention: 'MultiHeadAttention', attributes: () => ({ unidirectional: 1 }) },
  'MultiHeadAttention with biases and a scale': {
    attention: 'MultiHeadAttention',
    biases: true,
    attributes: () => ({ unidirectional: 1, scale: { float: 0.25 } })
  },
  'MultiHeadAttention with a mask': { attention: 'MultiHeadAttention', mask: 'later' },
  'MultiHeadAttention with a window in its mask': { attention: 'MultiHeadAttention', mask: 'later or behind 6' },
  Attention: { attention: 'Attention', attributes: () => ({ is_causal: 1 }) },
  'Attention with a mask, scale and softcap': {
    attention: 'Attention',
    mask: 'later or behind 6',
    attributes: () => ({ scale: { float: 0.25 }, softcap: { float: 3 } })
  },
  'Attention with heads apart': { attention: 'Attention', apart: 'past inside', mask: 'later' },
  'Attention of a past put before it': { attention: 'Attention', apart: 'past outside', mask: 'later' },
  'Attention in f16': { attention: 'Attention', apart: 'past outside', mask: 'later', half: true },
  'a head that is the embedding': { tied: true },
  'a head that is the embedding, in f16 and another file': { tied: true, half: true, external: 'weights' },
  'a head that is the embedding, in 8 bits and another file': { tied: true, bits: 8, external: 'weights' },
  'weights in another file': { external: 'model.onnx_data' }
};

const tokens = Array.from({ length: 40 }, (_, n) => (n * n * 7 + 3 * n) % 211);

group('cut models', test => {
  for (const [title, options] of Object.entries(models)) {
    test(`${title}: logits are those of the whole model`, async () => {
      const exported = exportDecoder(options);
      const externalData = options.external ? { [options.external]: exported.weights } : {};
      const model = await openOnnx(exported.model, { runtime, externalData });
      const whole = await Whole.open(runtime, exported, options.external);
      const sequence = new RawSequence(model.layers);
      for (const part of [tokens.slice(0, 30), tokens.slice(30, 31), tokens.slice(31)]) {
        const expected = await whole.forward(part);
        const actual = await model.forward(part, sequence, { logits: 'all' });
        const off = relativeL2(actual, expected);
        assert.ok(off < (options.half ? CUT_F16 : CUT_F32), `${off}`);
      }
      await model.release();
      await whole.release();
    });
  }
});
