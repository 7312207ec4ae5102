// Stored blocks (golden.ts makes them): every binary in every engine must code these tokens to these bytes, and read them back.
// What changes them changes the page format.

import { type Codec, type CodecName, codecs, KVCache, type Rope } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { sameBits, sameCodes, sameRounding, withinFloatRule } from './compare.ts';
import { loadFixture } from './fixture.ts';
import { rounded } from './half.ts';
import { keyLike } from './inputs.ts';
import { blockOf, readBlock, readSaved } from './pages.ts';
import { ATOL, NEAR_TIES, SCALE_TIES, scaleTie } from './tolerance.ts';
import { reference as referenceBackend, wasm, withVerbs } from './verbs.ts';

interface Golden {
  readonly headDim: number;
  /** Tokens whose decoded numbers are stored. */
  readonly rows: readonly number[];
  readonly ropes: Readonly<Record<string, Rope | null>>;
  readonly cases: readonly {
    readonly codec: CodecName;
    readonly rope: string;
    readonly seed: number;
    readonly block: string;
    readonly decoded: string;
  }[];
}

const { headDim, rows, ropes, cases: stored }: Golden = JSON.parse(new TextDecoder().decode(await loadFixture('golden-pages.json')));
const bytesOf = (base64: string) => Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
const cases = stored.map(({ codec, rope, seed, block, decoded }) => ({
  title: `${codec}, ${rope}`,
  codec: codecs[codec] as Codec,
  ropeName: rope,
  rope: ropes[rope] ?? undefined,
  tokens: rounded(keyLike(64, headDim, seed)),
  block: bytesOf(block),
  decoded: new Float32Array(bytesOf(decoded).buffer)
}));

const storedRows = (x: Float32Array | Float64Array) =>
  Float32Array.from(rows.flatMap(row => Array.from(x.subarray(row * headDim, (row + 1) * headDim))));

const opened = await Promise.all(
  withVerbs.map(async tested => ({
    ...tested,
    verbs: await Promise.all(cases.map(({ codec, rope }) => tested.kernels({ codec: codec.name, headDim, ...(rope && { rope }) })))
  }))
);

group('stored blocks', test => {
  test('there is one for every codec and kind of RoPE', () => {
    const expected = Object.keys(codecs).flatMap(codec => ['no RoPE', 'RoPE halves', 'RoPE interleaved'].map(rope => `${codec}, ${rope}`));
    assert.equal(
      cases.map(({ title }) => title),
      expected
    );
    assert.equal(
      Object.values(ropes).map(rope => rope?.interleaved),
      [undefined, false, true]
    );
    for (const { decoded } of cases) assert.is(decoded.length, rows.length * headDim);
  });

  test('no two of them are alike', () => {
    assert.is(new Set(stored.map(({ block }) => block)).size, stored.length);
  });

  for (const { name, verbs } of opened.filter(({ name }) => wasm.some(tested => tested.name === name))) {
    test(`encode() makes their very bytes: ${name}`, () => {
      cases.forEach(({ title, tokens, block }, n) => sameBits(title, verbs[n]!.encode(tokens), block));
    });

    // Only scores and mix add in another order in the relaxed binary: decoding may not differ by a bit in any.
    test(`decode() makes the very numbers stored beside them: ${name}`, () => {
      cases.forEach(({ title, block, decoded }, n) => sameBits(title, storedRows(verbs[n]!.decode(block)), decoded));
    });
  }

  test('the reference, and a decoder by the definition, make the same numbers of them, f32 roundings apart', () => {
    const { verbs } = opened.find(({ name }) => name === referenceBackend.name)!;
    cases.forEach(({ title, codec, rope, block, decoded }, n) => {
      const unpacked = readBlock(block, codec, headDim);
      const exact = brute.decode(unpacked, codec, headDim, rope, brute.f64);
      const naive = brute.decode(unpacked, codec, headDim, rope, brute.f32);
      withinFloatRule(`${title}: stored`, decoded, storedRows(exact), storedRows(naive), headDim);
      // The reference differs from the definition by the last rounding alone.
      withinFloatRule(`${title}: reference`, verbs[n]!.decode(block), exact, exact, headDim);
    });
  });

  test('the reference codes their tokens to the same codes, norms and means, near ties apart', () => {
    let ties = 0;
    let scaleTies = 0;
    let codes = 0;
    for (const { title, codec, rope, tokens, block: bytes } of cases) {
      const block = readBlock(bytes, codec, headDim);
      const y = Float64Array.from(tokens);
      const exactNorms = brute.norms(y, headDim, brute.f64);
      const { group: norms } = reference.normalize(y, headDim);
      sameRounding(`${title}: norms`, block.s1, exactNorms, Math.max(...exactNorms), true);
      const magnitude = y.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
      const mean = brute.mean(y, headDim, rope, brute.f64);
      block.o.forEach((group, n) => sameRounding(`${title}: mean`, group, mean.subarray(32 * n, 32 * n + 32), magnitude));
      const { groups: means } = reference.shift(y, headDim, rope);
      // No norm or mean of these tokens is so near a tie that f32 would take the other side: y below would not be comparable.
      assert.equal([block.s1, ...block.o], [norms, ...means], title);
      reference.normalizeAgain(y, headDim);
      reference.hadamard(y, headDim);
      // A token's ‖y‖ is √headDim: what f32 makes of it is off by that share at most.
      ties += sameCodes(title, block.codes, y, codec, ATOL * Math.sqrt(headDim));
      codes += block.codes.length;
      const { s2 } = reference.encode(tokens, headDim, reference.codecQuantizer(codec), rope);
      s2.forEach((expected, t) => {
        if (block.s2[t] === expected) return;
        scaleTies++;
        // The other side of a tie is the next f16 number, at most 2⁻¹⁰ away.
        assert.ok(
          Math.abs(block.s2[t]! / expected - 1) <= 2 ** -10 + scaleTie(headDim),
          `${title}: s2 of token ${t}: ${block.s2[t]} for ${expected}`
        );
      });
    }
    console.log(`${ties} near ties in ${codes} codes, ${scaleTies} in ${cases.length * 64} second norms`);
    assert.ok(ties <= NEAR_TIES * codes, `${ties} ties`);
    assert.ok(scaleTies <= SCALE_TIES * cases.length * 64, `${scaleTies} ties`);
  });

  for (const { name, backend } of wasm) {
    test(`a cache that is given their tokens holds them: ${name}`, async () => {
      for (const { title, codec, rope, tokens, block } of cases) {
        const plain = cases.find(other => other.codec === codec && other.ropeName === 'no RoPE')!;
        const cache = new KVCache(backend, {
          layers: 1,
          kvHeads: 1,
          queryHeads: 1,
          headDim,
          capacity: 64,
          keys: codec.name,
          values: codec.name,
          sinks: 0,
          ...(rope && { rope })
        });
        const sequence = cache.sequence();
        sequence.append(0, tokens, plain.tokens);
        sequence.seal();
        const { pages } = readSaved(await sequence.save()).layers[0]!;
        assert.is(pages.length, 1);
        sameBits(`${title}: keys`, blockOf(pages[0]!, 0, 0, codec, codec, headDim), block);
        sameBits(`${title}: values`, blockOf(pages[0]!, 0, 1, codec, codec, headDim), plain.block);
        cache.dispose();
      }
    });
  }
});
