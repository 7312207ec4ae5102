// One cache for every head dimension, pair of codecs and kind of RoPE: attention over it on every backend, and on a GPU, which
// has no verbs to be called one by one, the pages that it encodes and what it decodes them to. Where a shape takes seconds to
// compile, all that depends on it is here.

import { type CodecName, codecs, KVCache, type Rope, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { backends, scatteredWebgpu } from './backends.ts';
import * as brute from './brute.ts';
import { atMost, withinFloatRule } from './compare.ts';
import { encodedFrom, type Ties } from './encoded.ts';
import { rounded } from './half.ts';
import { inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { blockOf, readBlock, readSaved } from './pages.ts';
import { DECODED_ROWS, NEAR_TIES } from './tolerance.ts';
import { reference } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];
const all = Object.keys(inputs);
const few = ['key-like', 'outlier channel', 'ramp', 'zero tokens'];

interface Shape {
  readonly title: string;
  readonly headDim: number;
  readonly keys: CodecName;
  readonly values: CodecName;
  readonly rope?: Rope;
  /** Query heads of one KV head. */
  readonly groups: number;
  /** Whether a GPU takes it too. */
  readonly gpu: boolean;
}

const headDims = [32, 40, 64, 72, 80, 96, 128, 256, 512];
const groups = [3, 4, 1, 5, 8, 2, 3, 4, 1];

const shapes: readonly Shape[] = [
  ...headDims.flatMap((headDim, n) =>
    names.flatMap((keys, k) =>
      names.map(
        (values, v): Shape => ({
          title: `headDim ${headDim}, ${keys} keys, ${values} values`,
          headDim,
          keys,
          values,
          groups: groups[n]!,
          // Nine head dimensions and nine pairs of codecs: each once. The null backend compiles every combination.
          gpu: 3 * k + v === n
        })
      )
    )
  ),
  // The first and the fifth differ in angles alone: with the same codec they are the same pipelines.
  ...Object.entries(ropes(64)).map(
    ([name, rope], n): Shape => ({
      title: `RoPE ${name}`,
      headDim: 64,
      keys: names[(n % 4) % 3]!,
      values: 'nsn2',
      rope,
      groups: 3,
      gpu: true
    })
  )
];

/** Of one codec's pages on a GPU. */
interface Counts extends Ties {
  /** Bytes, and how many of them the reference has otherwise. */
  bytes: number;
  differing: number;
}

for (const tested of backends.filter(tested => tested !== scatteredWebgpu)) {
  const counts: Partial<Record<CodecName, Counts>> = {};

  for (const { title, headDim, keys, values, rope, groups, gpu } of shapes.filter(
    shape => shape.gpu || (!tested.gpu && (shape.headDim <= 128 || shape.keys === shape.values))
  )) {
    group(`${title} on ${tested.name}`, test => {
      const kvHeads = 2;
      const width = kvHeads * headDim;
      const chosen = headDim <= 128 ? all : few;
      const sinks = 3;
      const tokens = sinks + 64 * chosen.length + 5;
      const options = {
        layers: 1,
        kvHeads,
        queryHeads: kvHeads * groups,
        headDim,
        keys,
        values,
        sinks,
        capacity: tokens + 200,
        sequences: 2,
        ...(rope && { rope })
      };
      const cache = opened(() => new KVCache(tested.backend, options));

      /** Sinks, a window of every input, and a tail; f16's numbers. Heads and sides have seeds of their own. */
      const stream = (side: 0 | 1) => {
        const windows = ['key-like', ...chosen, 'key-like'].map((input, n) => inputs[input]!(64, width, 10 * n + side));
        const x = new Float32Array(tokens * width);
        windows.forEach((window, n) => {
          const to = n === 0 ? 0 : sinks + 64 * (n - 1);
          x.set(window.subarray(0, Math.min(window.length, (n === 0 ? sinks : tokens - to) * width)), to * width);
        });
        return rounded(side === 0 && rope ? turnedHeads(x, rope) : x);
      };
      const turnedHeads = (x: Float32Array, rope: Rope) => {
        const out = new Float32Array(x.length);
        for (let head = 0; head < kvHeads; head++) setHead(out, head, turned(headOf(x, head), headDim, rope));
        return rounded(out);
      };
      const headOf = (x: Float32Array, head: number) =>
        Float32Array.from(
          { length: x.length / kvHeads },
          (_, i) => x[(Math.floor(i / headDim) * kvHeads + head) * headDim + (i % headDim)]!
        );
      const setHead = (x: Float32Array, head: number, rows: Float32Array) =>
        rows.forEach((value, i) => {
          x[(Math.floor(i / headDim) * kvHeads + head) * headDim + (i % headDim)] = value;
        });

      const pagesOf = async (sequence: Sequence) => readSaved(await sequence.save()).layers[0]!.pages;
      const sealed = (cache: KVCache, sides: readonly [Float32Array, Float32Array]) => {
        const sequence = cache.sequence();
        sequence.append(0, ...sides);
        sequence.seal();
        return sequence;
      };

      if (tested.gpu)
        test('encode() is right to near ties, and decode() gives what the pages say', async () => {
          const sides = [stream(0), stream(1)] as const;
          const sequence = sealed(cache(), sides);
          const pages = await pagesOf(sequence);
          const pagesOfReference = await pagesOf(sealed(new KVCache(reference.backend, options), sides));
          const held = await sequence.decode(0);
          chosen.forEach((input, n) => {
            for (const side of [0, 1] as const) {
              const codec = codecs[side === 0 ? keys : values];
              const known = side === 0 ? rope : undefined;
              const count = (counts[codec.name] ??= { near: 0, codes: 0, bytes: 0, differing: 0 });
              for (let head = 0; head < kvHeads; head++) {
                const what = `${input}, ${side === 0 ? 'keys' : 'values'} of head ${head}`;
                const [bytes, other] = [pages, pagesOfReference].map(all =>
                  blockOf(all[n]!, head, side, codecs[keys], codecs[values], headDim)
                ) as [Uint8Array, Uint8Array];
                const rowsOf = (x: Float32Array) => headOf(x, head).subarray((sinks + 64 * n) * headDim, (sinks + 64 * (n + 1)) * headDim);
                encodedFrom(what, bytes, rowsOf(sides[side]), codec, headDim, known, count);
                count.bytes += bytes.length;
                bytes.forEach((byte, i) => {
                  count.differing += Number(byte !== other[i]);
                });
                const block = readBlock(bytes, codec, headDim);
                const by = (round: brute.Round) => brute.decode(block, codec, headDim, known, round);
                withinFloatRule(what, rowsOf(side === 0 ? held.keys : held.values), by(brute.f64), by(brute.f32), headDim);
              }
            }
          });
          sequence.dispose();
        });

      test('attend() is attention over decode()', async () => {
        const x = keyLike(142, width, 1);
        const sequence = cache().sequence();
        sequence.append(0, rope ? turnedHeads(x, rope) : x, normal(142, width, 2));
        sequence.append(0, keyLike(2, width, 3), normal(2, width, 4));
        await attendWithinRule(title, sequence, normal(3, width * groups, 99));
        if (!prompts) cache().dispose();
      });

      // The brute force takes long: for every head dimension, every pair of codecs and every RoPE once.
      const prompts = gpu && !tested.gpu && tested !== reference;
      if (prompts)
        test('attend() of a prompt, for which pages are decoded, is attention over decode()', async () => {
          const asked = Math.ceil((DECODED_ROWS + 1) / groups); // an odd number of lane groups, most of them
          const x = keyLike(70, width, 5);
          const sequence = cache().sequence();
          sequence.append(0, rope ? turnedHeads(x, rope) : x, normal(70, width, 6));
          sequence.append(0, keyLike(asked, width, 7), normal(asked, width, 8));
          await attendWithinRule(title, sequence, normal(asked, width * groups, 98));
          cache().dispose();
        });
    });
  }

  if (tested.gpu)
    group(`near ties on ${tested.name}`, test => {
      test('are rare', () => {
        for (const [codec, { near, codes, differing, bytes }] of Object.entries(counts)) {
          console.log(`${codec}: ${near} near ties in ${codes} codes; ${differing} of ${bytes} bytes differ from the reference's`);
          atMost(`${codec}: share of near ties`, near / codes, NEAR_TIES);
        }
        assert.is(Object.keys(counts).length, 3);
      });
    });
}

/** Opens once, when first asked: shapes are many, and a page has room for some of them at a time. */
function opened(open: () => KVCache): () => KVCache {
  let cache: KVCache | undefined;
  return () => (cache ??= open());
}
