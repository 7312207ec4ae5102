// The schedule of attend on a GPU: every row meets every window that it sees once, none that no row beside it sees is passed over, and
// what is written stays within what is allocated.

import * as assert from 'uvu/assert';
import { BackendError, type PageTable } from '../src/backend.ts';
import { cacheShape } from '../src/shape.ts';
import { Schedule } from '../src/webgpu/schedule.ts';
import { fieldsOf } from '../src/webgpu/structs.ts';
import { group } from '../tools/group.ts';
import { random } from './inputs.ts';

/** Pairs of chunks, of which pages lie in five chunks and raw slots in six. */
const PAIRS = 3;

/** Words before the first entry. */
const HEADER = 4 * Math.ceil(fieldsOf('Schedule').length / 4);

group('schedule', test => {
  test('that no buffer could hold is refused before it is made', () => {
    // Page numbers of 65,536 sequences, 262,144 each: 64 GiB.
    const shape = cacheShape({ layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 2 ** 24, sequences: 65536 });
    assert.throws(
      () => new Schedule(shape, 1, 2, 2 ** 27),
      (error: unknown) =>
        error instanceof BackendError &&
        /^webgpu backend expected at most 134217728 bytes for schedule \(.+\), got 137\d{9}$/.test(error.message)
    );
  });

  test('layers that differ take as much for partial results as the one that takes most', () => {
    const layers = [
      { kvHeads: 1, queryHeads: 128, valueDim: 512 },
      { kvHeads: 16, queryHeads: 16, valueDim: 256 }
    ];
    const options = { kvHeads: 1, queryHeads: 1, headDim: 64, capacity: 4096 };
    const bytesOf = (some: typeof layers) => new Schedule(cacheShape({ ...options, layers: some }), 1, 2, 2 ** 31).partialBytes;
    assert.is(bytesOf(layers), Math.max(...layers.map(layer => bytesOf([layer]))));
  });

  for (const [kvHeads, heads, sequences, capacity, limit, masks] of [
    [1, 1, 1, 64, 2 ** 27, {}],
    [2, 6, 5, 4096, 2 ** 27, { window: 500 }],
    [8, 32, 200, 20_000, 2 ** 27, {}],
    [1, 64, 3, 2048, 2 ** 20, { window: 70, keepSinks: true }],
    [2, 8, 4, 3000, 2 ** 27, { window: 1, sinks: 0 }],
    [4, 20, 9, 30_000, 2 ** 20, { window: 128, keepSinks: true, sinks: 64 }]
  ] as const) {
    const what = `${heads}/${kvHeads} heads, ${sequences} sequences, bindings of ${limit} bytes, ${JSON.stringify(masks)}`;
    test(`draw() covers every window that a row sees once: ${what}`, () => {
      const shape = cacheShape({ layers: 1, kvHeads, queryHeads: heads, headDim: 64, capacity, sequences, ...masks });
      const layer = shape.layers[0]!;
      const next = random(1);
      const below = (n: number) => Math.floor(next() * n);
      const schedule = new Schedule(shape, PAIRS, 2 * PAIRS, limit);
      assert.ok(schedule.partialBytes <= limit);
      for (let round = 0; round < 60; round++) {
        const tables = Array.from({ length: 1 + below(Math.min(sequences, schedule.callTokens)) }, (_, n): PageTable => {
          // Of the windows that were coded some are gone: none in half of the tables.
          const most = below(shape.pageCounts[0]! + 1);
          const gone = below(2) === 0 ? 0 : next();
          const windows = Uint32Array.from({ length: most }, (_, window) => window).filter(() => next() >= gone);
          const coded = most + below(2) * (most - windows.length);
          const pageCount = windows.length;
          const rawCount = Math.max(Number(coded === 0), below(Math.min(4, Math.floor(shape.rawSlots / sequences) + 1)));
          const length = shape.sinks + 64 * coded + 64 * rawCount - (rawCount > 0 ? below(64) : 0);
          return {
            length,
            sequence: n,
            pageCount,
            windows,
            coded,
            rawCount,
            sinkSlot: shape.rawSlots + n,
            pages: Uint32Array.from({ length: shape.pageCounts[0]! }, () => below(shape.pageCounts[0]!)),
            raws: Uint32Array.from({ length: 4 }, () => below(shape.rawSlots))
          };
        });
        let room = schedule.callTokens;
        const requests = tables.map((table, n) => {
          const most = Math.min(table.length, room - (tables.length - 1 - n));
          const tokens = round % 3 === 0 ? 1 : 1 + below(most);
          room -= tokens;
          return { table, tokens, position: table.length - tokens };
        });
        /** Things scattered over chunks, each in a word of its own. */
        const scattered = (count: number, chunks: number) => ({
          chunkOf: Uint32Array.from({ length: count }, (_, n) => n % chunks),
          offsetOf: Float64Array.from({ length: count }, (_, n) => 4 * n)
        });
        const limits = {
          quads: 4,
          pages: scattered(shape.pageCounts[0]!, 5),
          slots: scattered(shape.rawSlots + shape.sinkSlots, 6),
          slopesAt: 7,
          sinkLogitsAt: 11
        };
        const orderOf = (sequence: number) => 1000 + 3 * sequence;
        const call = { scale: 0.125, layout: 'heads-first', halfQueries: true, halfOutput: false } as const;
        const dispatches = schedule.draw(layer, requests, call, limits, orderOf);

        // As they lie in the buffer, one list after another.
        const words = Uint32Array.from([...schedule.front, ...schedule.pages, ...schedule.windows]);
        assert.is(words.length, schedule.length);
        assert.ok(words.length <= schedule.mostWords);
        const header = structAt(words, 0, 'Schedule');
        const entry = (name: 'ChunkPair' | 'Request' | 'Tile' | 'Split' | 'RawWindow', n: number) => structAt(words, HEADER + 4 * n, name);
        assert.equal([header['tiles'], header['quads']], [dispatches.tiles, dispatches.quads]);
        assert.equal([header['slopesAt'], header['sinkLogitsAt']], [limits.slopesAt, limits.sinkLogitsAt]);
        assert.equal([header['headsFirst'], header['halfQueries'], header['halfOutput']], [1, 1, 0]);
        assert.equal(
          [header['slidingWindow'], header['kept']],
          [layer.window === Infinity ? 0 : layer.window, layer.keepSinks ? shape.sinks : 0]
        );
        assert.is(new Float32Array(words.buffer)[0], Math.fround(0.125 * Math.LOG2E));
        const parts = dispatches.splits.reduce((sum, splits) => sum + splits, 0);
        assert.is(dispatches.partialBytes, parts * dispatches.quads * 16 * 66 * kvHeads);
        assert.ok(dispatches.partialBytes <= schedule.partialBytes);
        /** What splits pass over, by what they leave: of every part once. */
        const passed = new Map<number, { tile: number; coded: number[][]; raw: number[][] }>();
        for (let pair = 0; pair < PAIRS; pair++) {
          const chunkPair = entry('ChunkPair', pair);
          assert.is(chunkPair['splits'], dispatches.splits[pair]);
          for (let n = 0; n < chunkPair['splits']!; n++) {
            const split = entry('Split', header['splitsAt']! + chunkPair['firstSplit']! + n);
            const found = { tile: split['tile']!, coded: [] as number[][], raw: [] as number[][] };
            for (let window = split['firstWindow']!; window < split['endWindow']!; window++) {
              // A thing from the word it lies in, and where its chunk is bound.
              const thing = (place: number, chunks: number) => {
                assert.is((place % 2 ** 31) % chunks, 2 * pair + Math.floor(place / 2 ** 31));
                return place % 2 ** 31;
              };
              if (n < chunkPair['coded']!) {
                const of = (list: string) => words[HEADER + 4 * header[list]! + window]!;
                found.coded.push([thing(of('pagesAt'), 5), of('windowsAt')]);
              } else {
                const { place, tokens, position } = entry('RawWindow', header['rawWindowsAt']! + window);
                found.raw.push([thing(place!, 6), tokens!, position!]);
              }
            }
            assert.not.ok(passed.has(split['part']!));
            passed.set(split['part']!, found);
          }
        }
        assert.is(passed.size, parts);
        const seen = requests.map(() => new Set<number>());
        let partsMet = 0;
        for (let t = 0; t < header['tiles']!; t++) {
          const tile = entry('Tile', header['tilesAt']! + t);
          const n = tile['request']!;
          const { table, tokens, position } = requests[n]!;
          const request = entry('Request', header['requestsAt']! + n);
          const firstToken = requests.slice(0, n).reduce((sum, request) => sum + request.tokens, 0);
          assert.equal([request['firstToken'], request['tokens'], request['position']], [firstToken, tokens, position]);
          assert.is.not(seen[n]!.has(tile['firstRow']!), true);
          seen[n]!.add(tile['firstRow']!);
          assert.is(request['order'], orderOf(table.sequence));
          const mine = Array.from({ length: tile['parts']! }, (_, part) => passed.get(tile['firstPart']! + part)!);
          partsMet += mine.length;
          for (const part of mine) assert.is(part.tile, t);
          const byNumber = (a: number[], b: number[]) => a[a.length - 1]! - b[b.length - 1]!;
          const perToken = heads / kvHeads;
          const [firstRow, endRow] = [tile['firstRow']!, Math.min(tile['firstRow']! + 4 * dispatches.quads, tokens * perToken)];
          const queries = Array.from({ length: endRow - firstRow }, (_, n) => position + Math.floor((firstRow + n) / perToken));
          /** Whether a row of the tile sees one of these positions. */
          const sees = (first: number, count: number) =>
            queries.some(at => first <= at && (first + count > at + 1 - layer.window || (layer.keepSinks && first < shape.sinks)));
          assert.equal(
            mine.flatMap(({ coded }) => coded).sort(byNumber),
            Array.from(table.pages.subarray(0, table.pageCount), (page, n) => [page, table.windows[n]]).filter(([, window]) =>
              sees(shape.sinks + 64 * window!, 64)
            )
          );
          const rawWindow = (slot: number, position: number, capacity: number) => {
            const count = Math.min(capacity, table.length - position);
            return sees(position, capacity) ? [[slot, count, position]] : [];
          };
          assert.equal(mine.flatMap(({ raw }) => raw).sort(byNumber), [
            ...(shape.sinks > 0 ? rawWindow(table.sinkSlot, 0, shape.sinks) : []),
            ...Array.from(table.raws.subarray(0, table.rawCount)).flatMap((slot, i) =>
              rawWindow(slot, shape.sinks + 64 * (table.coded + i), 64)
            )
          ]);
        }
        assert.is(partsMet, parts);
        const rows = 4 * dispatches.quads;
        for (const [n, { tokens }] of requests.entries()) assert.is(seen[n]!.size, Math.ceil((tokens * heads) / kvHeads / rows));
        assert.ok(schedule.used <= schedule.front.length);
        assert.ok(schedule.pageCount <= schedule.pages.length);
      }
    });
  }
});

/** A struct's words by name. */
function structAt(words: Uint32Array, at: number, name: Parameters<typeof fieldsOf>[0]): Record<string, number> {
  return Object.fromEntries(fieldsOf(name).map((field, n) => [field, words[at + n]!]));
}
