// Arrays and options made in another realm (a frame, a `vm` context, a test runner that gives every file one) are what they are,
// though no `instanceof` of this realm's knows them. Each place of the API that takes one gives the same as for this realm's own.

import { runInNewContext } from 'node:vm';
import { type CacheOptions, KVCache, plan, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameAttention } from './attention.ts';
import { backends } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { nearestHalf } from './half.ts';
import { bells } from './inputs.ts';
import { withVerbs } from './verbs.ts';

type Bytes = Float32Array | Float64Array | Uint16Array | Uint8Array;

/** A copy that another realm made, of its own memory. */
function foreign<T extends Bytes>(data: T): T {
  const copy = runInNewContext(`new ${data.constructor.name}(${data.length})`) as T;
  copy.set(data as never);
  assert.not(copy instanceof data.constructor);
  return copy;
}

/** The bits of f16. */
function halves(data: Float32Array): Uint16Array {
  return Uint16Array.from(data, x => {
    const bits = new Uint32Array(Float32Array.of(nearestHalf(x)).buffer)[0]!;
    const exponent = ((bits >>> 23) & 255) - 112;
    return exponent > 0 ? ((bits >>> 16) & 0x8000) | (exponent << 10) | ((bits >>> 13) & 0x3ff) : 0;
  });
}

const rope = { invFreq: Float64Array.of(1, 0.5, 0.25), interleaved: true };
const options = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 512, rope } satisfies CacheOptions;
const [keys, values, query] = [bells(100, 32, 1), bells(100, 32, 2), bells(100, 64, 3)];

group('arrays of another realm', test => {
  for (const tested of backends) {
    test(`are keys, values, queries, results, frequencies and files on ${tested.name}`, async () => {
      const own = new KVCache(tested.backend, options);
      const other = new KVCache(tested.backend, { ...options, rope: { ...rope, invFreq: foreign(rope.invFreq) } });
      const filled = (cache: KVCache, of: <T extends Bytes>(data: T) => T): Sequence => {
        const sequence = cache.sequence();
        sequence.append(0, of(keys), of(halves(values)));
        sequence.append(0, of(halves(keys)), of(values));
        return sequence;
      };
      const [expected, sequence] = [filled(own, data => data), filled(other, foreign)];
      const out = foreign(new Float32Array(200 * 32));
      const result = await sequence.attend(0, foreign(query), { out }).read();
      assert.is(result, out);
      sameAttention(tested, 'attention', result, await expected.attend(0, query).read());
      const file = await sequence.save();
      sameBits('file', file, await expected.save());
      const restored = other.restore(foreign(file));
      sameBits('file again', await restored.save(), file);
      own.dispose();
      other.dispose();
    });
  }

  for (const tested of withVerbs) {
    test(`are windows, blocks, queries and weights of the verbs on ${tested.name}`, async () => {
      const verbs = await tested.kernels({ headDim: 32, codec: 'nsn2' });
      const window = keys.subarray(0, 64 * 32);
      const block = verbs.encode(window);
      sameBits('encode', verbs.encode(foreign(window)), block);
      sameBits('decode', verbs.decode(foreign(block)), verbs.decode(block));
      sameBits('scores', verbs.scores(foreign(query.subarray(0, 128)), foreign(block)), verbs.scores(query.subarray(0, 128), block));
      sameBits('mix', verbs.mix(foreign(query.subarray(0, 128)), foreign(block)), verbs.mix(query.subarray(0, 128), block));
      for (const verb of ['normalize', 'shift', 'normalizeAgain', 'hadamard', 'quantize'] as const) {
        const [mine, theirs] = [window.slice(), foreign(window)];
        const [expected, actual] = [verbs[verb](mine, 4), verbs[verb](theirs, 4)];
        sameBits(verb, theirs, mine);
        if (expected) sameBits(verb, actual!, expected);
      }
    });
  }

  test('are profiles, of caches and of the verbs', async () => {
    const balance = Uint8Array.from({ length: 16 }, (_, pair) => 16 * pair);
    sameBits('balance', await new KVCache(backends[0]!.backend, { ...options, balance: foreign(balance) }).sequence().balance(), balance);
    const window = keys.subarray(0, 64 * 32);
    const [expected, actual] = await Promise.all(
      [balance, foreign(balance)].map(async balance =>
        (await withVerbs[0]!.kernels({ headDim: 32, codec: 'nsn2', balance })).encode(window)
      )
    );
    sameBits('block', actual!, expected!);
  });

  test('are refused by their names where another kind is expected', async () => {
    const sequence = new KVCache(backends[0]!.backend, options).sequence();
    const message = '"keys" expected Float32Array, Uint16Array or Float16Array, got Float64Array';
    await refuses(() => sequence.append(0, foreign(new Float64Array(32)) as never, values), TypeError, message);
  });

  test('may come in lists and options of that realm', async () => {
    const made = runInNewContext(
      '({ layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 512, rope: { invFreq: [1, 0.5, 0.25], interleaved: true } })'
    );
    assert.equal(plan(made), plan(options));
    const cache = new KVCache(backends[0]!.backend, made);
    const sequence = cache.sequence();
    const list = (item: unknown) => runInNewContext('item => [item]')(item);
    cache.append(list(sequence), 0, list(keys), list(values));
    assert.is((await cache.attend(list(sequence), 0, list(query), runInNewContext('({ scale: 1 })')).read()).length, query.length);
  });
});
