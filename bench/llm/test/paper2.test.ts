// The paper's own 2-bit code against an exhaustive search over its words.
import * as reference from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { paper2 } from '../caches/paper2-codec.ts';

/** The paper's codebook errs by 0.0951 on normal numbers; 1.5 % more for a sample of 65,536. */
const GAUSSIAN_MSE = 0.0965;

/** Box and Muller's normal numbers over a linear congruence, the same every time. */
function normals(count: number): Float64Array {
  let state = 28;
  const uniform = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state + 0.5) / 2 ** 32;
  };
  return Float64Array.from({ length: count }, () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform()));
}

group('paper2', test => {
  test('codes 8 channels as the nearest of 256 words of magnitudes and 8 signs', () => {
    const quantizer = paper2();
    const y = normals(8 * 8192);
    const words = Array.from({ length: 256 }, (_, code) => {
      const word = new Float64Array(8);
      quantizer.decode(code, word, 0);
      return word;
    });
    assert.ok(words.every(word => word.every(value => value > 0)));
    const codes = reference.quantize(y, quantizer);
    const out = new Float64Array(8);
    let error = 0;
    codes.forEach((code, j) => {
      quantizer.decode(code, out, 0);
      const square = (word: Float64Array) => word.reduce((sum, value, k) => sum + (value - y[8 * j + k]!) ** 2, 0);
      error += square(out);
      if (j >= 256) return;
      // With the signs of y any other word is as far or farther.
      for (const word of words) {
        const other = square(word.map((value, k) => (y[8 * j + k]! < 0 ? -value : value)));
        assert.ok(square(out) <= other + 1e-12, `group ${j}`);
      }
    });
    assert.ok(error / y.length <= GAUSSIAN_MSE, `mean squared error ${error / y.length}`);
  });
});
