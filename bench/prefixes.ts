// What keeping a conversation costs: fork, save and restore, and a prefix store in memory and on a file system.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KVCache, openBackend } from 'nsnquant';
import { PrefixStore } from 'nsnquant/prefixes';
import { createStorage, type Driver } from 'unstorage';
import fsDriver from 'unstorage/drivers/fs';
import memoryDriver from 'unstorage/drivers/memory';
import type { Context } from './context.ts';
import { feed, ropeOf, seededHead } from './data.ts';
import { toMarkdown } from './table.ts';

/** SmolLM2-135M. */
const MODEL = { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64 };
const STORE = { model: 'smollm2-135m', budget: Infinity };

export async function prefixesTable({ variant, quick, print, progress }: Context): Promise<void> {
  const backend = await openBackend({ variant });
  const folder = await mkdtemp(join(tmpdir(), 'nsnquant-prefixes-'));
  const drivers: Readonly<Record<string, () => Driver>> = { memory: memoryDriver, files: () => fsDriver({ base: folder }) };
  const rows: string[][] = [];
  try {
    for (const tokens of quick ? [1024] : [1024, 8192, 32768]) {
      progress(`prefixes: ${tokens} tokens are coded`);
      const cache = new KVCache(backend, {
        ...MODEL,
        capacity: 2 * tokens + 256,
        sequences: 3,
        maxAppend: 64,
        rope: ropeOf(MODEL.headDim)
      });
      const sequence = cache.sequence();
      const head = seededHead(1, tokens, MODEL.headDim);
      for (let layer = 0; layer < MODEL.layers; layer++) feed(sequence, layer, [head], tokens, MODEL);
      const file = await sequence.save();
      const ids = Uint32Array.from({ length: tokens }, (_, n) => n);
      const rounds = quick ? 1 : Math.max(3, 65536 / tokens / 4);
      const time = async (what: string, run: () => unknown, before?: () => unknown): Promise<void> => {
        let best = Infinity;
        for (let round = 0; round < rounds; round++) {
          progress(`prefixes: ${tokens} tokens, ${what}`);
          await before?.();
          const began = performance.now();
          const made = await run();
          best = Math.min(best, performance.now() - began);
          if (made instanceof sequence.constructor) (made as typeof sequence).dispose();
        }
        const megabytes = file.length / 1e6;
        rows.push([what, `${tokens}`, megabytes.toFixed(1), best.toFixed(best < 10 ? 2 : 0), ((1000 * megabytes) / best).toFixed(0)]);
      };
      await time('fork', () => sequence.fork());
      await time('save', () => sequence.save());
      await time('restore', () => cache.restore(file));
      for (const [name, open] of Object.entries(drivers)) {
        const prefixes = new PrefixStore(createStorage({ driver: open() }), STORE);
        await time(
          `put, ${name}`,
          () => prefixes.put(sequence, ids),
          () => prefixes.clear()
        );
        await time(`put again, ${name}`, () => prefixes.put(sequence, ids));
        await time(`find, ${name}`, () => prefixes.find(cache, ids));
        await time(`load, ${name}`, () => prefixes.load(cache, ids));
        await prefixes.clear();
      }
      cache.dispose();
    }
  } finally {
    await rm(folder, { recursive: true });
  }
  print(
    '\n### Prefixes\n\nA conversation of SmolLM2-135M (30 layers, 3 KV heads of 64 channels) at 3 bits, in windows of 64 tokens: milliseconds, and megabytes of its file a second. Files are in the system’s cache.\n'
  );
  print(
    toMarkdown({ headers: ['what', 'tokens', 'MB', 'ms', 'MB/s'], rows: rows.toSorted((a, b) => order(a) - order(b)), textColumns: 1 })
  );
}

/** Rows of the same kind together. */
const KINDS = ['fork', 'save', 'restore', 'put, memory', 'put again, memory', 'find, memory', 'load, memory'];
const order = ([what]: string[]): number => KINDS.indexOf(what!) + 1 || KINDS.length + 1 + KINDS.indexOf(what!.replace('files', 'memory'));
