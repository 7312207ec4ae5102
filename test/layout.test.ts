// The page format: what a head's channels are cut into and where every byte lies, read by literal offsets and by the drawing in pages.ts.
// Other programs read these bytes.

import { type CacheOptions, type CodecName, codecs, KVCache, plan, type Rope } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { atMost, sameBits } from './compare.ts';
import { halfValue, rounded } from './half.ts';
import { anyBalance, exactRope, keyLike } from './inputs.ts';
import { blockOf, paddingOf, readSaved, type Sections, sectionsOf, sidesOf, withChecksum } from './pages.ts';
import { reference as referenceBackend, simd128, withVerbs } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];
const headDims = Array.from({ length: (576 - 32) / 8 + 1 }, (_, n) => 32 + 8 * n);
/** Rows of codes that end in padding (nsn1: 5 and 9 bytes; nsn2: 10 and 18), blocks that end in padding of one, two and three bytes. */
const padded = [40, 64, 72, 104, 136];

const kinds = [
  ['keys', false],
  ['keys', true],
  ['values', false]
] as const;
type Kind = 'plain keys' | 'balanced keys' | 'plain values';
const kindOf = (side: 'keys' | 'values', balanced: boolean) => `${balanced ? 'balanced' : 'plain'} ${side}` as Kind;

/** Offsets at headDim 64, as any other program would have them: s2, s1, o, scales, exponents, and all bytes. */
const drawn: Readonly<Record<CodecName, Readonly<Record<Kind, readonly [number, number, number, number, number, number]>>>> = {
  nsn1: {
    'plain keys': [512, 576, 608, 672, 684, 688],
    'balanced keys': [512, 704, 736, 800, 812, 816],
    'plain values': [512, 576, 608, 640, 652, 656]
  },
  nsn2: {
    'plain keys': [1024, 1088, 1120, 1184, 1196, 1200],
    'balanced keys': [1024, 1216, 1248, 1312, 1324, 1328],
    'plain values': [1024, 1088, 1120, 1152, 1164, 1168]
  },
  nsn3: {
    'plain keys': [1536, 1600, 1632, 1696, 1708, 1712],
    'balanced keys': [1536, 1664, 1696, 1760, 1772, 1776],
    'plain values': [1536, 1600, 1632, 1664, 1676, 1680]
  },
  nsn4: {
    'plain keys': [2048, 2112, 2144, 2208, 2220, 2224],
    'balanced keys': [2048, 2112, 2144, 2208, 2220, 2224],
    'plain values': [2048, 2112, 2144, 2176, 2188, 2192]
  }
};

/** Channels of balanced keys with codewords of 2, 4 and 8 channels. */
const shares: Readonly<Record<CodecName, Readonly<Record<number, readonly [twos: number, fours: number, eights: number]>>>> = {
  nsn1: {
    32: [0, 8, 16],
    40: [0, 8, 24],
    56: [4, 16, 8],
    64: [4, 16, 16],
    80: [4, 24, 16],
    96: [4, 24, 32],
    128: [8, 32, 32],
    256: [16, 64, 64]
  },
  nsn2: {
    32: [8, 8, 16],
    40: [8, 16, 16],
    56: [8, 32, 16],
    64: [8, 40, 16],
    80: [8, 56, 16],
    96: [16, 48, 32],
    128: [16, 80, 32],
    256: [32, 160, 64]
  },
  nsn3: { 32: [16, 16, 0], 40: [20, 20, 0], 64: [32, 32, 0], 128: [64, 64, 0], 256: [128, 128, 0] },
  nsn4: { 32: [32, 0, 0], 40: [40, 0, 0], 64: [64, 0, 0], 128: [128, 0, 0], 256: [256, 0, 0] }
};

const optionsOf = (
  headDim: number,
  keys: CodecName,
  values: CodecName,
  kvHeads: number,
  more: Partial<CacheOptions> = {}
): CacheOptions => ({
  layers: 1,
  kvHeads,
  queryHeads: kvHeads,
  headDim,
  capacity: 64,
  keys,
  values,
  sinks: 0,
  sequences: 1,
  ...more
});

/** A cache's balance that has nothing to do with what it is given, or none. */
const profileOf = (balanced: boolean, kvHeads: number, headDim: number) => (balanced ? anyBalance(kvHeads * headDim, 7) : 'off');

/** The package's layout of a side. */
function layoutOf(name: CodecName, headDim: number, side: 'keys' | 'values', balanced: boolean) {
  const cache = new KVCache(referenceBackend.backend, optionsOf(headDim, name, name, 1, { balance: balanced ? 'learn' : 'off' }));
  cache.dispose();
  return cache.shape.layers[0]!.page[side];
}

/** [64, kvHeads, headDim], every head's tokens its own. */
const tokensOf = (kvHeads: number, headDim: number, seed: number) => rounded(keyLike(64, kvHeads * headDim, seed));

/** One head's rows of such tokens. */
const headOf = (x: Float32Array, head: number, kvHeads: number, headDim: number) =>
  Float32Array.from({ length: 64 * headDim }, (_, i) => x[(Math.floor(i / headDim) * kvHeads + head) * headDim + (i % headDim)]!);

async function pageOf(cache: KVCache, keys: Float32Array, values: Float32Array): Promise<Uint8Array> {
  const sequence = cache.sequence();
  sequence.append(0, keys, values);
  sequence.seal();
  const { pages } = readSaved(await sequence.save()).layers[0]!;
  assert.is(pages.length, 1);
  cache.dispose();
  return pages[0]!;
}

function checkPadding(what: string, block: Uint8Array, at: Sections): void {
  for (const byte of paddingOf(at)) assert.is(block[byte], 0, `${what}: byte ${byte}`);
}

for (const name of names) {
  const { bits } = codecs[name];
  for (const [side, balanced] of kinds) {
    const kind = kindOf(side, balanced);
    // Blocks alone are kept: an engine has room for the memories of a hundred or so kernels at a time.
    const blocks = new Map<number, readonly Uint8Array[]>();
    for (const headDim of headDims) {
      const verbs = await simd128.kernels({ codec: name, headDim, side, ...(balanced && { balance: anyBalance(headDim, 3) }) });
      // The second call finds what the first left behind.
      blocks.set(
        headDim,
        [1, 2].map(seed => verbs.encode(keyLike(64, headDim, seed)))
      );
    }

    group(`block layout, ${name}, ${kind}`, test => {
      test('sections follow one another on words, with padding at the end of rows and of the block alone, at every headDim', () => {
        for (const headDim of headDims) {
          const { segments, meanBits, ...layout } = layoutOf(name, headDim, side, balanced);
          const what = `headDim ${headDim}`;
          const begins = [layout.s2, layout.s1, layout.o, layout.scales, layout.exponents];
          const lengths = [
            64 * layout.rowBytes,
            64 * segments.length,
            64 / 2,
            side === 'keys' ? headDim : headDim / 2,
            4 * (1 + Math.ceil(headDim / 32))
          ];
          let end = 0;
          lengths.forEach((length, n) => {
            assert.is(end % 4, 0, what);
            assert.is((end += length), begins[n], `${what}: end of section ${n}`);
          });
          const rest = layout.bytes - end - segments.length;
          assert.ok(layout.bytes % 4 === 0 && rest >= 0 && rest < 4, `${what}: ${rest} bytes at the end`);
          const padding = layout.rowBytes - (headDim * bits) / 8;
          assert.ok(layout.rowBytes % 4 === 0 && padding >= 0 && padding < 4, `${what}: ${padding} bytes in a row`);
          assert.is(meanBits, side === 'keys' ? 8 : 4);
          const at = sectionsOf(codecs[name], headDim, side, balanced);
          assert.equal([...begins, layout.bytes], [at.s2[0], at.s1[0], at.o[0], at.scales[0], at.exponents[0], at.bytes], what);
          for (const block of blocks.get(headDim)!) assert.is(block.length, at.bytes, what);
        }
      });

      test(`segments are cut from all channels in order, their codes take headDim · ${bits} / 8 bytes, at every headDim`, () => {
        for (const headDim of headDims) {
          const { segments } = layoutOf(name, headDim, side, balanced);
          const what = `headDim ${headDim}`;
          let [channel, column] = [0, 0];
          for (const [n, segment] of segments.entries()) {
            assert.is(segment.channel, channel, what);
            channel += segment.channels;
            for (const { codebook, columns, column: begin } of segment.stages) {
              assert.is(begin, column, what);
              assert.is(columns * codebook.channels, segment.channels, what);
              column += columns;
            }
            // Two columns share a scale in a kernel's pass.
            if (n < segments.length - 1) assert.is(column % 2, 0, what);
          }
          assert.is(column, (headDim * bits) / 8, what);
          assert.ok(balanced && name === 'nsn1' ? channel < headDim : channel === headDim, `${what}: ${channel} channels`);
          const own = sectionsOf(codecs[name], headDim, side, balanced).segments;
          assert.equal(
            segments.map(({ stages, ...rest }) => ({
              ...rest,
              stages: stages.map(({ codebook: { channels }, scale, column, columns }) => ({ channels, scale, column, columns }))
            })),
            own,
            what
          );
          // Codewords of fewer channels come first: what weighs most has most bits.
          const widths = segments.map(({ stages }) => stages[0]!.codebook.channels);
          assert.equal(widths, [...new Set(widths)].sort());
        }
      });

      test('every byte that no section has is 0, at every headDim', () => {
        for (const headDim of headDims) {
          const at = sectionsOf(codecs[name], headDim, side, balanced);
          for (const block of blocks.get(headDim)!) checkPadding(`headDim ${headDim}`, block, at);
        }
      });

      test(`offsets at headDim 64 are ${drawn[name][kind].join(', ')}`, () => {
        const { rowBytes, s2, s1, o, scales, exponents, bytes } = layoutOf(name, 64, side, balanced);
        assert.equal([s2, s1, o, scales, exponents, bytes], drawn[name][kind]);
        assert.is(rowBytes, 8 * bits);
      });
    });
  }

  group(`balanced keys, ${name}`, test => {
    for (const [headDim, channels] of Object.entries(shares[name])) {
      test(`have ${channels.join(', ')} channels in codewords of 2, 4 and 8 at headDim ${headDim}`, () => {
        const { segments } = layoutOf(name, Number(headDim), 'keys', true);
        const found = [2, 4, 8].map(width => segments.find(({ stages }) => stages[0]!.codebook.channels === width)?.channels ?? 0);
        assert.equal(found, channels);
      });
    }
  });
}

group('page layout', test => {
  for (const name of names) {
    test(`a page of heads of 64 channels takes at most ${codecs[name].bits}.44 bits per element, metadata counted: ${name}`, () => {
      for (const [balance, kind] of [
        ['learn', 'balanced keys'],
        ['off', 'plain keys']
      ] as const) {
        const options = optionsOf(64, name, name, 3, { balance });
        const cache = new KVCache(referenceBackend.backend, options);
        const { bytes } = cache.shape.layers[0]!.page;
        cache.dispose();
        assert.is(bytes, 3 * (drawn[name][kind][5] + drawn[name]['plain values'][5]));
        const perElement = (bytes * 8) / (2 * 3 * 64 * 64);
        atMost('bits', perElement, codecs[name].bits + 0.44);
        assert.is(plan(options).bitsPerElement, perElement);
      }
    });
  }

  test('a page is the blocks of every head, at every headDim', () => {
    for (const headDim of headDims) {
      for (const keys of names) {
        for (const values of names) {
          for (const balance of ['learn', 'off'] as const) {
            const { shape } = new KVCache(referenceBackend.backend, optionsOf(headDim, keys, values, 2, { balance }));
            const blocks = [
              sectionsOf(codecs[keys], headDim, 'keys', balance !== 'off').bytes,
              sectionsOf(codecs[values], headDim, 'values', false).bytes
            ];
            assert.is(shape.layers[0]!.page.bytes, 2 * (blocks[0]! + blocks[1]!));
          }
        }
      }
    }
  });

  for (const { name, backend } of withVerbs) {
    for (const balanced of [false, true]) {
      test(`a code, a norm and a mean are found at their offset by index: ${kindOf('keys', balanced)}, ${name}`, async () => {
        const [kvHeads, headDim] = [3, 64];
        const rope = exactRope(headDim);
        const balance = profileOf(balanced, kvHeads, headDim);
        for (const [keys, values] of [
          ['nsn4', 'nsn2'],
          ['nsn1', 'nsn3'],
          ['nsn3', 'nsn1'],
          ['nsn2', 'nsn4']
        ] as const) {
          const tokens = { keys: tokensOf(kvHeads, headDim, 2), values: tokensOf(kvHeads, headDim, 3) };
          const page = await pageOf(
            new KVCache(backend, optionsOf(headDim, keys, values, kvHeads, { rope, balance })),
            tokens.keys,
            tokens.values
          );
          const view = new DataView(page.buffer, page.byteOffset);
          const half = (offset: number) => halfValue(view.getUint16(offset, true));
          const nibble = (offset: number, i: number) => (page[offset + (i >> 1)]! >> (i % 2 ? 4 : 0)) & 15;
          const [keyBytes, valueBytes] = [drawn[keys][kindOf('keys', balanced)][5], drawn[values]['plain values'][5]];
          for (let head = 0; head < kvHeads; head++) {
            for (const side of ['keys', 'values'] as const) {
              const [codec, onKeys] = [side === 'keys' ? keys : values, side === 'keys'];
              const [s2, s1, o, scales, exponents] = drawn[codec][kindOf(side, onKeys && balanced)].map(
                offset => head * (keyBytes + valueBytes) + (onKeys ? 0 : keyBytes) + offset
              ) as [number, number, number, number, number];
              const codes = head * (keyBytes + valueBytes) + (onKeys ? 0 : keyBytes);
              const what = `${codec} ${side}, head ${head}`;
              const exact = exactly(
                headOf(tokens[side], head, kvHeads, headDim),
                codec,
                side,
                onKeys ? rope : undefined,
                onKeys ? balance : 'off',
                head
              );
              const perRow = 8 * codecs[codec].bits;
              for (const t of [0, 1, 37, 63]) {
                for (const j of [0, 3, perRow >> 1, perRow - 1])
                  assert.is(page[codes + t * perRow + j], exact.codes[t * perRow + j], `${what}: code ${t}, ${j}`);
                assert.is(nibble(s1, t), exact.s1Group.codes[t], `${what}: s1 of token ${t}`);
                exact.s2Groups.forEach((floats, n) => {
                  // f32 may take the other side of a tie.
                  const off = Math.abs(page[s2 + 64 * n + t]! - floats.codes[t]!);
                  assert.ok(off <= 1, `${what}: s2 of token ${t}, segment ${n}: ${page[s2 + 64 * n + t]}`);
                });
              }
              for (const i of [0, 1, 31, 32, 45, 63]) {
                const { codes } = exact.oGroups[i >> 5]!;
                assert.is(onKeys ? page[o + i] : nibble(o, i), codes[i % 32], `${what}: o of channel ${i}`);
              }
              [exact.s1Group, ...exact.oGroups].forEach(({ scale, min }, n) => {
                assert.equal([half(scales + 4 * n), half(scales + 4 * n + 2)], [scale, min], `${what}: scales ${n}`);
              });
              exact.s2Groups.forEach(({ exponent }, n) => assert.is(page[exponents + n], exponent, `${what}: exponent ${n}`));
            }
          }
        }
      });
    }

    test(`the padding of a cache's pages is 0, whatever was there before: ${name}`, async () => {
      for (const headDim of padded) {
        for (const [keys, values] of [
          ['nsn1', 'nsn2'],
          ['nsn4', 'nsn1'],
          ['nsn3', 'nsn3']
        ] as const) {
          const cache = new KVCache(backend, optionsOf(headDim, keys, values, 2, { balance: profileOf(true, 2, headDim) }));
          const sides = sidesOf(cache, 0);
          const first = cache.sequence();
          first.append(0, tokensOf(2, headDim, 5), tokensOf(2, headDim, 6));
          first.seal();
          first.dispose();
          const page = await pageOf(cache, tokensOf(2, headDim, 7), tokensOf(2, headDim, 8));
          assert.is(page.length, 2 * (sides[0].bytes + sides[1].bytes));
          for (const head of [0, 1]) {
            for (const side of [0, 1] as const) checkPadding(`headDim ${headDim}`, blockOf(page, head, side, sides), sides[side]);
          }
        }
      }
    });
  }

  test('a page with anything in its padding is refused: it would stay in pages that others are written over', async () => {
    for (const headDim of padded) {
      for (const [keys, values] of [
        ['nsn1', 'nsn2'],
        ['nsn4', 'nsn1'],
        ['nsn3', 'nsn3']
      ] as const) {
        const cache = new KVCache(simd128.backend, optionsOf(headDim, keys, values, 2, { balance: profileOf(true, 2, headDim) }));
        const sides = sidesOf(cache, 0);
        const sequence = cache.sequence();
        sequence.append(0, tokensOf(2, headDim, 9), tokensOf(2, headDim, 10));
        sequence.seal();
        const file = await sequence.save();
        sequence.dispose();
        const page = readSaved(file).layers[0]!.pages[0]!; // the file's own bytes
        for (const head of [0, 1]) {
          for (const side of [0, 1] as const) {
            const block = blockOf(page, head, side, sides);
            for (const byte of paddingOf(sides[side])) {
              const message = `page expected zeros as padding of ${side ? 'values' : 'keys'} of head ${head}, got ${1 + (byte % 255)}`;
              block[byte] = 1 + (byte % 255);
              assert.throws(
                () => cache.restore(withChecksum(file)),
                (error: Error) => error instanceof RangeError && error.message === message
              );
              block[byte] = 0;
            }
          }
        }
        sameBits('saved again', await cache.restore(file).save(), file);
        cache.dispose();
      }
    }
  });
});

/** What the reference codes one head's tokens to. */
function exactly(
  x: Float32Array,
  name: CodecName,
  side: 'keys' | 'values',
  rope: Rope | undefined,
  balance: Uint8Array | 'off',
  head: number
) {
  const layout = reference.blockLayout(codecs[name], 64, side, balance !== 'off');
  const order = balance === 'off' ? undefined : reference.channelOrder(balance.subarray(32 * head, 32 * head + 32), 64, rope);
  return reference.encode(x, 64, reference.codingOf(layout, rope, order));
}
