// Makes test/fixtures/golden-pages.json: blocks as the simd128 binary codes them. To be run when the page format changes, and
// only then: `npx tsx test/golden.ts`.

import { writeFileSync } from 'node:fs';
import { type CodecName, codecs, type Rope } from 'nsnquant';
import { openKernels } from 'nsnquant/kernels';
import { rounded } from './half.ts';
import { exactRope, keyLike } from './inputs.ts';

const headDim = 64;
/** Rows whose decoded numbers are kept: the window's first and last tokens, and two within. */
const rows = [0, 21, 42, 63];
const { invFreq } = exactRope(headDim);
const ropes: Record<string, Rope | null> = {
  'no RoPE': null,
  'RoPE halves': { invFreq: Array.from(invFreq), interleaved: false },
  'RoPE interleaved': { invFreq: Array.from(invFreq), interleaved: true }
};

const base64 = (x: ArrayBufferView) => Buffer.from(x.buffer, x.byteOffset, x.byteLength).toString('base64');

const cases: object[] = [];
for (const codec of Object.keys(codecs) as CodecName[]) {
  for (const [name, rope] of Object.entries(ropes)) {
    const seed = cases.length + 1;
    const verbs = await openKernels({ headDim, codec, ...(rope && { rope }), variant: 'simd128' });
    // Numbers that f16 holds: a cache, which keeps raw tokens so, then has the same blocks.
    const block = verbs.encode(rounded(keyLike(64, headDim, seed)));
    const decoded = verbs.decode(block);
    const kept = Float32Array.from(rows.flatMap(row => Array.from(decoded.subarray(row * headDim, (row + 1) * headDim))));
    cases.push({ codec, rope: name, seed, block: base64(block), decoded: base64(kept) });
  }
}
const path = new URL('./fixtures/golden-pages.json', import.meta.url);
writeFileSync(path, `${JSON.stringify({ headDim, rows, ropes, cases }, null, 1)}\n`);
