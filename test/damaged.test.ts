// Damaged files through restore(): refused in the library's form with the cache as it was. So are hostile ones, whose checksum is right,
// or they are sequences as good as any.

import { type CacheOptions, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { webgpu } from './backends.ts';
import { allFinite, sameBits } from './compare.ts';
import { damaged } from './damage.ts';
import { below, exactRope, keyLike, normal, random } from './inputs.ts';
import { withChecksum } from './pages.ts';
import { reference, type Tested, withVerbs } from './verbs.ts';

const WIDTH = 32;
const base = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: WIDTH, capacity: 600, sequences: 3 } satisfies CacheOptions;

const shapes: readonly (readonly [what: string, options: Partial<CacheOptions>, tokens: readonly number[]])[] = [
  ['4 sinks', { keys: 'nsn4', values: 'nsn4' }, [140, 3, 68]],
  ['no sinks, 1 recent window', { keys: 'nsn4', values: 'nsn4', sinks: 0, recent: 1 }, [200, 65]],
  ['RoPE, other codecs in a layer', { rope: exactRope(WIDTH), layers: [{}, { keys: 'nsn2', values: 'nsn1' }] }, [140, 200]]
];

const variables: Record<string, string | undefined> = globalThis.process?.env ?? {};
const soakMs = 60000 * Number(variables['NSN_SOAK'] ?? 0);
const firstSeed = Number(variables['NSN_SEED'] ?? 1);

/** Files of one run: a second's or two. */
const filesOn = ({ backend, gpu }: Tested): number => (gpu ? 24 : backend === reference.backend ? 100 : 1000);

const [keys, values] = [keyLike(700, WIDTH, 1), normal(700, WIDTH, 2)];

/** Tokens of the stream, from another one on for every seed and layer. */
function append(sequence: Sequence, tokens: number, seed: number): void {
  for (let layer = 0; layer < base.layers; layer++) {
    const part = (x: Float32Array) => x.subarray((seed + layer) * WIDTH, (seed + layer + tokens) * WIDTH);
    sequence.append(layer, part(keys), part(values));
  }
}

const same = (a: Uint8Array, b: Uint8Array) => a.length === b.length && a.every((byte, at) => byte === b[at]);

const queries = normal(60, 2 * WIDTH, 3);

/** All that a sequence can be asked for. Its numbers may be another's, but they are numbers. */
async function used(sequence: Sequence, next: () => number): Promise<void> {
  for (let layer = 0; layer < base.layers; layer++) {
    const { keys, values } = await sequence.decode(layer);
    assert.is(keys.length, sequence.length * WIDTH);
    allFinite('keys', keys);
    allFinite('values', values);
    if (sequence.length === 0) continue;
    // One row, a few, and as many as are worth decoding pages for.
    const tokens = Math.min(sequence.length, [1, 3, 60][below(next, 3)]!);
    allFinite('attention', await sequence.attend(layer, queries.subarray(0, tokens * 2 * WIDTH)).read());
  }
  sequence.fork().dispose();
  sequence.crop(below(next, sequence.length + 1));
  append(sequence, 1 + below(next, 70), 5);
  sequence.seal();
  for (let layer = 0; layer < base.layers; layer++)
    allFinite('attention', await sequence.attend(layer, queries.subarray(0, 2 * WIDTH)).read());
  await sequence.save();
}

async function run(
  tested: Tested,
  options: Partial<CacheOptions>,
  lengths: readonly number[],
  seed: number
): Promise<[refused: number, taken: number]> {
  const next = random(seed);
  const cache = new KVCache(tested.backend, { ...base, ...options });
  const files: Uint8Array[] = [];
  for (const tokens of lengths) {
    const sequence = cache.sequence();
    append(sequence, tokens, 20);
    files.push(await sequence.save());
    sequence.dispose();
  }
  const other = cache.sequence();
  append(other, 135, 1);
  other.seal();
  const contents = async () => {
    const layers = await Promise.all([other.decode(0), other.decode(1)]);
    return layers.flatMap(({ keys, values }) => [keys, values]);
  };
  const before = await contents();
  let refused = 0;
  const count = filesOn(tested);
  for (let n = 0; n < count; n++) {
    const file = files[below(next, files.length)]!;
    const { bytes, how } = damaged(file, next);
    const restored = (from: Uint8Array): Sequence | undefined => {
      try {
        return cache.restore(from);
      } catch (error) {
        if (!(error instanceof RangeError || error instanceof TypeError)) throw error;
        assert.match(error.message, /expected .+, got .*/);
        return undefined;
      }
    };
    try {
      const hostile = withChecksum(bytes);
      // What is not the file, and has no checksum of its own, is refused.
      if (!same(bytes, hostile) && !same(bytes, file)) assert.is(restored(bytes), undefined);
      const sequence = restored(hostile);
      if (sequence) {
        await used(sequence, next);
        sequence.dispose();
      } else refused++;
      if (!tested.gpu || n % 10 === 0) (await contents()).forEach((x, i) => sameBits(`another sequence, ${i}`, x, before[i]!));
    } catch (error) {
      (error as Error).message = `NSN_SEED=${seed}, file ${n}, ${how}: ${(error as Error).message}`;
      throw error;
    }
  }
  // Nothing is held by what was refused or disposed.
  other.dispose();
  const all = [cache.sequence(), cache.sequence(), cache.sequence()];
  append(all[0]!, base.capacity, 30);
  const one = new Float32Array(WIDTH);
  for (const layer of [0, 1])
    assert.throws(
      () => all[1]!.append(layer, one, one),
      (error: Error) => error instanceof RangeError
    );
  cache.dispose();
  return [refused, count - refused];
}

for (const tested of [...withVerbs, ...(webgpu ? [webgpu] : [])]) {
  group(`damaged files on ${tested.name}`, test => {
    // Another shape compiles pipelines on a GPU.
    for (const [what, options, lengths] of tested.gpu ? shapes.slice(0, 2) : shapes) {
      test(`are refused, or are sequences like any other: ${what}`, async () => {
        const end = performance.now() + soakMs / shapes.length;
        const sum = [0, 0];
        let seed = firstSeed;
        do {
          const counts = await run(tested, options, lengths, seed++);
          counts.forEach((count, n) => {
            sum[n]! += count;
          });
        } while (performance.now() < end);
        console.log(`seeds ${firstSeed} to ${seed - 1}: ${sum[0]} files refused, ${sum[1]} taken`);
        assert.ok(sum[0]! > filesOn(tested) / 5 && sum[1]! > filesOn(tested) / 20);
      });
    }
  });
}
