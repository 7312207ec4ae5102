// Attention of one token's queries over a whole context: nsnquant's codecs against dense f32, f16 and int8 of our own
// (bench/baselines): in cache, with many heads walked so that dense keys and values leave the last-level cache, and layer by layer
// with other memory read between them.

import { type Backend, type CodecName, codecs, KVCache, openBackend } from 'nsnquant';
import { relativeL2 } from '../tools/numbers.ts';
import { openDense } from './baselines/compile.ts';
import { type Kind, verify } from './baselines/dense.ts';
import type { Context } from './context.ts';
import { exactAttention, feed, type Head, profileOf, ropeOf, seededHead, seededQueries } from './data.ts';
import { toMarkdown } from './table.ts';
import { race, raceCold } from './timing.ts';

const KINDS: readonly Kind[] = ['f32', 'f16', 'int8'];
const SINKS = 4;
const CODECS = Object.keys(codecs) as CodecName[];

interface Cell {
  /** ns per cached token and KV head. */
  readonly ns: number;
  /** Bytes read per cached token and KV head. */
  readonly bytes: number;
  readonly error: number;
}

/** One KV head: everything in cache. */
export async function attendTable(context: Context): Promise<void> {
  const { quick, print, progress } = context;
  const rows: string[][] = [];
  if (!quick) {
    progress('attend: dense kernels against f64');
    verify(await openDense({ relaxed: context.variant === 'relaxed' }));
  }
  for (const headDim of context.headDim ? [context.headDim] : [64, 128]) {
    for (const groups of context.queryHeads ? [context.queryHeads] : quick ? [4] : [1, 3, 4, 8]) {
      for (const tokens of quick ? [1024] : [1024, 4096, 32768]) {
        // What plain keys gain or lose does not depend on the number of query heads.
        for (const keys of groups === 4 ? (['balanced', 'plain'] as const) : (['balanced'] as const)) {
          progress(`attend: headDim ${headDim}, ${groups} query heads, ${tokens} tokens, ${keys} keys`);
          const cells = await measure(context, { headDim, groups, tokens, layers: 1, heads: 1, keys });
          rows.push([String(headDim), String(groups), String(tokens), keys, ...describe(cells)]);
        }
      }
    }
  }
  print(
    '\n### Attend, one KV head\n\nns per cached token for all query heads of the KV head, and relative error against exact ' +
      'attention in f64; dense is the fastest of its forms in each cell. ×: speed against dense f32.\n'
  );
  print(toMarkdown({ headers: ['headDim', 'query heads', 'tokens', 'keys', ...columns()], rows, textColumns: 0 }));
}

/** Many KV heads of 8,192 tokens, one after another, as a decoding step walks them. */
export async function walkTable(context: Context): Promise<void> {
  const { quick, print, progress } = context;
  const rows: string[][] = [];
  for (const shape of [
    { headDim: 128, groups: 4, tokens: 8192, layers: 1, heads: quick ? 4 : 32 },
    { headDim: 64, groups: 3, tokens: 8192, layers: 1, heads: quick ? 4 : 90 }
  ]) {
    for (const keys of ['balanced', 'plain'] as const) {
      progress(`walk: headDim ${shape.headDim}, ${shape.heads} KV heads, ${keys} keys`);
      const cells = await measure(context, { ...shape, keys });
      rows.push([String(shape.headDim), String(shape.groups), `${shape.heads} × ${shape.tokens}`, keys, ...describe(cells)]);
    }
  }
  print('\n### Attend, many KV heads\n\nAs above; dense f32 keys and values together: 268 MB (headDim 128) and 377 MB (64).\n');
  print(toMarkdown({ headers: ['headDim', 'query heads', 'heads × tokens', 'keys', ...columns()], rows, textColumns: 0 }));
}

/** The layers of a model, one after another, with 18 MB of other memory read before each, as its weights are. */
export async function coldTable(context: Context): Promise<void> {
  const { quick, print, progress } = context;
  const rows: string[][] = [];
  for (const shape of [
    { headDim: 64, groups: 3, layers: quick ? 2 : 30, heads: 3 },
    { headDim: 128, groups: 4, layers: quick ? 2 : 16, heads: 2 }
  ]) {
    for (const tokens of quick ? [512] : [512, 2048]) {
      const { headDim, groups, layers, heads } = shape;
      for (const keys of ['balanced', 'plain'] as const) {
        progress(`cold: headDim ${headDim}, ${layers} layers, ${tokens} tokens, ${keys} keys`);
        const cells = await measure(context, { ...shape, tokens, keys });
        rows.push([String(headDim), String(groups), `${layers} × ${heads} × ${tokens}`, keys, ...describe(cells)]);
      }
    }
  }
  print('\n### Attend with 18 MB of other memory read between calls\n\nAs above; a call is one layer, and the reading is not timed.\n');
  print(toMarkdown({ headers: ['headDim', 'query heads', 'layers × heads × tokens', ...columns()], rows, textColumns: 0 }));
}

interface AttendShape {
  readonly headDim: number;
  /** Query heads of a KV head. */
  readonly groups: number;
  readonly tokens: number;
  /** More than one: other memory is read before each. */
  readonly layers: number;
  /** KV heads of a layer. */
  readonly heads: number;
  /** How the codecs hold them. */
  readonly keys: 'balanced' | 'plain';
}

async function measure({ variant, quick }: Context, shape: AttendShape): Promise<Record<string, Cell>> {
  const { headDim, groups, tokens, layers, heads } = shape;
  const backend = await openBackend({ variant });
  const dense = await openDense({ relaxed: variant === 'relaxed' });
  // A few distinct heads are enough: each is copied to its own place in memory.
  const data = Array.from({ length: Math.min(heads, 4) }, (_, head) => seededHead(head + 1, tokens, headDim));
  const queries = seededQueries(99, data, 1, heads, groups);
  const exact = exactAttention(queries.subarray(0, groups * headDim), data[0]!, headDim);

  const cells: Record<string, Cell> = {};
  const keep = (name: string, time: number, bytes: number, out: Float32Array): void => {
    const ns = time / (tokens * layers * heads);
    if (ns < (cells[name]?.ns ?? Infinity)) cells[name] = { ns, bytes, error: relativeL2(out.subarray(0, exact.length), exact) };
  };
  const ours = CODECS.map(codec => ({ codec, ...cacheOf(backend, codec, shape, data, queries) }));
  // One dense kind at a time beside the codecs: several hundred megabytes more in memory slow each other down.
  for (const kind of KINDS) {
    const cell = dense.cell({ kind, headDim, groups, tokens, heads: layers * heads });
    for (let head = 0; head < layers * heads; head++) {
      const { keys, values } = data[(head % heads) % data.length]!;
      cell.fill(head, keys, values);
    }
    const out = new Float32Array(groups * headDim);
    const walk = (form: string, layer: number): void => {
      for (let head = heads - 1; head >= 0; head--) {
        cell.attend(layer * heads + head, queries.subarray(head * groups * headDim, (head + 1) * groups * headDim), out, form);
      }
    };
    const competitors: Record<string, (layer: number) => void> = {
      ...Object.fromEntries(ours.map(({ codec, run }) => [codec, run])),
      ...Object.fromEntries(cell.forms.map(form => [form, (layer: number) => walk(form, layer)]))
    };
    const times =
      layers > 1
        ? raceCold(competitors, { steps: layers, rounds: quick ? 1 : 8 })
        : race(
            Object.fromEntries(Object.entries(competitors).map(([name, run]) => [name, () => run(0)])),
            quick ? { rounds: 1, seconds: 0.02 } : { rounds: 4, seconds: heads > 1 ? 0.3 : 0.1 }
          );
    for (const { codec, bytes, out } of ours) keep(codec, times[codec]!, bytes / (tokens * layers * heads), out);
    for (const form of cell.forms) {
      walk(form, 0); // ends with head 0, whose exact result is known
      keep(kind, times[form]!, cell.headBytes / tokens, out);
    }
  }
  return cells;
}

function cacheOf(
  backend: Backend,
  codec: CodecName,
  { headDim, groups, tokens, layers, heads, keys }: AttendShape,
  data: readonly Head[],
  queries: Float32Array
) {
  const cache = new KVCache(backend, {
    layers,
    kvHeads: heads,
    queryHeads: heads * groups,
    headDim,
    capacity: tokens,
    keys: codec,
    values: codec,
    rope: ropeOf(headDim),
    balance: keys === 'plain' ? 'off' : profileOf(data, { layers, kvHeads: heads }, SINKS),
    sinks: SINKS,
    sequences: 1,
    maxAppend: 64
  });
  const sequence = cache.sequence();
  for (let layer = 0; layer < layers; layer++) feed(sequence, layer, data, tokens, { kvHeads: heads, headDim });
  const out = new Float32Array(queries.length);
  const run = (layer: number): void => void sequence.attend(layer, queries, { out });
  run(0);
  return { run, out, bytes: sequence.bytes };
}

function columns(): string[] {
  return ['f32', 'GB/s', 'f16', 'int8', ...CODECS.flatMap(codec => [codec, 'GB/s', '×', 'error'])];
}

function describe(cells: Record<string, Cell>): string[] {
  const f32 = cells['f32']!;
  return [
    f32.ns.toFixed(1),
    (f32.bytes / f32.ns).toFixed(1),
    cells['f16']!.ns.toFixed(1),
    cells['int8']!.ns.toFixed(1),
    ...CODECS.flatMap(codec => {
      const { ns, bytes, error } = cells[codec]!;
      return [ns.toFixed(1), (bytes / ns).toFixed(1), (f32.ns / ns).toFixed(2), error.toFixed(3)];
    })
  ];
}
