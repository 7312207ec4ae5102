// The engine on a tiny model: what it refuses, and that it computes a Llama.

import { KVCache, openBackend, type Rope } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tiny, tinyGguf } from '../../../tools/tiny-gguf.ts';
import { readGguf } from '../src/gguf.ts';
import type { Cache } from '../src/model.ts';
import { openGguf } from '../src/open.ts';
import { blobSource } from '../src/source.ts';
import { tinySource } from './tiny.ts';

group('GGUF', test => {
  test('a file of another architecture is refused with what would work', () =>
    refuses(
      () => readGguf(tinySource({ metadata: { 'general.architecture': 'mamba' } })),
      'tiny.gguf: expected a model of one of the architectures llama, qwen2, qwen3, smollm3, phi3, gemma2, gemma3, got mamba'
    ));
  test('a file that is no GGUF is refused', () =>
    refuses(
      () => readGguf(blobSource(new Blob(['no model']), 'notes.txt')),
      /^notes\.txt: expected a GGUF file, got one whose header cannot be read/
    ));
  test('an empty file is refused', () =>
    refuses(
      () => readGguf(blobSource(new Blob([]), 'empty.gguf')),
      /^empty\.gguf: expected a complete header, got a file that ends after 0 bytes/
    ));
  test('a file cut in its weights is refused with its size and what is needed', () => {
    const whole = tinyGguf();
    return refuses(
      () => readGguf(blobSource(new Blob([whole.subarray(0, whole.length - 1)]), 'tiny.gguf')),
      new RegExp(
        `^tiny\\.gguf: expected at least ${whole.length.toLocaleString('en-US')} bytes, got a file that ends after ${(whole.length - 1).toLocaleString('en-US')} bytes; it is cut short`
      )
    );
  });
  test('a file cut in its header is refused wherever the cut is', async () => {
    const whole = tinyGguf();
    for (const length of [1, 4, 5, 20, 40, 100, 333, 700, 1200]) {
      await refuses(() => readGguf(blobSource(new Blob([whole.subarray(0, length)]), 'tiny.gguf')), /^tiny\.gguf: expected/);
    }
  });
  test('a missing tensor is named', () =>
    refuses(
      () => readGguf(tinySource({ without: ['blk.1.ffn_up.weight'] })),
      /^tiny\.gguf: expected tensor "blk\.1\.ffn_up\.weight", got a file without it$/
    ));
  test('a damaged size is named before anything is made of it', async () => {
    for (const [metadata, message] of [
      [
        { 'llama.embedding_length': 64 + 130 * 2 ** 24 },
        /^tiny\.gguf: "llama\.embedding_length" expected 64 \(the columns of token_embd\.weight\), got 2181038144$/
      ],
      [{ 'llama.block_count': 2 ** 31 }, /^tiny\.gguf: expected tensor "blk\.2\.attn_norm\.weight", got a file without it$/],
      [{ 'llama.attention.head_count': 0 }, /^tiny\.gguf: "llama\.attention\.head_count" expected integer of at least 1, got 0$/],
      [
        { 'llama.attention.head_count_kv': 3 },
        /^tiny\.gguf: "llama\.attention\.head_count_kv" expected a divisor of 2 \(the query heads\), got 3$/
      ],
      [
        { 'llama.attention.key_length': 2 ** 31 },
        /^tiny\.gguf: "llama\.attention\.key_length" expected multiple of 8 from 32 to 512, got 2147483648$/
      ],
      [
        { 'llama.attention.layer_norm_rms_epsilon': -0.5 },
        /^tiny\.gguf: "llama\.attention\.layer_norm_rms_epsilon" expected number above 0, got -0\.5$/
      ],
      [
        { 'llama.rope.dimension_count': 66 },
        /^tiny\.gguf: "llama\.rope\.dimension_count" expected even integer up to 32 \(the channels of a head\), got 66$/
      ]
    ] as const)
      await refuses(() => readGguf(tinySource({ metadata })), message);
  });
  test('a part of a model, and what only goes with one, are refused', async () => {
    for (const [metadata, message] of [
      [{ 'split.count': 3, 'split.no': 1 }, 'tiny.gguf: expected a whole model, got part 2 of 3; hand in all its files, in order'],
      [{ 'general.type': 'adapter' }, 'tiny.gguf: "general.type" expected model, got adapter']
    ] as const)
      await refuses(() => readGguf(tinySource({ metadata })), message);
    await readGguf(tinySource({ metadata: { 'split.count': 1, 'general.type': 'model' } }));
  });
  test('a file of the other byte order is refused', () => {
    const bytes = tinyGguf();
    new DataView(bytes.buffer).setUint32(4, 3, false);
    return refuses(
      () => readGguf(blobSource(new Blob([bytes]), 'tiny.gguf')),
      'tiny.gguf: expected a little-endian file, got a big-endian one'
    );
  });
  test('rows that are no whole blocks are refused', () =>
    refuses(
      () => readGguf(tinySource({ type: 12 })),
      'tiny.gguf: tensor "token_embd.weight" expected rows of whole blocks (256 elements of Q4_K), got 64 elements'
    ));
  test('more tokens than the matrix has rows are refused', () =>
    refuses(
      () => openGguf(tinySource({ control: ['<|bos|>', '<|eos|>'], rows: 9 }), { runtime }),
      'tiny.gguf: tokenizer expected at most 9 tokens (rows of token_embd.weight), got 10'
    ));
  test('a source that gives fewer bytes than it was asked for is refused', async () => {
    const source = tinySource();
    const gguf = await readGguf({ ...source, read: (begin, end) => source.read(begin, Math.min(end, source.size - 1)) });
    await refuses(
      () => gguf.floats('blk.1.ffn_down.weight', 96, 64),
      /^tiny\.gguf: expected 24576 bytes at \d+, got 24575; the file was changed, open it again$/
    );
  });
  test('a tensor of an unknown type is named with the types that work', () =>
    refuses(
      () => readGguf(tinySource({ type: 10 })),
      /tensor "token_embd\.weight" expected one of the types F32, .*Q4_1.*, got Q2_K; convert/
    ));
  test('a tensor of another shape is named with both shapes', () =>
    refuses(
      () => openGguf(tinySource({ shapes: { 'blk.0.attn_k.weight': [64, 64] } }), { runtime }),
      /tensor "blk\.0\.attn_k\.weight" expected shape \[64, 32\], got \[64, 64\]/
    ));
  test('a tokenizer of another kind is refused', () =>
    refuses(
      () => openGguf(tinySource({ metadata: { 'tokenizer.ggml.model': 'bert' } }), { runtime }),
      /^tiny\.gguf: tokenizer expected llama, or gpt2 with one of gpt-2, .*qwen2.*, got bert with gpt-2$/
    ));
});

group('what changes the result', test => {
  test('a tensor that would be left out is named', async () => {
    for (const [name, shape, more] of [
      ['blk.1.ffn_down.bias', [64], ''],
      ['blk.1.attn_k_norm.weight', [32], ''],
      ['output.bias', [8], ''],
      ['rope_factors_long.weight', [16], ''],
      ['blk.2.attn_norm.weight', [64], ' and 1 more']
    ] as const) {
      const extra = { [name]: shape, ...(more && { 'blk.2.attn_q.weight': [64, 64] }) };
      await refuses(
        () => readGguf(tinySource({ extra })),
        `tiny.gguf: expected a model that does without tensor "${name}", which this engine lacks, got one of shape [${shape.join(', ')}]${more}`
      );
    }
  });
  test('metadata that would be left out is named, and what is off is none', async () => {
    for (const [key, value, said] of [
      ['attn_logit_softcapping', 50.5, '50.5'],
      ['final_logit_softcapping', 30.5, '30.5'],
      ['attention.scale', 0.5, '0.5'],
      ['logit_scale', 0.25, '0.25'],
      ['rope.scaling.yarn_log_multiplier', 0.5, '0.5'],
      ['rope.dimension_sections', [8, 8], '[8, 8]']
    ] as const) {
      await refuses(
        () => readGguf(tinySource({ metadata: { [`llama.${key}`]: value } })),
        `tiny.gguf: expected a model that does without "llama.${key}", which this engine lacks, got ${said}`
      );
    }
    const off = { 'llama.attention.sliding_window': 0, 'llama.use_parallel_residual': false, 'llama.expert_count': 0 };
    await readGguf(tinySource({ metadata: { ...off, 'llama.vocab_size': 8, 'llama.attention.causal': true } }));
  });
  test('metadata that changes the result is used or refused', async () => {
    for (const [key, value, expected] of [
      ['attention.causal', false, 'true, got false'],
      ['attention.value_length', 64, '32 (the channels of a key), got 64'],
      ['rope.scaling.type', 'yarn', 'linear or none, got yarn'],
      ['expert_count', 8, '0 (a dense model), got 8'],
      ['attention.head_count_kv', [1, 2], 'a divisor of 2 (the query heads), got [1, 2]'],
      ['context_length', 0, 'integer of at least 1, got 0'],
      ['feed_forward_length', 'many', 'integer of at least 1, got many']
    ] as const) {
      await refuses(
        () => readGguf(tinySource({ metadata: { [`llama.${key}`]: value } })),
        `tiny.gguf: "llama.${key}" expected ${expected}`
      );
    }
    assert.is((await readGguf(tinySource({ metadata: { 'llama.attention.head_count_kv': [1, 1] } }))).config.kvHeads, 1);
  });
  test('positions are stretched by the factor that the file gives, with its type or without', async () => {
    const slowest = async (metadata: object) =>
      (((await readGguf(tinySource({ metadata: { ...metadata } }))).config.attention[0]!.rope as Rope).invFreq as Float64Array).at(-1)!;
    const plain = await slowest({});
    for (const metadata of [
      { 'llama.rope.scaling.type': 'linear', 'llama.rope.scaling.factor': 4 },
      { 'llama.rope.scaling.factor': 4 },
      { 'llama.rope.scale_linear': 4 }
    ])
      assert.is(await slowest(metadata), plain / 4);
    assert.is(await slowest({ 'llama.rope.scaling.type': 'none', 'llama.rope.scaling.factor': 4 }), plain);
    await refuses(
      () => readGguf(tinySource({ extra: { 'rope_freqs.weight': [8] } })),
      'tiny.gguf: tensor "rope_freqs.weight" expected 16 elements (a factor for each pair), got 8'
    );
  });
});

/** A Llama in plain loops, f64, all tokens at once: logits of the last. */
async function plain(tokens: readonly number[]): Promise<Float64Array> {
  const gguf = await readGguf(tinySource());
  const { width, heads, kvHeads, headDim, inner, vocabulary, layers } = tiny;
  const { invFreq } = gguf.config.attention[0]!.rope as Rope;
  const product = (x: Float64Array, weights: Float32Array, rows: number): Float64Array =>
    Float64Array.from({ length: rows }, (_, row) => x.reduce((sum, value, i) => sum + value * weights[row * x.length + i]!, 0));
  const norm = (x: Float64Array, weights: Float32Array): Float64Array => {
    const scale = Math.sqrt(x.reduce((sum, value) => sum + value * value, 0) / x.length + 1e-5);
    return x.map((value, i) => (value / scale) * weights[i]!);
  };
  const rotate = (x: Float64Array, position: number): Float64Array => {
    const out = x.slice();
    for (let i = 0; i < x.length; i += 2) {
      const angle = position * invFreq[(i % headDim) / 2]!;
      out[i] = x[i]! * Math.cos(angle) - x[i + 1]! * Math.sin(angle);
      out[i + 1] = x[i + 1]! * Math.cos(angle) + x[i]! * Math.sin(angle);
    }
    return out;
  };
  const embeddings = await gguf.floats('token_embd.weight', width, vocabulary);
  let xs = tokens.map(token => Float64Array.from(embeddings.subarray(token * width, (token + 1) * width)));
  for (let layer = 0; layer < layers; layer++) {
    const load = (part: string, columns: number, rows?: number) => gguf.floats(`blk.${layer}.${part}.weight`, columns, rows);
    const [n1, wq, wk, wv, wo, n2, wg, wu, wd] = [
      await load('attn_norm', width),
      await load('attn_q', width, heads * headDim),
      await load('attn_k', width, kvHeads * headDim),
      await load('attn_v', width, kvHeads * headDim),
      await load('attn_output', heads * headDim, width),
      await load('ffn_norm', width),
      await load('ffn_gate', width, inner),
      await load('ffn_up', width, inner),
      await load('ffn_down', inner, width)
    ] as const;
    const normed = xs.map(x => norm(x, n1));
    const qs = normed.map((x, t) => rotate(product(x, wq, heads * headDim), t));
    const ks = normed.map((x, t) => rotate(product(x, wk, kvHeads * headDim), t));
    const vs = normed.map(x => product(x, wv, kvHeads * headDim));
    xs = xs.map((x, t) => {
      const attention = new Float64Array(heads * headDim);
      for (let head = 0; head < heads; head++) {
        const q = qs[t]!.subarray(head * headDim, (head + 1) * headDim);
        const weights = ks.slice(0, t + 1).map(k => Math.exp(q.reduce((sum, value, i) => sum + value * k[i]!, 0) / Math.sqrt(headDim)));
        const total = weights.reduce((sum, weight) => sum + weight, 0);
        for (const [s, weight] of weights.entries()) {
          for (const [i, value] of vs[s]!.entries()) attention[head * headDim + i]! += (weight / total) * value;
        }
      }
      const middle = product(attention, wo, width).map((value, i) => value + x[i]!);
      const n = norm(middle, n2);
      const gate = product(n, wg, inner).map(value => value / (1 + Math.exp(-value)));
      const gated = product(n, wu, inner).map((value, i) => value * gate[i]!);
      return product(gated, wd, width).map((value, i) => value + middle[i]!);
    });
  }
  return product(norm(xs.at(-1)!, await gguf.floats('output_norm.weight', width)), embeddings, vocabulary);
}

const model = await openGguf(tinySource(), { runtime });
const backend = await openBackend();

/** nsnquant's cache behind the calls that the model makes. What is shorter than a window stays as it is, in f16. */
function openCache(): Cache {
  const sequence = new KVCache(backend, { layers: model.config.attention, capacity: 16, maxAppend: 16 }).sequence();
  return {
    get length() {
      return sequence.length;
    },
    append: (layer, keys, values) => sequence.append(layer, keys, values),
    attend: (layer, query) => sequence.attend(layer, query).read()
  };
}

group('model', test => {
  const tokens = [3, 1, 4, 1, 5, 2, 6];
  test('logits are those of a Llama in plain loops, of tokens at once and one by one', async () => {
    const expected = await plain(tokens);
    for (const step of [tokens.length, 1]) {
      const cache = openCache();
      let hidden = new Float32Array();
      for (let from = 0; from < tokens.length; from += step) hidden = (await model.forward(tokens.slice(from, from + step), cache)).slice();
      const logits = await model.logits(hidden.slice(-tiny.width));
      for (const [i, logit] of expected.entries()) {
        assert.ok(Math.abs(logits[i]! - logit) < 2e-3, `${step} at a time, logit ${i}: ${logits[i]} for ${logit}`);
      }
    }
  });
  test('more tokens than the context are refused', () =>
    refuses(
      () => model.forward(new Array(65).fill(1), { length: 0 } as Cache),
      /^expected at most 64 tokens \(the model's context\), got 65$/
    ));
});
