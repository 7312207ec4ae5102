// What models do to logits, on every backend: sliding windows, sinks that stay in sight, capped logits, slopes, sink logits; values of
// another dimension than keys; and the log-sum-exp. Against f64 attention over the tokens that a cache says it holds. A cache here has two
// layers of the same tokens: the first plain, which says what is held, the second what is tried.

import { KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendBesidePlain } from './attention.ts';
import { backends, webgpu } from './backends.ts';
import { sameBits, withinFloatRule } from './compare.ts';
import { anyBalance, type Input, keyLike, normal, ropes } from './inputs.ts';
import { DECODED_ROWS } from './tolerance.ts';
import { comparesBinaries, scalar, simd128, type Tested } from './verbs.ts';

type Options = ConstructorParameters<typeof KVCache>[1];
type Layer = Exclude<Options['layers'], number>[number];

const base = { kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 512, sequences: 2, balance: 'off' } as const;

/** What is told of the layers of all cases, by what it does. */
const features: Readonly<Record<string, Layer>> = {
  'a window of 1': { window: 1 },
  'a window of 10': { window: 10 },
  'a window of 64': { window: 64 },
  'a window of 90': { window: 90 },
  'a window of 90 and the sinks': { window: 90, keepSinks: true },
  'logits capped at 1.5': { softcap: 1.5 },
  'logits capped at 50': { softcap: 50 },
  'logits that fall with distance': { slopes: [0.5, 0.01] },
  'sink logits below the others and above': { sinkLogits: [-2, 12] },
  everything: { window: 110, keepSinks: true, softcap: 5, slopes: [0.1, 0.004], sinkLogits: [2, -1] }
};

interface Held {
  /** Tokens of every append. */
  readonly counts: readonly number[];
  readonly queries: number;
  /** Whether complete windows are coded before the attention. */
  readonly seal?: boolean;
  readonly options?: Partial<Options>;
  readonly keys?: Input;
}

const contents: Readonly<Record<string, Held>> = {
  'one token after coded and raw ones': { counts: [300, 7], queries: 1 },
  'three tokens, five heads': { counts: [130, 64, 40], queries: 3, options: { kvHeads: 2, queryHeads: 10 } },
  'a prompt longer than its window, raw': { counts: [130], queries: 130 },
  'a prompt longer than its window, coded': { counts: [210], queries: 210, seal: true },
  'a second prompt': { counts: [170, 50], queries: 50 },
  'the first tokens': { counts: [3], queries: 2 },
  // Of as many rows as a whole tile: a GPU has a pipeline for each four of them.
  'no sinks': { counts: [140, 8], queries: 8, options: { sinks: 0 } },
  '64 sinks, of which windows have a part': { counts: [90], queries: 16, options: { sinks: 64 } }
};

/** Slopes and sink logits of as many heads as there are. */
function told(layer: Layer, queryHeads: number): Layer {
  const each = (list: ArrayLike<number>) => Array.from({ length: queryHeads }, (_, head) => list[head % list.length]!);
  return {
    ...layer,
    ...(layer.slopes && layer.slopes !== 'none' && { slopes: each(layer.slopes) }),
    ...(layer.sinkLogits && layer.sinkLogits !== 'none' && { sinkLogits: each(layer.sinkLogits) })
  };
}

/** A cache with a plain layer, of values as wide, and this one. */
function open({ backend }: Tested, layer: Layer, options: Partial<Options> = {}): KVCache {
  const shape = { ...base, ...options };
  const plain: Layer = layer.valueDim === undefined ? {} : { valueDim: layer.valueDim };
  return new KVCache(backend, { ...shape, layers: [plain, told(layer, shape.queryHeads)] });
}

/** A sequence of `counts` tokens in both layers. */
function filled(cache: KVCache, { counts, keys = keyLike }: Pick<Held, 'counts' | 'keys'>, seed = 1): Sequence {
  const { kvHeads, headDim, valueDim } = cache.shape.layers[0]!;
  const tokens = counts.reduce((sum, count) => sum + count, 0);
  const [k, v] = [keys(tokens, kvHeads * headDim, seed), normal(tokens, kvHeads * valueDim, seed + 1)];
  const sequence = cache.sequence();
  let from = 0;
  for (const count of counts) {
    const part = (x: Float32Array, width: number) => x.subarray(from * width, (from + count) * width);
    for (const layer of [0, 1]) sequence.append(layer, part(k, kvHeads * headDim), part(v, kvHeads * valueDim));
    from += count;
  }
  return sequence;
}

/** Whether a feature is tried with this content: all windows with all, the rest where codes, raw tokens and decoded pages are met. */
function tells(feature: string, content: string): boolean {
  return /window|everything/.test(feature) || /one token|a second prompt|coded$/.test(content);
}

const queriesOf = (cache: KVCache, tokens: number, seed = 99) => {
  const { queryHeads, headDim } = cache.shape.layers[1]!;
  return normal(tokens, queryHeads * headDim, seed);
};

const outputs = new Map<string, Float32Array>();

for (const tested of backends) {
  group(`masks on ${tested.name}`, test => {
    /** A test over a cache of two layers. */
    const tried = (title: string, layer: Layer, options: Partial<Options>, run: (cache: KVCache) => Promise<void>) =>
      test(title, async () => {
        const cache = open(tested, layer, options);
        await run(cache);
        cache.dispose();
      });

    for (const [content, { counts, queries, seal, options = {}, keys }] of Object.entries(contents)) {
      for (const [feature, layer] of Object.entries(features)) {
        if (!tells(feature, content)) continue;
        // On a software GPU few of them, for seconds of compiling each: what everything does each feature alone would.
        if (tested.gpu && feature !== 'everything' && (content !== 'one token after coded and raw ones' || tested !== webgpu)) continue;
        const title = `${feature}: ${content}`;
        tried(title, layer, options, async cache => {
          const sequence = filled(cache, { counts, ...(keys && { keys }) });
          if (seal) sequence.seal();
          outputs.set(`${tested.name} ${title}`, await attendBesidePlain(title, sequence, queriesOf(cache, queries)));
        });
      }
    }

    // Masks do not ask how a logit came about: on a GPU codecs and RoPE are shapes.test.ts's, and these together the self-test's.
    for (const codec of tested.gpu ? [] : (['nsn1', 'nsn2', 'nsn4'] as const)) {
      for (const balance of ['off', 'profile'] as const) {
        const options = {
          keys: codec,
          values: codec,
          rope: ropes(32)['halves']!,
          balance: balance === 'off' ? balance : new Uint8Array([...anyBalance(32, 5), ...anyBalance(32, 5)])
        };
        const title = `everything, ${codec}, RoPE, ${balance === 'off' ? 'plain' : 'balanced'} keys`;
        tried(title, features['everything']!, options, async cache => {
          for (const [counts, queries] of [
            [[280, 5], 1],
            [[140, 50], 50]
          ] as const) {
            const sequence = filled(cache, { counts }, 7);
            const out = await attendBesidePlain(`${title}, ${queries} queries`, sequence, queriesOf(cache, queries));
            outputs.set(`${tested.name} ${title} ${queries}`, out);
            sequence.dispose();
          }
        });
      }
    }

    tried('positions are what they were where windows between were evicted', features['everything']!, {}, async cache => {
      for (const queries of [1, 50]) {
        const sequence = filled(cache, { counts: [330] }, 15);
        sequence.seal();
        const gap = { from: 260 - 64, to: 260 };
        sequence.evict({ ...gap, layer: 1 });
        outputs.set(`${tested.name} evicted ${queries}`, await attendBesidePlain('out', sequence, queriesOf(cache, queries), gap));
        sequence.dispose();
      }
    });

    // Tables are read 32 pages at a time; the first of these pages are in sight of no row, or of some.
    tried('a window over more pages than are scored at once', { window: 2101 }, { capacity: 2250 }, async cache => {
      const sequence = filled(cache, { counts: [2240, 5] });
      const out = await attendBesidePlain('out', sequence, queriesOf(cache, tested.gpu ? 1 : 3));
      outputs.set(`${tested.name} long`, out);
    });

    // On a GPU histories.test.ts has layers with windows whose values are wider than keys and narrower.
    for (const [headDim, valueDim, queryHeads, many] of tested.gpu
      ? []
      : ([
          [64, 32, 2, 50],
          [40, 72, 3, 33],
          [576, 512, 16, 6]
        ] as const)) {
      // Of so many pages are decoded.
      for (const queries of [1, many]) {
        const title = `keys of ${headDim} channels and values of ${valueDim}, ${queries} queries of ${queryHeads} heads`;
        tried(title, { valueDim, window: 100 }, { headDim, queryHeads, capacity: 256 }, async cache => {
          const sequence = filled(cache, { counts: [140, queries] });
          outputs.set(`${tested.name} ${title}`, await attendBesidePlain(title, sequence, queriesOf(cache, queries)));
        });
      }
    }

    tried('a batch of sequences of different lengths gives what single calls give', features['everything']!, {}, async cache => {
      const sequences = [filled(cache, { counts: [170, 8] }, 11), filled(cache, { counts: [20] }, 13)];
      const queries = [queriesOf(cache, 8, 12), queriesOf(cache, 20, 14)];
      const { queryHeads } = cache.shape.layers[1]!;
      const lse = new Float32Array(28 * queryHeads);
      const out = await cache.attend(sequences, 1, queries, { lse }).read();
      let at = 0;
      for (const [n, sequence] of sequences.entries()) {
        const one = new Float32Array((queries[n]!.length / 64) * queryHeads);
        const alone = await sequence.attend(1, queries[n]!, { lse: one }).read();
        withinFloatRule(`sequence ${n}`, out.subarray(32 * at, 32 * at + alone.length), alone, alone, 32);
        withinFloatRule(`log-sum-exp of sequence ${n}`, lse.subarray(at, at + one.length), one, one);
        at += one.length;
      }
    });

    test('out and lse of two caches merge into attention over both', async () => {
      const [keys, values, query] = [keyLike(60, 32, 3), normal(60, 32, 4), normal(1, 64, 5)];
      const [a, b, all] = await Promise.all(
        [
          [0, 25],
          [25, 60],
          [0, 60]
        ].map(async ([from, to]) => {
          const cache = new KVCache(tested.backend, { ...base, layers: 1 });
          const sequence = cache.sequence();
          sequence.append(0, keys.subarray(32 * from!, 32 * to!), values.subarray(32 * from!, 32 * to!));
          const lse = new Float32Array(2);
          const out = await sequence.attend(0, query, { lse }).read();
          cache.dispose();
          return { out, lse };
        })
      );
      const lse = a!.lse.map((x, head) => Math.log(Math.exp(x) + Math.exp(b!.lse[head]!)));
      withinFloatRule('lse', lse, all!.lse, all!.lse);
      const share = (x: Float32Array, head: number) => Math.exp(x[head]! - lse[head]!);
      const merged = all!.out.map((_, i) => {
        const head = Math.floor(i / 32);
        return share(a!.lse, head) * a!.out[i]! + share(b!.lse, head) * b!.out[i]!;
      });
      withinFloatRule('out', merged, all!.out, all!.out, 32);
    });
  });
}

if (comparesBinaries)
  group('masks', test => {
    // The scalar binary looks codes up where the others decode pages.
    for (const [content, { queries, options = {} }] of Object.entries(contents)) {
      const { queryHeads, kvHeads } = { ...base, ...options };
      if ((queries * queryHeads!) / kvHeads! >= DECODED_ROWS) continue;
      for (const feature of Object.keys(features).filter(feature => tells(feature, content))) {
        test(`attend() on simd128 gives the bits of scalar: ${feature}: ${content}`, () => {
          const [a, b] = [simd128, scalar].map(({ name }) => outputs.get(`${name} ${feature}: ${content}`));
          assert.ok(a && b);
          sameBits(feature, a, b);
        });
      }
    }
  });
