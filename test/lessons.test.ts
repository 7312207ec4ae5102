// What sequences learn of their keys: from which tokens and queries, when, and until when; the same however calls are split.

import { type CacheOptions, KVCache, type Rope, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends as all, scatteredWebgpu } from './backends.ts';
import { pairsOf } from './brute.ts';
import { refuses, sameBits } from './compare.ts';
import { learnedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { below, exactRope, keyLike, normal, random } from './inputs.ts';
import { readSaved } from './pages.ts';
import { simd128, type Tested, wasm } from './verbs.ts';

/** What is learned lies in one buffer, wherever pages do. */
const backends = all.filter(tested => tested !== scatteredWebgpu);

const base = { layers: 2, kvHeads: 2, queryHeads: 4, headDim: 32, capacity: 800, sequences: 4, sinks: 4 } satisfies CacheOptions;
const TOKENS = 320;
/** The first position from which nothing is learned. */
const END = base.sinks + 128;
const width = base.kvHeads * base.headDim;
const queryWidth = base.queryHeads * base.headDim;

const keys = [0, 1].map(layer => keyLike(TOKENS, width, 20 + layer));
const values = [0, 1].map(layer => normal(TOKENS, width, 30 + layer));
/** Queries that weigh some channels a thousand times as much as others; of `talk` 1 others than of 0. */
const queries = [0, 1].map(talk =>
  [0, 1].map(layer => normal(TOKENS, queryWidth, 40 + 2 * talk + layer).map((x, i) => x * 2 ** (((i + talk) % 11) - 5)))
);

const part = (x: Float32Array, from: number, to: number, width: number) => x.subarray(from * width, to * width);
const asked = (layer: number, from: number, to: number, talk = 0) => part(queries[talk]![layer]!, from, to, queryWidth);

/** Appends tokens [from, to) to every layer. */
function extend(sequence: Sequence, from: number, to: number): void {
  for (const layer of [0, 1]) sequence.append(layer, part(keys[layer]!, from, to, width), part(values[layer]!, from, to, width));
}

/** The same, and attends to each layer with their queries. */
function talk(sequence: Sequence, from: number, to: number, talk = 0): Sequence {
  for (const layer of [0, 1]) {
    sequence.append(layer, part(keys[layer]!, from, to, width), part(values[layer]!, from, to, width));
    sequence.attend(layer, asked(layer, from, to, talk));
  }
  return sequence;
}

/** Σ q² of every head's pairs, of queries [tokens, queryHeads, headDim]. */
function energiesOf(all: readonly Float32Array[], rope?: Rope): Float64Array[] {
  const { kvHeads, queryHeads, headDim } = base;
  const pairs = pairsOf(headDim, rope);
  const energies = Array.from({ length: kvHeads }, () => new Float64Array(headDim / 2));
  for (const x of all) {
    for (let at = 0; at < x.length; at += headDim) {
      const head = Math.floor(((at / headDim) % queryHeads) / (queryHeads / kvHeads));
      pairs.forEach(([a, b], pair) => {
        energies[head]![pair]! += x[at + a]! ** 2 + x[at + b]! ** 2;
      });
    }
  }
  return energies;
}

/** Refuses a profile that is not what tokens 4 to 131 of the stream and these queries of each layer teach. */
function teaches(what: string, profile: Uint8Array, all: (layer: number) => readonly Float32Array[], rope?: Rope): void {
  const { kvHeads, headDim, sinks } = base;
  assert.is(profile.length, 2 * kvHeads * (headDim / 2));
  for (const layer of [0, 1]) {
    const energies = energiesOf(all(layer), rope);
    for (let head = 0; head < kvHeads; head++) {
      const windows = [sinks, sinks + 64].map(from =>
        rounded(
          Float32Array.from(
            { length: 64 * headDim },
            (_, i) => keys[layer]![((from + Math.floor(i / headDim)) * kvHeads + head) * headDim + (i % headDim)]!
          )
        )
      );
      const at = ((layer * kvHeads + head) * headDim) / 2;
      const ties = { near: 0, codes: 0 };
      learnedFrom(
        `${what}, layer ${layer}, head ${head}`,
        profile.slice(at, at + headDim / 2),
        windows,
        energies[head]!,
        headDim,
        rope,
        ties
      );
    }
  }
}

for (const tested of backends) {
  const { name, backend } = tested;
  const open = (options: Partial<CacheOptions> = {}) => new KVCache(backend, { ...base, ...options });

  group(`learning on ${name}`, test => {
    test('a profile is what the first 128 tokens after the sinks and the queries of positions up to there teach', async () => {
      for (const rope of tested.gpu ? [exactRope(32)] : [undefined, exactRope(32)]) {
        const cache = open(rope && { rope });
        const sequence = talk(cache.sequence(), 0, 200);
        sequence.seal();
        teaches('profile', await sequence.balance(), layer => [asked(layer, 0, END)], rope);
        cache.dispose();
      }
    });

    test('where no query was asked keys alone teach', async () => {
      const cache = open();
      const sequence = cache.sequence();
      extend(sequence, 0, 140);
      sequence.seal();
      const profile = await sequence.balance();
      assert.ok(profile.every(byte => byte < 16));
      teaches('profile', profile, () => []);
      for (const layer of [0, 1]) sequence.attend(layer, asked(layer, 0, 140)); // too late
      extend(sequence, 140, 200);
      sameBits('profile', await sequence.balance(), profile);
      cache.dispose();
    });

    test('how calls are split changes no byte: tokens, queries, layers, batches', async () => {
      const cache = open({ rope: exactRope(32) });
      const whole = await talk(cache.sequence(), 0, 210).save();
      const next = random(5);
      for (let round = 0; round < (backend.name === 'wasm' ? 8 : 2); round++) {
        const [sequence, other] = [cache.sequence(), cache.sequence()];
        const most = [140, 9, 40, 1][round % 4]!;
        for (let from = 0; from < 210; ) {
          const to = Math.min(210, from + 1 + below(next, most));
          for (const layer of round % 2 ? [1, 0] : [0, 1]) {
            const [k, v] = [part(keys[layer]!, from, to, width), part(values[layer]!, from, to, width)];
            // Asking again, of some more than is new, counts nothing twice.
            const again = from - below(next, Math.min(from, 5) + 1);
            if (next() < 0.5) {
              sequence.append(layer, k, v);
              sequence.attend(layer, asked(layer, from, to));
            } else {
              const [k2, v2] = [part(keys[layer]!, 0, 1, width), part(values[layer]!, 0, 1, width)];
              cache.append([other, sequence], layer, [k2, k], [v2, v]);
              cache.attend([other, sequence], layer, [asked(layer, 300, 301), asked(layer, from, to)]);
            }
            sequence.attend(layer, asked(layer, again, to, 1));
          }
          from = to;
        }
        sameBits(`round ${round}`, await sequence.save(), whole);
        for (const one of [sequence, other]) one.dispose();
      }
      cache.dispose();
    });

    test('a first window stays raw until the second is complete, where there is something to learn', () => {
      const sealed = (options: Partial<CacheOptions>, tokens: number) => {
        const cache = open({ ...options });
        const sequence = cache.sequence();
        extend(sequence, 0, tokens);
        sequence.seal();
        const { tokens: coded } = sequence.sealed;
        cache.dispose();
        return coded;
      };
      const profile = new Uint8Array(64);
      assert.equal(
        [4 + 64, END - 1, END].map(tokens => sealed({}, tokens)),
        [0, 0, 128]
      );
      assert.equal(
        [4 + 64, END - 1, END].map(tokens => sealed({ recent: 1 }, tokens)),
        [0, 0, 64]
      );
      assert.equal(
        [END, 4 + 192, 4 + 256].map(tokens => sealed({ recent: 3 }, tokens)),
        [0, 0, 64]
      );
      assert.equal(
        [4 + 63, 4 + 64, END].map(tokens => sealed({ balance: profile }, tokens)),
        [0, 64, 128]
      );
      assert.equal(
        [4 + 63, 4 + 64, END].map(tokens => sealed({ balance: 'off' }, tokens)),
        [0, 64, 128]
      );
    });

    test('what comes after is coded by what was learned', async () => {
      const cache = open();
      const [one, other] = [cache.sequence(), cache.sequence()];
      for (const [sequence, voice] of [
        [one, 0],
        [other, 1]
      ] as const) {
        talk(sequence, 0, END);
        talk(sequence, END, 280, voice); // nothing is learned from other queries now
      }
      sameBits('file', await one.save(), await other.save());
      cache.dispose();
    });

    test('fork() knows what was learned, and what was counted', async () => {
      const cache = open();
      for (const length of tested.gpu ? [50, 131, 132] : [0, 3, 50, 100, 131, 132, 200]) {
        const chat = cache.sequence();
        if (length > 0) talk(chat, 0, length);
        const branch = chat.fork();
        const files: Uint8Array[] = [];
        for (const [sequence, voice] of [
          [branch, 1],
          [chat, 0]
        ] as const) {
          if (length > 0) for (const layer of [0, 1]) sequence.attend(layer, asked(layer, 0, length, 1)); // counted before
          talk(sequence, length, 260, voice);
          files.push(await sequence.save());
          sequence.dispose();
        }
        for (const voice of [1, 0]) {
          const plain = cache.sequence();
          if (length > 0) talk(plain, 0, length);
          if (length >= END) plain.seal(); // as the fork did
          talk(plain, length, 260, voice);
          sameBits(`length ${length}, queries ${voice}`, files[1 - voice]!, await plain.save());
          plain.dispose();
        }
      }
      cache.dispose();
    });

    test('crop() to where no coded window is left forgets what was learned; queries count from then on', async () => {
      for (const options of [{}, { recent: 1 }]) {
        const cache = open(options);
        for (const again of [false, true]) {
          const sequence = talk(cache.sequence(), 0, 210);
          sequence.seal();
          sequence.crop(60);
          const held = [await sequence.decode(0), await sequence.decode(1)];
          const fresh = cache.sequence();
          held.forEach(({ keys, values }, layer) => {
            fresh.append(layer, keys, values);
          });
          for (const one of [sequence, fresh]) {
            if (again) for (const layer of [0, 1]) one.attend(layer, asked(layer, 0, 60, 1));
            talk(one, 60, 250, 1);
          }
          const file = await sequence.save();
          sameBits(`asked again ${again}`, file, await fresh.save());
          assert.ok(readSaved(file).layers.every(({ balance }) => balance!.some(byte => byte >= 16)));
          for (const one of [sequence, fresh]) one.dispose();
        }
        cache.dispose();
      }
    });

    test('crop() to 0 leaves nothing of what was counted or learned', async () => {
      const cache = open();
      const empty = await cache.sequence().save();
      const fresh = await talk(cache.sequence(), 0, 150).save();
      for (const length of [3, 100, 131, 200]) {
        const sequence = talk(cache.sequence(), 0, length, 1);
        sequence.crop(0);
        sameBits(`file of nothing after ${length}`, await sequence.save(), empty);
        sameBits(`file after ${length}`, await talk(sequence, 0, 150).save(), fresh);
        sequence.dispose();
      }
      cache.dispose();
    });

    test('crop() before anything was learned keeps what was counted, and counts anew what comes', async () => {
      const cache = open();
      const sequence = talk(cache.sequence(), 0, 100);
      sequence.crop(80);
      const { metadata } = readSaved(await sequence.save());
      assert.is(metadata['counted'], '80 80');
      for (const layer of [0, 1]) sequence.attend(layer, asked(layer, 70, 80, 1)); // counted before
      talk(sequence, 80, 200, 1).seal();
      teaches('profile', await sequence.balance(), layer => [asked(layer, 0, 100), asked(layer, 80, END, 1)]);
      cache.dispose();
    });

    test('crop() that leaves a coded window leaves what was learned', async () => {
      const cache = open();
      const sequence = talk(cache.sequence(), 0, 210);
      sequence.seal();
      const profile = await sequence.balance();
      for (const length of [150, 100, 68]) {
        sequence.crop(length);
        sameBits(`after a crop to ${length}`, await sequence.balance(), profile);
        talk(sequence, length, 210, 1).seal();
        sameBits(`after ${length} and more`, await sequence.balance(), profile);
      }
      sequence.crop(67);
      await refuses(() => sequence.balance(), RangeError, 'layer 0 expected a coded window (by the first it has learned), got none');
      cache.dispose();
    });

    test('a restored sequence goes on to the bytes of one that was never saved', async () => {
      const cache = open();
      for (const length of tested.gpu ? [50, 131, 132] : [0, 3, 50, 68, 100, 131, 132, 200]) {
        const chat = cache.sequence();
        if (length > 0) talk(chat, 0, length);
        const file = await chat.save();
        const back = cache.restore(file);
        sameBits(`file of ${length}`, await back.save(), file);
        for (const sequence of [chat, back]) {
          if (length > 9) for (const layer of [0, 1]) sequence.attend(layer, asked(layer, length - 9, length, 1)); // counted before
          talk(sequence, length, 260);
        }
        sameBits(`file after ${length} and more`, await back.save(), await chat.save());
        for (const sequence of [chat, back]) sequence.dispose();
      }
      cache.dispose();
    });

    test('a file is what was counted and learned when save() was called', async () => {
      const cache = open();
      const expected = await talk(cache.sequence(), 0, 100).save();
      const sequence = talk(cache.sequence(), 0, 100);
      const promise = sequence.save();
      talk(sequence, 100, 250, 1).seal();
      sequence.crop(0);
      sameBits('file', await promise, expected);
      cache.dispose();
    });

    test('attend() that is refused counts nothing, and results may be written over the queries', async () => {
      const cache = open();
      const [sequence, twin] = [cache.sequence(), talk(cache.sequence(), 0, 100)];
      extend(sequence, 0, 100);
      for (const layer of [0, 1]) {
        await refuses(
          () => sequence.attend(layer, asked(layer, 0, 100, 1), { scale: -1 }),
          RangeError,
          '"scale" expected number above 0 and at most 4294967296, got -1'
        );
        const query = asked(layer, 0, 100).slice();
        const out = await sequence.attend(layer, query, { out: query }).read();
        assert.is(out, query);
        assert.not.equal(out, asked(layer, 0, 100));
      }
      sameBits('file', await sequence.save(), await twin.save());
      cache.dispose();
    });
  });
}

group('learning between backends', test => {
  const saved = async ({ backend }: Tested, tokens: number) => {
    const cache = new KVCache(backend, { ...base, rope: exactRope(32) });
    const file = await talk(cache.sequence(), 0, tokens).save();
    cache.dispose();
    return file;
  };

  for (const tested of wasm) {
    test(`${tested.name} counts and learns as simd128 does, to the bit`, async () => {
      for (const tokens of [100, 210]) sameBits(`file of ${tokens}`, await saved(tested, tokens), await saved(simd128, tokens));
    });
  }

  for (const from of backends) {
    test(`what ${from.name} has counted, every other goes on with`, async () => {
      const file = await saved(from, 100);
      for (const { name, backend } of backends) {
        const cache = new KVCache(backend, { ...base, rope: exactRope(32) });
        const sequence = cache.restore(file);
        sameBits(`file on ${name}`, await sequence.save(), file);
        talk(sequence, 100, 210).seal();
        teaches(name, await sequence.balance(), layer => [asked(layer, 0, END)], exactRope(32));
        cache.dispose();
      }
    });
  }
});
