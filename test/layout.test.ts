// The page format: where every byte lies, read by literal offsets and by the drawing in pages.ts. Other programs read these bytes.

import { type CodecName, codecs, KVCache, plan, type Rope } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { sameBits } from './compare.ts';
import { halfValue, rounded } from './half.ts';
import { exactRope, keyLike } from './inputs.ts';
import { readSaved, type Sections, sectionsOf, withChecksum } from './pages.ts';
import { scaleTie } from './tolerance.ts';
import { reference as referenceBackend, simd128, withVerbs } from './verbs.ts';

const names = Object.keys(codecs) as CodecName[];
const headDims = Array.from({ length: (512 - 32) / 8 + 1 }, (_, n) => 32 + 8 * n);
/** Rows of codes that end in padding (nsn1: 5 and 9 bytes; nsn2: 10 and 18), means that end in padding, and none of either. */
const padded = [40, 64, 72, 104, 136];

/** Offsets at headDim 64, as any other program would have them. */
const drawn = {
  nsn1: { rowBytes: 8, s2: 512, s1: 640, scales: 672, o: 688, bytes: 720 },
  nsn2: { rowBytes: 16, s2: 1024, s1: 1152, scales: 1184, o: 1200, bytes: 1232 },
  nsn4: { rowBytes: 32, s2: 2048, s1: 2176, scales: 2208, o: 2224, bytes: 2256 }
} as const;

/** Every byte of a block that no section has. */
function paddingOf(at: Sections, codesInRow: number): number[] {
  const taken = new Uint8Array(at.bytes);
  for (let t = 0; t < 64; t++) taken.fill(1, t * at.rowBytes, t * at.rowBytes + codesInRow);
  for (const [begin, end] of [at.s2, at.s1, at.scales, at.o]) taken.fill(1, begin, end);
  return Array.from(taken.keys()).filter(i => taken[i] === 0);
}

function checkPadding(what: string, block: Uint8Array, codec: CodecName, headDim: number): void {
  const { channels } = codecs[codec];
  for (const at of paddingOf(sectionsOf(codecs[codec], headDim), headDim / channels)) assert.is(block[at], 0, `${what}: byte ${at}`);
}

const shapeOf = (headDim: number, keys: CodecName, values: CodecName, kvHeads: number, rope?: Rope) => ({
  layers: 1,
  kvHeads,
  queryHeads: kvHeads,
  headDim,
  capacity: 64,
  keys,
  values,
  sinks: 0,
  sequences: 1,
  ...(rope && { rope })
});

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

// Blocks alone are kept: an engine has room for the memories of a hundred or so kernels at a time.
const blocks = new Map<string, readonly Uint8Array[]>();
for (const codec of names) {
  for (const headDim of headDims) {
    const verbs = await simd128.kernels({ codec, headDim });
    // The second call finds what the first left behind.
    blocks.set(
      `${codec} ${headDim}`,
      [1, 2].map(seed => verbs.encode(keyLike(64, headDim, seed)))
    );
  }
}

group('block layout', test => {
  for (const codec of names) {
    test(`sections follow one another on 16 bytes with less than 16 between them, at every headDim: ${codec}`, () => {
      for (const headDim of headDims) {
        const cache = new KVCache(referenceBackend.backend, shapeOf(headDim, codec, codec, 1));
        const { keys, values } = cache.shape.pages[0]!;
        cache.dispose();
        const perRow = headDim / codecs[codec].channels;
        const what = `headDim ${headDim}`;
        assert.ok(keys.rowBytes % 4 === 0 && keys.rowBytes >= perRow && keys.rowBytes < perRow + 4, what);
        const begins = [0, keys.s2, keys.s1, keys.scales, keys.o, keys.bytes];
        const lengths = [64 * keys.rowBytes, 64 * 2, 64 / 2, 4 * (1 + Math.ceil(headDim / 32)), headDim / 2];
        lengths.forEach((length, n) => {
          const gap = begins[n + 1]! - begins[n]! - length;
          assert.is(begins[n + 1]! % 16, 0, what);
          assert.ok(gap >= 0 && gap < 16, `${what}: ${gap} bytes after section ${n}`);
        });
        assert.equal({ ...values }, { ...keys }, what);
        assert.is(keys.bytes, sectionsOf(codecs[codec], headDim).bytes, what);
        for (const block of blocks.get(`${codec} ${headDim}`)!) assert.is(block.length, keys.bytes, what);
      }
    });

    test(`every byte that no section has is 0, at every headDim: ${codec}`, () => {
      for (const headDim of headDims) {
        for (const block of blocks.get(`${codec} ${headDim}`)!) checkPadding(`headDim ${headDim}`, block, codec, headDim);
      }
    });

    test(`offsets at headDim 64 are ${Object.values(drawn[codec]).slice(1).join(', ')}: ${codec}`, () => {
      const cache = new KVCache(referenceBackend.backend, shapeOf(64, codec, codec, 1));
      const { rowBytes, s2, s1, scales, o, bytes } = cache.shape.pages[0]!.keys;
      cache.dispose();
      assert.equal({ rowBytes, s2, s1, scales, o, bytes }, drawn[codec]);
    });
  }
});

const documented = { nsn1: '1.41', nsn2: '2.41', nsn4: '4.41' } as const;

group('page layout', test => {
  for (const codec of names) {
    test(`a page of 3 heads of 64 channels takes ${documented[codec]} bits per element, metadata and header counted: ${codec}`, () => {
      const options = shapeOf(64, codec, codec, 3);
      const cache = new KVCache(referenceBackend.backend, options);
      const { bytes } = cache.shape.pages[0]!;
      cache.dispose();
      assert.is(bytes, 16 + 3 * 2 * drawn[codec].bytes);
      assert.is(((bytes * 8) / (2 * 3 * 64 * 64)).toFixed(2), documented[codec]);
      assert.is(plan(options).bitsPerElement.toFixed(2), documented[codec]);
    });
  }

  test('a page is its header and the blocks of every head, at every headDim', () => {
    for (const headDim of headDims) {
      for (const keys of names) {
        for (const values of names) {
          const cache = new KVCache(referenceBackend.backend, shapeOf(headDim, keys, values, 2));
          const page = cache.shape.pages[0]!;
          cache.dispose();
          assert.is(page.bytes, 16 + 2 * (sectionsOf(codecs[keys], headDim).bytes + sectionsOf(codecs[values], headDim).bytes));
          assert.is(page.bytes % 16, 0);
        }
      }
    }
  });

  for (const { name, backend, kernels } of withVerbs) {
    test(`the header says what the page is: ${name}`, async () => {
      for (const [keys, values] of [
        ['nsn4', 'nsn2'],
        ['nsn1', 'nsn4'],
        ['nsn2', 'nsn1']
      ] as const) {
        for (const rope of [undefined, exactRope(72)]) {
          const tokens = tokensOf(2, 72, 1);
          const page = await pageOf(new KVCache(backend, shapeOf(72, keys, values, 2, rope)), tokens, tokens);
          const view = new DataView(page.buffer, page.byteOffset);
          assert.is(String.fromCharCode(...page.subarray(0, 4)), 'NSNP');
          assert.equal(Array.from(page.subarray(4, 8)), [2, codecs[keys].channels, codecs[values].channels, rope ? 1 : 0]);
          assert.equal([view.getUint16(8, true), view.getUint16(10, true)], [72, 2]);
          assert.is(view.getUint32(12, true), (codecs[keys].checksum ^ codecs[values].checksum) >>> 0);
        }
      }
    });

    test(`a code, a norm and a mean are found at their offset by index: ${name}`, async () => {
      const [kvHeads, headDim] = [3, 64];
      const tokens = { nsn4: tokensOf(kvHeads, headDim, 2), nsn2: tokensOf(kvHeads, headDim, 3), nsn1: tokensOf(kvHeads, headDim, 4) };
      for (const [keys, values] of [
        ['nsn4', 'nsn2'],
        ['nsn1', 'nsn4']
      ] as const) {
        const page = await pageOf(new KVCache(backend, shapeOf(headDim, keys, values, kvHeads)), tokens[keys], tokens[values]);
        const view = new DataView(page.buffer, page.byteOffset);
        const half = (offset: number) => halfValue(view.getUint16(offset, true));
        const nibble = (offset: number, i: number) => (page[offset + (i >> 1)]! >> (i % 2 ? 4 : 0)) & 15;
        for (let head = 0; head < kvHeads; head++) {
          for (const codec of [keys, values]) {
            const at = drawn[codec];
            const block = 16 + head * (drawn[keys].bytes + drawn[values].bytes) + (codec === keys ? 0 : drawn[keys].bytes);
            const what = `${codec}, head ${head}`;
            const x = headOf(tokens[codec], head, kvHeads, headDim);
            const exact = reference.encode(x, headDim, reference.codecQuantizer(codecs[codec]));
            const opened = await kernels({ codec, headDim });
            const s1 = opened.normalize(x);
            const o = opened.shift(x);
            opened.normalizeAgain(x);
            opened.hadamard(x);
            const codes = opened.quantize(x);
            const perRow = headDim / codecs[codec].channels;
            for (const t of [0, 1, 37, 63]) {
              for (const j of [0, 3, perRow - 1])
                assert.is(page[block + t * at.rowBytes + j], codes[t * perRow + j], `${what}: code ${t}, ${j}`);
              const norm = nibble(block + at.s1, t) * half(block + at.scales) + half(block + at.scales + 2);
              assert.is(Math.fround(norm), s1[t], `${what}: s1 of token ${t}`);
              // f32 may take the other side of a tie of f16.
              const s2 = half(block + at.s2 + 2 * t);
              assert.ok(
                Math.abs(s2 / exact.s2[t]! - 1) <= 2 ** -10 + scaleTie(headDim),
                `${what}: s2 of token ${t}: ${s2} for ${exact.s2[t]}`
              );
            }
            for (const i of [0, 1, 31, 32, 45, 63]) {
              const scale = block + at.scales + 4 + 4 * Math.floor(i / 32);
              assert.is(Math.fround(nibble(block + at.o, i) * half(scale) + half(scale + 2)), o[i], `${what}: o of channel ${i}`);
            }
          }
        }
      }
    });

    test(`the padding of a cache's pages is 0, whatever was there before: ${name}`, async () => {
      for (const headDim of padded) {
        for (const [keys, values] of [
          ['nsn1', 'nsn2'],
          ['nsn4', 'nsn1']
        ] as const) {
          const cache = new KVCache(backend, shapeOf(headDim, keys, values, 2));
          const first = cache.sequence();
          first.append(0, tokensOf(2, headDim, 5), tokensOf(2, headDim, 6));
          first.seal();
          first.dispose();
          const page = await pageOf(cache, tokensOf(2, headDim, 7), tokensOf(2, headDim, 8));
          let at = 16;
          for (const codec of [keys, values, keys, values]) {
            const { bytes } = sectionsOf(codecs[codec], headDim);
            checkPadding(`headDim ${headDim}`, page.subarray(at, at + bytes), codec, headDim);
            at += bytes;
          }
          assert.is(at, page.length);
        }
      }
    });
  }

  test('a page with anything in its padding is refused: it would stay in pages that others are written over', async () => {
    for (const headDim of padded) {
      for (const [keys, values] of [
        ['nsn1', 'nsn2'],
        ['nsn4', 'nsn1']
      ] as const) {
        const cache = new KVCache(simd128.backend, shapeOf(headDim, keys, values, 2));
        const sequence = cache.sequence();
        sequence.append(0, tokensOf(2, headDim, 9), tokensOf(2, headDim, 10));
        sequence.seal();
        const file = await sequence.save();
        sequence.dispose();
        const page = readSaved(file).layers[0]!.pages[0]!; // the file's own bytes
        let block = 16;
        for (const [n, codec] of [keys, values, keys, values].entries()) {
          const at = sectionsOf(codecs[codec], headDim);
          for (const byte of paddingOf(at, headDim / codecs[codec].channels)) {
            const message = `page expected zeros as padding of ${n % 2 ? 'values' : 'keys'} of head ${n >> 1}, got ${1 + (byte % 255)}`;
            page[block + byte] = 1 + (byte % 255);
            assert.throws(
              () => cache.restore(withChecksum(file)),
              (error: Error) => error instanceof RangeError && error.message === message
            );
            page[block + byte] = 0;
          }
          block += at.bytes;
        }
        sameBits('saved again', await cache.restore(file).save(), file);
        cache.dispose();
      }
    }
  });
});
