// The reference against definitions: dense matrices, exhaustive search, f64 attention over decoded tokens.

import { type CodecName, codecs } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, relativeL2, sameBits, sameCodes, sameRounding } from './compare.ts';
import { halfValue, nearestHalf } from './half.ts';
import { exactRope, gaussian, inputs, keyLike, normal, random, ropes, turned, uneven } from './inputs.ts';
import { readBlock } from './pages.ts';
import { EQUAL_TOKENS, F64, LEAST_SHARE, LOWERED } from './tolerance.ts';

const names = Object.keys(codecs) as CodecName[];

/** Equal but for the roundings of f64. */
function equals(what: string, actual: ArrayLike<number>, expected: ArrayLike<number>): void {
  assert.is(actual.length, expected.length, what);
  let largest = 0;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]!));
  for (let i = 0; i < expected.length; i++) {
    if (!(Math.abs(actual[i]! - expected[i]!) <= F64 * largest)) assert.unreachable(`${what}: ${actual[i]} for ${expected[i]} at ${i}`);
  }
}

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
  for (const headDim of [32, 40, 64, 80, 96, 128]) {
    test(`hadamard() is Sylvester's matrix over √n in blocks of ${brute.blockSize(headDim)}, headDim ${headDim}`, () => {
      const x = Float64Array.from(normal(3, headDim, headDim));
      const expected = brute.hadamard(x, headDim, brute.f64);
      reference.hadamard(x, headDim);
      equals('H·x', x, expected);
    });

    test(`hadamard() is its own inverse and keeps every norm, headDim ${headDim}`, () => {
      const before = Float64Array.from(normal(3, headDim, headDim + 1));
      const x = before.slice();
      reference.hadamard(x, headDim);
      equals('norms', brute.norms(x, headDim, brute.f64), brute.norms(before, headDim, brute.f64));
      reference.hadamard(x, headDim);
      equals('H·H·x', x, before);
    });
  }

  test('rtn4() gives the nearest of sixteen values from the minimum on, all held as f16', () => {
    for (const [name, input] of Object.entries(inputs)) {
      const x = Float64Array.from(input(1, 64, 3));
      const group = reference.rtn4(x);
      const expected = brute.rtn4(x, nearestHalf);
      assert.is(group.scale, expected.scale, name);
      assert.is(group.min, expected.min, name);
      group.codes.forEach((code, i) => {
        // At a tie either neighbor is nearest.
        const value = code * group.scale + group.min;
        atMost(`${name} ${i}`, Math.abs(value - x[i]!), Math.abs(expected.values[i]! - x[i]!) + F64 * Math.abs(x[i]!));
      });
    }
  });

  test('rtn4() keeps a constant group, and a scale above zero', () => {
    const { scale, min, codes } = reference.rtn4(new Float64Array(32).fill(0.75));
    assert.is(min, 0.75);
    assert.is(scale, nearestHalf(1e-5));
    assert.equal([...new Set(codes)], [0]);
  });

  test('normalize() gives 4-bit norms and divides by what they dequantize to', () => {
    const before = Float64Array.from(tokensOf(64, 5));
    const x = before.slice();
    const { s1, group } = reference.normalize(x, 64);
    const exact = brute.norms(before, 64, brute.f64);
    const { values } = brute.rtn4(exact, nearestHalf);
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
      sameRounding(`seed ${seed}`, group, exact, Math.max(...exact), true);
      brute.norms(x, 32, brute.f64).forEach((norm, t) => {
        atMost(`seed ${seed}, token ${t}`, norm, (1 / LEAST_SHARE) * (1 + F64));
        assert.is(s1[t] === 0, exact[t] === 0);
      });
      reference.rtn4(exact).codes.forEach((code, t) => (gaveWay += Number(code !== group.codes[t])));
    }
    assert.ok(gaveWay > 300, `${gaveWay}`);
  });

  for (const [name, rope] of [['without RoPE', undefined], ...Object.entries(ropes(64))] as const) {
    test(`shift() takes the mean before RoPE, in the frame of the window's center, and subtracts what it dequantizes to: ${name}`, () => {
      const before = Float64Array.from(tokensOf(64, 6));
      const x = before.slice();
      const { o, groups } = reference.shift(x, 64, rope);
      const mean = brute.mean(before, 64, rope, brute.f64);
      const values = [0, 32].flatMap(i => [...brute.rtn4(mean.subarray(i, i + 32), nearestHalf).values]);
      equals('o', o, values);
      assert.is(groups.length, 2);
      equals('x', x, brute.withMean(before, 64, o, -1, rope, brute.f64));
    });
  }

  test('shift() has a last group of 8 channels at headDim 40', () => {
    const { groups } = reference.shift(Float64Array.from(tokensOf(40, 7)), 40);
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

  for (const name of names) {
    test(`quantize() finds the nearest of all codewords by distance: ${name}`, () => {
      const next = random(9);
      const y = Float64Array.from({ length: 64 * 64 }, (_, i) => gaussian(next) * (i % 7 === 0 ? 6 : 1));
      const codes = reference.quantize(y, reference.codecQuantizer(codecs[name]));
      console.log(`reference ${name}: ${sameCodes('codes', codes, y, codecs[name])} near ties in ${codes.length} codes`);
    });

    test(`quantize() takes the lowest code among equals: ${name}`, () => {
      // Halfway between two codewords that have opposite signs: the origin is as near to c as to c + 128.
      const { channels, codebook } = codecs[name];
      const quantizer = reference.codecQuantizer(codecs[name]);
      assert.ok(quantizer.quantize(new Float64Array(channels), 0) < 128);
      for (let c = 0; c < 256; c++) {
        assert.is(quantizer.quantize(Float64Array.from(codebook.subarray(c * channels, (c + 1) * channels)), 0), c);
      }
    });
  }
});

group('reference encode and decode', test => {
  for (const name of names) {
    const codec = codecs[name];
    const quantizer = reference.codecQuantizer(codec);

    for (const headDim of [64, 80]) {
      for (const rope of [undefined, exactRope(headDim)]) {
        const title = `${name}, headDim ${headDim}, ${rope ? 'with' : 'without'} RoPE`;
        const x = tokensOf(headDim, 10);
        const window = reference.encode(x, headDim, quantizer, rope);

        test(`encode() is the verbs in order, with s2 adjusted to ⟨y, y⟩ / ⟨y, C⟩: ${title}`, () => {
          const y = Float64Array.from(x);
          const { s1 } = reference.normalize(y, headDim);
          const { o } = reference.shift(y, headDim, rope);
          const s2 = reference.normalizeAgain(y, headDim);
          reference.hadamard(y, headDim);
          sameBits('s1', window.s1, s1);
          sameBits('o', window.o, o);
          sameBits('codes', window.codes, reference.quantize(y, quantizer));
          for (let t = 0; t < 64; t++) {
            let [yy, yc] = [0, 0];
            for (let i = 0; i < headDim; i++) {
              const code = window.codes[Math.floor((t * headDim + i) / codec.channels)]!;
              yy += y[t * headDim + i]! ** 2;
              yc += y[t * headDim + i]! * codec.codebook[code * codec.channels + (i % codec.channels)]!;
            }
            assert.is(window.s2[t], nearestHalf((s2[t]! * yy) / yc));
          }
        });

        test(`decode() is s1·(H·(s2·C) + RoPE(o)) with dense matrices: ${title}`, () => {
          const block = readBlock(reference.pack(window, codec), codec, headDim);
          equals('tokens', reference.decode(window, quantizer, rope), brute.decode(block, codec, headDim, rope, brute.f64));
        });

        test(`scores() are products with decoded tokens: ${title}`, () => {
          const query = normal(1, headDim, 11);
          const tokens = reference.decode(window, quantizer, rope);
          equals('logits', reference.scores(query, window, quantizer, rope), brute.scores(query, tokens, headDim, brute.f64));
        });

        test(`unpack() gives back what pack() was given: ${title}`, () => {
          const bytes = reference.pack(window, codec);
          const back = reference.unpack(bytes, codec, headDim);
          for (const field of ['codes', 's1', 's2', 'o'] as const) sameBits(field, back[field], window[field]);
          sameBits('bytes', reference.pack(back, codec), bytes);
        });
      }

      test(`mix() is the weighted sum of decoded tokens: ${name}, headDim ${headDim}`, () => {
        const window = reference.encode(tokensOf(headDim, 12), headDim, quantizer);
        const weights = inputs['uniform']!(1, 64, 13);
        equals(
          'out',
          reference.mix(weights, window, quantizer),
          brute.mix(weights, reference.decode(window, quantizer), headDim, brute.f64)
        );
      });
    }

    test(`mix() with one weight of 1 is decode: ${name}`, () => {
      const window = reference.encode(tokensOf(64, 14), 64, quantizer);
      const tokens = reference.decode(window, quantizer);
      for (const t of [0, 31, 63]) {
        const weights = new Float64Array(64);
        weights[t] = 1;
        equals(`token ${t}`, reference.mix(weights, window, quantizer), tokens.subarray(t * 64, (t + 1) * 64));
      }
    });

    test(`encode() of tokens times a power of two changes s1 alone: ${name}`, () => {
      const x = tokensOf(64, 15);
      const before = reference.encode(x, 64, quantizer);
      const after = reference.encode(
        x.map(value => value * 8),
        64,
        quantizer
      );
      for (const field of ['codes', 's2', 'o'] as const) sameBits(field, after[field], before[field]);
      sameBits(
        's1',
        after.s1,
        before.s1.map(s1 => s1 * 8)
      );
    });

    test(`encode() of permuted tokens permutes the codes, near ties apart: ${name}`, () => {
      const x = tokensOf(64, 16);
      const order = Uint8Array.from({ length: 64 }, (_, t) => (t * 37) % 64);
      const permuted = Float32Array.from({ length: x.length }, (_, i) => x[order[Math.floor(i / 64)]! * 64 + (i % 64)]!);
      const before = reference.encode(x, 64, quantizer);
      const after = reference.encode(permuted, 64, quantizer);
      const perRow = 64 / codec.channels;
      const differing = after.codes.filter((code, n) => code !== before.codes[order[Math.floor(n / perRow)]! * perRow + (n % perRow)]);
      // The mean is summed in another order, in f64: a tie so near is not to be expected in a few thousand codes.
      assert.is(differing.length, 0);
    });

    test(`attention over a coded window is attention over its decoded tokens: ${name}`, () => {
      const window = reference.encode(tokensOf(64, 17), 64, quantizer);
      const tokens = reference.decode(window, quantizer);
      const query = normal(1, 64, 18);
      const logits = reference.scores(query, window, quantizer);
      const most = Math.max(...logits);
      const weights = logits.map(logit => Math.exp(logit - most));
      const sum = weights.reduce((a, b) => a + b);
      const out = reference.attend(query, tokens, tokens);
      equals(
        'scores and mix',
        reference.mix(
          weights.map(p => p / sum),
          window,
          quantizer
        ),
        out
      );
      const shape = { kvHeads: 1, queryHeads: 1, headDim: 64 };
      equals('brute force', out, brute.attention(query, tokens, tokens, shape, 1, brute.f64).out);
    });

    for (const [input, make] of Object.entries(inputs)) {
      test(`encode() and decode() of ${input} give finite numbers: ${name}`, () => {
        const window = reference.encode(make(64, 32, 19), 32, quantizer);
        for (const x of [window.s1, window.s2, window.o, reference.decode(window, quantizer)]) assert.ok(x.every(Number.isFinite));
      });
    }

    test(`decode() keeps a zero token zero: ${name}`, () => {
      const x = inputs['zero tokens']!(64, 64, 20);
      const tokens = reference.decode(reference.encode(x, 64, quantizer), quantizer);
      for (const t of [0, 32, 63])
        assert.ok(
          tokens.subarray(t * 64, (t + 1) * 64).every(value => value === 0),
          `token ${t}`
        );
      assert.ok(tokens.subarray(64, 128).some(value => value !== 0));
    });

    test(`decode() of equal tokens is their mean: ${name}`, () => {
      const x = inputs['equal tokens']!(64, 64, 21);
      const tokens = reference.decode(reference.encode(x, 64, quantizer), quantizer);
      for (let t = 1; t < 64; t++) sameBits(`token ${t}`, tokens.subarray(t * 64, (t + 1) * 64), tokens.subarray(0, 64));
      atMost('error', relativeL2(tokens, x), EQUAL_TOKENS);
    });
  }

  test('RoPE that is known, in halves, interleaved or partial, lowers the error of keys that carry it', () => {
    const quantizer = reference.codecQuantizer(codecs.nsn2);
    const means = Float32Array.from(keyLike(64, 64, 22), (value, i) => value + 4 * Math.sin(i % 64));
    for (const [name, rope] of Object.entries(ropes(64))) {
      if (name === 'standing still') continue;
      const x = turned(means, 64, rope, 1000);
      const errorWith = (known: typeof rope | undefined) =>
        relativeL2(reference.decode(reference.encode(x, 64, quantizer, known), quantizer, known), x);
      atMost(name, errorWith(rope) / errorWith(undefined), LOWERED.meanBeforeRope);
    }
  });

  test('RoPE at any position gives the same codes, near ties apart', () => {
    const rope = ropes(64)['halves']!;
    const quantizer = reference.codecQuantizer(codecs.nsn2);
    const [near, far] = [0, 5000].map(from => {
      const x = keyLike(64, 64, 23);
      return reference.encode(turned(x, 64, rope, from), 64, quantizer, rope);
    });
    // Turned tokens are rounded to f32, and slower pairs are turned as a whole: only the norms stay.
    sameBits('s1 codes', far!.s1Group.codes, near!.s1Group.codes);
  });
});
