// What a cache holds and how it changes: appending in any splits, forks, crops, files, capacity; on every backend.

import { KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule, expectedAttention, sameAttention } from './attention.ts';
import { backends } from './backends.ts';
import { atMost, refuses, relativeL2, sameBits, withinFloatRule } from './compare.ts';
import { rounded } from './half.ts';
import { exactRope, inputs, keyLike, normal, queryWidth } from './inputs.ts';
import { checksumOf, readSaved } from './pages.ts';
import { NEARLY } from './tolerance.ts';
import { simd128, wasm } from './verbs.ts';

type Options = ConstructorParameters<typeof KVCache>[1];

const base = { layers: 2, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 512, sequences: 3 } satisfies Options;

const streams = new Map<string, readonly [keys: Float32Array, values: Float32Array]>();

/** Tokens [from, to) of a stream that is the same however it is cut. */
function stream(layer: number, width: number, from: number, to: number): [keys: Float32Array, values: Float32Array] {
  const name = `${layer} ${width}`;
  if (!streams.has(name)) streams.set(name, [keyLike(640, width, 50 + layer), normal(640, width, 60 + layer)]);
  const [keys, values] = streams.get(name)!;
  return [keys.subarray(from * width, to * width), values.subarray(from * width, to * width)];
}

/** Appends tokens [from, to) of the stream to every layer, in pieces of `size`. */
function extend(sequence: Sequence, from: number, to: number, size = Infinity): Sequence {
  const { layers } = sequence.shape;
  const { kvHeads, headDim } = layers[0]!;
  for (let at = from; at < to; at += size) {
    for (let layer = 0; layer < layers.length; layer++)
      sequence.append(layer, ...stream(layer, kvHeads * headDim, at, Math.min(to, at + size)));
  }
  return sequence;
}

/** What the tensors of a file are made of, and how many bytes that takes. */
const tensorTypes: Readonly<Record<string, readonly [dtype: string, bytes: number]>> = {
  sinks: ['F16', 2],
  pages: ['U8', 1],
  raw: ['F16', 2],
  balance: ['U8', 1],
  energies: ['F32', 4]
};

/** All that can be seen of a sequence: its file, its length. Leaves it sealed. */
const seen = async (sequence: Sequence) => sequence.save();

for (const tested of backends) {
  const { name, backend } = tested;
  const open = (options: Partial<Options> = {}) => new KVCache(backend, { ...base, ...options });
  const query = (cache: KVCache, tokens = 1) => normal(tokens, queryWidth(cache.shape), 70);

  group(`append on ${name}`, test => {
    for (const sinks of [0, 4, 64]) {
      for (const recent of [0, 2]) {
        test(`how calls are split changes no byte: sinks ${sinks}, recent ${recent}`, async () => {
          const cache = open({ sinks, recent, rope: exactRope(32) });
          const whole = await seen(extend(cache.sequence(), 0, 210));
          for (const size of [1, 7, 64, 100]) {
            const sequence = extend(cache.sequence(), 0, 210, size);
            sameBits(`pieces of ${size}`, await seen(sequence), whole);
            sequence.dispose();
          }
          cache.dispose();
        });
      }
    }

    test('layers may be filled one after another, and seal() at any time, without changing a byte', async () => {
      const cache = open();
      const whole = await seen(extend(cache.sequence(), 0, 210));
      const sequence = cache.sequence();
      for (const layer of [1, 0]) {
        for (const [from, to] of [
          [0, 3],
          [3, 130],
          [130, 131],
          [131, 210]
        ] as const) {
          sequence.append(layer, ...stream(layer, 32, from, to));
          if (to !== 131) sequence.seal();
          sequence.seal();
        }
      }
      sameBits('file', await seen(sequence), whole);
      cache.dispose();
    });

    test('length is what every layer holds', () => {
      const cache = open();
      const sequence = cache.sequence();
      assert.is(sequence.length, 0);
      sequence.append(0, ...stream(0, 32, 0, 5));
      assert.is(sequence.length, 0);
      sequence.append(1, ...stream(1, 32, 0, 3));
      assert.is(sequence.length, 3);
      cache.dispose();
    });

    test('complete windows are sealed when the next append begins, and not before', () => {
      const cache = open({ layers: 1, sinks: 4, balance: 'off' });
      const sequence = extend(cache.sequence(), 0, 67);
      assert.is(sequence.sealed.tokens, 0);
      extend(sequence, 67, 68);
      assert.is(sequence.sealed.tokens, 0); // 64 tokens after the sinks, complete with this very call
      extend(sequence, 68, 69);
      assert.is(sequence.sealed.tokens, 64);
      extend(sequence, 69, 300);
      assert.is(sequence.sealed.tokens, 64);
      sequence.seal();
      assert.is(sequence.sealed.tokens, 256);
      cache.dispose();
    });

    test('the newest `recent` complete windows stay raw', () => {
      const cache = open({ layers: 1, sinks: 0, recent: 2 });
      const sequence = extend(cache.sequence(), 0, 191);
      sequence.seal();
      assert.is(sequence.sealed.tokens, 0);
      extend(sequence, 191, 192).seal();
      assert.is(sequence.sealed.tokens, 64);
      cache.dispose();
    });

    test('decode() gives sinks and raw tokens as f16 keeps them, coded ones nearly', async () => {
      const cache = open({ kvHeads: 2, queryHeads: 2, keys: 'nsn4', values: 'nsn4' });
      const sequence = extend(cache.sequence(), 0, 150);
      sequence.seal();
      for (const layer of [0, 1]) {
        const held = await sequence.decode(layer);
        stream(layer, 64, 0, 150).forEach((expected, side) => {
          const actual = side ? held.values : held.keys;
          assert.is(actual.length, 150 * 64);
          sameBits('sinks', actual.subarray(0, 4 * 64), rounded(expected).subarray(0, 4 * 64));
          sameBits('tail', actual.subarray(132 * 64), rounded(expected).subarray(132 * 64));
          for (let t = 4; t < 132; t++) {
            for (let head = 0; head < 2; head++) {
              const row = (x: Float32Array) => x.subarray((2 * t + head) * 32, (2 * t + head + 1) * 32);
              atMost(`token ${t}`, relativeL2(row(actual), row(expected)), NEARLY);
            }
          }
        });
      }
      cache.dispose();
    });

    test('keys and values are read before append() returns, never kept or changed', async () => {
      const cache = open({ layers: 1 });
      const [keys, values] = stream(0, 32, 0, 100).map(x => x.slice()) as [Float32Array, Float32Array];
      const [a, b] = [cache.sequence(), cache.sequence()];
      a.append(0, keys, values);
      sameBits('keys', keys, stream(0, 32, 0, 100)[0]);
      keys.fill(1);
      values.fill(1);
      b.append(0, ...stream(0, 32, 0, 100));
      sameBits('file', await seen(a), await seen(b));
      cache.dispose();
    });
  });

  group(`fork and crop on ${name}`, test => {
    test('fork() has the same tokens, then goes its own way', async () => {
      const cache = open({ capacity: 700 });
      const chat = extend(cache.sequence(), 0, 150);
      const branch = chat.fork();
      sameBits('file', await seen(branch), await seen(chat));
      const q = query(cache);
      sameAttention(tested, 'attention', await branch.attend(1, q).read(), await chat.attend(1, q).read());

      extend(branch, 150, 230);
      extend(chat, 300, 310);
      const fresh = extend(cache.sequence(), 0, 150);
      extend(fresh, 150, 230);
      sameBits('the branch is as if it had never been one', await seen(branch), await seen(fresh));
      fresh.dispose();
      const other = extend(cache.sequence(), 0, 150);
      extend(other, 300, 310);
      sameBits('the chat does not know of the branch', await seen(chat), await seen(other));
      cache.dispose();
    });

    test('a fork outlives what it was made from', async () => {
      const cache = open();
      const chat = extend(cache.sequence(), 0, 150);
      const branch = chat.fork();
      const file = await seen(branch);
      chat.dispose();
      extend(cache.sequence(), 200, 340); // takes whatever was given back
      sameBits('file', await seen(branch), file);
      cache.dispose();
    });

    for (const recent of [0, 1]) {
      test(`crop() at every kind of boundary keeps what is before it: recent ${recent}`, async () => {
        const cache = open({ capacity: 800, recent });
        for (const length of [0, 1, 3, 4, 5, 67, 68, 69, 131, 132, 133, 195, 196, 199, 200]) {
          const sequence = extend(cache.sequence(), 0, 200);
          sequence.seal();
          const before = [await sequence.decode(0), await sequence.decode(1)];
          sequence.crop(length);
          assert.is(sequence.length, length);
          for (const layer of [0, 1]) {
            const held = await sequence.decode(layer);
            for (const side of ['keys', 'values'] as const) {
              const kept = before[layer]![side].subarray(0, length * 32);
              // A window that is cut is decoded into raw tokens, once: rounded to f16. All else stays to the bit.
              const cut = (length - 4) % 64 === 0 ? length : Math.max(0, 4 + 64 * Math.floor((length - 4) / 64));
              sameBits(`${side} before the cut window, length ${length}`, held[side].subarray(0, cut * 32), kept.subarray(0, cut * 32));
              sameBits(`${side} of the cut window, length ${length}`, held[side].subarray(cut * 32), rounded(kept.subarray(cut * 32)));
            }
          }
          if (length > 0) {
            const q = query(cache);
            const { exact, naive, extra } = await expectedAttention(sequence, 0, q, sequence.sealed.tokens / 64);
            withinFloatRule(`attention, length ${length}`, await sequence.attend(0, q).read(), exact, naive, 32, extra);
          }
          // What is appended after a cut goes where the cropped tokens were.
          extend(sequence, length, length + 70);
          assert.is(sequence.length, length + 70);
          const held = await sequence.decode(1);
          sameBits(`the newest token, length ${length}`, held.keys.subarray(-32), rounded(stream(1, 32, length + 69, length + 70)[0]));
          sequence.dispose();
        }
        cache.dispose();
      });
    }

    test('crop() seals nothing: rejected drafts leave what was raw as it was, across a window’s end too', async () => {
      for (const [layers, recent] of [
        [1, 0],
        [2, 0],
        [2, 1]
      ] as const) {
        const cache = open({ layers, recent });
        const plain = extend(cache.sequence(), 0, 66, 1);
        const drafted = extend(cache.sequence(), 0, 66, 1);
        for (let n = 0; n < 3; n++) {
          extend(drafted, 300, 304); // ends two tokens after the window
          drafted.crop(66);
        }
        for (let layer = 0; layer < layers; layer++) {
          const [expected, held] = [await plain.decode(layer), await drafted.decode(layer)];
          sameBits('keys', held.keys, expected.keys);
          sameBits('values', held.values, expected.values);
          sameBits('values as they came', held.values, rounded(stream(layer, 32, 0, 66)[1]));
        }
        sameBits('file', await seen(extend(drafted, 66, 140)), await seen(extend(plain, 66, 140)));
        cache.dispose();
      }
    });

    test('windows are sealed before their layer is appended to again where another layer needs their raw slots', async () => {
      // One raw slot more than a partial window in every layer takes; each layer's complete window would take one more.
      const cache = open({ layers: 2, sequences: 1, maxAppend: 64, balance: 'off' });
      const sequence = extend(cache.sequence(), 0, 66, 33);
      sequence.append(0, ...stream(0, 32, 66, 70));
      assert.is(sequence.sealed.tokens, 0);
      sequence.append(1, ...stream(1, 32, 66, 70));
      assert.is(sequence.sealed.tokens, 32, 'half of the layers hold a page of 64');
      const roomy = open({ balance: 'off' });
      sameBits('file', await seen(sequence), await seen(extend(roomy.sequence(), 0, 70)));
      for (const opened of [cache, roomy]) opened.dispose();
    });

    test('raw slots suffice where every layer of every sequence is about to learn', () => {
      // Two windows of each, of which one is a token short; and one call more in the layer that was appended to last.
      const cache = open({ layers: 3, sequences: 3, sinks: 0, maxAppend: 64, capacity: 700 });
      const all = [0, 1, 2].map(() => cache.sequence());
      for (const layer of [0, 1, 2]) {
        for (const [from, to] of layer === 2
          ? [
              [0, 64],
              [64, 127],
              [127, 191]
            ]
          : [
              [0, 64],
              [64, 127]
            ]) {
          for (const sequence of all) sequence.append(layer, ...stream(layer % 2, 32, from!, to!));
        }
      }
      assert.equal(
        all.map(({ sealed }) => sealed.tokens),
        [0, 0, 0]
      );
      assert.is(cache.shape.rawSlots, 3 * 2 * 2 + 3 * 3, 'none is left');
      cache.dispose();
    });

    test('raw slots suffice for a fork, a crop and a file while prompts fill those of two layers', async () => {
      // 31 raw slots: 14 of a prompt in one layer, 14 of another in the other, 2 of the first tokens of a chat; each call needs 2.
      const options = { capacity: 1024, sinks: 0, sequences: 5, balance: 'off' } as const;
      const file = await seen(extend(open(options).sequence(), 0, 32));
      const prompt = [keyLike(896, 32, 7), normal(896, 32, 8)] as const;
      const calls: Record<string, (cache: KVCache, chat: Sequence, coded: Sequence) => unknown> = {
        fork: (_, chat) => chat.fork(),
        crop: (_, _chat, coded) => coded.crop(10),
        restore: cache => cache.restore(file)
      };
      for (const [what, call] of Object.entries(calls)) {
        const cache = open(options);
        const [coded, chat, first, second] = [cache.sequence(), cache.sequence(), cache.sequence(), cache.sequence()];
        extend(coded, 0, 64).seal();
        const before = (await coded.decode(0)).keys;
        extend(chat, 0, 32);
        first.append(0, ...prompt);
        second.append(1, ...prompt);
        assert.is(first.sealed.tokens, 0, `${what}: nothing was sealed before`);
        call(cache, chat, coded);
        assert.is(first.sealed.tokens, 14 * 32, `${what}: 14 windows of one of two layers`);
        sameBits(`${what}: another's prompt`, (await second.decode(1)).values, rounded(prompt[1]));
        sameBits(`${what}: a chat`, (await chat.decode(0)).keys, rounded(stream(0, 32, 0, 32)[0]));
        sameBits(`${what}: a page`, (await coded.decode(0)).keys, what === 'crop' ? rounded(before.subarray(0, 320)) : before);
        cache.dispose();
      }
    });

    test('crop() within a prompt leaves its windows raw until the next append', async () => {
      const cache = open({ layers: 1 });
      const sequence = extend(cache.sequence(), 0, 200);
      sequence.crop(150);
      assert.is(sequence.sealed.tokens, 0);
      sameBits('keys', (await sequence.decode(0)).keys, rounded(stream(0, 32, 0, 150)[0]));
      extend(sequence, 150, 151);
      assert.is(sequence.sealed.tokens, 128);
      cache.dispose();
    });

    test('crop() of a fork leaves the other as it was', async () => {
      const cache = open({ capacity: 800 });
      const chat = extend(cache.sequence(), 0, 200);
      const branch = chat.fork();
      const file = await seen(chat);
      branch.crop(100);
      extend(branch, 300, 400);
      sameBits('file', await seen(chat), file);
      branch.crop(0);
      branch.dispose();
      sameBits('file after the branch is gone', await seen(chat), file);
      cache.dispose();
    });

    test('crop() to 0 and refilling is as a new sequence', async () => {
      const cache = open({ recent: 1 });
      const sequence = extend(cache.sequence(), 200, 400);
      sequence.crop(0);
      extend(sequence, 0, 150);
      sameBits('file', await seen(sequence), await seen(extend(cache.sequence(), 0, 150)));
      cache.dispose();
    });

    // On a GPU odd.test.ts cuts such a window.
    if (!tested.gpu)
      test('crop() into a window of ±65,504 gives what the window decodes to, as far as f16 reaches', async () => {
        // Decoded numbers may exceed f16's range, in which raw tokens are kept.
        const cache = open({ layers: 1, keys: 'nsn1', values: 'nsn1', sinks: 0, balance: 'off' });
        const sequence = cache.sequence();
        const x = inputs['largest finite']!(64, 32, 71);
        sequence.append(0, x, x);
        sequence.seal();
        const before = await sequence.decode(0);
        assert.ok(
          before.keys.some(value => Math.abs(value) > 2 * 65504),
          'the test needs numbers beyond f16'
        );
        sequence.crop(40);
        const held = await sequence.decode(0);
        sameBits('keys', held.keys, rounded(before.keys.subarray(0, 40 * 32)));
        sameBits('values', held.values, rounded(before.values.subarray(0, 40 * 32)));
        cache.dispose();
      });
  });

  group(`files on ${name}`, test => {
    for (const tokens of [0, 1, 4, 5, 67, 68, 69, 200]) {
      test(`restore() gives back what save() took: ${tokens} tokens`, async () => {
        // On a GPU histories.test.ts has layers of other codecs.
        const cache = open({ rope: exactRope(32), layers: [{}, tested.gpu ? {} : { keys: 'nsn1' }], capacity: 700 });
        const chat = extend(cache.sequence(), 0, tokens);
        const file = await seen(chat);
        const back = cache.restore(file);
        assert.is(back.length, tokens);
        sameBits('file', await seen(back), file);
        if (tokens > 0)
          sameAttention(tested, 'attention', await back.attend(1, query(cache)).read(), await chat.attend(1, query(cache)).read());
        extend(chat, tokens, tokens + 70);
        extend(back, tokens, tokens + 70);
        sameBits('files after more tokens', await seen(back), await seen(chat));
        cache.dispose();
      });
    }

    test('a file does not depend on the buffer it lies in', async () => {
      const cache = open();
      const file = await seen(extend(cache.sequence(), 0, 100));
      const wide = new Uint8Array(file.length + 20);
      wide.set(file, 13);
      sameBits('file', await seen(cache.restore(wide.subarray(13, 13 + file.length))), file);
      cache.dispose();
    });

    test('a file is safetensors: tensors lie one after another and fill it', async () => {
      const cache = open();
      const file = await seen(extend(cache.sequence(), 0, 200));
      const { metadata, header, layers } = readSaved(file);
      assert.equal(Object.entries(metadata), [
        ['checksum', checksumOf(file)],
        ['format', '2'],
        ['layers', '2'],
        ['heads', '1×32/32 1×32/32'],
        ['sinks', '4'],
        ['codecs', 'nsn3/nsn3 nsn3/nsn3'],
        ['window', 'all all'],
        ['balance', 'on'],
        ['codebooks', '2:7a0f9cd9 4:1438f011 8:419f5e95'],
        ['ropes', '[null]'],
        ['rope', '0 0'],
        ['length', '200'],
        ['coded', '3 3'],
        ['windows', '0-2 0-2'],
        ['dropped', '0 0'],
        ['whole', 'all all'],
        ['counted', '0 0']
      ]);
      assert.equal(
        Object.keys(header),
        [0, 1].flatMap(layer => ['sinks', 'pages', 'raw', 'balance', 'energies'].map(name => `layers.${layer}.${name}`))
      );
      let at = 0;
      for (const [
        name,
        {
          dtype,
          shape,
          data_offsets: [begin, end]
        }
      ] of Object.entries(header)) {
        const [type, bytes] = tensorTypes[name.split('.')[2]!]!;
        assert.is(dtype, type, name);
        assert.is(begin, at);
        assert.is(
          end - begin,
          shape.reduce((a, b) => a * b, bytes)
        );
        at = end;
      }
      const headerBytes = Number(new DataView(file.buffer).getBigUint64(0, true));
      assert.is(headerBytes % 8, 0);
      assert.is(file.length, 8 + headerBytes + at);
      assert.equal(
        layers.map(({ pages, raws, sinks }) => [pages.length, raws.length, sinks.length]),
        [
          [3, 1, 1],
          [3, 1, 1]
        ]
      );
      cache.dispose();
    });

    test('a file is what the sequence held when save() was called', async () => {
      const cache = open();
      const sequence = extend(cache.sequence(), 0, 100);
      const promise = sequence.save();
      extend(sequence, 100, 200);
      sequence.crop(0);
      sameBits('file', await promise, await seen(extend(cache.sequence(), 0, 100)));
      cache.dispose();
    });

    test('a file holds nothing of tokens that are gone', async () => {
      const cache = open({ sequences: 2 });
      const secret = cache.sequence();
      const x = new Float32Array(100 * 32).fill(1234.5);
      for (const layer of [0, 1]) secret.append(layer, x, x);
      secret.crop(90);
      secret.dispose();
      const sequence = extend(cache.sequence(), 0, 2);
      const dirty = await seen(sequence);
      sameBits('as from a new cache', dirty, await seen(extend(open().sequence(), 0, 2)));
      sequence.crop(1);
      const half = 2;
      for (const { sinks } of readSaved(await seen(sequence)).layers) {
        // [head, side, 4 tokens, 32 channels]: only the first token of either side is left.
        for (const side of [0, 1])
          assert.ok(sinks[0]!.subarray((side * 4 + 1) * 32 * half, (side + 1) * 4 * 32 * half).every(byte => byte === 0));
      }
      cache.dispose();
    });

    test('pages and places that were given back serve as new ones', async () => {
      const cache = open({ capacity: 210, sequences: 1, maxAppend: 100 });
      let first: Uint8Array | undefined;
      for (let round = 0; round < 4; round++) {
        const other = extend(cache.sequence(), 100 + round, 310 + round, 50);
        other.dispose();
        const sequence = extend(cache.sequence(), 0, 200, 50);
        const file = await seen(sequence);
        first ??= file;
        sameBits(`round ${round}`, file, first);
        sequence.dispose();
      }
      cache.dispose();
    });
  });

  group(`capacity on ${name}`, test => {
    for (const sinks of [0, 4]) {
      test(`exactly \`capacity\` tokens fit, one more is refused and changes nothing: sinks ${sinks}`, async () => {
        const cache = open({ capacity: 200, sinks, sequences: 2 });
        const sequence = extend(cache.sequence(), 0, 100);
        const other = extend(cache.sequence(), 100, 200);
        const q = query(cache);
        const out = await sequence.attend(0, q).read();
        await refuses(
          () => sequence.append(0, ...stream(0, 32, 0, 1)),
          RangeError,
          '"capacity" expected at most 200 tokens, got 201 (200 held + 1 more)'
        );
        sameAttention(tested, 'attention', await sequence.attend(0, q).read(), out);
        const roomy = extend(open({ sinks }).sequence(), 0, 100);
        roomy.attend(0, q);
        sameBits('file', await seen(sequence), await seen(roomy));
        other.crop(95);
        extend(sequence, 100, 105);
        await refuses(() => extend(other, 0, 1), RangeError, '"capacity" expected at most 200 tokens, got 201 (200 held + 1 more)');
        other.dispose();
        extend(sequence, 105, 200);
        assert.is(sequence.length, 200);
        cache.dispose();
      });
    }

    test('what forks share counts once, what they copy counts again', async () => {
      const cache = open({ capacity: 200, sinks: 4, layers: 1 });
      const chat = extend(cache.sequence(), 0, 150); // 4 sinks + 2 pages + 18 raw
      const branch = chat.fork(); // 22 more: 172
      extend(branch, 150, 178); // 28 more: 200
      await refuses(() => extend(chat, 150, 151), RangeError, '"capacity" expected at most 200 tokens, got 201 (200 held + 1 more)');
      await refuses(() => branch.fork(), RangeError, '"capacity" expected at most 200 tokens, got 250 (200 held + 50 more)');
      chat.dispose();
      extend(branch, 178, 200);
      assert.is(branch.length, 200);
      cache.dispose();
    });

    test('crop() into a page that a fork needs is refused where the tokens it decodes do not fit, and changes nothing', async () => {
      const cache = open({ capacity: 200, sinks: 0, layers: 1 });
      const chat = extend(cache.sequence(), 0, 128);
      const branch = chat.fork();
      extend(branch, 128, 190);
      const files = [await seen(chat), await seen(branch)];
      await refuses(() => chat.crop(127), RangeError, '"capacity" expected at most 200 tokens, got 253 (190 held + 63 more)');
      sameBits('chat', await seen(chat), files[0]!);
      sameBits('branch', await seen(branch), files[1]!);
      chat.crop(74); // 10 tokens of the second page: 200
      await refuses(() => extend(branch, 190, 191), RangeError, '"capacity" expected at most 200 tokens, got 201 (200 held + 1 more)');
      sameBits('branch after the crop', await seen(branch), files[1]!);
      cache.dispose();
    });

    test('every sequence may have a prompt pending in a layer of its own', () => {
      // A prompt's own tokens stay raw until the next call to its sequence; capacity counts layers apart.
      const cache = open({ layers: 4, sequences: 4, capacity: 640 });
      for (let n = 0; n < 4; n++) cache.sequence().append(n, ...stream(0, 32, 0, 640));
      cache.dispose();
    });
  });
}

group('using', test => {
  test('a cache and a sequence end as by dispose(), under the name that `using` looks for', async () => {
    const symbol: typeof Symbol.dispose = Symbol.dispose ?? Symbol.for('Symbol.dispose'); // as esbuild and Babel have it
    const cache = new KVCache(simd128.backend, { ...base, sequences: 1 });
    const sequence = cache.sequence();
    sequence[symbol]();
    await refuses(() => sequence.seal(), TypeError, 'sequence expected open, got disposed');
    cache.sequence();
    cache[symbol]();
    await refuses(() => cache.sequence(), TypeError, 'cache expected open, got disposed');
  });
});

group('files between backends', test => {
  const shape = { ...base, rope: exactRope(32) };
  for (const from of backends) {
    for (const to of backends) {
      if (from === to) continue;
      test(`what ${from.name} saved, ${to.name} holds byte for byte and attends to alike`, async () => {
        const source = new KVCache(from.backend, shape);
        const target = new KVCache(to.backend, { ...shape, capacity: 300, sequences: 1 });
        const sequence = extend(source.sequence(), 0, 200);
        sequence.seal();
        const q = normal(2, 64, 72);
        const out = await sequence.attend(0, q).read();
        const file = await seen(sequence);
        const back = target.restore(file);
        sameBits('file', await seen(back), file);
        const { exact, naive, extra } = await expectedAttention(sequence, 0, q, 3);
        withinFloatRule('attention there', out, exact, naive, 32, extra);
        await attendWithinRule('attention here', back, q);
        withinFloatRule('attention here, tokens from there', await back.attend(0, q).read(), exact, naive, 32, extra);
      });
    }
  }

  for (const { name, backend } of wasm) {
    test(`${name} seals the bytes of simd128`, async () => {
      const files = await Promise.all([backend, simd128.backend].map(one => seen(extend(new KVCache(one, shape).sequence(), 0, 200))));
      sameBits('file', files[0]!, files[1]!);
    });
  }
});
