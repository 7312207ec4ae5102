// GGML's weight types against what llama.cpp's own Python package (gguf 0.19 on PyPI) makes of the same bytes.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { dequantize, type TensorType, tensorTypes } from '../src/dequantize.ts';

/** Two blocks of bytes that all differ, but for their scales (and minimums): halves, at these places. */
function blocks({ bytes }: TensorType, halves: readonly number[]): Uint8Array {
  const data = Uint8Array.from({ length: 2 * bytes }, (_, i) => i * i * 37 + i * 11 + 5);
  const view = new DataView(data.buffer);
  const values = [
    [0x3800, 0xbd00], // 0.5, −1.25
    [0xba00, 0x4100] // −0.75, 2.5
  ];
  for (const [block, pair] of values.entries()) {
    for (const [n, at] of halves.entries()) view.setUint16(block * bytes + at, pair[n]!, true);
  }
  return data;
}

/** By name: where the halves are; elements 0, 1, 17, 31, 33, half + 16 and the last; and Σ (1 + i mod 97) · element i. */
const known: Record<string, readonly [halves: readonly number[], elements: readonly number[], sum: number]> = {
  Q4_0: [[0], [3.5, -2.5, -0.5, 0, -0.75, -2.25, -0.75], -422.5],
  Q4_1: [[0, 2], [-0.75, 3.25, 5.25, -1.25, -7.25, -0.5, -3.5], -4168.5],
  Q5_0: [[0], [5.5, 3.5, -5, 5, 11.25, -6, -0.75], -2304.5],
  Q5_1: [[0, 2], [13.25, 5.25, 7.25, 2.25, -1.25, -14, -0.5], -12386.5],
  Q8_0: [[0], [-40.5, 57.5, 1.5, -21.5, -90.75, -12.75, 57.75], -6568],
  Q4_K: [[0, 2], [38.75, 38.75, 38.75, 43.75, 136.25, -216.25, -169.25], -1289784],
  Q5_K: [[0, 2], [46.75, 46.75, 46.75, 51.75, 61.25, -380.25, -291.25], -627460],
  Q6_K: [[208], [-379.5, -379.5, 60.5, -170.5, 93.5, 2906.25, 1275], 469094.25],
  IQ4_NL: [[0], [56.5, -32.5, -5, 0.5, -9.75, -28.5, -9.75], -8073]
};
const single = { F32: '0000c03f0000a0be', F16: '003e00b5', BF16: 'c03fa0be' };

group('weight types', test => {
  test('every one of them is tested here', () => {
    const names = Object.values(tensorTypes).map(({ name }) => name);
    assert.equal(names.sort(), [...Object.keys(known), ...Object.keys(single)].sort());
  });
  for (const type of Object.values(tensorTypes)) {
    test(`${type.name} is what GGML's is`, () => {
      const bytes = single[type.name as keyof typeof single];
      if (bytes) {
        const data = Uint8Array.from(bytes.match(/../g)!, byte => Number.parseInt(byte, 16));
        assert.equal([...dequantize(type, data, 2)], [1.5, -0.3125]);
        return;
      }
      const [halves, elements, sum] = known[type.name]!;
      const count = 2 * type.block;
      const values = dequantize(type, blocks(type, halves), count);
      assert.equal(
        [0, 1, 17, 31, 33, count / 2 + 16, count - 1].map(i => values[i]),
        elements
      );
      assert.is(
        values.reduce((total, value, i) => total + value * (1 + (i % 97)), 0),
        sum
      );
    });
  }
});
