// What keeping a conversation costs: fork, save and restore, and a prefix store in memory and on a file system.

import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { KVCache, openBackend, Sequence } from 'nsnquant';
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
      const stores = Object.entries(drivers).map(
        ([name, open]) => [name, new PrefixStore(createStorage({ driver: open() }), STORE)] as const
      );
      const steps: Record<string, () => unknown> = {
        fork: () => sequence.fork(),
        save: () => sequence.save(),
        restore: () => cache.restore(file)
      };
      for (const [name, prefixes] of stores) {
        steps[`put, ${name}`] = () => prefixes.put(sequence, ids);
        steps[`put again, ${name}`] = () => prefixes.put(sequence, ids);
        steps[`find, ${name}`] = () => prefixes.find(cache, ids);
        steps[`load, ${name}`] = () => prefixes.load(cache, ids);
      }
      const best = new Map<string, { readonly ms: number; readonly cpuMs: number }>();
      const began = performance.now();
      for (let round = 0; round < (quick ? 1 : 4) || (!quick && performance.now() - began < 30_000); round++) {
        progress(`prefixes: ${tokens} tokens, round ${round}`);
        for (const [, prefixes] of stores) await prefixes.clear();
        for (const [what, run] of Object.entries(steps)) {
          const [at, before] = [performance.now(), process.cpuUsage()];
          const made = await run();
          const [ms, { user, system }] = [performance.now() - at, process.cpuUsage(before)];
          const { ms: least = Infinity, cpuMs = Infinity } = best.get(what) ?? {};
          best.set(what, { ms: Math.min(least, ms), cpuMs: Math.min(cpuMs, (user + system) / 1000) });
          if (made instanceof Sequence) made.dispose();
        }
      }
      const megabytes = file.length / 1e6;
      const digits = (ms: number): string => ms.toFixed(ms < 10 ? 2 : 0);
      const speed = (ms: number): string => ((1000 * megabytes) / ms).toFixed(0);
      for (const [what, { ms, cpuMs }] of best) {
        const moved = !/^(fork|find)/.test(what);
        rows.push([what, `${tokens}`, megabytes.toFixed(1), digits(ms), moved ? speed(ms) : '', digits(cpuMs), moved ? speed(cpuMs) : '']);
      }
      for (const [, prefixes] of stores) await prefixes.clear();
      cache.dispose();
    }
  } finally {
    await rm(folder, { recursive: true });
  }
  print(
    '\n### Prefixes\n\nA conversation of SmolLM2-135M (30 layers, 3 KV heads of 64 channels) at 3 bits, with a balance that it learned: milliseconds, and megabytes of its file a second; the same of processor time, all threads together, which others on the machine change less. The store puts all of its windows, finds them all there, finds how long the prefix is, and loads it.\n'
  );
  // Steps in their order, and of each all lengths.
  const steps = [...new Set(rows.map(([what]) => what!))];
  const sorted = steps.flatMap(step => rows.filter(([what]) => what === step));
  print(toMarkdown({ headers: ['what', 'tokens', 'MB', 'ms', 'MB/s', 'CPU ms', 'MB/CPU s'], rows: sorted, textColumns: 1 }));
}
