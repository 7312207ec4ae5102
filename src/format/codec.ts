// Codecs: how many channels one byte stands for, and the 256 codewords it chooses from. Plain frozen data, no behavior.

import { codebooks } from './codebook.ts';
import { fromHalf } from './half.ts';

/** Names of codecs: bits per channel, but for the metadata. */
export type CodecName = 'nsn1' | 'nsn2' | 'nsn4';

/** How many channels one byte stands for, and the codewords it chooses from. */
export interface Codec {
  /** Its name in the options of a cache. */
  readonly name: CodecName;
  /** Channels coded by one byte: 8, 4 or 2. */
  readonly channels: number;
  /** Bits per channel of the codes alone; the metadata of a page adds about 0.4. */
  readonly bits: number;
  /** f32 [256, channels], exactly the f16 values that were stored. Codeword c + 128 is the negation of codeword c. */
  readonly codebook: Float32Array;
  /** Checksum of the codebook's f16 bytes; part of the page format. */
  readonly checksum: number;
}

/**
 * The codecs by name: `nsn1` (one byte for 8 channels), `nsn2` (4), `nsn4` (2).
 *
 * @example
 * codecs.nsn2.codebook.length;   // 1024: 256 codewords of 4 channels
 */
export const codecs: Readonly<Record<CodecName, Codec>> = /* @__PURE__ */ Object.freeze({
  nsn1: /* @__PURE__ */ codec('nsn1'),
  nsn2: /* @__PURE__ */ codec('nsn2'),
  nsn4: /* @__PURE__ */ codec('nsn4')
});

function codec(name: CodecName): Codec {
  const { channels, checksum, base64 } = codebooks[name];
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const halves = new Uint16Array(bytes.buffer);
  return Object.freeze({
    name,
    channels,
    bits: 8 / channels,
    codebook: Float32Array.from(halves, fromHalf),
    checksum
  });
}
