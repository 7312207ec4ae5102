// The codebooks: their bytes, their symmetry, and how far codecs err that are made of them.

import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import * as brute from './brute.ts';
import { atMost, relativeL2 } from './compare.ts';
import { halfBits, nearestHalf } from './half.ts';
import { bell, gaussian, normal, type Random, random } from './inputs.ts';
import { CODED_NORMAL, GAUSSIAN_MSE, NEAR_TIE } from './tolerance.ts';

const { codebooks, codecs } = reference;
const names = Object.keys(codecs) as reference.CodecName[];

/** The mean squared error of a codec's stages over what is drawn, a channel. */
function errorOf(name: reference.CodecName, next: () => number): number {
  const { stages } = reference.blockLayout(codecs[name], 64, 'values', false).segments[0]!;
  const rest = Float64Array.from({ length: 2 ** 17 }, next);
  for (const { codebook, scale } of stages) {
    const { channels, codewords } = codebook;
    const codes = reference.quantize(
      rest.map(value => value / scale),
      reference.codebookQuantizer(codebook)
    );
    rest.forEach((value, i) => {
      rest[i] = value - scale * codewords[codes[Math.floor(i / channels)]! * channels + (i % channels)]!;
    });
  }
  return rest.reduce((sum, value) => sum + value * value, 0) / rest.length;
}

const drawn = (draw: (next: Random) => number, seed: number) => {
  const next = random(seed);
  return () => draw(next);
};

group('codebooks', test => {
  test('there is one of 8 channels, of 4 and of 2', () => {
    assert.equal(Object.keys(codebooks), ['2', '4', '8']);
  });

  for (const [key, codebook] of Object.entries(codebooks)) {
    const { channels, codewords, checksum } = codebook;

    test(`that of ${key} channels has 256 codewords of f16 numbers`, () => {
      assert.is(channels, Number(key));
      assert.is(codewords.length, 256 * channels);
      for (const value of codewords) assert.is(nearestHalf(value), value);
    });

    test(`that of ${key} channels has the checksum of its f16 bytes, FNV-1a`, () => {
      let hash = 0x811c9dc5;
      for (const half of halfBits(codewords)) {
        for (const byte of [half & 255, half >> 8]) hash = Math.imul(hash ^ byte, 0x01000193) >>> 0;
      }
      assert.is(hash, checksum);
    });

    test(`of that of ${key} channels codeword c + 128 is the negation of codeword c, and no two are equal`, () => {
      for (let i = 0; i < 128 * channels; i++) assert.is(codewords[i + 128 * channels], -codewords[i]!);
      const words = Array.from({ length: 256 }, (_, c) => codewords.subarray(c * channels, (c + 1) * channels).join());
      assert.is(new Set(words).size, 256);
    });

    test(`NEAR_TIE is nearer than any two codewords of ${key} channels`, () => {
      for (let c = 1; c < 128; c++) atMost('nearness', NEAR_TIE, Math.sqrt(brute.distance(codewords, 0, codebook, c)));
    });
  }

  for (const name of names) {
    test(`${name} codes standard normal numbers with a mean squared error of ${GAUSSIAN_MSE[name]} at most`, () => {
      const error = errorOf(name, drawn(gaussian, 25));
      console.log(`${name}: mean squared error ${error.toFixed(5)}`);
      atMost('mean squared error', error, GAUSSIAN_MSE[name]);
    });

    for (const side of ['keys', 'values'] as const) {
      test(`${name} codes tokens with the error that its codebooks have on normal numbers: plain ${side}`, () => {
        const x = normal(64, 128, 26);
        const coding = reference.codingOf(reference.blockLayout(codecs[name], 128, side, false));
        const error = relativeL2(reference.decode(reference.encode(x, 128, coding), coding), x) ** 2;
        const expected = GAUSSIAN_MSE[name] / (1 - GAUSSIAN_MSE[name]);
        atMost('relative squared error', Math.abs(error / expected - 1), CODED_NORMAL);
      });
    }
  }

  test('bell() is near enough to normal for a codebook: nsn2 errs as on normal numbers', () => {
    atMost('mean squared error', errorOf('nsn2', drawn(bell, 27)), GAUSSIAN_MSE.nsn2);
  });
});
