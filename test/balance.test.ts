// What a sequence learns of a head's keys and queries, and the order and scales of channels that it stands for: the reference against
// definitions.

import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, equals, relativeL2 } from './compare.ts';
import { learnedFrom } from './encoded.ts';
import { rounded } from './half.ts';
import { anyBalance, inputs, keyLike, normal, ropes, turned } from './inputs.ts';
import { F64, LOWERED, NEAR_LEVELS } from './tolerance.ts';

const { codecs } = reference;

/** Queries of which some channels weigh thousands of times as much as others. */
const skewed = (count: number, headDim: number, seed: number) =>
  normal(count, headDim, seed).map((value, i) => value * 2 ** -((i % headDim) % 13));

group('the order of channels', test => {
  for (const headDim of [32, 64, 80]) {
    for (const [name, rope] of [['none', undefined], ...Object.entries(ropes(headDim))] as const) {
      test(`is by falling product of energies, pairs together, the first among equals: headDim ${headDim}, RoPE ${name}`, () => {
        for (let seed = 0; seed < 20; seed++) {
          const balance = anyBalance(headDim, seed);
          const { channels, scales } = reference.channelOrder(balance, headDim, rope);
          const expected = brute.orderOf(balance, headDim, rope);
          assert.equal([...channels], expected.channels);
          assert.equal([...scales], expected.scales);
          assert.equal(
            [...channels].toSorted((a, b) => a - b),
            [...channels.keys()]
          );
        }
      });
    }
  }

  test('of equal levels is that of the pairs, and scales are 1', () => {
    for (const level of [0, 7, 15]) {
      const { channels, scales } = reference.channelOrder(new Uint8Array(16).fill(17 * level), 32, undefined);
      assert.equal([...channels], [...channels.keys()]);
      assert.ok(scales.every(scale => scale === 1));
    }
  });

  test('puts what weighs most first, and levels it: keys a quarter, queries 16 times as large', () => {
    // Energies of 1/16 and of 256 are 8 half octaves below, and 16 above: levels 8 and 0 beside 0 and 15.
    const balance = new Uint8Array(16).fill(15 << 4);
    balance[9] = 8;
    const { channels, scales } = reference.channelOrder(balance, 32, undefined);
    assert.equal([...channels.subarray(0, 2)], [18, 19]);
    assert.is(scales[0], 2);
    assert.is(scales[2], Math.fround(2 ** (-15 / 8)));
  });

  test('pairs are those that RoPE turns together, so that scaled keys turn as keys do', () => {
    for (const [name, rope] of Object.entries(ropes(64))) {
      const order = brute.orderOf(anyBalance(64, 3), 64, rope);
      const x = normal(1, 64, 4);
      const scaled = (row: Float64Array) =>
        brute.unordered(brute.ordered(row, 64, { ...order, scales: order.scales.map(s => s * s) }, brute.f64), 64, order, brute.f64);
      const turn = (row: ArrayLike<number>) => brute.rotated(row, rope, 11, brute.f64);
      equals(name, scaled(turn(x)), turn(scaled(Float64Array.from(x))));
    }
  });
});

group('learning', test => {
  const ties = { near: 0, codes: 0 };
  for (const headDim of [32, 64, 80]) {
    for (const [name, rope] of [['none', undefined], ...Object.entries(ropes(headDim))] as const) {
      test(`learn() gives levels of energies of normalized, shifted and normalized keys, and of queries: headDim ${headDim}, RoPE ${name}`, () => {
        for (const [input, make] of Object.entries(inputs)) {
          const x = [1, 2].map(seed => make(64, headDim, seed)).map(window => rounded(rope ? turned(window, headDim, rope) : window));
          const queries = skewed(9, headDim, 3);
          const balance = reference.learn(x, queries, headDim, rope);
          learnedFrom(input, balance, x, brute.queryEnergies(queries, headDim, rope), headDim, rope, ties);
        }
      });
    }
  }

  test('near ties of levels are rare', () => {
    console.log(`${ties.near} near ties in ${ties.codes} levels`);
    atMost('near ties', ties.near, NEAR_LEVELS * ties.codes);
  });

  test('balanceOf() rounds to half octaves below the largest, 15 at most, keys in the low nibble', () => {
    const energies = (...octaves: number[]) => octaves.map(octave => 2 ** octave);
    const balance = reference.balanceOf(energies(3, 2.5, 2, 0, -4.5, -30, 2.76, 2.74), energies(-3, -3.5, -2, -2, -2, -2, -2.24, -60));
    assert.equal(
      [...balance].map(byte => [byte & 15, byte >> 4]),
      [
        [0, 2],
        [1, 3],
        [2, 0],
        [6, 0],
        [15, 0],
        [15, 0],
        [0, 0],
        [1, 15]
      ]
    );
  });

  test('balanceOf() of no query, and of no key, is that of the other alone', () => {
    const [some, none] = [Float64Array.of(1, 2, 4, 8), new Float64Array(4)];
    assert.equal([...reference.balanceOf(some, none)], [6, 4, 2, 0]);
    assert.equal([...reference.balanceOf(none, some)], [6 << 4, 4 << 4, 2 << 4, 0]);
    assert.equal([...reference.balanceOf(none, none)], [0, 0, 0, 0]);
    assert.equal([...reference.balanceOf([0, 1, 0, 1], some)], [15 + (6 << 4), 4 << 4, 15 + (2 << 4), 0]);
  });

  test('learn() without queries goes by keys alone: their scales level them', () => {
    const x = normal(128, 64, 5).map((value, i) => value * 2 ** -((i % 64) >> 4));
    const windows = [x.subarray(0, 64 * 64), x.subarray(64 * 64)];
    const balance = reference.learn(windows, [], 64);
    assert.ok(balance.every(byte => byte < 16));
    // Energies fall by four half octaves every sixteen channels, but for what 256 normal numbers scatter.
    balance.forEach((level, pair) => assert.ok(Math.abs(level - 4 * (pair >> 3)) <= 1, `pair ${pair}: ${level}`));
    const { channels, scales } = reference.channelOrder(balance, 64, undefined);
    const energies = brute.keyEnergies(windows, 64, undefined);
    energies.forEach((energy, pair) => {
      const leveled = energy * scales[channels.indexOf(2 * pair)]! ** 4;
      atMost(`pair ${pair}`, Math.abs(Math.log2(leveled / Math.max(...energies))), 0.25 + F64);
    });
  });

  test('learn() of equal tokens and of zeros gives levels, and an order of all channels', () => {
    for (const input of ['equal tokens', 'nothing but zeros', 'zero tokens', 'negative zeros', 'f32 subnormals']) {
      const x = rounded(inputs[input]!(64, 64, 6));
      for (const queries of [new Float32Array(), new Float32Array(64), skewed(3, 64, 7)]) {
        const balance = reference.learn([x, x], queries, 64);
        assert.is(balance.length, 32);
        if (input === 'nothing but zeros') assert.ok(balance.every(byte => byte % 16 === 0));
        const { channels, scales } = reference.channelOrder(balance, 64, undefined);
        assert.is(new Set(channels).size, 64);
        assert.ok(scales.every(scale => scale >= 2 ** (-15 / 8) * (1 - 2 ** -23) && scale <= 2 ** (15 / 8) * (1 + 2 ** -23)));
      }
    }
  });

  for (const name of Object.keys(codecs) as reference.CodecName[]) {
    test(`lowers the error of logits of queries that weigh some channels more: ${name}`, () => {
      const rope = ropes(64)['halves']!;
      const windows = [8, 9].map(seed => turned(keyLike(64, 64, seed), 64, rope, 64 * seed));
      const queries = normal(64, 64, 10).map((value, i) => value * 2 ** -((i % 32) >> 2));
      const errorWith = (balanced: boolean) => {
        const order = reference.channelOrder(reference.learn(windows, queries, 64, rope), 64, rope);
        const coding = reference.codingOf(reference.blockLayout(codecs[name], 64, 'keys', balanced), rope, balanced ? order : undefined);
        const decoded = reference.decode(reference.encode(windows[1]!, 64, coding), coding);
        return relativeL2(brute.scores(queries, decoded, 64, brute.f64), brute.scores(queries, windows[1]!, 64, brute.f64));
      };
      const [balanced, plain] = [errorWith(true), errorWith(false)];
      console.log(`${name}: error of logits ${balanced.toFixed(4)} balanced, ${plain.toFixed(4)} plain`);
      atMost('balanced', balanced / plain, LOWERED.balance[name]);
    });
  }
});
