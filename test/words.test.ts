// What a file says besides its tokens: inspect(), the application's own words, and frequencies of RoPE as other engines compute them.

import { type CacheOptions, inspect, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses, sameBits } from './compare.ts';
import { exactRope, keyLike, normal } from './inputs.ts';
import { readSaved, withHeader } from './pages.ts';
import { simd128 } from './verbs.ts';

const base = { layers: 2, kvHeads: 2, queryHeads: 2, headDim: 32, capacity: 400, sequences: 3 } satisfies CacheOptions;
const cacheOf = (more: Partial<CacheOptions> = {}) => new KVCache(simd128.backend, { ...base, ...more });

function filled(cache: KVCache, tokens: number): Sequence {
  const sequence = cache.sequence();
  for (const layer of [0, 1]) sequence.append(layer, keyLike(tokens, 64, layer), normal(tokens, 64, layer));
  return sequence;
}

group('inspect()', test => {
  test('says what the file holds and what a cache must be to restore it', async () => {
    const cache = cacheOf({ keys: 'nsn2', layers: [{}, { values: 'nsn1' }], sinks: 2 });
    const file = await filled(cache, 140).save({ metadata: { model: 'm' } });
    assert.equal(inspect(file), {
      format: 2,
      length: 140,
      layers: [
        { kvHeads: 2, headDim: 32, valueDim: 32, keys: 'nsn2', values: 'nsn3', rope: 'none' },
        { kvHeads: 2, headDim: 32, valueDim: 32, keys: 'nsn2', values: 'nsn1', rope: 'none' }
      ],
      sinks: 2,
      balanced: true,
      metadata: { model: 'm' },
      bytes: file.length
    });
  });

  test('is enough to make the cache', async () => {
    const file = await filled(cacheOf({ rope: exactRope(32), layers: [{}, { keys: 'nsn1' }] }), 140).save();
    const { layers, sinks, length } = inspect(file);
    const cache = new KVCache(simd128.backend, {
      layers: layers.map(layer => ({ ...layer, queryHeads: 3 * layer.kvHeads })),
      sinks,
      capacity: length
    });
    sameBits('file', await cache.restore(file).save(), file);
  });

  test('gives nothing that can be changed', async () => {
    const saved = inspect(await filled(cacheOf({ rope: exactRope(32) }), 3).save({ metadata: { a: 'b' } }));
    for (const object of [saved, saved.layers, saved.layers[0], saved.layers[0]!.rope, saved.metadata]) assert.ok(Object.isFrozen(object));
  });

  test('refuses what is no Uint8Array', async () => {
    for (const [value, kind] of [
      [undefined, 'undefined'],
      [null, 'null'],
      ['x', 'string'],
      [new ArrayBuffer(64), 'ArrayBuffer'],
      [new Uint16Array(64), 'Uint16Array']
    ] as const) {
      await refuses(() => inspect(value as never), TypeError, `"bytes" expected Uint8Array, got ${kind}`);
    }
  });
});

group("the application's words", test => {
  const words: Readonly<Record<string, string>> = {
    model: 'SmolLM2-135M-Instruct',
    tokens: '1 73 4093',
    format: '7',
    length: '',
    'layers.0.pages': 'none',
    '': 'x',
    ' ': '\u2028',
    '"\\\n': 'é 😀 \ud800',
    constructor: 'y',
    2: 'two',
    1: 'one'
  };
  const { '': _, ...named } = words;

  test('come back from inspect() and restore(), and are saved again', async () => {
    const cache = cacheOf();
    const plain = filled(cache, 70);
    assert.equal(plain.metadata, {});
    const file = await plain.save({ metadata: named });
    assert.equal(plain.metadata, {}, 'saving changes no sequence');
    assert.equal(inspect(file).metadata, named);
    const restored = cache.restore(file);
    assert.equal(restored.metadata, named);
    sameBits('saved again', await restored.save(), file);
    const fork = restored.fork();
    assert.equal(fork.metadata, named);
    sameBits('a fork saved', await fork.save(), file);
    const other = await restored.save({ metadata: { a: 'b' } });
    assert.equal(inspect(other).metadata, { a: 'b' });
    sameBits('with none', await restored.save({ metadata: {} }), await plain.save());
    assert.equal(inspect(await restored.save({})).metadata, named);
    assert.ok(Object.isFrozen(restored.metadata) && Object.isFrozen(plain.metadata));
  });

  test('may be called __proto__, which changes no object', async () => {
    const metadata = JSON.parse('{"__proto__":"x"}');
    const file = await filled(cacheOf(), 3).save({ metadata });
    const back = inspect(file).metadata;
    assert.equal(Object.entries(back), [['__proto__', 'x']]);
    assert.is(Object.getPrototypeOf(back), Object.prototype);
    sameBits('saved again', await cacheOf().restore(file).save(), file);
  });

  test('lie under names of their own, beside those of the format', async () => {
    const file = await filled(cacheOf(), 3).save({ metadata: { format: '7', checksum: 'x' } });
    const { metadata } = readSaved(file);
    assert.is(metadata['format'], '2');
    assert.equal(Object.entries(metadata).slice(-2), [
      ['app.format', '7'],
      ['app.checksum', 'x']
    ]);
  });

  test('are taken as they are when save() is called', async () => {
    const metadata = { a: 'b' };
    const saving = filled(cacheOf(), 3).save({ metadata });
    metadata.a = 'c';
    assert.equal(inspect(await saving).metadata, { a: 'b' });
  });

  test('are refused where they are none, and nothing is sealed then', async () => {
    const sequence = filled(cacheOf(), 70);
    const { bytes } = sequence;
    for (const [metadata, type, message] of [
      [null, TypeError, '"metadata" expected object, got null'],
      ['x', TypeError, '"metadata" expected object, got string'],
      [['x'], TypeError, '"metadata" expected object, got Array'],
      [new Map([['a', 'b']]), TypeError, '"metadata" expected object, got Map'],
      [{ a: 1 }, TypeError, '"metadata.a" expected string, got number'],
      [{ a: undefined }, TypeError, '"metadata.a" expected string, got undefined'],
      [{ a: ['x'] }, TypeError, '"metadata.a" expected string, got Array'],
      [words, RangeError, '"metadata" expected names of at least 1 character, got an empty one'],
      [{ a: 'x'.repeat(2 ** 24 - 7) }, RangeError, '"metadata" expected at most 16777216 characters as JSON, got 16777217']
    ] as const) {
      await refuses(() => sequence.save({ metadata: metadata as never }), type, message);
      assert.is(sequence.bytes, bytes);
    }
    await refuses(() => sequence.save(null as never), TypeError, '"options" expected object, got null');
    await refuses(() => sequence.save({ words } as never), TypeError, '"options" expected only metadata, got words');
  });

  test('may be as many as are not refused', async () => {
    const metadata = { a: '\u0001'.repeat(2 ** 20), b: '' };
    const most = { ...metadata, b: 'é'.repeat(2 ** 24 - JSON.stringify(metadata).length) };
    assert.equal(inspect(await filled(cacheOf(), 3).save({ metadata: most })).metadata, most);
  });
});

group('frequencies of RoPE in files', test => {
  const { invFreq } = exactRope(32);
  const ropeOf = (change: (x: number) => number) => ({ invFreq: Array.from(invFreq, change), interleaved: false });
  const rope = ropeOf(x => x);

  test('are those of the cache where only their last bits differ, as between engines, or f32 rounded them', async () => {
    const file = await filled(cacheOf({ rope }), 140).save();
    for (const change of [
      (x: number) => x * (1 + 2 ** -52),
      (x: number) => x * (1 - 2 ** -52),
      Math.fround,
      (x: number) => x * (1 + 9e-7)
    ]) {
      const cache = cacheOf({ rope: ropeOf(change) });
      const restored = cache.restore(file);
      const { layers } = readSaved(await restored.save());
      layers.forEach(({ pages }, layer) => pages.forEach((page, n) => sameBits('page', page, readSaved(file).layers[layer]!.pages[n]!)));
      cache.dispose();
    }
  });

  test('are refused where they differ by more, by the first pair that does', async () => {
    const file = await filled(cacheOf({ rope }), 140).save();
    const refused = (other: { invFreq: number[]; interleaved: boolean }, message: string) =>
      refuses(() => cacheOf({ rope: other }).restore(file), RangeError, message);
    const last = invFreq.length - 1;
    for (const share of [1 + 1.1e-6, 1 - 1.1e-6, 1.01, 0, -1, 2]) {
      const other = ropeOf(x => x);
      other.invFreq[last]! *= share;
      await refused(other, `file expected rope of layer 0 invFreq[${last}] ${other.invFreq[last]}, got ${invFreq[last]}`);
    }
    await refused({ ...rope, interleaved: true }, 'file expected rope of layer 0 interleaved true, got false');
    await refused({ ...rope, invFreq: rope.invFreq.slice(1) }, `file expected rope of layer 0 of pairs ${last}, got ${last + 1}`);
    await refuses(() => cacheOf().restore(file), RangeError, 'file expected rope of layer 0 unknown, got known');
    const unknown = withHeader(file, header => {
      header.__metadata__.ropes = '[null]';
    });
    await refuses(() => cacheOf({ rope }).restore(unknown), RangeError, 'file expected rope of layer 0 known, got unknown');
  });
});
