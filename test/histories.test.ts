// Random histories of a cache on every backend. Longer by `npm run soak`; one that failed comes again by NSN_SEED.

import type { CacheOptions } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { backends } from './backends.ts';
import { History } from './history.ts';
import { exactRope } from './inputs.ts';
import { WIDTH } from './model.ts';
import { reference, type Tested } from './verbs.ts';

const shapes: readonly (readonly [what: string, options: Partial<CacheOptions>])[] = [
  ['4 sinks', { sinks: 4, maxAppend: 300 }],
  ['no sinks, 1 recent window, RoPE', { sinks: 0, recent: 1, maxAppend: 70, rope: exactRope(WIDTH) }],
  ['64 sinks, other codecs in a layer', { sinks: 64, maxAppend: 130, layers: [{}, { keys: 'nsn2', values: 'nsn1' }] }],
  ['a profile, 2 recent windows', { sinks: 4, recent: 2, maxAppend: 200, balance: Uint8Array.from({ length: 32 }, (_, n) => 37 * n) }],
  ['plain keys', { sinks: 4, maxAppend: 300, balance: 'off' }],
  ['a window in one of two layers', { sinks: 4, maxAppend: 200, layers: [{}, { window: 100 }] }],
  [
    'layers of other heads, one with RoPE, each with a window, 1 recent window',
    {
      sinks: 9,
      recent: 1,
      maxAppend: 150,
      layers: [
        {
          kvHeads: 2,
          queryHeads: 4,
          valueDim: 40,
          rope: exactRope(WIDTH),
          window: 30,
          keepSinks: true,
          slopes: [0.1, 0.02, 0.5, 0],
          softcap: 20
        },
        { headDim: 64, valueDim: 32, queryHeads: 3, window: 150, sinkLogits: [1, -2, 4] }
      ]
    }
  ],
  ['a window of 1, no sinks', { sinks: 0, maxAppend: 420, window: 1 }]
];

const variables: Record<string, string | undefined> = globalThis.process?.env ?? {};
const soakMs = 60000 * Number(variables['NSN_SOAK'] ?? 0);
const firstSeed = Number(variables['NSN_SEED'] ?? 1);

/** Calls of one history: as many as take a second or two where each takes microseconds, milliseconds, or waits for a queue. */
const callsOn = ({ backend, gpu }: Tested): number => (gpu ? 200 : backend === reference.backend ? 150 : 600);

async function run(tested: Tested, options: Partial<CacheOptions>, seed: number): Promise<History['counts']> {
  const history = new History(tested, options, seed);
  const calls = callsOn(tested);
  for (let call = 0; call < calls; call++) {
    await history.step().catch((error: Error) => {
      error.message = `NSN_SEED=${seed}, call ${call}: ${error.message}`;
      throw error;
    });
  }
  await history.end();
  return history.counts;
}

for (const tested of backends) {
  group(`random histories on ${tested.name}`, test => {
    // A GPU takes its time: three shapes have nothing that others lack.
    for (const [what, options] of tested.gpu ? shapes.filter(([what]) => !/^4 sinks|^plain|^no sinks/.test(what)) : shapes) {
      test(`a cache does what lists do: ${what}`, async () => {
        const end = performance.now() + soakMs / shapes.length;
        const sum = { done: 0, refused: 0, broken: 0 };
        let seed = firstSeed;
        do {
          const counts = await run(tested, options, seed++);
          for (const name of ['done', 'refused', 'broken'] as const) sum[name] += counts[name];
        } while (performance.now() < end);
        console.log(`seeds ${firstSeed} to ${seed - 1}: ${sum.done} calls done, ${sum.refused} refused, ${sum.broken} broken off`);
        assert.ok(sum.refused > callsOn(tested) / 20 && sum.broken > 0);
      });
    }
  });
}
