// What a cache learns of its first windows and of the queries that asked for them, and the pages that it codes by it, on every backend:
// against definitions, from the file that it saves.

import { type CacheOptions, type CodecName, codecs, KVCache, type Rope, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { attendWithinRule } from './attention.ts';
import { backends, scatteredWebgpu } from './backends.ts';
import * as brute from './brute.ts';
import { atMost, sameBits } from './compare.ts';
import { encodedFrom, learnedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { blockOf, readSaved, sidesOf } from './pages.ts';
import { ENERGIES, NEAR_LEVELS, NEAR_TIES } from './tolerance.ts';

const [kvHeads, queryHeads, headDim, sinks] = [2, 6, 64, 4];
const names = Object.keys(codecs) as CodecName[];
/** Tokens that are learned from, and some more. */
const [learned, tokens] = [sinks + 128, sinks + 64 * 4 + 3];

const headOf = (x: Float32Array, head: number, heads: number) =>
  Float32Array.from({ length: x.length / heads }, (_, i) => x[(Math.floor(i / headDim) * heads + head) * headDim + (i % headDim)]!);

/** Heads of x [tokens, heads, headDim] turned as an engine would. */
function turnedHeads(x: Float32Array, heads: number, rope: Rope | undefined): Float32Array {
  if (!rope) return x;
  const out = new Float32Array(x.length);
  for (let head = 0; head < heads; head++) {
    turned(headOf(x, head, heads), headDim, rope).forEach((value, i) => {
      out[(Math.floor(i / headDim) * heads + head) * headDim + (i % headDim)] = value;
    });
  }
  return out;
}

/** Channels weigh by powers of two, other ones in queries than in keys. */
const weighed = (x: Float32Array, step: number) => x.map((value, i) => value * 2 ** -(((i % headDim) * step) % 7));

const shapes: readonly (readonly [name: string, rope: Rope | undefined])[] = [['no RoPE', undefined], ...Object.entries(ropes(headDim))];

for (const tested of backends.filter(tested => tested !== scatteredWebgpu)) {
  const levels = { near: 0, codes: 0 };
  const codes = { near: 0, codes: 0 };

  for (const [n, [name, rope]] of shapes.entries()) {
    // There a new RoPE takes seconds to compile; those of shapes.test.ts learn of keys alone.
    if (tested.gpu && n !== 0 && n !== 3) continue;
    group(`learning on ${tested.name}, ${name}`, test => {
      const keys = rounded(turnedHeads(weighed(keyLike(tokens, kvHeads * headDim, 1), 5), kvHeads, rope));
      const values = rounded(normal(tokens, kvHeads * headDim, 2));
      const queries = turnedHeads(weighed(normal(tokens, queryHeads * headDim, 3), 3), queryHeads, rope);
      const options: CacheOptions = {
        layers: 1,
        kvHeads,
        queryHeads,
        headDim,
        capacity: 2 * tokens,
        sinks,
        sequences: 2,
        ...(rope && { rope }),
        ...(tested.gpu && { keys: 'nsn2', values: 'nsn3' }) // as below: energies ask for no codec
      };
      const rowsOf = (x: Float32Array, heads: number, from: number, to: number) => x.subarray(from * heads * headDim, to * heads * headDim);
      /** Appends and asks for the tokens from one to the other. */
      const ask = (sequence: Sequence, from: number, to: number) => {
        sequence.append(0, rowsOf(keys, kvHeads, from, to), rowsOf(values, kvHeads, from, to));
        return sequence.attend(0, rowsOf(queries, queryHeads, from, to)).read();
      };
      /** Σ q² of the queries from the first token on that share a KV head. */
      const energiesOf = (head: number, count: number) => {
        const sums = [0, 1, 2].map(q =>
          brute.queryEnergies(headOf(rowsOf(queries, queryHeads, 0, count), 3 * head + q, queryHeads), headDim, rope)
        );
        return sums[0]!.map((_, pair) => sums.reduce((sum, energies) => sum + energies[pair]!, 0));
      };

      test('energies of queries are added up, however calls are split', async () => {
        let first: Float32Array | undefined;
        let most = 0;
        for (const step of [100, 1, 37]) {
          const cache = new KVCache(tested.backend, options);
          const sequence = cache.sequence();
          for (let from = 0; from < 100; from += step) await ask(sequence, from, Math.min(from + step, 100));
          const { energies } = readSaved(await sequence.save()).layers[0]!;
          assert.is(energies?.length, (kvHeads * headDim) / 2);
          for (let head = 0; head < kvHeads; head++) {
            energiesOf(head, 100).forEach((exact, pair) => {
              const got = energies![(head * headDim) / 2 + pair]!;
              most = Math.max(most, Math.abs(got / exact - 1));
            });
          }
          atMost('error of energies', most, ENERGIES);
          sameBits(`${step} at a time`, energies!, (first ??= energies!));
          cache.dispose();
        }
        console.log(`error of energies: ${most}`);
      });

      // Without RoPE every codec, with each of RoPE's forms another.
      const chosen = tested.gpu ? ['nsn2' as const] : rope ? [names[n % 4]!] : names;
      for (const key of chosen) {
        const value = names[3 - names.indexOf(key)]!;
        test(`the balance is that of both energies, the pages are coded by it, and attention reads them: ${key}, ${value}`, async () => {
          const cache = new KVCache(tested.backend, { ...options, keys: key, values: value });
          const sequence = cache.sequence();
          await ask(sequence, 0, learned);
          // Asked about later: nothing more is learned.
          await ask(sequence, learned, tokens);
          sequence.seal();
          const { pages, balance } = readSaved(await sequence.save()).layers[0]!;
          assert.is(pages.length, 4);
          sameBits('balance()', await sequence.balance(), balance!);
          const sides = sidesOf(cache, 0);
          for (let head = 0; head < kvHeads; head++) {
            const own = balance!.subarray((head * headDim) / 2, ((head + 1) * headDim) / 2);
            const windowOf = (x: Float32Array, n: number) =>
              headOf(rowsOf(x, kvHeads, sinks + 64 * n, sinks + 64 * (n + 1)), head, kvHeads);
            learnedFrom(
              `head ${head}`,
              own,
              [0, 1].map(n => windowOf(keys, n)),
              energiesOf(head, learned),
              headDim,
              rope,
              levels
            );
            pages.forEach((page, n) => {
              const what = `page ${n}, head ${head}`;
              encodedFrom(
                `${what}: keys`,
                blockOf(page, head, 0, sides),
                windowOf(keys, n),
                sides[0],
                rope,
                codes,
                brute.orderOf(own, headDim, rope)
              );
              encodedFrom(`${what}: values`, blockOf(page, head, 1, sides), windowOf(values, n), sides[1], undefined, codes);
            });
          }
          await attendWithinRule('attention', sequence, rowsOf(queries, queryHeads, tokens - 4, tokens));
          cache.dispose();
        });
      }
    });
  }

  // A software adapter takes a second for each.
  if (!tested.gpu)
    group(`learning on ${tested.name}, of any tokens`, test => {
      const rope = ropes(headDim)['partial halves']!;
      const cache = new KVCache(tested.backend, {
        layers: 1,
        kvHeads: 1,
        queryHeads: 1,
        headDim,
        capacity: 128,
        sinks: 0,
        sequences: 1,
        rope
      });
      const sides = sidesOf(cache, 0);
      for (const [input, make] of Object.entries(inputs)) {
        test(`the balance of ${input} is that of both energies, of no query that of keys alone, and pages are coded by it`, async () => {
          const keys = rounded(turned(make(128, headDim, 4), headDim, rope));
          const windows = [keys.subarray(0, 64 * headDim), keys.subarray(64 * headDim)];
          for (const queries of [new Float32Array(), make(128, headDim, 5)]) {
            const sequence = cache.sequence();
            sequence.append(0, keys, keys);
            if (queries.length > 0) sequence.attend(0, queries);
            sequence.seal();
            const { pages, balance } = readSaved(await sequence.save()).layers[0]!;
            sequence.dispose();
            // Kept in f32, where the least squares are 0.
            const energies = Float32Array.from(brute.queryEnergies(queries, headDim, rope));
            learnedFrom('balance', balance!, windows, energies, headDim, rope, levels);
            if (queries.length === 0) assert.ok(balance!.every(byte => byte < 16));
            const order = brute.orderOf(balance!, headDim, rope);
            pages.forEach((page, n) => encodedFrom(`page ${n}`, blockOf(page, 0, 0, sides), windows[n]!, sides[0], rope, codes, order));
          }
        });
      }
    });

  group(`near ties of learning on ${tested.name}`, test => {
    test('are rare', () => {
      console.log(`${tested.name}: ${levels.near} near ties in ${levels.codes} levels, ${codes.near} in ${codes.codes} codes`);
      atMost('levels', levels.near, NEAR_LEVELS * levels.codes);
      atMost('codes', codes.near, NEAR_TIES * codes.codes);
    });
  });
}
