// A seeded recording as the demo takes it, of a model whose attention looks at few channels, as Gemma 3's does: norms of queries and
// keys, one KV head of 256 channels, RoPE in halves; one pair of channels in 16 carries nearly all of ⟨q, k⟩.

import { gaussian, random, turned } from './inputs.ts';

const HEAD_DIM = 256;
const QUERY_HEADS = 4;
const ROPE_BASE = 10000;
/** What a query's channels are multiplied by, in pairs that carry much and in all others. */
const WEIGHTS = { few: 12, others: 0.3 };

/** The bytes of a safetensors file: one layer, queries of the last `queryTokens` positions. */
export function fewPairs(tokens: number, queryTokens: number): Uint8Array {
  const next = random(60);
  const pairs = HEAD_DIM / 2;
  const invFreq = Array.from({ length: pairs }, (_, pair) => ROPE_BASE ** (-pair / pairs));
  const mean = Float64Array.from({ length: HEAD_DIM }, () => gaussian(next));
  /** Tokens of norm √headDim before they are weighted; f32 [tokens, headDim]. */
  const rows = (count: number, weight: (channel: number) => number, about: ArrayLike<number>): Float32Array =>
    Float32Array.from(
      Array.from({ length: count }, () => {
        const x = Array.from({ length: HEAD_DIM }, (_, i) => about[i]! + gaussian(next));
        const norm = Math.hypot(...x) / Math.sqrt(HEAD_DIM);
        return x.map((value, i) => (weight(i) * value) / norm);
      }).flat()
    );
  // The slow half of all pairs has them: what is fast says where a token is, not what it is.
  const carries = (i: number): boolean => i % pairs >= pairs / 2 && i % 8 === 7;
  const rope = { invFreq, interleaved: false };
  const zeros = new Float64Array(HEAD_DIM);
  const queries = Array.from({ length: QUERY_HEADS }, () =>
    turned(
      rows(queryTokens, i => (carries(i) ? WEIGHTS.few : WEIGHTS.others), zeros),
      HEAD_DIM,
      rope,
      tokens - queryTokens
    )
  );
  return safetensors({ model: 'none: seeded', rope_base: `${ROPE_BASE}`, rope_pairs: 'halves' }, [
    [
      'layers.0.k',
      [tokens, 1, HEAD_DIM],
      turned(
        rows(tokens, () => 1, mean),
        HEAD_DIM,
        rope
      )
    ],
    ['layers.0.v', [tokens, 1, HEAD_DIM], rows(tokens, () => 1, zeros)],
    [
      'layers.0.q',
      [queryTokens, QUERY_HEADS, HEAD_DIM],
      Float32Array.from({ length: queryTokens * QUERY_HEADS * HEAD_DIM }, (_, i) => {
        const [t, head] = [Math.floor(i / (QUERY_HEADS * HEAD_DIM)), Math.floor(i / HEAD_DIM) % QUERY_HEADS];
        return queries[head]![t * HEAD_DIM + (i % HEAD_DIM)]!;
      })
    ]
  ]);
}

function safetensors(
  metadata: Readonly<Record<string, string>>,
  tensors: readonly (readonly [name: string, shape: readonly number[], data: Float32Array])[]
): Uint8Array {
  let end = 0;
  const header = Buffer.from(
    JSON.stringify({
      __metadata__: metadata,
      ...Object.fromEntries(
        tensors.map(([name, shape, { byteLength }]) => [name, { dtype: 'F32', shape, data_offsets: [end, (end += byteLength)] }])
      )
    })
  );
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(header.length));
  return Buffer.concat([length, header, ...tensors.map(([, , { buffer }]) => new Uint8Array(buffer))]);
}
