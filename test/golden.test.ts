// Stored blocks and balances (golden.ts makes them): every binary in every engine must code these tokens to these bytes, read them back,
// and learn what is stored. What changes them changes the page format.

import { type CodecName, codecs, KVCache, type Rope } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, sameBits, withinFloatRule } from './compare.ts';
import { encodedFrom, learnedFrom } from './encoded.ts';
import { loadFixture } from './fixture.ts';
import { rounded } from './half.ts';
import { anyBalance, bells, keyLike } from './inputs.ts';
import { blockOf, readBlock, readSaved, sectionsOf, sidesOf } from './pages.ts';
import { NEAR_TIES } from './tolerance.ts';
import { reference as referenceBackend, relaxed, scalar, simd128, wasm, withVerbs } from './verbs.ts';

const kinds = ['plain keys', 'balanced keys', 'values'] as const;

interface Golden {
  readonly headDim: number;
  /** Tokens whose decoded numbers are stored. */
  readonly rows: readonly number[];
  readonly ropes: Readonly<Record<string, Rope | null>>;
  readonly cases: readonly {
    readonly codec: CodecName;
    readonly kind: (typeof kinds)[number];
    readonly rope: string;
    readonly seed: number;
    readonly block: string;
    readonly decoded: string;
  }[];
  readonly learned: readonly { readonly rope: string; readonly seed: number; readonly balance: string }[];
}

const {
  headDim,
  rows,
  ropes,
  cases: stored,
  learned
}: Golden = JSON.parse(new TextDecoder().decode(await loadFixture('golden-pages.json')));
const bytesOf = (base64: string) => Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
const cases = stored.map(({ codec, kind, rope: ropeName, seed, block, decoded }) => {
  const rope = ropes[ropeName] ?? undefined;
  const side = kind === 'values' ? ('values' as const) : ('keys' as const);
  const balance = kind === 'balanced keys' ? anyBalance(headDim, seed) : undefined;
  return {
    title: `${codec}, ${kind}, ${ropeName}`,
    codec,
    kind,
    rope,
    balance,
    options: { codec, headDim, side, ...(rope && { rope }), ...(balance && { balance }) },
    at: sectionsOf(codecs[codec], headDim, side, balance !== undefined),
    order: balance && brute.orderOf(balance, headDim, rope),
    tokens: rounded(keyLike(64, headDim, seed)),
    block: bytesOf(block),
    decoded: new Float32Array(bytesOf(decoded).buffer)
  };
});

const storedRows = (x: Float32Array | Float64Array) =>
  Float32Array.from(rows.flatMap(row => Array.from(x.subarray(row * headDim, (row + 1) * headDim))));

/** All of them in every lane, whatever it leaves to others: every engine has the very bytes. */
const opened = await Promise.all(
  [referenceBackend, scalar, simd128, ...(relaxed ? [relaxed] : [])].map(async tested => ({
    ...tested,
    verbs: await Promise.all(cases.map(({ options }) => tested.kernels(options)))
  }))
);

group('stored blocks', test => {
  test('there is one for every codec, kind of RoPE, plain keys, balanced keys and values', () => {
    const names = ['no RoPE', 'RoPE halves', 'RoPE interleaved'];
    const expected = Object.keys(codecs).flatMap(codec =>
      kinds.flatMap(kind => names.slice(0, kind === 'values' ? 1 : 3).map(rope => `${codec}, ${kind}, ${rope}`))
    );
    assert.equal(
      cases.map(({ title }) => title),
      expected
    );
    assert.equal(
      Object.values(ropes).map(rope => rope?.interleaved),
      [undefined, false, true]
    );
    for (const { decoded } of cases) assert.is(decoded.length, rows.length * headDim);
    assert.equal(
      learned.map(({ rope }) => rope),
      names
    );
  });

  test('no two of them are alike', () => {
    assert.is(new Set(stored.map(({ block }) => block)).size, stored.length);
    assert.is(new Set(learned.map(({ balance }) => balance)).size, learned.length);
  });

  for (const { name, verbs } of opened.filter(({ backend }) => backend.name === 'wasm')) {
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
    cases.forEach(({ title, at, rope, order, block, decoded }, n) => {
      const unpacked = readBlock(block, at);
      const exact = brute.decode(unpacked, rope, brute.f64, order);
      const naive = brute.decode(unpacked, rope, brute.f32, order);
      withinFloatRule(`${title}: stored`, decoded, storedRows(exact), storedRows(naive), headDim);
      // The reference differs from the definition by the last rounding alone.
      withinFloatRule(`${title}: reference`, verbs[n]!.decode(block), exact, exact, headDim);
    });
  });

  test('they are what the definitions, and the reference, make of their tokens, near ties apart', () => {
    const { verbs } = opened.find(({ name }) => name === referenceBackend.name)!;
    const ties = { near: 0, codes: 0 };
    let [differing, bytes] = [0, 0];
    cases.forEach(({ title, at, rope, order, tokens, block }, n) => {
      encodedFrom(title, block, tokens, at, rope, ties, order);
      verbs[n]!.encode(tokens).forEach((byte, i) => (differing += Number(byte !== block[i])));
      bytes += block.length;
    });
    console.log(`${ties.near} near ties in ${ties.codes} codes; ${differing} of ${bytes} bytes differ from the reference's`);
    atMost('near ties', ties.near, NEAR_TIES * ties.codes);
    atMost('differing bytes', differing, NEAR_TIES * bytes);
  });

  for (const { name, backend } of wasm) {
    test(`a cache that is given their tokens holds them: ${name}`, async () => {
      for (const { title, kind, codec, rope, balance, tokens, block } of cases) {
        if (kind === 'values') continue;
        const values = cases.find(other => other.codec === codec && other.kind === 'values')!;
        const cache = new KVCache(backend, {
          layers: 1,
          kvHeads: 1,
          queryHeads: 1,
          headDim,
          capacity: 64,
          keys: codec,
          values: codec,
          sinks: 0,
          balance: balance ?? 'off',
          ...(rope && { rope })
        });
        const sequence = cache.sequence();
        sequence.append(0, tokens, values.tokens);
        sequence.seal();
        const { pages } = readSaved(await sequence.save()).layers[0]!;
        assert.is(pages.length, 1);
        const sides = sidesOf(cache, 0);
        sameBits(`${title}: keys`, blockOf(pages[0]!, 0, 0, sides), block);
        sameBits(`${title}: values`, blockOf(pages[0]!, 0, 1, sides), values.block);
        cache.dispose();
      }
    });
  }
});

group('stored balances', test => {
  for (const { name, backend } of withVerbs) {
    for (const { rope: ropeName, seed, balance } of learned) {
      test(`a cache learns its very bytes, whether asked at once or token by token: ${ropeName}, ${name}`, async () => {
        const rope = ropes[ropeName] ?? undefined;
        const [keys, values, queries] = [keyLike(128, headDim, seed), bells(128, headDim, seed), bells(128, 3 * headDim, seed + 50)];
        for (const step of [128, 1, 50]) {
          const options = { layers: 1, kvHeads: 1, queryHeads: 3, headDim, capacity: 128, sinks: 0, ...(rope && { rope }) };
          const cache = new KVCache(backend, options);
          const sequence = cache.sequence();
          for (let t = 0; t < 128; t += step) {
            const part = (x: Float32Array, width: number) => x.subarray(t * width, (t + step) * width);
            sequence.append(0, part(keys, headDim), part(values, headDim));
            sequence.attend(0, part(queries, 3 * headDim));
          }
          sequence.seal();
          sameBits(`${step} at a time`, await sequence.balance(), bytesOf(balance));
          cache.dispose();
        }
      });
    }
  }

  test('they are what the definitions make of their tokens and queries', () => {
    const ties = { near: 0, codes: 0 };
    for (const { rope: ropeName, seed, balance } of learned) {
      const rope = ropes[ropeName] ?? undefined;
      const keys = rounded(keyLike(128, headDim, seed));
      const windows = [keys.subarray(0, 64 * headDim), keys.subarray(64 * headDim)];
      const energies = brute.queryEnergies(bells(128, 3 * headDim, seed + 50), headDim, rope);
      learnedFrom(ropeName, bytesOf(balance), windows, energies, headDim, rope, ties);
    }
    assert.is(ties.near, 0);
  });
});
