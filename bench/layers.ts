// What layers do to logits, and what it costs: windows, caps, slopes and sink logits beside a plain layer of the same tokens.

import { KVCache, type LayerOptions, openBackend } from 'nsnquant';
import type { Context } from './context.ts';
import { feed, profileOf, ropeOf, seededHead, seededQueries } from './data.ts';
import { toMarkdown } from './table.ts';
import { race } from './timing.ts';

const TOKENS = 4096;
const SINKS = 4;
/** Query tokens of a call: a decoding step, and rows enough that pages are decoded for them. */
const ASKED = [1, 64] as const;

/** By name: what is told of a layer with so many query heads, and how `attend` is called. */
const features: Readonly<Record<string, (groups: number) => LayerOptions & { readonly lse?: boolean }>> = {
  plain: () => ({}),
  'window 1024': () => ({ window: 1024 }),
  'window 1024, sinks kept': () => ({ window: 1024, keepSinks: true }),
  softcap: () => ({ softcap: 50 }),
  slopes: groups => ({ slopes: Array.from({ length: groups }, (_, head) => 2 ** -(head + 4)) }),
  'sink logits': groups => ({ sinkLogits: new Float32Array(groups) }),
  'log-sum-exp': () => ({ lse: true })
};

export async function layersTable({ variant, quick, print, progress }: Context): Promise<void> {
  const backend = await openBackend({ variant });
  const names = Object.keys(features);
  const cells = new Map(names.map(name => [name, [] as string[]]));
  const headers: string[] = [];
  const shapes = [
    { headDim: 64, valueDim: 64, groups: 3 },
    { headDim: 128, valueDim: 128, groups: 4 },
    { headDim: 576, valueDim: 512, groups: 16 }
  ];
  for (const { headDim, valueDim, groups } of quick ? shapes.slice(0, 1) : shapes) {
    const data = [seededHead(1, TOKENS, headDim)];
    const told = names.map(name => features[name]!(groups));
    const cache = new KVCache(backend, {
      layers: told.map(({ lse: _, ...layer }) => layer),
      kvHeads: 1,
      queryHeads: groups,
      headDim,
      valueDim,
      capacity: TOKENS,
      rope: ropeOf(headDim),
      balance: profileOf(data, { layers: names.length, kvHeads: 1 }, SINKS),
      sinks: SINKS,
      sequences: 1
    });
    const sequence = cache.sequence();
    names.forEach((_, layer) => feed(sequence, layer, data, TOKENS, { kvHeads: 1, headDim, valueDim }));
    for (const asked of ASKED) {
      progress(`layers: headDim ${headDim}, ${asked} query tokens`);
      const queries = seededQueries(asked, data, asked, 1, groups);
      const out = new Float32Array(asked * groups * valueDim);
      const lse = new Float32Array(asked * groups);
      const times = race(
        Object.fromEntries(
          names.map((name, layer) => [name, () => sequence.attend(layer, queries, told[layer]!.lse ? { out, lse } : { out })])
        ),
        quick ? { rounds: 1, seconds: 0.02 } : { rounds: asked === 1 ? 24 : 3, seconds: 0.02 }
      );
      headers.push(`${headDim === valueDim ? headDim : `${headDim}/${valueDim}`} × ${groups}, ${asked}`, '×');
      for (const name of names) {
        const ns = times[name]! / (TOKENS * asked);
        cells.get(name)!.push(ns.toFixed(2), (times[name]! / times['plain']!).toFixed(2));
      }
    }
    cache.dispose();
  }
  print(
    `\n### Layers\n\nns per query token (of so many query heads) and cached token, of one KV head with ${TOKENS} tokens in nsn3: ` +
      'head dimension (of keys/of values) × query heads, query tokens; ×: time against the plain layer.\n'
  );
  print(toMarkdown({ headers: ['layer', ...headers], rows: names.map(name => [name, ...cells.get(name)!]), textColumns: 1 }));
}
