import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { allFinite, atMost, equals, refuses, relativeL2, sameBits } from './compare.ts';
import { keyLike } from './inputs.ts';
import { groupValues } from './pages.ts';
import { bites, changed, swapped } from './wrong.ts';

const headDim = 64;
const tokens = keyLike(64, headDim, 1);

group('comparers of any numbers', test => {
  test('sameBits() accepts equal bits alone: not −0 for 0, not a next number, not another length', () => {
    const x = Float32Array.of(0, 1, NaN, Infinity);
    sameBits('equal', x, x.slice());
    sameBits('a part of a buffer', new Float32Array([9, ...x]).subarray(1), x);
    const wrong: Record<string, Float32Array> = {
      'negative zero': changed(x, 0, () => -0),
      'the next number': changed(x, 1, () => 1 + 2 ** -23),
      'a number for NaN': changed(x, 2, () => 0),
      'a sign': changed(x, 3, () => -Infinity),
      short: x.slice(1),
      empty: new Float32Array()
    };
    for (const [what, other] of Object.entries(wrong)) {
      bites(() => sameBits(what, other, x));
      bites(() => sameBits(what, x, other));
    }
    for (let at = 0; at < 64; at++)
      bites(() =>
        sameBits(
          'codes',
          changed(new Uint8Array(64), at, () => 1),
          new Uint8Array(64)
        )
      );
  });

  test('relativeL2() measures: 0 for equal, 1 for zeros, 2 for a wrong sign, NaN for NaN', () => {
    assert.is(relativeL2(tokens, tokens), 0);
    assert.is(relativeL2(new Float32Array(tokens.length), tokens), 1);
    assert.is(
      relativeL2(
        tokens.map(value => -value),
        tokens
      ),
      2
    );
    assert.ok(relativeL2(swapped(tokens, headDim, 0, 1), tokens) > 0.01);
    assert.ok(
      Number.isNaN(
        relativeL2(
          changed(tokens, 9, () => NaN),
          tokens
        )
      )
    );
    assert.ok(Number.isNaN(relativeL2(tokens.subarray(1), tokens)));
  });

  test('equals() forgives roundings of f64, and no NaN, zero or other length', () => {
    const x = Float64Array.of(1, -2, 0, 1e-3);
    equals(
      'roundings',
      x.map(value => value * (1 + 2 ** -50)),
      x
    );
    for (const wrong of [
      x.map(value => value * (1 + 1e-11)),
      changed(x, 2, () => 1e-11),
      changed(x, 0, () => NaN),
      new Float64Array(4),
      x.subarray(1)
    ]) {
      bites(() => equals('wrong', wrong, x));
    }
  });

  test('atMost() refuses more, and NaN', () => {
    atMost('error', 1, 1);
    for (const wrong of [1 + 1e-15, Infinity, NaN]) bites(() => atMost('error', wrong, 1), /at most 1/);
    bites(() => atMost('error', 1, NaN));
  });

  test('allFinite() refuses NaN and infinities, wherever they are', () => {
    allFinite('tokens', tokens);
    for (const wrong of [NaN, Infinity, -Infinity]) {
      for (const at of [0, tokens.length - 1])
        bites(
          () =>
            allFinite(
              'tokens',
              changed(tokens, at, () => wrong)
            ),
          /finite/
        );
    }
  });

  test('refuses() accepts one class and one message, thrown or rejected', async () => {
    const fail = (error: Error) => () => {
      throw error;
    };
    await refuses(fail(new RangeError('x')), RangeError, 'x');
    await refuses(() => Promise.reject(new RangeError('x')), RangeError, 'x');
    const wrong: Record<string, () => unknown> = {
      'nothing thrown': () => {},
      'another class': fail(new TypeError('x')),
      'a base class': fail(new Error('x')),
      'another message': fail(new RangeError('x, and more'))
    };
    for (const [what, run] of Object.entries(wrong)) {
      let caught: unknown;
      await refuses(run, RangeError, 'x').catch(error => {
        caught = error;
      });
      assert.instance(caught, Error, what);
    }
  });

  test('the values of a group follow from its scale, minimum and codes', () => {
    assert.equal(Array.from(groupValues({ scale: 2, min: -1, codes: Uint8Array.of(0, 1, 15) })), [-1, 1, 29]);
  });
});
