// The paper's own 2-bit code, for comparison: 256 codewords of 8 magnitudes and 8 signs, two bytes for 8 channels. Its signs
// forbid the table look-up and the bucket sum of the byte codecs (3 to 6 times slower on a CPU), so no kernel reads it.

import type { Quantizer } from 'nsnquant/reference';
import { fromHalf } from '../../../src/format/half.ts';
import { paper2Codebook } from './paper2-codebook.ts';

const CHANNELS = 8;

/**
 * A quantizer for `encode` and `decode`: code = signs << 8 | codeword of the magnitudes, bit k of the signs for channel k.
 *
 * @see NSNQuant (arXiv 2505.18231), section 4, the 2-bit codebook
 *
 * @example
 * const window = encode(keys, 64, paper2(), rope);
 */
export function paper2(): Quantizer {
  const bytes = Uint8Array.from(atob(paper2Codebook.base64), letter => letter.charCodeAt(0));
  const codebook = Float64Array.from(new Uint16Array(bytes.buffer), fromHalf);
  return {
    channels: CHANNELS,
    quantize(y, at) {
      let best = -Infinity;
      let codeword = 0;
      let signs = 0;
      for (let c = 0; c < 256; c++) {
        let score = 0;
        for (let k = 0; k < CHANNELS; k++) {
          const e = codebook[c * CHANNELS + k]!;
          score += e * (Math.abs(y[at + k]!) - e / 2);
        }
        if (score > best) {
          best = score;
          codeword = c;
        }
      }
      for (let k = 0; k < CHANNELS; k++) signs |= Number(y[at + k]! < 0) << k;
      return (signs << 8) | codeword;
    },
    decode(code, out, at) {
      for (let k = 0; k < CHANNELS; k++) {
        const magnitude = codebook[(code & 255) * CHANNELS + k]!;
        out[at + k] = (code >> (8 + k)) & 1 ? -magnitude : magnitude;
      }
    }
  };
}
