// What can be said of the WebGPU backend without a GPU: bytes from the page layout, and what a decoding step queues, counted on Dawn's
// null backend at full size. Nothing here is timed.

import { codecs, type KVCache, type Sequence } from 'nsnquant';
import { pageLayout, WINDOW } from '../../src/format/layout.ts';
// Not by openBackend: a device that executes nothing fails the self-test.
import { webGpuBackend } from '../../src/webgpu/store.ts';
import type { Context } from '../context.ts';
import { seededHead } from '../data.ts';
import { toMarkdown } from '../table.ts';
import { type CellShape, filledCache, formats, savedSequence, sequenceBytes, tokenBytes } from './caches.ts';
import { openNull } from './device.ts';
import { Watch } from './watch.ts';
import { workgroupBytes } from './workgroup.ts';

/** The null backend has 512 MiB in all, so there is one KV head; more heads are more workgroups, not more dispatches. */
const HEADS = { kvHeads: 1, group: 4, headDim: 128, layers: 1 } as const;

/** Bytes of one cached token and KV head, by codec. */
export function bytesTable({ print }: Context): void {
  const { headDim } = HEADS;
  const dense = [2, 4].map(elementBytes => tokenBytes(elementBytes, 1, headDim));
  const row = (name: string, bytes: number): string[] => [
    name,
    bytes.toFixed(1),
    ...dense.map(other => (other / bytes).toFixed(2)),
    ((bytes * 8) / (2 * headDim)).toFixed(2),
    (dense[0]! + bytes).toFixed(1)
  ];
  const rows = formats.map(({ name, keys, values, balanced }) =>
    row(name, pageLayout(codecs[keys], codecs[values], { kvHeads: 1, headDim, valueDim: headDim }, balanced).bytes / WINDOW)
  );
  print(
    `\n#### Bytes of a token\n\nBytes of keys and values of one token and KV head, headDim ${headDim}, once coded, all metadata counted; computed from the ` +
      'page layout. A decoding step reads each once, for all query heads of the KV head, and no GPU can be faster than its memory brings them: × is ' +
      'the limit of what a codec gains there. Written: f16 when a token is appended, its code when 64 have gathered.\n'
  );
  print(
    toMarkdown({
      headers: ['keys / values', 'read, B', '× f16', '× f32', 'bits an element', 'written, B'],
      rows: [
        ...rows,
        ['f16', String(dense[0]), '1.00', '2.00', '16.00', String(dense[0])],
        ['f32', String(dense[1]), '0.50', '1.00', '32.00', String(dense[1])]
      ],
      textColumns: 1
    })
  );
}

/** What one decoding step of one layer queues, and the workgroup memory of every shader. */
export async function countsTable(
  { quick, print, progress }: Context,
  grid: { batch: readonly number[]; context: readonly number[] }
): Promise<void> {
  const device = await openNull();
  if (typeof device === 'string') return print(`\nDispatches not counted: ${device}`);
  const watch = new Watch(device);
  const backend = webGpuBackend({ device: watch.device, description: 'null', own: true }, 'to count');
  const rows: string[][] = [];
  for (const context of quick ? grid.context.slice(0, 1) : grid.context) {
    const heads = [seededHead(1, context, HEADS.headDim)];
    for (const format of formats) {
      const saved = await savedSequence(format, { ...HEADS, batch: 1, context }, heads);
      for (const batch of grid.batch) {
        const shape = { ...HEADS, batch, context };
        progress(`webgpu, counting: ${batch} × ${context}, ${format.name}`);
        const { cache, sequences } = await filledCache(backend, format, shape, saved);
        await backend.prepare?.(cache.shape); // pipelines that a step does not need, for their workgroup memory
        rows.push([
          String(batch),
          String(context),
          format.name,
          ...(await countStep(watch, cache, sequences, shape)),
          perToken(sequenceBytes(format, shape), shape)
        ]);
        cache.dispose();
      }
    }
  }
  rows.sort((a, b) => Number(a[0]) - Number(b[0]) || Number(a[1]) - Number(b[1]));
  print(
    "\n#### What a decoding step queues\n\nOne layer: a token appended to every sequence, then one attend() for all. Counted on Dawn's null backend, with " +
      `the default limits, at full size (${HEADS.kvHeads} KV head, ${HEADS.group} query heads, headDim ${HEADS.headDim}; no two sequences share a page). Read: bytes a cached ` +
      'token and KV head, sinks and raw tail counted; computed. Uploads: queries and what of the page tables changed, besides the token itself.\n'
  );
  print(
    toMarkdown({
      headers: [
        'batch',
        'context',
        'keys / values',
        'append dispatches',
        'uploads, B',
        'attend dispatches',
        'workgroups',
        'submits',
        'uploads, B',
        'read back, B',
        'read, B a token'
      ],
      rows,
      textColumns: 0
    })
  );
  workgroupTable(watch, print);
  device.destroy();
}

async function countStep(
  watch: Watch,
  cache: KVCache,
  sequences: readonly Sequence[],
  { kvHeads, group, headDim }: CellShape
): Promise<string[]> {
  const queries = sequences.map(() => new Float32Array(kvHeads * group * headDim));
  const token = new Float32Array(kvHeads * headDim);
  await cache.attend(sequences, 0, queries).read(); // a step before, which sends the page tables
  watch.reset();
  cache.append(
    sequences,
    0,
    sequences.map(() => token),
    sequences.map(() => token)
  );
  const append = [watch.counts.dispatches, watch.counts.uploaded];
  watch.reset();
  await cache.attend(sequences, 0, queries).read();
  const { dispatches, workgroups, submits, uploaded, copied } = watch.counts;
  return [...append, dispatches, workgroups, submits, uploaded, copied].map(count => count.toLocaleString('en-US'));
}

function workgroupTable({ pipelines }: Watch, print: (text: string) => void): void {
  const byShader = new Map<string, Set<number>>();
  for (const { name, code, constants } of pipelines) {
    const bytes = byShader.get(name) ?? new Set();
    byShader.set(name, bytes.add(workgroupBytes(code, constants)));
  }
  print(
    '\n#### Workgroup memory\n\nBytes by shader, over the pipelines above; computed from their declarations. Every device has 16,384.\n'
  );
  print(
    toMarkdown({
      headers: ['shader', 'bytes'],
      rows: [...byShader].sort().map(([name, bytes]) => {
        const [least, most] = [Math.min(...bytes), Math.max(...bytes)].map(n => n.toLocaleString('en-US'));
        return [name, least === most ? least! : `${least} to ${most}`];
      }),
      textColumns: 1
    })
  );
}

function perToken(bytes: number, { context, kvHeads }: CellShape): string {
  return (bytes / (context * kvHeads)).toFixed(1);
}
