// Every architecture on tiny random models: logits are those of its published formulas in f64, and what a file says is used.
import { type Backend, openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { relativeL2 } from '../../../tools/numbers.ts';
import { refuses } from '../../../tools/refuses.ts';
import { llamaParts, type TinyOptions, tiny, tinyTensors, tinyWeights } from '../../../tools/tiny-gguf.ts';
import { SequenceCache } from '../src/cache.ts';
import type { Attention } from '../src/config.ts';
import type { Cache, Model } from '../src/model.ts';
import { openGguf } from '../src/open.ts';
import { gelu, type Plain, plainLogits, silu, type Weights } from './plain.ts';
import { tinySource } from './tiny.ts';

/** ‖error‖ / ‖logits‖ that f32 makes, a layer: 6e-7 at most. */
const F32 = 2e-6;
/** The same where a cache keeps raw windows as f16, whose rounding is 2⁻¹¹: 5e-4 at most. */
const F16 = 1e-3;
/** What a model must be off without one of its parts: so many times what f32 is forgiven. */
const MISSED = 500;

interface Case {
  readonly title: string;
  readonly options: TinyOptions & { readonly architecture: string };
  readonly plain: Partial<Plain>;
  /** What the same model would be without one of its parts. */
  readonly without: Readonly<Record<string, Partial<Plain>>>;
  /** Of `openGguf`. */
  readonly context?: number;
}

/** Weights that attention and every norm depend on: uniform from −½ to ½, around 1 in norms and around 2 where they are divided by. */
function weight(tensor: string, index: number): number {
  const x = Math.sin(index * 12.9898) * 43758.5453;
  const uniform = x - Math.floor(x) - 0.5;
  return uniform + (tensor.includes('norm') ? 1 : tensor.includes('factors') ? 2 : 0);
}

const { width, heads, kvHeads, inner, headDim } = tiny;
const turns =
  (base: number, dims = headDim, factors?: readonly number[]) =>
  (_: number, pair: number) =>
    base ** ((-2 * pair) / dims) / (factors?.[pair] ?? 1);
const everywhere = () => Infinity;
const norms = { 'post_attention_norm.weight': [width], 'post_ffw_norm.weight': [width] };
const headNorms = (dim: number) => ({ 'attn_q_norm.weight': [dim], 'attn_k_norm.weight': [dim] });
const biases = { 'attn_q.bias': [heads * headDim], 'attn_k.bias': [kvHeads * headDim], 'attn_v.bias': [kvHeads * headDim] };
const gemma: Partial<Plain> = { halves: true, activation: gelu, embeddingScale: Math.sqrt(width) };

const packed = {
  'attn_norm.weight': [width],
  'attn_qkv.weight': [width, (heads + 2 * kvHeads) * headDim],
  'attn_output.weight': [heads * headDim, width],
  'ffn_norm.weight': [width],
  'ffn_up.weight': [width, 2 * inner],
  'ffn_down.weight': [inner, width]
};
const phi3: TinyOptions & { architecture: string } = {
  architecture: 'phi3',
  parts: packed,
  extra: { 'rope_factors_long.weight': [12], 'rope_factors_short.weight': [12], 'output.weight': [width, tiny.vocabulary] },
  metadata: {
    'phi3.rope.dimension_count': 24,
    'phi3.rope.scaling.original_context_length': 32,
    'phi3.rope.scaling.attn_factor': 1.25,
    'phi3.attention.sliding_window': 5
  }
};
const factors = (name: string) => [...weightsOf({ ...phi3, weight }).get(name)!];

const cases: readonly Case[] = [
  {
    title: 'Llama and Mistral, with biases and a window',
    options: {
      architecture: 'llama',
      parts: { ...llamaParts(), ...biases, 'attn_output.bias': [width] },
      metadata: { 'llama.attention.sliding_window': 5, 'llama.rope.freq_base': 500_000 }
    },
    plain: { turn: turns(500_000), window: () => 5 },
    without: { window: { window: everywhere }, base: { turn: turns(10_000) }, order: { halves: true } }
  },
  {
    title: 'Qwen 2, biases and pairs of halves',
    options: {
      architecture: 'qwen2',
      parts: { ...llamaParts(), ...biases },
      metadata: { 'qwen2.rope.freq_base': 1_000_000 },
      extra: { 'output.weight': [width, tiny.vocabulary] }
    },
    plain: { halves: true, turn: turns(1_000_000) },
    without: { order: { halves: false } }
  },
  {
    title: 'Qwen 3, norms of heads wider than width / heads',
    options: {
      architecture: 'qwen3',
      headDim: 40,
      parts: { ...llamaParts(40), ...headNorms(40) },
      metadata: { 'qwen3.attention.key_length': 40, 'qwen3.attention.value_length': 40 }
    },
    plain: { halves: true, headDim: 40, turned: 40, turn: turns(10_000, 40), scale: 40 ** -0.5 },
    without: { order: { halves: false } }
  },
  {
    title: 'SmolLM3, every fourth layer without RoPE',
    options: { architecture: 'smollm3', layers: 5 },
    plain: { layers: 5, turn: (layer, pair) => (layer === 3 ? 0 : turns(10_000)(layer, pair)) },
    without: { 'that layer': { turn: turns(10_000) }, order: { halves: true } }
  },
  {
    title: 'Phi-3, packed, with factors for long contexts, some channels and a window',
    options: phi3,
    plain: {
      halves: true,
      turned: 24,
      turn: turns(10_000, 24, factors('rope_factors_long.weight')),
      turnScale: 1.25,
      window: () => 5
    },
    without: {
      factors: { turn: turns(10_000, 24) },
      scale: { turnScale: 1 },
      window: { window: everywhere },
      'short ones': { turn: turns(10_000, 24, factors('rope_factors_short.weight')) }
    }
  },
  {
    title: 'Phi-3 in a short context',
    options: phi3,
    context: 32,
    plain: {
      halves: true,
      turned: 24,
      turn: turns(10_000, 24, factors('rope_factors_short.weight')),
      turnScale: 1.25,
      window: () => 5
    },
    without: { 'long ones': { turn: turns(10_000, 24, factors('rope_factors_long.weight')) } }
  },
  {
    title: 'Gemma 2, windows in every second layer and two caps',
    options: {
      architecture: 'gemma2',
      layers: 3,
      parts: { ...llamaParts(), ...norms },
      metadata: {
        'gemma2.attention.sliding_window': 5,
        'gemma2.attn_logit_softcapping': 1.5,
        'gemma2.final_logit_softcapping': 2.5
      }
    },
    plain: { ...gemma, layers: 3, window: layer => (layer % 2 === 0 ? 5 : Infinity), softcap: 1.5, finalSoftcap: 2.5 },
    without: {
      windows: { window: everywhere },
      'one cap': { softcap: Infinity },
      'the other': { finalSoftcap: Infinity },
      'scaled embeddings': { embeddingScale: 1 },
      GELU: { activation: silu },
      order: { halves: false }
    }
  },
  {
    title: 'Gemma 2 of 27 billion weights, whose queries are scaled otherwise',
    options: {
      architecture: 'gemma2',
      layers: 46,
      headDim: 40,
      parts: { ...llamaParts(40), ...norms },
      metadata: { 'gemma2.attention.key_length': 40, 'gemma2.attention.value_length': 40 }
    },
    plain: { ...gemma, layers: 46, headDim: 40, turned: 40, turn: turns(10_000, 40), scale: 32 ** -0.5, softcap: 50, finalSoftcap: 30 },
    without: { 'that scale': { scale: 40 ** -0.5 } }
  },
  {
    title: 'Gemma 3, five layers with a window and another base to one without',
    options: {
      architecture: 'gemma3',
      layers: 7,
      parts: { ...llamaParts(), ...norms, ...headNorms(headDim) },
      metadata: { 'gemma3.attention.sliding_window': 5, 'gemma3.rope.freq_base': 1_000_000, 'gemma3.rope.scaling.factor': 8 }
    },
    plain: {
      ...gemma,
      layers: 7,
      window: layer => (layer === 5 ? Infinity : 5),
      turn: (layer, pair) => (layer === 5 ? turns(1_000_000)(layer, pair) / 8 : turns(10_000)(layer, pair))
    },
    without: {
      windows: { window: everywhere },
      'the window of one layer': { window: () => 5 },
      bases: { turn: turns(10_000) },
      'the stretch': { turn: (layer, pair) => turns(layer === 5 ? 1_000_000 : 10_000)(layer, pair) }
    }
  }
];

function weightsOf(options: TinyOptions): Weights {
  const tensors = tinyTensors(options);
  const all = tinyWeights(options);
  let at = 0;
  return new Map(
    tensors.map(({ name, shape }) => {
      const length = shape.reduce((product, size) => product * size, 1);
      at += length;
      return [name, all.subarray(at - length, at)];
    })
  );
}

function plainOf(plain: Partial<Plain>): Plain {
  return {
    layers: tiny.layers,
    heads,
    kvHeads,
    headDim,
    epsilon: Math.fround(1e-5),
    turn: turns(10_000),
    turned: headDim,
    halves: false,
    turnScale: 1,
    window: everywhere,
    scale: headDim ** -0.5,
    softcap: Infinity,
    finalSoftcap: Infinity,
    activation: silu,
    embeddingScale: 1,
    ...plain
  };
}

/** A cache that keeps everything, and does by loops in f64 what `attention` says. */
function exactCache(attention: readonly Attention[]): Cache {
  const held = attention.map(() => ({ keys: [] as number[], values: [] as number[] }));
  return {
    get length() {
      return Math.min(...held.map(({ keys }, layer) => keys.length / (attention[layer]!.kvHeads * attention[layer]!.headDim)));
    },
    append(layer, keys, values) {
      held[layer]!.keys.push(...keys);
      held[layer]!.values.push(...values);
    },
    async attend(layer, queries) {
      const { kvHeads, queryHeads, headDim, window = Infinity, softcap } = attention[layer]!;
      const { keys, values } = held[layer]!;
      const rows = queries.length / headDim;
      const length = keys.length / (kvHeads * headDim);
      return Float32Array.from(
        Array.from({ length: rows }, (_, row) => {
          const at = (t: number): number => (t * kvHeads + Math.floor((row % queryHeads) / (queryHeads / kvHeads))) * headDim;
          const position = length - rows / queryHeads + Math.floor(row / queryHeads);
          const terms: [number, number][] = [];
          for (let t = Math.max(0, position + 1 - window); t <= position; t++) {
            let logit = 0;
            for (let i = 0; i < headDim; i++) logit += (queries[row * headDim + i]! * keys[at(t) + i]!) / Math.sqrt(headDim);
            terms.push([t, Math.exp(softcap === undefined ? logit : softcap * Math.tanh(logit / softcap))]);
          }
          const total = terms.reduce((sum, [, term]) => sum + term, 0);
          return Array.from({ length: headDim }, (_, i) => terms.reduce((sum, [t, term]) => sum + (term / total) * values[at(t) + i]!, 0));
        }).flat()
      );
    }
  };
}

/** Logits of the last token, of `step` tokens at a time. */
async function logits(model: Model, cache: Cache, step: number): Promise<Float32Array> {
  let hidden = new Float32Array();
  for (let from = 0; from < tokens.length; from += step) hidden = (await model.forward(tokens.slice(from, from + step), cache)).slice();
  return model.logits(hidden.slice(-width));
}

const tokens = [3, 1, 4, 1, 5, 2, 6, 5, 3, 5, 0, 7];
const backend: Backend = await openBackend();

group('architectures', test => {
  for (const { title, options, plain, without, context } of cases) {
    test(title, async () => {
      const model = await openGguf(tinySource({ ...options, weight }), { runtime, ...(context !== undefined && { context }) });
      const weights = weightsOf({ ...options, weight });
      const expected = plainLogits(plainOf(plain), weights, tokens);
      for (const step of [tokens.length, 1]) {
        const off = relativeL2(await logits(model, exactCache(model.config.attention), step), expected);
        assert.ok(off < F32 * model.config.layers, `${step} at a time: off by ${off}`);
      }
      const cache = new SequenceCache(backend, model.config, { capacity: 16, maxAppend: 16 });
      const off = relativeL2(await logits(model, cache, tokens.length), expected);
      assert.ok(off < F16 * model.config.layers, `over nsnquant: off by ${off}`);
      cache.dispose();
      await model.release();
      for (const [part, other] of Object.entries(without)) {
        const missed = relativeL2(plainLogits(plainOf({ ...plain, ...other }), weights, tokens), expected);
        assert.ok(missed > MISSED * F32 * model.config.layers, `without ${part}: off by ${missed} only`);
      }
    });
  }

  test('what a file says and its architecture does not use is refused', async () => {
    for (const [options, message] of [
      [
        { architecture: 'qwen2', parts: { ...llamaParts(), ...biases }, metadata: { 'qwen2.attention.sliding_window': 5 } },
        'tiny.gguf: expected a model that does without "qwen2.attention.sliding_window", which this engine lacks, got 5'
      ],
      [{ architecture: 'qwen3' }, 'tiny.gguf: expected tensor "blk.0.attn_q_norm.weight", got a file without it'],
      [
        { architecture: 'llama', extra: { 'rope_factors_long.weight': [16] } },
        'tiny.gguf: expected a model that does without tensor "rope_factors_long.weight", which this engine lacks, got one of shape [16]'
      ],
      [
        { architecture: 'gemma3', parts: { ...llamaParts(), ...norms, ...headNorms(headDim) } },
        'tiny.gguf: "gemma3.attention.sliding_window" expected integer of at least 1, got a file without it'
      ],
      [
        {
          architecture: 'gemma3',
          parts: { ...llamaParts(), ...norms, ...headNorms(headDim) },
          metadata: { 'gemma3.attention.sliding_window': 5, 'gemma3.attention.sliding_window_pattern': [1, 0, 1] }
        },
        'tiny.gguf: "gemma3.attention.sliding_window_pattern" expected true or false for each of 2 layers, got [1, 0, 1]'
      ]
    ] as const)
      await refuses(() => openGguf(tinySource(options as TinyOptions), { runtime }), message);
  });
});
