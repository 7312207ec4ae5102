// The codebooks: their bytes, their symmetry, and how far they err.

import { type CodecName, codecs } from 'nsnquant';
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, relativeL2 } from './compare.ts';
import { halfBits, nearestHalf } from './half.ts';
import { bell, gaussian, normal, random } from './inputs.ts';
import { CODED_NORMAL, GAUSSIAN_MSE, NEAR_TIE } from './tolerance.ts';

const names = Object.keys(codecs) as CodecName[];

group('codebooks', test => {
  for (const name of names) {
    const { channels, codebook, checksum, bits } = codecs[name];

    test(`${name} has 256 codewords of ${channels} channels that are f16 numbers`, () => {
      assert.is(codebook.length, 256 * channels);
      assert.is(channels, { nsn1: 8, nsn2: 4, nsn4: 2 }[name]);
      assert.is(bits, 8 / channels);
      for (const value of codebook) assert.is(nearestHalf(value), value);
    });

    test(`${name} has the checksum of its f16 bytes, FNV-1a`, () => {
      let hash = 0x811c9dc5;
      for (const half of halfBits(codebook)) {
        for (const byte of [half & 255, half >> 8]) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
      }
      assert.is(hash, checksum);
    });

    test(`${name}: codeword c + 128 is the negation of codeword c, and no two are equal`, () => {
      for (let i = 0; i < 128 * channels; i++) assert.is(codebook[i + 128 * channels], -codebook[i]!);
      const words = Array.from({ length: 256 }, (_, c) => codebook.subarray(c * channels, (c + 1) * channels).join());
      assert.is(new Set(words).size, 256);
    });

    test(`${name} codes standard normal numbers with a mean squared error of ${GAUSSIAN_MSE[name]} at most`, () => {
      const next = random(25);
      const y = Float64Array.from({ length: 16384 * channels }, () => gaussian(next));
      const quantizer = reference.codecQuantizer(codecs[name]);
      const codes = reference.quantize(y, quantizer);
      let error = 0;
      codes.forEach((code, j) => {
        error += brute.distance(y, j * channels, codecs[name], code);
      });
      console.log(`${name}: mean squared error ${(error / y.length).toFixed(5)}`);
      atMost('mean squared error', error / y.length, GAUSSIAN_MSE[name]);
    });

    test(`${name} codes tokens with the error that its codebook has on normal numbers`, () => {
      const x = normal(64, 128, 26);
      const quantizer = reference.codecQuantizer(codecs[name]);
      const error = relativeL2(reference.decode(reference.encode(x, 128, quantizer), quantizer), x) ** 2;
      atMost('relative squared error', Math.abs(error / GAUSSIAN_MSE[name] - 1), CODED_NORMAL);
    });
  }

  test('bell() is near enough to normal for a codebook: nsn2 errs as on normal numbers', () => {
    const next = random(27);
    const y = Float64Array.from({ length: 16384 }, () => bell(next));
    const codes = reference.quantize(y, reference.codecQuantizer(codecs.nsn2));
    let error = 0;
    codes.forEach((code, j) => {
      error += brute.distance(y, j * 4, codecs.nsn2, code);
    });
    atMost('mean squared error', error / y.length, GAUSSIAN_MSE.nsn2);
  });

  test('NEAR_TIE is nearer than any two codewords', () => {
    for (const name of names) {
      const { channels, codebook } = codecs[name];
      for (let c = 1; c < 128; c++) {
        atMost('nearness', NEAR_TIE, Math.sqrt(brute.distance(codebook, 0, codecs[name], c)));
      }
      assert.is(codebook.length / channels, 256);
    }
  });
});
