// The paper's own 2-bit code over one head's window, by the specification in f64: no kernel reads it.
import { codecs } from 'nsnquant';
import { type Coding, decode, encode } from 'nsnquant/reference';
import { blockLayout, type Rope } from '../../../src/format/layout.ts';
import { WINDOW } from './cache.ts';
import type { WindowFormat } from './formats.ts';
import { paper2 as openQuantizer } from './paper2-codec.ts';

/** @param rope  how keys were rotated, if their mean is to be taken before */
export function paper2(rope: Rope | undefined): WindowFormat {
  const quantizer = openQuantizer();
  return {
    name: 'paper2',
    window: WINDOW,
    // Two bytes for 8 channels are as many as nsn2's one for 4, and the metadata is that of values: a mean of 4 bits.
    windowBytes: headDim => blockLayout(codecs.nsn2, headDim, 'values', false).bytes,
    tableBytes: 256 * 8 * 2,
    roundTrip(x, headDim, side) {
      const coding: Coding = {
        segments: [{ channels: headDim, stages: [{ quantizer, scale: 1 }] }],
        meanBits: 4,
        rope: side === 'keys' ? rope : undefined
      };
      x.set(decode(encode(x, headDim, coding), coding));
    }
  };
}
