// Caches that are told how to balance keys, by a profile or not at all; and files between caches that are told otherwise.

import { type CacheOptions, KVCache, plan, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends as all, scatteredWebgpu } from './backends.ts';
import { refuses, sameBits } from './compare.ts';
import { keyLike, normal } from './inputs.ts';
import { readSaved } from './pages.ts';

/** What is learned lies in one buffer, wherever pages do. */
const backends = all.filter(tested => tested !== scatteredWebgpu);

const base = { layers: 2, kvHeads: 2, queryHeads: 4, headDim: 32, capacity: 800, sequences: 4 } satisfies CacheOptions;
const width = base.kvHeads * base.headDim;
const keys = keyLike(300, width, 1);
const values = normal(300, width, 2);
const queries = normal(300, 2 * width, 3).map((x, i) => x * 2 ** ((i % 9) - 4));
/** Bytes of a layer's profile. */
const PROFILE = width / 2;
const profile = Uint8Array.from({ length: 2 * PROFILE }, (_, i) => 37 * i);

const part = (x: Float32Array, from: number, to: number, width: number) => x.subarray(from * width, to * width);

/** Appends tokens [from, to) to every layer, and attends to them. */
function talk(sequence: Sequence, from: number, to: number): Sequence {
  for (let layer = 0; layer < sequence.shape.layers.length; layer++) {
    sequence.append(layer, part(keys, from, to, width), part(values, from, to, width));
    sequence.attend(layer, part(queries, from, to, 2 * width));
  }
  return sequence;
}

const layersOf = (file: Uint8Array) => readSaved(file).layers;

for (const { name, backend } of backends) {
  group(`profiles on ${name}`, test => {
    const open = (options: Partial<CacheOptions> = {}) => new KVCache(backend, { ...base, ...options });

    test('are what sequences have learned: by them the same tokens have the same bytes, and nothing is to be learned', async () => {
      const cache = open();
      const chat = talk(cache.sequence(), 0, 210);
      chat.seal();
      const learned = await chat.balance();
      const told = open({ balance: learned });
      const sequence = told.sequence();
      sameBits('balance of an empty sequence', await sequence.balance(), learned);
      sameBits('file', await talk(sequence, 0, 210).save(), await chat.save());
      for (const opened of [cache, told]) opened.dispose();
    });

    test('are copied, whatever Uint8Array they are', async () => {
      const taken = profile.slice();
      const shared = globalThis.SharedArrayBuffer && new Uint8Array(new SharedArrayBuffer(taken.length));
      shared?.set(taken);
      for (const balance of [taken, globalThis.Buffer?.from(taken.buffer), shared]) {
        if (!balance) continue; // Buffer is Node's; not every page may share memory
        const cache = open({ balance });
        balance.fill(0);
        sameBits('balance', await cache.sequence().balance(), profile);
        cache.dispose();
        taken.set(profile);
      }
    });

    test('count no queries, and fork() and crop() leave them', async () => {
      const cache = open({ balance: profile });
      const chat = talk(cache.sequence(), 0, 100);
      sameBits('balance of a fork', await chat.fork().balance(), profile);
      for (const length of [80, 30, 0]) {
        chat.crop(length);
        sameBits(`balance after a crop to ${length}`, await chat.balance(), profile);
        assert.is(readSaved(await chat.save()).metadata['counted'], '0 0');
      }
      sameBits('file', await talk(chat, 0, 150).save(), await talk(cache.sequence(), 0, 150).save());
      cache.dispose();
    });

    test('of a file go with it into a cache that has another, until its last coded window is cropped', async () => {
      const [cache, told] = [open(), open({ balance: profile })];
      const file = await talk(cache.sequence(), 0, 210).save();
      const sequence = told.restore(file);
      sameBits('file', await sequence.save(), file);
      const [expected, actual] = [talk(cache.restore(file), 210, 290), talk(sequence, 210, 290)];
      sameBits('file after more', await actual.save(), await expected.save());
      sequence.crop(20);
      sameBits('balance', await sequence.balance(), profile);
      sequence.crop(0);
      sameBits('file of a new beginning', await talk(sequence, 0, 150).save(), await talk(told.sequence(), 0, 150).save());
      for (const opened of [cache, told]) opened.dispose();
    });

    test('of a cache code what a file has not learned yet', async () => {
      const [cache, told] = [open(), open({ balance: profile })];
      for (const length of [1, 50, 68, 100]) {
        const [chat, expected] = [talk(cache.sequence(), 0, length), talk(told.sequence(), 0, 210)];
        const sequence = told.restore(await chat.save());
        assert.is(sequence.sealed.tokens, length < 68 ? 0 : 64, 'a complete window is coded at once');
        assert.is(readSaved(await sequence.save()).metadata['counted'], '0 0', 'there is nothing to learn');
        sameBits(`file after ${length}`, await talk(sequence, length, 210).save(), await expected.save());
        for (const one of [chat, expected, sequence]) one.dispose();
      }
      for (const opened of [cache, told]) opened.dispose();
    });

    test('by which a file was coded stay with it in a cache that learns, until its last coded window is cropped', async () => {
      const [cache, told] = [open(), open({ balance: profile })];
      const sequence = cache.restore(await talk(told.sequence(), 0, 100).save());
      sameBits('balance', await sequence.balance(), profile);
      const file = await talk(sequence, 100, 210).save();
      sameBits('file after more', file, await talk(told.sequence(), 0, 210).save());
      sequence.crop(0);
      sameBits('file of a new beginning', await talk(sequence, 0, 150).save(), await talk(cache.sequence(), 0, 150).save());
      for (const opened of [cache, told]) opened.dispose();
    });

    test('find raw slots for what a file has not learned yet, where prompts fill all others', async () => {
      // A file with two raw windows in each of four layers, of which such a cache reserves one.
      const options = { layers: 4, sequences: 2, maxAppend: 64, sinks: 0, capacity: 400 } as const;
      const file = await talk(talk(open(options).sequence(), 0, 64), 64, 100).save();
      assert.equal(
        layersOf(file).map(({ raws }) => raws.length),
        [2, 2, 2, 2]
      );
      const told = open({ ...options, balance: new Uint8Array(4 * PROFILE) });
      const other = talk(told.sequence(), 0, 63);
      for (let layer = 0; layer < 4; layer++) other.append(layer, part(keys, 63, 127, width), part(values, 63, 127, width));
      const sequence = told.restore(file);
      assert.is(sequence.length, 100);
      assert.equal([sequence.sealed.tokens, other.length], [64, 127]);
      told.dispose();
    });
  });

  group(`plain keys on ${name}`, test => {
    const plain = new KVCache(backend, { ...base, balance: 'off' });

    test('learn nothing, and their files say so', async () => {
      const file = await talk(plain.sequence(), 0, 210).save();
      const { metadata, layers } = readSaved(file);
      assert.equal([metadata['balance'], metadata['counted']], ['off', '0 0']);
      for (const { balance, energies } of layers) assert.equal([balance, energies], [undefined, undefined]);
      await refuses(() => plain.sequence().balance(), RangeError, '"balance" expected learn or Uint8Array (option of the cache), got off');
    });

    test('and balanced ones are not restored for each other', async () => {
      for (const balance of ['learn', profile] as const) {
        const cache = new KVCache(backend, { ...base, balance });
        const [off, on] = [await talk(plain.sequence(), 0, 8).save(), await talk(cache.sequence(), 0, 8).save()];
        await refuses(() => cache.restore(off), RangeError, 'file expected balance on, got off');
        await refuses(() => plain.restore(on), RangeError, 'file expected balance off, got on');
        cache.dispose();
      }
    });
  });
}

group('what is learned, in numbers', test => {
  const { backend } = backends[0]!;

  test('bytes count a byte a pair of channels, and four for the energies of queries', () => {
    const perLayer = (base.kvHeads * base.headDim * 5) / 2;
    assert.is(plan(base).learnedBytes, base.sequences * base.layers * perLayer);
    assert.is(plan({ ...base, balance: profile }).learnedBytes, base.sequences * base.layers * perLayer);
    assert.is(plan({ ...base, balance: 'off' }).learnedBytes, 0);
    const bytes = (balance: 'learn' | 'off') => {
      const sequence = new KVCache(backend, { ...base, balance }).sequence();
      assert.is(sequence.bytes, 0);
      sequence.append(0, part(keys, 0, 5, width), part(values, 0, 5, width));
      return sequence.bytes;
    };
    assert.is(bytes('learn') - bytes('off'), perLayer);
  });
});
