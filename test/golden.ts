// Makes test/fixtures/golden-pages.json: blocks as the simd128 binary codes them, and balances that it learns. To be run when the page
// format changes, and only then: `npx tsx test/golden.ts`.

import { writeFileSync } from 'node:fs';
import { type CodecName, codecs, KVCache, openBackend, type Rope } from 'nsnquant';
import { openKernels } from 'nsnquant/kernels';
import { rounded } from './half.ts';
import { anyBalance, bells, exactRope, keyLike } from './inputs.ts';

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
  for (const kind of ['plain keys', 'balanced keys', 'values'] as const) {
    for (const [name, rope] of Object.entries(ropes).slice(0, kind === 'values' ? 1 : 3)) {
      const seed = cases.length + 1;
      const verbs = await openKernels({
        headDim,
        codec,
        side: kind === 'values' ? 'values' : 'keys',
        ...(rope && { rope }),
        ...(kind === 'balanced keys' && { balance: anyBalance(headDim, seed) }),
        variant: 'simd128'
      });
      // Numbers that f16 holds: a cache, which keeps raw tokens so, then has the same blocks.
      const block = verbs.encode(rounded(keyLike(64, headDim, seed)));
      const decoded = verbs.decode(block);
      const kept = Float32Array.from(rows.flatMap(row => Array.from(decoded.subarray(row * headDim, (row + 1) * headDim))));
      cases.push({ codec, kind, rope: name, seed, block: base64(block), decoded: base64(kept) });
    }
  }
}

const backend = await openBackend({ variant: 'simd128' });
const learned: object[] = [];
for (const [name, rope] of Object.entries(ropes)) {
  const seed = 100 + learned.length;
  const cache = new KVCache(backend, { layers: 1, kvHeads: 1, queryHeads: 3, headDim, capacity: 128, sinks: 0, ...(rope && { rope }) });
  const sequence = cache.sequence();
  sequence.append(0, keyLike(128, headDim, seed), bells(128, headDim, seed));
  sequence.attend(0, bells(128, 3 * headDim, seed + 50));
  sequence.seal();
  learned.push({ rope: name, seed, balance: base64(await sequence.balance()) });
}

const path = new URL('./fixtures/golden-pages.json', import.meta.url);
writeFileSync(path, `${JSON.stringify({ headDim, rows, ropes, cases, learned }, null, 1)}\n`);
