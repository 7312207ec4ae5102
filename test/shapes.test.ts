// One cache for every head dimension beside every codec of keys and of values, for every pair of codecs and for every kind of RoPE:
// attention over it on every backend, and on a GPU, which has no verbs to be called one by one, the pages that it encodes and what it
// decodes them to. Where a shape takes seconds to compile, all that depends on it is here.

import { type CodecName, codecs, KVCache, type Rope } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { backends, scatteredWebgpu } from './backends.ts';
import * as brute from './brute.ts';
import { atMost, withinFloatRule } from './compare.ts';
import { encodedFrom, learnedFrom, type Ties } from './encoded.ts';
import { rounded } from './half.ts';
import { inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { blockOf, readBlock, readSaved, sidesOf } from './pages.ts';
import { DECODED_ROWS, NEAR_LEVELS, NEAR_TIES } from './tolerance.ts';
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
  /** Whether keys are balanced. */
  readonly balanced: boolean;
  /** Whether it has a prompt for which pages are decoded. */
  readonly prompt: boolean;
  /** Whether WebAssembly and the reference take it, and whether a GPU does. */
  readonly cpu: boolean;
  readonly gpu: boolean;
}

const headDims = [32, 40, 64, 72, 80, 96, 128, 256, 576];
const groups = [3, 4, 1, 5, 8, 2, 3, 4, 2];

const shapes: readonly Shape[] = [
  ...headDims.flatMap((headDim, n) =>
    names.flatMap((keys, k) =>
      names.map((values, v): Shape => {
        // Every head dimension once, every codec twice for keys and for values.
        const prompt = k === n % 4 && v === (n + 1 + Math.floor(n / 4)) % 4;
        const balanced = (k + 2 * v + n) % 3 > 0;
        return {
          title: `headDim ${headDim}, ${keys} keys, ${values} values, ${balanced ? 'balanced' : 'plain'}`,
          headDim,
          keys,
          values,
          groups: groups[n]!,
          balanced,
          prompt,
          cpu: prompt || (headDim <= 128 ? (k + v + n) % 2 === 0 : k === v),
          // The null backend compiles them. What 72, 80 and 96 have, rows that end in padding and transforms of no power of two, 40 and
          // 576 have as well; 32 is in all other files.
          gpu: prompt && ![32, 72, 80, 96].includes(headDim)
        };
      })
    )
  ),
  // The first and the fifth differ in angles alone: with the same codec they are the same pipelines.
  ...Object.entries(ropes(64)).map(
    ([name, rope], n): Shape => ({
      title: `RoPE ${name}`,
      headDim: 64,
      keys: names[n % 4]!,
      values: 'nsn2',
      rope,
      groups: 3,
      balanced: true,
      prompt: true,
      cpu: true,
      // What a pair is, and how many channels are turned, are one constant each: met together, and apart in halves.
      gpu: ['halves', 'partial interleaved', 'fast, rising'].includes(name)
    })
  )
];

for (const tested of backends.filter(tested => tested !== scatteredWebgpu)) {
  const counts: Partial<Record<CodecName, Ties>> = {};
  const learned: Ties = { near: 0, codes: 0 };

  for (const { title, headDim, keys, values, rope, groups, balanced, prompt } of shapes.filter(shape =>
    tested.gpu ? shape.gpu : shape.cpu
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
        balance: balanced ? ('learn' as const) : ('off' as const),
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

      if (tested.gpu)
        test('encode() and what is learned are right to near ties, and decode() gives what the pages say', async () => {
          const tokensOf = [stream(0), stream(1)] as const;
          const sequence = cache().sequence();
          sequence.append(0, ...tokensOf);
          sequence.seal();
          const { pages, balance } = readSaved(await sequence.save()).layers[0]!;
          const held = await sequence.decode(0);
          const sides = sidesOf(sequence, 0);
          const windowOf = (x: Float32Array, head: number, n: number) =>
            headOf(x.subarray((sinks + 64 * n) * width, (sinks + 64 * (n + 1)) * width), head);
          for (let head = 0; head < kvHeads; head++) {
            const levels = balance?.subarray((head * headDim) / 2, ((head + 1) * headDim) / 2);
            if (levels) {
              const windows = [0, 1].map(n => windowOf(tokensOf[0], head, n));
              learnedFrom(`balance of head ${head}`, levels, windows, new Float32Array(headDim / 2), headDim, rope, learned);
            }
            for (const side of [0, 1] as const) {
              const [known, order] = side === 0 ? [rope, levels && brute.orderOf(levels, headDim, rope)] : [];
              const ties = (counts[side === 0 ? keys : values] ??= { near: 0, codes: 0 });
              chosen.forEach((input, n) => {
                const what = `${input}, ${side === 0 ? 'keys' : 'values'} of head ${head}`;
                const bytes = blockOf(pages[n]!, head, side, sides);
                encodedFrom(what, bytes, windowOf(tokensOf[side], head, n), sides[side], known, ties, order);
                const block = readBlock(bytes, sides[side]);
                const by = (round: brute.Round) => brute.decode(block, known, round, order);
                const rows = windowOf(side === 0 ? held.keys : held.values, head, n);
                withinFloatRule(what, rows, by(brute.f64), by(brute.f32), headDim);
              });
            }
          }
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

      // The brute force takes long: for every head dimension, every codec and every RoPE once.
      const prompts = prompt && !tested.gpu && tested !== reference;
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
        for (const [codec, { near, codes }] of Object.entries(counts)) {
          console.log(`${codec}: ${near} near ties in ${codes} codes`);
          atMost(`${codec}: share of near ties`, near / codes, NEAR_TIES);
        }
        assert.is(Object.keys(counts).length, 4);
        console.log(`${learned.near} near ties in ${learned.codes} levels`);
        atMost('share of levels', learned.near / learned.codes, NEAR_LEVELS);
      });
    });
}

/** Opens once, when first asked: shapes are many, and a page has room for some of them at a time. */
function opened(open: () => KVCache): () => KVCache {
  let cache: KVCache | undefined;
  return () => (cache ??= open());
}
