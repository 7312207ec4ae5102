// Attention of many query tokens at once, as a prompt asks for it, over coded tokens alone.

import { type CodecName, KVCache, openBackend } from 'nsnquant';
import { openDense } from './baselines/compile.ts';
import type { Context } from './context.ts';
import { feed, profileOf, ropeOf, seededHead, seededQueries } from './data.ts';
import { toMarkdown } from './table.ts';
import { race } from './timing.ts';

const GROUPS = 4;
const SINKS = 4;
const PAIRS: readonly (readonly [keys: CodecName, values: CodecName])[] = [
  ['nsn1', 'nsn1'],
  ['nsn2', 'nsn2'],
  ['nsn3', 'nsn3'],
  ['nsn4', 'nsn2'],
  ['nsn4', 'nsn4']
];

export async function promptTable({ variant, quick, headDim: only, print, progress }: Context): Promise<void> {
  const backend = await openBackend({ variant });
  const dense = await openDense({ relaxed: variant === 'relaxed' });
  const rows: string[][] = [];
  for (const headDim of only ? [only] : quick ? [64] : [64, 128]) {
    for (const tokens of quick ? [1024] : [2048, 8192]) {
      const data = [seededHead(1, tokens, headDim)];
      const cell = dense.cell({ kind: 'f32', headDim, groups: GROUPS, tokens, heads: 1 });
      cell.fill(0, data[0]!.keys, data[0]!.values);
      const sequences = PAIRS.map(([keys, values]) => {
        const cache = new KVCache(backend, {
          layers: 1,
          kvHeads: 1,
          queryHeads: GROUPS,
          headDim,
          capacity: tokens,
          keys,
          values,
          rope: ropeOf(headDim),
          balance: profileOf(data, { layers: 1, kvHeads: 1 }, SINKS),
          sinks: SINKS,
          sequences: 1
        });
        const sequence = cache.sequence();
        feed(sequence, 0, data, tokens, { kvHeads: 1, headDim });
        return sequence;
      });
      for (const asked of quick ? [8, 128] : [1, 8, 16, 32, 128, 512]) {
        progress(`prompt: headDim ${headDim}, ${tokens} tokens, ${asked} query tokens`);
        const queries = seededQueries(asked, data, asked, 1, GROUPS);
        const out = new Float32Array(queries.length);
        const times = race(
          {
            ...Object.fromEntries(cell.forms.map(form => [form, () => cell.attend(0, queries.subarray(0, GROUPS * headDim), out, form)])),
            ...Object.fromEntries(sequences.map((sequence, n) => [PAIRS[n]!.join('/'), () => sequence.attend(0, queries, { out })]))
          },
          quick ? { rounds: 1, seconds: 0.02 } : { rounds: 4, seconds: 0.1 }
        );
        // Query token n of the newest sees tokens − asked + n + 1.
        const seen = tokens - (asked - 1) / 2;
        const f32 = Math.min(...cell.forms.map(form => times[form]!)) / tokens;
        rows.push([
          `${headDim}`,
          `${tokens}`,
          `${asked}`,
          f32.toFixed(1),
          ...PAIRS.flatMap(pair => {
            const ns = times[pair.join('/')]! / (asked * seen);
            return [ns.toFixed(1), (f32 / ns).toFixed(2)];
          })
        ]);
      }
    }
  }
  print(
    `\n### Attend, a prompt\n\nns per query token (of ${GROUPS} query heads) and cached token, of one KV head; ×: speed against dense f32, one query token a time.\n`
  );
  print(
    toMarkdown({
      headers: [
        'headDim',
        'tokens',
        'query tokens',
        'f32',
        ...PAIRS.flatMap(([keys, values]) => [keys === values ? keys : `${keys}/${values}`, '×'])
      ],
      rows,
      textColumns: 0
    })
  );
}
