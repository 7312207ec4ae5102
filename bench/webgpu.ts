// The WebGPU tables: attention of a batch against dense f32 and f16 of our own (baselines/dense.wgsl) on the same device, and verbs; what
// can be counted without a GPU is in gpu/portable.ts. Times of a software adapter are printed as such, over a small grid.

import { type Backend, KVCache, type Output, openBackend, type Sequence } from 'nsnquant';
import { relativeL2 } from '../tools/numbers.ts';
import { TOLERANCE } from './baselines/dense.ts';
import { Bandwidth, Dense, elementBytes, type Kind } from './baselines/densegpu.ts';
import type { Context } from './context.ts';
import { exactAttention, feed, type Head, seededHead, seededQueries } from './data.ts';
import { type CellShape, cacheOptions, filledCache, formats, savedSequence, sequenceBytes, tokenBytes } from './gpu/caches.ts';
import type { Gpu } from './gpu/device.ts';
import { bytesTable, countsTable } from './gpu/portable.ts';
import { Watch } from './gpu/watch.ts';
import { toMarkdown } from './table.ts';

/** As of many models of 1 to 8 billion parameters. */
const HEADS = { kvHeads: 8, group: 4, headDim: 128 } as const;
const GRID = { batch: [1, 16, 64], context: [1024, 8192, 32768] } as const;
const SOFTWARE = { ...HEADS, kvHeads: 2, grid: { batch: [1, 4], context: [1024] } } as const;
const KINDS: readonly Kind[] = ['f32', 'f16'];
/** Layers are walked until dense f32 keys and values fill this, so that one sample is not all launch. */
const WALK_BYTES = 2 ** 29;
const WALK_LAYERS = 16;

/** One competitor of a cell. */
interface Entry {
  readonly name: string;
  /** Of one layer. */
  readonly bytes: number;
  /** Queues one layer. */
  run(layer: number): void;
  /** Takes what was queued off the device, after a sample. */
  settle(): Promise<void>;
  /** The output of the first sequence's first KV head. */
  output(): Promise<ArrayLike<number>>;
}

interface Times {
  /** ns of one layer, a sample each: GPU time where there are timestamps, wall clock otherwise. */
  readonly samples: number[];
  readonly walls: number[];
}

export async function webGpuTable(context: Context): Promise<void> {
  const { gpu, quick, print, progress } = context;
  print('\n### WebGPU');
  bytesTable(context);
  await countsTable(context, GRID);
  if (typeof gpu === 'string') return print(`\nNothing timed: ${gpu}`);
  const watch = new Watch(gpu.device);
  progress('webgpu: compiling');
  const backend = await openBackend({ prefer: 'webgpu', device: watch.device });
  const bandwidth = new Bandwidth(watch.device, gpu.software ? 2 ** 24 : 2 ** 28);
  const peak = await measureBandwidth(watch, bandwidth, gpu.software ? 2 : 20);

  const { kvHeads, group, headDim } = gpu.software ? SOFTWARE : HEADS;
  const grid = gpu.software ? SOFTWARE.grid : GRID;
  const rows: string[][] = [];
  for (const tokens of quick ? grid.context.slice(0, 1) : grid.context) {
    const heads = Array.from({ length: Math.min(kvHeads, 4) }, (_, n) => seededHead(n + 1, tokens, headDim));
    for (const batch of grid.batch) {
      progress(`webgpu: ${batch} × ${tokens}`);
      const shape = fit({ batch, context: tokens, kvHeads, group, headDim, layers: 1 }, context.gpuMemory, gpu.software);
      if (typeof shape === 'string') print(`\n${batch} × ${tokens} left out: ${shape}`);
      else rows.push(...(await cell(context, { gpu, watch, backend, bandwidth, peak }, shape, heads)));
    }
  }
  rows.sort((a, b) => Number(a[0]) - Number(b[0]));
  print(
    `\n#### Attend, one decoding step of one layer\n\n${labels(gpu, watch)} ${kvHeads} KV heads (fewer where --gpu-memory ${context.gpuMemory} GiB would not hold them), ` +
      `${group} query heads each, headDim ${headDim}; no two sequences share memory, and caches are cold. Dense: flash decoding of our own (bench/baselines/dense.wgsl), the fastest of its forms in each ` +
      `cell. Reading memory: ${peak.toFixed(1)} GB/s, by bench/baselines/bandwidth.wgsl; roofline: the share of the time that reading the bytes needs at that speed. Error: relative, against ` +
      'attention in f64.\n'
  );
  print(
    toMarkdown({
      headers: [
        'batch',
        'context',
        'KV heads',
        'keys / values',
        'µs',
        'median',
        'wall µs',
        'ns a token and head',
        'B a token and head',
        'GB/s',
        'roofline',
        '× f32',
        '× f16',
        'error'
      ],
      rows,
      textColumns: 0
    })
  );
  await verbsTable(context, gpu, watch, backend);
  bandwidth.dispose();
  gpu.device.destroy();
}

function labels(gpu: Gpu, watch: Watch): string {
  const clock = watch.timestamps
    ? 'µs: the compute passes by timestamps, fastest sample and median; wall: with uploads and submission.'
    : 'µs by wall clock, this device has no timestamps.';
  return `${gpu.name}. ${gpu.software ? '**A software adapter: these times say nothing about GPUs.** ' : ''}${clock}`;
}

/** Halves the KV heads until dense f32 and all formats fit, and adds layers while there is room. */
function fit(shape: CellShape, gibibytes: number, software: boolean): CellShape | string {
  const layerBytes = (cell: CellShape): number =>
    denseBytes('f32', cell) + formats.reduce((sum, format) => sum + cell.batch * sequenceBytes(format, cell), 0);
  const room = gibibytes * 2 ** 30;
  let fitted = shape;
  while (layerBytes(fitted) > room) {
    if (fitted.kvHeads === 1) return `${Math.ceil(layerBytes(fitted) / 2 ** 30)} GiB are more than --gpu-memory ${gibibytes}`;
    fitted = { ...fitted, kvHeads: fitted.kvHeads / 2 };
  }
  const layers = software ? 1 : Math.min(WALK_LAYERS, room / layerBytes(fitted), WALK_BYTES / denseBytes('f32', fitted));
  return { ...fitted, layers: Math.max(1, Math.floor(layers)) };
}

function denseBytes(kind: Kind, { batch, context, kvHeads, headDim }: CellShape): number {
  return batch * context * tokenBytes(elementBytes[kind], kvHeads, headDim);
}

interface Bench {
  readonly gpu: Gpu;
  readonly watch: Watch;
  readonly backend: Backend;
  readonly bandwidth: Bandwidth;
  /** GB/s */
  readonly peak: number;
}

/** Rows of one batch and context. One dense kind at a time is in memory beside the codecs. */
async function cell(
  { quick, print }: Context,
  { gpu, watch, backend, bandwidth, peak }: Bench,
  shape: CellShape,
  heads: readonly Head[]
): Promise<string[][]> {
  const { batch, context, kvHeads, group, headDim, layers } = shape;
  const where = `${batch} × ${context}`;
  const rounds = gpu.software ? 1 : quick ? 5 : 30;
  const queries = seededQueries(99, heads, batch, kvHeads, group);
  const exact = exactAttention(queries.subarray(0, group * headDim), heads[0]!, headDim);

  const ours: Entry[] = [];
  const caches: KVCache[] = [];
  for (const format of formats) {
    const saved = await savedSequence(format, shape, heads);
    try {
      const { cache, sequences } = await filledCache(backend, format, shape, saved);
      caches.push(cache);
      ours.push(cacheEntry(format.name, cache, sequences, queries, batch * sequenceBytes(format, shape)));
    } catch (error) {
      print(`\n${where} ${format.name} left out: ${(error as Error).message}`);
    }
  }
  const times = new Map<string, Times>();
  const results: { entry: Entry; error: number }[] = [];
  for (const kind of KINDS) {
    let dense: Dense;
    try {
      dense = await Dense.create(watch.device, kind, { sequences: batch, tokens: context, kvHeads, group, headDim, layers }, heads);
    } catch (error) {
      print(`\n${where} ${kind} left out: ${(error as Error).message}`);
      continue;
    }
    const entry = await denseEntry(watch, bandwidth, dense, queries, exact, gpu.software);
    await race(watch, bandwidth, [entry, ...ours], layers, rounds, times);
    results.push({ entry, error: relativeL2(await entry.output(), exact) });
    dense.dispose();
  }
  for (const entry of ours) {
    if (!times.has(entry.name)) await race(watch, bandwidth, [entry], layers, rounds, times);
    results.push({ entry, error: relativeL2(await entry.output(), exact) });
  }
  for (const cache of caches) cache.dispose();

  const least = (name: string): number | undefined => (times.has(name) ? Math.min(...times.get(name)!.samples) : undefined);
  return results.map(({ entry, error }) => {
    const { samples, walls } = times.get(entry.name)!;
    const ns = Math.min(...samples);
    const tokens = batch * context * kvHeads;
    const against = (kind: Kind): string => {
      const other = least(kind);
      return other === undefined ? '–' : (other / ns).toFixed(2);
    };
    return [
      String(batch),
      String(context),
      String(kvHeads),
      entry.name,
      micro(ns),
      micro(median(samples)),
      micro(Math.min(...walls)),
      (ns / tokens).toPrecision(3),
      (entry.bytes / tokens).toFixed(1),
      (entry.bytes / ns).toPrecision(3),
      `${((100 * entry.bytes) / ns / peak).toFixed(0)} %`,
      against('f32'),
      against('f16'),
      error.toPrecision(2)
    ];
  });
}

function cacheEntry(name: string, cache: KVCache, sequences: readonly Sequence[], queries: Float32Array, bytes: number): Entry {
  const perSequence = queries.length / sequences.length;
  const each = sequences.map((_, n) => queries.subarray(n * perSequence, (n + 1) * perSequence));
  const { queryHeads, kvHeads, headDim } = cache.shape.layers[0]!;
  let outputs: Output[] = [];
  return {
    name,
    bytes,
    run: layer => {
      outputs.push(cache.attend(sequences, layer, each));
    },
    settle: async () => {
      await Promise.all(outputs.map(output => output.read()));
      outputs = [];
    },
    output: async () => (await cache.attend(sequences, 0, each).read()).subarray(0, (queryHeads / kvHeads) * headDim)
  };
}

/** With the form that is the fastest here. Throws if a form is wrong. */
async function denseEntry(
  watch: Watch,
  bandwidth: Bandwidth,
  dense: Dense,
  queries: Float32Array,
  exact: readonly number[],
  software: boolean
): Promise<Entry> {
  const { group, headDim, layers } = dense.shape;
  const scaled = queries.map(x => (x * Math.LOG2E) / Math.sqrt(headDim));
  let form = dense.forms[0]!;
  const entry: Entry = {
    name: dense.kind,
    bytes: dense.layerBytes,
    run: layer => dense.attend(layer, scaled, form),
    settle: async () => {},
    output: async () => {
      dense.attend(0, scaled, form);
      return (await dense.read()).subarray(0, group * headDim);
    }
  };
  let fastest = { form, ns: Infinity };
  // SwiftShader takes seconds to compile each number of threads, and likes few workgroups.
  for (form of software ? dense.forms.filter(({ threads, spanTiles }) => threads === 128 && spanTiles >= 8) : dense.forms) {
    const times = new Map<string, Times>();
    await race(watch, bandwidth, [entry], layers, software ? 1 : 4, times);
    const error = relativeL2(await entry.output(), exact);
    if (!(error <= TOLERANCE[dense.kind]))
      throw new Error(`dense ${dense.kind} expected error <= ${TOLERANCE[dense.kind]}, got ${error} (${JSON.stringify(form)})`);
    const ns = Math.min(...times.get(entry.name)!.samples);
    if (ns < fastest.ns) fastest = { form, ns };
  }
  form = fastest.form;
  return entry;
}

/** Samples every competitor in turn, each after a read of other memory that leaves the caches cold. */
async function race(
  watch: Watch,
  bandwidth: Bandwidth,
  entries: readonly Entry[],
  layers: number,
  rounds: number,
  times: Map<string, Times>
): Promise<void> {
  for (let round = -1; round < rounds; round++) {
    // the first warms up
    for (const entry of entries) {
      bandwidth.read(bandwidth.forms[0]!);
      const { wallNs, gpuNs } = await watch.time(() => {
        for (let layer = 0; layer < layers; layer++) entry.run(layer);
      });
      await entry.settle();
      if (round < 0) continue;
      if (!times.has(entry.name)) times.set(entry.name, { samples: [], walls: [] });
      const { samples, walls } = times.get(entry.name)!;
      samples.push((gpuNs ?? wallNs) / layers);
      walls.push(wallNs / layers);
    }
  }
}

/** GB/s, by the best of several forms. */
async function measureBandwidth(watch: Watch, bandwidth: Bandwidth, rounds: number): Promise<number> {
  let ns = Infinity;
  for (let round = 0; round < rounds; round++) {
    for (const form of bandwidth.forms) {
      const { wallNs, gpuNs } = await watch.time(() => bandwidth.read(form));
      ns = Math.min(ns, gpuNs ?? wallNs);
    }
  }
  return bandwidth.bytes / ns;
}

/** A prompt coded, and decoded back into arrays. */
async function verbsTable({ quick, print, progress }: Context, { software }: Gpu, watch: Watch, backend: Backend): Promise<void> {
  const { kvHeads, group, headDim } = software ? SOFTWARE : HEADS;
  const context = software ? 192 : quick ? 1024 : 8192; // at least two windows, or nothing is coded that learns
  const heads = [seededHead(1, context, headDim)];
  const shape = { batch: 1, context, kvHeads, group, headDim, layers: 1 };
  const rows: string[][] = [];
  for (const format of formats) {
    progress(`webgpu: verbs, ${format.name}`);
    const cache = new KVCache(backend, cacheOptions(format, shape, 1));
    await cache.ready;
    const best = { passes: Infinity, encode: Infinity, decode: Infinity };
    for (let round = -1; round < (software ? 1 : 5); round++) {
      const sequence = cache.sequence();
      const { wallNs, gpuNs } = await watch.time(() => feed(sequence, 0, heads, context, shape));
      const start = performance.now();
      await sequence.decode(0);
      const decodeNs = (performance.now() - start) * 1e6;
      sequence.dispose();
      if (round < 0) continue;
      best.passes = Math.min(best.passes, gpuNs ?? wallNs);
      best.encode = Math.min(best.encode, wallNs);
      best.decode = Math.min(best.decode, decodeNs);
    }
    cache.dispose();
    rows.push([format.name, ...[best.passes, best.encode, best.decode].map(ns => (ns / (2 * kvHeads * context)).toFixed(1))]);
  }
  print(
    `\n#### Encode and decode\n\nns of one token, head and side, over ${context} tokens: append() in steps of 64 and seal(), ${watch.timestamps ? 'compute passes by timestamps and ' : ''}wall clock; ` +
      'decode() by wall clock, read back into arrays. Both copy plain numbers between the processor and the device.\n'
  );
  print(toMarkdown({ headers: ['keys / values', 'encode', 'encode, wall', 'decode, wall'], rows, textColumns: 1 }));
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[Math.floor(values.length / 2)]!;
}

function micro(ns: number): string {
  return (ns / 1000).toFixed(1);
}
