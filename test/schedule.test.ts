// The work list of attend on a GPU: every row meets every window once, and what is written stays within what is allocated.

import * as assert from 'uvu/assert';
import type { PageTable } from '../src/backend.ts';
import { cacheShape } from '../src/shape.ts';
import { Work } from '../src/webgpu/schedule.ts';
import { group } from '../tools/group.ts';
import { random } from './inputs.ts';

const CHUNK_GROUPS = 3;
const PAGES_PER_CHUNK = 5;

group('work', test => {
  for (const [kvHeads, heads, sequences, capacity, limit] of [
    [1, 1, 1, 64, 2 ** 27],
    [2, 6, 5, 4096, 2 ** 27],
    [8, 32, 200, 20_000, 2 ** 27],
    [1, 64, 3, 2048, 2 ** 20],
    [4, 20, 9, 30_000, 2 ** 20]
  ] as const) {
    test(`plan() covers every window of every row once: ${heads}/${kvHeads} heads, ${sequences} sequences, bindings of ${limit} bytes`, () => {
      const shape = cacheShape({ layers: 1, kvHeads, queryHeads: heads, headDim: 64, capacity, sequences });
      const next = random(1);
      const below = (n: number) => Math.floor(next() * n);
      const slotBytes = 16 * 66 * kvHeads * CHUNK_GROUPS;
      const work = new Work(shape, slotBytes, limit);
      assert.ok(work.slots * slotBytes <= limit);
      for (let round = 0; round < 60; round++) {
        const tables = Array.from({ length: 1 + below(Math.min(sequences, work.callTokens)) }, (_, n): PageTable => {
          const pageCount = below(shape.pagesPerLayer + 1);
          const rawCount = below(Math.min(4, Math.floor(shape.rawPages / sequences) + 1));
          const length = shape.sinks + 64 * pageCount + 64 * rawCount - (rawCount > 0 ? below(64) : 0);
          return {
            length,
            pageCount,
            rawCount,
            sinkSlot: shape.rawPages + n,
            pages: Uint32Array.from({ length: shape.pagesPerLayer }, () => below(shape.pagesPerLayer)),
            raws: Uint32Array.from({ length: 4 }, () => below(shape.rawPages))
          };
        });
        let room = work.callTokens;
        const items = tables.map((table, n) => {
          const most = Math.min(table.length, room - (tables.length - 1 - n));
          const tokens = round % 3 === 0 ? 1 : 1 + below(most);
          room -= tokens;
          return { table, tokens, position: table.length - tokens };
        });
        const launch = work.plan(items, 0.125, 4, CHUNK_GROUPS, PAGES_PER_CHUNK, place => ({
          offset: 4 * place,
          chunk: place % 6,
          capacity: place < shape.rawPages ? 64 : shape.sinks
        }));

        const entry = (n: number) => work.words.subarray(4 * n, 4 * n + 4);
        const [, spans, spansAt, itemsAt] = entry(0);
        const [merges, mergesAt, rawsAt, pagesAt] = entry(1);
        assert.equal(
          [spans, merges, ...entry(2)],
          [launch.attendGroups, launch.mergeGroups, CHUNK_GROUPS, PAGES_PER_CHUNK, launch.blocks, 0]
        );
        assert.ok(launch.attendGroups * launch.blocks <= work.slots);
        const seen = items.map(() => new Set<number>());
        let spansMet = 0;
        for (let m = 0; m < merges!; m++) {
          const [n, row, first, count] = entry(mergesAt! + m) as unknown as [number, number, number, number];
          const { table, tokens, position } = items[n]!;
          assert.equal([...entry(itemsAt! + n)].slice(0, 3), [
            items.slice(0, n).reduce((sum, item) => sum + item.tokens, 0),
            tokens,
            position
          ]);
          assert.is.not(seen[n]!.has(row), true);
          seen[n]!.add(row);
          const coded: number[] = [];
          const raw: number[] = [];
          for (let s = first; s < first + count; s++, spansMet++) {
            const [item, spanRow, from, to] = entry(spansAt! + s) as unknown as [number, number, number, number];
            assert.equal([item, spanRow], [n, row]);
            const isCoded = to >= 2 ** 31;
            for (let window = from; window < to % 2 ** 31; window++) {
              if (isCoded) coded.push(work.words[4 * pagesAt! + entry(itemsAt! + n)[3]! + window]!);
              else raw.push(entry(rawsAt! + window)[3]!);
            }
          }
          assert.equal(coded, Array.from(table.pages.subarray(0, table.pageCount)));
          assert.equal(raw, [0, ...Array.from({ length: table.rawCount }, (_, i) => shape.sinks + 64 * (table.pageCount + i))]);
        }
        assert.is(spansMet, spans);
        const rows = 4 * launch.blocks;
        items.forEach(({ tokens }, n) => assert.is(seen[n]!.size, Math.ceil((tokens * heads) / kvHeads / rows)));
        assert.ok(work.used <= work.pages);
        assert.ok(work.pages + work.numbers <= work.words.length);
      }
    });
  }
});
