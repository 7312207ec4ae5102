// The reference's verbs against definitions: dense matrices, exhaustive search. What they are composed of is coding.test.ts's.

import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, equals, sameCodes, sameRounding } from './compare.ts';
import { floatValue, halfValue, nearestFloat, nearestHalf } from './half.ts';
import { gaussian, inputs, keyLike, normal, random, ropes, uneven } from './inputs.ts';
import { F64, LEAST_SHARE } from './tolerance.ts';

const tokensOf = (headDim: number, seed: number) => keyLike(64, headDim, seed);

group('half precision', test => {
  test('half() leaves every f16 number as it is', () => {
    for (let bits = 0; bits < 0x7c00; bits++) {
      for (const value of [halfValue(bits), halfValue(bits | 0x8000)]) assert.ok(Object.is(reference.half(value), value), `${value}`);
    }
  });

  test('half() takes a tie to the even neighbor and everything else to the nearer one', () => {
    for (let bits = 0; bits < 0x7bff; bits++) {
      const [low, high] = [halfValue(bits), halfValue(bits + 1)];
      const middle = (low + high) / 2;
      assert.is(reference.half(middle), bits % 2 ? high : low, `${middle}`);
      assert.is(reference.half(middle - (high - low) / 64), low);
      assert.is(reference.half(-middle - (high - low) / 64), -high);
    }
  });

  test('half() stops at ±65,504', () => {
    for (const beyond of [65519, 1e9, Infinity]) {
      assert.is(reference.half(beyond), 65504);
      assert.is(reference.half(-beyond), -65504);
    }
  });
});

group('reference verbs', test => {
  // Head dimensions, and segments of balanced keys: 40 channels are a block of 32 and one of 8.
  for (const channels of [4, 8, 12, 32, 40, 64, 80, 96, 120, 128]) {
    test(`hadamard() is Sylvester's matrix over √n in blocks of ${brute.blockSizes(channels).join(' and ')}, ${channels} channels`, () => {
      const x = Float64Array.from(normal(3, channels, channels));
      const expected = brute.hadamard(x, channels, brute.f64);
      reference.hadamard(x, channels);
      equals('H·x', x, expected);
    });

    test(`hadamard() is its own inverse and keeps every norm, ${channels} channels`, () => {
      const before = Float64Array.from(normal(3, channels, channels + 1));
      const x = before.slice();
      reference.hadamard(x, channels);
      equals('norms', brute.norms(x, channels, brute.f64), brute.norms(before, channels, brute.f64));
      reference.hadamard(x, channels);
      equals('H·H·x', x, before);
    });
  }

  for (const bits of [4, 8] as const) {
    test(`roundToNearest() gives the nearest of ${2 ** bits} values from the minimum on, all held as f16`, () => {
      for (const [name, input] of Object.entries(inputs)) {
        const x = Float64Array.from(input(1, 64, 3));
        const group = reference.roundToNearest(x, bits);
        const expected = brute.roundToNearest(x, bits, nearestHalf);
        assert.is(group.scale, expected.scale, name);
        assert.is(group.min, expected.min, name);
        group.codes.forEach((code, i) => {
          // At a tie either neighbor is nearest.
          const value = code * group.scale + group.min;
          atMost(`${name} ${i}`, Math.abs(value - x[i]!), Math.abs(expected.values[i]! - x[i]!) + F64 * Math.abs(x[i]!));
        });
      }
    });

    test(`roundToNearest() keeps a constant group, and a scale above zero: ${bits} bits`, () => {
      const { scale, min, codes } = reference.roundToNearest(new Float64Array(32).fill(0.75), bits);
      assert.is(min, 0.75);
      assert.is(scale, nearestHalf(1e-5));
      assert.equal([...new Set(codes)], [0]);
    });
  }

  test('roundToFloats() has 32 numbers in an octave, under the lowest exponent that holds the largest; the rest is 0', () => {
    // [numbers, exponent, codes]: 1 is the float 32 · 127, and 255 under an exponent are seven octaves and 31 steps.
    const cases: readonly [number[], number, number[]][] = [
      [[1, 0.5, 2], 121, [192, 160, 224]],
      [[1 + 1 / 64, 1 + 3 / 64, 1 + 1 / 65], 120, [225, 226, 224]], // halfway: the larger
      [[2 - 2 ** -7, 0], 121, [224, 0]], // rounds up to 2, beyond the 255 of exponent 120
      [[2 - 2 ** -5, 2 ** -7, 2 ** -7 * (1 + 1 / 32)], 120, [255, 0, 1]], // code 0 is 0, and not 2⁻⁷
      [[1, 2 ** -8, 2 ** -9], 120, [224, 0, 0]],
      [[0, 0], 1, [0, 0]],
      [[2 ** -130], 1, [0]],
      [[2 ** -126 * (1 + 1 / 32)], 1, [1]]
    ];
    for (const [x, exponent, codes] of cases) {
      const group = reference.roundToFloats(Float64Array.from(x));
      assert.equal([group.exponent, [...group.codes]], [exponent, codes], `${x}`);
    }
  });

  test('roundToFloats() gives the nearest of these numbers, whatever the magnitude', () => {
    const next = random(4);
    for (let e = -120; e <= 120; e += 7) {
      const x = Float64Array.from({ length: 64 }, () => 2 ** (e + 6 * next()));
      const { exponent, codes } = reference.roundToFloats(x);
      const most = nearestFloat(Math.max(...x));
      assert.ok(most - 32 * exponent <= 255 && (most - 32 * (exponent - 1) > 255 || exponent === 1), `2^${e}`);
      codes.forEach((code, t) => {
        assert.ok(code > 0); // within six octaves of the largest
        const errorOf = (code: number) => Math.abs(floatValue(32 * exponent + code) - Math.fround(x[t]!));
        for (const other of [code - 1, code + 1]) assert.ok(errorOf(code) <= errorOf(other), `${x[t]}: ${code}`);
      });
    }
  });

  test('normalize() gives 4-bit norms and divides by what they dequantize to', () => {
    const before = Float64Array.from(tokensOf(64, 5));
    const x = before.slice();
    const { s1, group } = reference.normalize(x, 64);
    const exact = brute.norms(before, 64, brute.f64);
    const { values } = brute.roundToNearest(exact, 4, nearestHalf);
    equals('s1', s1, values);
    equals(
      's1 from codes',
      s1,
      Float64Array.from(group.codes, code => code * group.scale + group.min)
    );
    equals('x', x, brute.divided(before, 64, values, brute.f64));
  });

  test('normalize() never divides a token by less than 0.7 of its norm: that code gives way to the next', () => {
    const headDim = 32;
    const x = new Float64Array(64 * headDim);
    const norms = [0, 1e-3, 3, 10, 15, 27.9, 28.7, 29.9, 300];
    norms.forEach((norm, t) => x.fill(norm, t * headDim, (t + 1) * headDim));
    const { s1, group } = reference.normalize(x, headDim);
    assert.is(group.scale, 20);
    // 0.7 of 28.7 is more than the 20 of its nearest code, 0.7 of 27.9 less. A zero token's norm is worth 0.7 of itself.
    assert.equal([...group.codes.subarray(0, norms.length)], [0, 1, 1, 1, 1, 1, 2, 2, 15]);
    assert.equal([...s1.subarray(0, norms.length)], [0, 20, 20, 20, 20, 20, 40, 40, 300]);
    assert.is(x[headDim], 1e-3 / 20);
  });

  test('normalize() leaves no token longer than 1/0.7, whatever the magnitudes in its window', () => {
    let gaveWay = 0;
    for (let seed = 0; seed < 300; seed++) {
      const before = uneven(64, 32, seed);
      const x = Float64Array.from(before);
      const { s1, group } = reference.normalize(x, 32);
      const exact = brute.norms(before, 32, brute.f64);
      sameRounding(`seed ${seed}`, { ...group, most: 15 }, exact, Math.max(...exact), true);
      brute.norms(x, 32, brute.f64).forEach((norm, t) => {
        atMost(`seed ${seed}, token ${t}`, norm, (1 / LEAST_SHARE) * (1 + F64));
        assert.is(s1[t] === 0, exact[t] === 0);
      });
      reference.roundToNearest(exact, 4).codes.forEach((code, t) => (gaveWay += Number(code !== group.codes[t])));
    }
    assert.ok(gaveWay > 300, `${gaveWay}`);
  });

  for (const [name, rope] of [['without RoPE', undefined], ...Object.entries(ropes(64))] as const) {
    for (const bits of [4, 8] as const) {
      test(`shift() takes the mean before RoPE, in the frame of the window's center, and subtracts what it dequantizes to: ${name}, ${bits} bits`, () => {
        const before = Float64Array.from(tokensOf(64, 6));
        const x = before.slice();
        const { o, groups } = reference.shift(x, 64, bits, rope);
        const mean = brute.mean(before, 64, rope, brute.f64);
        const values = [0, 32].flatMap(i => [...brute.roundToNearest(mean.subarray(i, i + 32), bits, nearestHalf).values]);
        equals('o', o, values);
        assert.is(groups.length, 2);
        equals('x', x, brute.withMean(before, 64, o, -1, rope, brute.f64));
      });
    }
  }

  test('shift() has a last group of 8 channels at headDim 40', () => {
    const { groups } = reference.shift(Float64Array.from(tokensOf(40, 7)), 40, 8);
    assert.equal(
      groups.map(group => group.codes.length),
      [32, 8]
    );
  });

  test('normalizeAgain() gives every token norm 1', () => {
    const before = Float64Array.from(tokensOf(64, 8));
    const x = before.slice();
    const s2 = reference.normalizeAgain(x, 64);
    equals('s2', s2, brute.norms(before, 64, brute.f64));
    equals('norms', brute.norms(x, 64, brute.f64), new Float64Array(64).fill(1));
  });

  for (const codebook of Object.values(reference.codebooks)) {
    const { channels, codewords } = codebook;
    const quantizer = reference.codebookQuantizer(codebook);

    test(`quantize() finds the nearest of all codewords by distance: ${channels} channels`, () => {
      const next = random(9);
      const y = Float64Array.from({ length: 64 * 64 }, (_, i) => gaussian(next) * (i % 7 === 0 ? 6 : 1));
      const codes = reference.quantize(y, quantizer);
      console.log(`reference, ${channels} channels: ${sameCodes('codes', codes, y, codebook)} near ties in ${codes.length} codes`);
    });

    test(`quantize() takes the lowest code among equals: ${channels} channels`, () => {
      // Halfway between two codewords that have opposite signs: the origin is as near to c as to c + 128.
      assert.ok(quantizer.quantize(new Float64Array(channels), 0) < 128);
      for (let c = 0; c < 256; c++) {
        assert.is(quantizer.quantize(Float64Array.from(codewords.subarray(c * channels, (c + 1) * channels)), 0), c);
      }
    });
  }
});

group('reference attention', test => {
  const [tokens, headDim] = [40, 16];
  const shape = { kvHeads: 1, queryHeads: 1, headDim, valueDim: 24 };
  const query = normal(1, headDim, 30).map(x => 2 * x);
  const [keys, values] = [normal(tokens, headDim, 31), normal(tokens, shape.valueDim, 32)];
  const cases: Readonly<Record<string, { readonly told: reference.LogitOptions; readonly by: Partial<brute.AttentionShape> }>> = {
    'all keys': { told: {}, by: {} },
    'a window': { told: { window: 7 }, by: { window: 7 } },
    'a window, and the first tokens': { told: { window: 7, sinks: 3 }, by: { window: 7, keptSinks: 3 } },
    'logits capped': { told: { softcap: 1.5 }, by: { softcap: 1.5 } },
    'logits that fall with distance': { told: { slope: 0.25 }, by: { slopes: [0.25] } },
    'a sink logit': { told: { sinkLogit: 3 }, by: { sinkLogits: [3] } },
    everything: {
      told: { window: 20, sinks: 2, softcap: 2, slope: 0.1, sinkLogit: -1 },
      by: { window: 20, keptSinks: 2, softcap: 2, slopes: [0.1], sinkLogits: [-1] }
    }
  };
  for (const [title, { told, by }] of Object.entries(cases)) {
    test(`attend() is the definition: ${title}`, () => {
      const { out, lse } = reference.attend(query, keys, values, told);
      const expected = brute.attention(query, keys, values, { ...shape, ...by }, 1, brute.f64);
      equals('out', out, expected.out);
      equals('lse', [lse], expected.lse);
    });
  }

  test('attend() of keys that are somewhere is attention of all, those that are nowhere hidden', () => {
    const at = [0, 1, 5, 6, 7, 30, 39];
    const pick = (x: Float32Array, width: number) => Float32Array.from(at.flatMap(t => [...x.subarray(t * width, (t + 1) * width)]));
    const told = { positions: at, position: 32, window: 28, sinks: 1, slope: 0.2, softcap: 3 };
    const { out, lse } = reference.attend(query, pick(keys, headDim), pick(values, 24), told);
    const seen = [0, 5, 6, 7, 30];
    const logits = seen.map(t => {
      const dot = query.reduce((sum, x, i) => sum + x * keys[t * headDim + i]!, 0);
      return 3 * Math.tanh(dot / 3) + 0.2 * (t - 32);
    });
    const sum = logits.reduce((total, logit) => total + Math.exp(logit), 0);
    equals('lse', [lse], [Math.log(sum)]);
    const mixed = Array.from({ length: 24 }, (_, i) =>
      seen.reduce((total, t, n) => total + (Math.exp(logits[n]!) / sum) * values[t * 24 + i]!, 0)
    );
    equals('out', out, mixed);
  });

  test('attend() where nothing is seen gives 0, and the sink logit', () => {
    const nothing = reference.attend(query, keys, values, { position: 100, window: 10 });
    assert.equal(nothing, { out: new Float64Array(24), lse: -Infinity });
    assert.equal(reference.attend(query, keys, values, { position: 100, window: 10, sinkLogit: 2 }), { out: new Float64Array(24), lse: 2 });
  });

  test('out and lse of two parts of the keys merge into those of all', () => {
    const half = (from: number, to: number) =>
      reference.attend(query, keys.subarray(from * headDim, to * headDim), values.subarray(from * 24, to * 24));
    const [a, b, all] = [half(0, 15), half(15, tokens), half(0, tokens)];
    const lse = Math.log(Math.exp(a.lse) + Math.exp(b.lse));
    equals('lse', [lse], [all.lse]);
    equals(
      'out',
      a.out.map((x, i) => Math.exp(a.lse - lse) * x + Math.exp(b.lse - lse) * b.out[i]!),
      all.out
    );
  });
});
