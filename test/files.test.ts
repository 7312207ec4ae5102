// Files of sequences that were damaged, or made to be taken for good ones: every one is refused, by restore() and by inspect().

import { type CacheOptions, inspect, KVCache, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameBits } from './compare.ts';
import { below, exactRope, keyLike, normal, random } from './inputs.ts';
import { checksumOf, dataOf, fileOf, withChecksum, withHeader } from './pages.ts';
import { simd128 } from './verbs.ts';

const WIDTH = 32;
const base = { layers: 2, kvHeads: 1, queryHeads: 1, headDim: WIDTH, capacity: 400, sequences: 2 } satisfies CacheOptions;
const cacheOf = (more: Partial<CacheOptions> = {}) => new KVCache(simd128.backend, { ...base, ...more });

function append(sequence: Sequence, tokens: number): Sequence {
  const { layers } = sequence.shape;
  const { kvHeads } = layers[0]!;
  for (let layer = 0; tokens > 0 && layer < layers.length; layer++)
    sequence.append(layer, keyLike(tokens, kvHeads * WIDTH, layer), normal(tokens, kvHeads * WIDTH, layer));
  return sequence;
}

/** Caches and what they saved: empty, in sinks, with pages, with rope, words and codecs of all kinds. */
const cases = await Promise.all(
  (
    [
      ['of no tokens', {}, 0, {}],
      ['of sinks', {}, 3, { model: 'smollm2-135m' }],
      ['of pages', { sinks: 0 }, 140, {}],
      ['with RoPE, words and other codecs', { rope: exactRope(WIDTH), layers: [{}, { keys: 'nsn1' }] }, 200, { 'é "\\': '\ud800' }]
    ] as const
  ).map(async ([what, options, tokens, metadata]) => {
    const cache = cacheOf(options);
    const sequence = append(cache.sequence(), tokens);
    const file = await sequence.save({ metadata });
    sequence.dispose();
    return { what, cache, file };
  })
);

/** Neither reads these bytes, nor does restore() leave anything of them. */
function refusesBoth(cache: KVCache, bytes: Uint8Array, how: () => string): void {
  for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) assert.match(messageOf(read), /^file expected .+, got ./, how());
}

group('damaged files', test => {
  test("the checksum of tests is that of the world: CRC-32's check value", () => {
    assert.is(checksumOf(new TextEncoder().encode('123456789')), 'cbf43926');
  });

  for (const { what, cache, file } of cases) {
    const header = dataOf(file);
    test(`one flipped bit is refused, wherever it is: a file ${what}`, () => {
      const next = random(1);
      const bits = 8 * (file.length - header);
      const some = Array.from({ length: Math.min(bits, 1000) }, () => 8 * header + below(next, bits));
      for (const bit of [...Array(8 * header).keys(), ...some]) {
        const copy = file.slice();
        copy[bit >> 3]! ^= 1 << (bit & 7);
        refusesBoth(cache, copy, () => `bit ${bit & 7} of byte ${bit >> 3}`);
      }
      sameBits('the file itself', withChecksum(file), file);
      cache.restore(file).dispose();
    });

    test(`what is cut off, or longer, is refused: a file ${what}`, () => {
      const next = random(2);
      const some = file.length > header ? Array.from({ length: 300 }, () => header + below(next, file.length - header)) : [];
      for (const length of [...Array(header).keys(), ...some]) refusesBoth(cache, file.subarray(0, length), () => `${length} bytes`);
      for (const more of [1, 7, 8, 16, 4096]) {
        for (const byte of [0, 0x20, 0xff]) {
          const longer = new Uint8Array(file.length + more).fill(byte);
          longer.set(file);
          refusesBoth(cache, longer, () => `${more} bytes of ${byte} more`);
          refusesBoth(cache, withChecksum(longer), () => `${more} bytes of ${byte} more, checksum and all`);
        }
      }
    });
  }

  test('bytes of two tensors that are swapped are refused', () => {
    const { cache, file } = cases[3]!;
    const {
      data_offsets: [begin]
    } = JSON.parse(new TextDecoder().decode(file.subarray(8, dataOf(file))))['layers.0.raw'];
    const swapped = file.slice();
    const [raw, sinks] = [dataOf(file) + begin, dataOf(file)];
    swapped.copyWithin(sinks, raw, raw + 512);
    swapped.set(file.subarray(sinks, sinks + 512), raw);
    refusesBoth(cache, swapped, () => 'swapped bytes');
  });
});

group('hostile files, whose checksum is right', test => {
  const { cache, file } = cases[2]!;
  const text = new TextDecoder().decode(file.subarray(8, dataOf(file))).trimEnd();
  const data = file.subarray(dataOf(file));
  const header = JSON.parse(text);
  const pages = header['layers.0.pages'];
  const pageBytes = pages.shape[1];

  test('the header made again is the file', () => {
    sameBits('file', fileOf(text, data), file);
    sameBits(
      'file',
      withHeader(file, () => {}),
      file
    );
  });

  const entry = (rows: unknown, offsets: unknown) =>
    `{"dtype":"U8","shape":${JSON.stringify(rows)},"data_offsets":${JSON.stringify(offsets)}}`;
  const good = entry(pages.shape, pages.data_offsets);
  const tensors: readonly (readonly [how: string, other: unknown])[] = [
    ['type of another name', { ...pages, dtype: 'F16' }],
    ['type as an array, which is the same text', { ...pages, dtype: ['U8'] }],
    ['shape of text', { ...pages, shape: pages.shape.map(String) }],
    ['shape of another row', { ...pages, shape: [pages.shape[0], pageBytes / 2] }],
    ['shape of another rank', { ...pages, shape: [...pages.shape, 1] }],
    ['rows below 0', { ...pages, shape: [-1, pageBytes] }],
    ['half a row', { ...pages, shape: [0.5, pageBytes] }],
    ['offsets of text', { ...pages, data_offsets: pages.data_offsets.map(String) }],
    ['one offset of text', { ...pages, data_offsets: [String(pages.data_offsets[0]), pages.data_offsets[1]] }],
    ['offsets as text', { ...pages, data_offsets: String(pages.data_offsets) }],
    ['offsets that are no integers', { ...pages, data_offsets: pages.data_offsets.map((x: number) => x + 0.5) }],
    ['an overlap', { ...pages, data_offsets: pages.data_offsets.map((x: number) => x + 16) }],
    ['one row less, a gap', { ...pages, shape: [1, pageBytes], data_offsets: [0, pageBytes] }],
    ['another offset', { ...pages, data_offsets: [0, 0] }],
    ['one more field', { ...pages, more: 1 }],
    ['a field less', { dtype: 'U8', shape: pages.shape }],
    ['null', null],
    ['a number', 7],
    ['text', good]
  ];
  for (const [how, other] of tensors) {
    test(`a tensor with ${how} is refused by its name`, () => {
      const bytes = withHeader(file, header => {
        header['layers.0.pages'] = other;
      });
      for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) {
        const error = messageOf(read);
        assert.match(error, /^file expected layers\.0\.(pages|raw) \{"dtype":.+\}, got .+/);
      }
    });
  }

  const refused: readonly (readonly [how: string, text: string, message: string | RegExp])[] = [
    ['a tensor is missing', text.replace(/,"layers.1.raw":\{.+?\}/, ''), /^file expected layers\.1\.raw \{.+\}, got none$/],
    ['a tensor is unknown', text.replace(/\}$/, ',"layers.2.raw":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'), 'tensor layers.2.raw'],
    ['a tensor is called __proto__', text.replace(/\}$/, ',"__proto__":{}}'), 'tensor __proto__'],
    ['metadata are unknown', text.replace('"length"', '"author":"me","length"'), 'metadata author'],
    ['metadata are called __proto__', text.replace('"length"', '"__proto__":"me","length"'), 'metadata __proto__'],
    ["one of the application's words has no name", text.replace('"},"layers', '","app.":"x"},"layers'), 'metadata app.'],
    [
      "one of the application's words is a number",
      text.replace('"},"layers', '","app.x":1},"layers'),
      'file expected app.x as text, got number'
    ],
    ['a number is no text', text.replace('"length":"140"', '"length":140'), 'file expected length as text, got number'],
    ['text is an array', text.replace('"length":"140"', '"length":["140"]'), 'file expected length as text, got Array'],
    ['a tensor is there twice', text.replace(/\}$/, `,"layers.0.pages":${good}}`), 'other text'],
    ['a tensor is there twice, the first another', text.replace('"layers.0.pages"', '"layers.0.pages":7,"layers.0.pages"'), 'other text'],
    ['metadata are there twice', text.replace('"length"', '"length":"140","length"'), 'other text'],
    ['the length is there twice, the first another', text.replace('"length"', '"length":"1","length"'), 'other text'],
    ['a field of a tensor is there twice', text.replace('"dtype"', '"dtype":"U8","dtype"'), 'other text'],
    ['white space', text.replace(',"layers.0.pages"', ', "layers.0.pages"'), 'other text'],
    ['white space before it', ` ${text}`, /./],
    ['more white space behind it', `${text}${' '.repeat(8)}`, 'other text'],
    ['a name with an escape', text.replace('"layers.0.raw"', '"layers.0.r\\u0061w"'), 'other text'],
    ['another order', text.replace(/("layers.0.pages":\{.+?\}),("layers.0.raw":\{.+?\})/, '$2,$1'), 'other text'],
    ['metadata in another order', text.replace(/("heads":"[^"]+"),("sinks":"[^"]+")/, '$2,$1'), 'other text'],
    ['another spelling of a number', text.replace('"data_offsets":[0,0]', '"data_offsets":[0,-0]'), 'other text'],
    [
      'a checksum behind other metadata',
      text.replace(/"checksum":"(.{8})","format":"2"/, '"format":"2","checksum":"$1"'),
      'file expected checksum'
    ],
    [
      'nests too deep for engines',
      text.replace(good, `${'['.repeat(100000)}${']'.repeat(100000)}`),
      /^file expected (a safetensors header, got no JSON$|layers\.0\.pages \{)/ // what some engines write they compare
    ]
  ];
  const words: Readonly<Record<string, string>> = {
    'other text': 'file expected its header as save() writes it, got other text (a name twice, another order, white space)'
  };
  for (const [how, changed, message] of refused) {
    test(`a header is refused where ${how}`, () => {
      assert.is.not(changed, text);
      const bytes = fileOf(changed, data);
      for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) {
        const said = messageOf(read);
        if (message instanceof RegExp) assert.match(said, message);
        else if (/^(tensor|metadata) /.test(message)) {
          const [what, name] = message.split(' ');
          assert.is(said, `file expected no ${what} but those that docs/format.md names, got ${name}`);
        } else assert.ok(said.startsWith(words[message] ?? message), said);
      }
    });
  }

  const fields: readonly (readonly [field: string, other: string, message?: string])[] = [
    ['layers', '0', 'file expected layers 2, got 0'],
    ['layers', '2.0', 'file expected layers 2, got 2.0'],
    ['heads', '1×32/32', 'file expected coded 1 integer from 0 to 2, got 2 2'],
    ['heads', '01×32/32 1×32/32', 'file expected heads 1×32/32 1×32/32, got 01×32/32 1×32/32'],
    ['heads', '1/32×32 1×32/32', 'file expected heads 1×32/32 1×32/32, got 1/32×32 1×32/32'],
    [
      'heads',
      '1×32 1×32',
      'file expected the shape of a cache, got another: "layers[0].valueDim" expected integer from 32 to 576, got NaN'
    ],
    ['heads', '', 'file expected the shape of a cache, got another: "layers[0].kvHeads" expected integer from 1 to 1024, got 0'],
    [
      'heads',
      '1×32/32 1×33/32',
      'file expected the shape of a cache, got another: "layers[1].headDim" expected multiple of 8 from 32 to 576, got 33'
    ],
    ['sinks', '65', 'file expected the shape of a cache, got another: "sinks" expected integer from 0 to 64, got 65'],
    ['sinks', 'null', 'file expected the shape of a cache, got another: "sinks" expected integer from 0 to 64, got NaN'],
    [
      'codecs',
      'nsn4/nsn5 nsn4/nsn2',
      'file expected the shape of a cache, got another: "layers[0].values" expected nsn1, nsn2, nsn3 or nsn4, got nsn5'
    ],
    ['codecs', 'nsn3/nsn3', 'file expected codecs nsn3/nsn3 nsn3/nsn3, got nsn3/nsn3'],
    ['codecs', 'nsn3/nsn3/x nsn3/nsn3', 'file expected codecs nsn3/nsn3 nsn3/nsn3, got nsn3/nsn3/x nsn3/nsn3'],
    [
      'codebooks',
      '2:7a0f9cd9 4:1438f012 8:419f5e95',
      'file expected codebooks 2:7a0f9cd9 4:1438f011 8:419f5e95, got 2:7a0f9cd9 4:1438f012 8:419f5e95'
    ],
    [
      'codebooks',
      '2:1438f011 4:7a0f9cd9 8:419f5e95',
      'file expected codebooks 2:7a0f9cd9 4:1438f011 8:419f5e95, got 2:1438f011 4:7a0f9cd9 8:419f5e95'
    ],
    ['balance', 'learn', 'file expected balance on, got learn'],
    ['coded', '2', 'file expected coded 2 integers from 0 to 2, got 2'],
    ['coded', '2 3', 'file expected coded 2 integers from 0 to 2, got 2 3'],
    ['coded', '02 2', 'file expected coded 2 2, got 02 2'],
    ['windows', '0-1', 'file expected windows of 2 layers, got 0-1'],
    ['windows', '0-1 ', 'file expected windows in ascending ranges below 2 (those that were coded), got '],
    ['windows', '0-1 0-2', 'file expected windows in ascending ranges below 2 (those that were coded), got 0-2'],
    ['windows', '0-1 1-0', 'file expected windows in ascending ranges below 2 (those that were coded), got 1-0'],
    ['windows', '0-1 1-1,0-0', 'file expected windows in ascending ranges below 2 (those that were coded), got 1-1,0-0'],
    ['windows', '0-1 0-0,1-1', 'file expected windows 0-1 0-1, got 0-1 0-0,1-1'],
    ['windows', '0-1 0-1-2', 'file expected windows 0-1 0-1, got 0-1 0-1-2'],
    ['windows', '0-1 0.5-1', 'file expected windows in ascending ranges below 2 (those that were coded), got 0.5-1'],
    ['windows', '0-1 -'],
    ['window', 'all', 'file expected the shape of a cache, got another: "layers[1].window" expected integer from 1 to 16777216, got NaN'],
    ['window', 'all all all', 'file expected window all all, got all all all'],
    ['window', '0 all', 'file expected the shape of a cache, got another: "layers[0].window" expected integer from 1 to 16777216, got 0'],
    ['counted', '0', 'file expected counted 2 integers from 0 to 140, got 0'],
    ['counted', '0 x', 'file expected counted 2 integers from 0 to 140, got 0 x'],
    ['counted', '0 141', 'file expected counted 2 integers from 0 to 140, got 0 141'],
    ['counted', '0  0', 'file expected counted 2 integers from 0 to 140, got 0  0'],
    ['counted', '0 00', 'file expected counted 0 0, got 0 00'],
    ['ropes', 'known'],
    ['ropes', 'null'],
    ['ropes', '[]', 'file expected ropes [null], got []'],
    ['ropes', '{"0":null}', 'file expected ropes [null], got {"0":null}'],
    ['ropes', '[{"invFreq":[1],"interleaved":1}]'],
    ['ropes', '[{"invFreq":["1"],"interleaved":true}]'],
    ['ropes', '[{"invFreq":[9],"interleaved":true}]'],
    ['ropes', '[{"invFreq":[],"interleaved":true}]'],
    ['ropes', '[{"invFreq":[1],"interleaved":true,"theta":1}]'],
    ['ropes', '["none"]', 'file expected ropes [null], got ["none"]'],
    [
      'ropes',
      '[{"interleaved":true,"invFreq":[1]}]',
      'file expected ropes [{"invFreq":[1],"interleaved":true}], got [{"interleaved":true,"invFreq":[1]}]'
    ],
    ['ropes', '[null,null]', 'file expected ropes [null], got [null,null]'],
    ['rope', '0', 'file expected rope 0 0, got 0'],
    ['rope', '0 1', 'file expected rope 0 0, got 0 1'],
    ['rope', '0 -0', 'file expected rope 0 0, got 0 -0'],
    ['rope', '-1 0', 'file expected rope 0 0, got -1 0'],
    ...['x', '-1', '1.5', 'NaN', '16777217', 'Infinity'].map(
      length => ['length', length, `file expected length an integer from 0 to 16777216, got ${length}`] as const
    ),
    ...['', ' 140', '1.4e2', '140.0', '+140'].map(length => ['length', length] as const),
    ['format', '3', 'file expected format 2, got 3']
  ];
  for (const [field, other, message] of fields) {
    test(`metadata are refused where ${field} is "${other}"`, () => {
      const bytes = withHeader(file, header => {
        header.__metadata__[field] = other;
      });
      for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) {
        const said = messageOf(read);
        assert.match(said, /^file expected .+, got /);
        if (message !== undefined) assert.is(said, message);
      }
    });
  }

  test('windows of all layers together are no more than the file has room for', () => {
    const bytes = withHeader(file, header => {
      Object.assign(header.__metadata__, { length: String(2 ** 24), coded: '99 99', windows: '0-9 0-9' });
    });
    const left = Math.floor(bytes.length / cache.shape.layers[0]!.page.bytes) - 10; // of a file of 100 MB, 4,096 layers would name 10⁹
    const message = `file expected at most ${left} windows of a layer (what the file has room for), got 0-9`;
    for (const read of [() => cache.restore(bytes), () => inspect(bytes)]) assert.is(messageOf(read), message);
  });

  test('positions are counted where a layer has still to learn, and nowhere else', async () => {
    const plain = cacheOf({ balance: 'off' });
    const sealed = await append(cacheOf().sequence(), 140).save();
    for (const [of, bytes] of [
      [cache, sealed],
      [plain, await append(plain.sequence(), 20).save()]
    ] as const) {
      const other = withHeader(bytes, header => {
        header.__metadata__.counted = '5 0';
      });
      for (const read of [() => of.restore(other), () => inspect(other)]) {
        assert.is(messageOf(read), 'file expected counted 0 0, got 5 0');
      }
    }
  });

  test('a file may come as a Buffer, whatever it still has to learn', async () => {
    for (const tokens of [3, 20, 140]) {
      const sequence = append(cacheOf().sequence(), tokens);
      for (const layer of [0, 1]) sequence.attend(layer, normal(Math.min(tokens, 3), WIDTH, layer));
      const file = await sequence.save();
      // As Node's Buffer does: part of a larger memory, and slice() copies nothing.
      class View extends Uint8Array {
        override slice(begin?: number, end?: number): Uint8Array<ArrayBuffer> {
          return this.subarray(begin, end) as Uint8Array<ArrayBuffer>;
        }
      }
      const memory = new Uint8Array(file.length + 13);
      memory.set(file, 13);
      const again = cacheOf().restore(new View(memory.buffer, 13, file.length));
      sameBits(`${tokens} tokens`, await again.save(), file);
    }
  });

  test('a checksum in capitals is refused', () => {
    const digits = header.__metadata__.checksum;
    assert.is.not(digits.toUpperCase(), digits, 'letters are among the digits');
    const bytes = file.slice();
    bytes.set(new TextEncoder().encode(text.replace(digits, digits.toUpperCase())), 8);
    assert.is(
      messageOf(() => inspect(bytes)),
      `file expected checksum ${digits} (of all its bytes), got ${digits.toUpperCase()}: it is damaged or cut off`
    );
  });

  test('metadata are refused where one of them is missing, by its name', () => {
    for (const field of Object.keys(header.__metadata__)) {
      const bytes = withHeader(file, header => {
        delete header.__metadata__[field];
      });
      const said = messageOf(() => inspect(bytes));
      assert.ok(said.startsWith(`file expected ${field} `) && /, got none\b/.test(said), said);
    }
  });

  test('a header whose length is no multiple of 8 is refused', () => {
    for (const spaces of [1, 2, 3, 4, 5, 6, 7, 9]) {
      const json = new TextEncoder().encode(JSON.stringify(header) + ' '.repeat(spaces));
      const length = dataOf(file) - 8;
      if (json.length === length) continue;
      const bytes = new Uint8Array(8 + json.length + data.length);
      new DataView(bytes.buffer).setBigUint64(0, BigInt(json.length), true);
      bytes.set(json, 8);
      bytes.set(data, 8 + json.length);
      refusesBoth(cache, withChecksum(bytes), () => `${spaces} spaces`);
    }
  });

  test('a header beyond what safetensors reads is not looked at', () => {
    const bytes = new Uint8Array(100_000_016);
    for (const length of [100_000_001n, 100_000_008n, 2n ** 63n, 2n ** 64n - 1n]) {
      new DataView(bytes.buffer).setBigUint64(0, length, true);
      assert.is(
        messageOf(() => inspect(bytes)),
        'file expected a safetensors header, got none'
      );
    }
  });

  test('they left nothing in the cache', () => {
    append(cache.sequence(), base.capacity);
  });
});

/** The message of a RangeError. */
function messageOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    assert.ok(error instanceof RangeError, `${error}`);
    return error.message;
  }
  return 'nothing thrown';
}
