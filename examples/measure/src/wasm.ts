// Competitors on WebAssembly, and their clock: other memory is read before every layer, as a model's weights are.
import { type Backend, openBackend } from 'nsnquant';
import { Dense as DenseKernels } from '../../../bench/baselines/dense.ts';
import { type Format, filledCache, savedSequence, sequenceBytes } from '../../../bench/gpu/caches.ts';
import type { Context } from './context.ts';
import { type Competitor, type Course, fastest } from './course.ts';
import type { Dense, Method } from './methods.ts';
import { clockTick } from './race.ts';

/** About the weights of one layer of a small model. */
const OTHER_BYTES = 18e6;

export async function wasmCourse(): Promise<Course> {
  const backend = await openBackend({ prefer: 'wasm' });
  const other = new Float64Array(OTHER_BYTES / 8).fill(1);
  let sum = 0;
  const walk = async ({ run }: Competitor, layers: number): Promise<number> => {
    let ms = 0;
    for (let layer = 0; layer < layers; layer++) {
      for (let line = 0; line < other.length; line += 8) sum += other[line]!;
      const start = performance.now();
      run(layer);
      ms += performance.now() - start;
    }
    if (sum === 0) throw new Error('nothing was read'); // and an engine may not leave the reading out
    return ms;
  };
  const course: Course = {
    backend,
    resolutionMs: clockTick(),
    walk,
    enter: (method, context) =>
      typeof method.kept === 'string' ? dense(course, method, method.kept, context) : coded(backend, method, method.kept, context),
    close: () => backend.dispose()
  };
  return course;
}

async function coded(backend: Backend, method: Method, format: Format, { shape, heads, queries }: Context): Promise<Competitor> {
  const saved = await savedSequence(format, { ...shape, layers: 1 }, heads);
  // A sequence for every layer: none shares a page.
  const { cache, sequences } = await filledCache(backend, format, { ...shape, layers: 1, batch: shape.layers }, saved);
  const out = new Float32Array(queries.length);
  const run = (layer: number): void => void sequences[layer]!.attend(0, queries, { out });
  return {
    method,
    bytes: sequenceBytes(format, shape),
    run,
    async output(layer) {
      run(layer);
      return out.slice();
    },
    dispose: () => cache.dispose()
  };
}

async function dense(course: Course, method: Method, kind: Dense, { shape, heads, queries }: Context): Promise<Competitor> {
  const { kvHeads, group, headDim, context: tokens, layers } = shape;
  const kernels = new DenseKernels(course.backend.variant === 'relaxed', new Map([[headDim, await kernelsOf(course.backend, headDim)]]));
  const cell = kernels.cell({ kind, headDim, groups: group, tokens, heads: layers * kvHeads });
  for (let head = 0; head < layers * kvHeads; head++) {
    const { keys, values } = heads[(head % kvHeads) % heads.length]!;
    cell.fill(head, keys, values);
  }
  const out = new Float32Array(queries.length);
  const width = group * headDim;
  const inForm = (form: string): Competitor => {
    const run = (layer: number): void => {
      for (let head = 0; head < kvHeads; head++) {
        const rows = [queries, out].map(x => x.subarray(head * width, (head + 1) * width)) as [Float32Array, Float32Array];
        cell.attend(layer * kvHeads + head, ...rows, form);
      }
    };
    return {
      method,
      form,
      bytes: kvHeads * cell.headBytes,
      run,
      async output(layer) {
        run(layer);
        return out.slice();
      },
      dispose: () => {}
    };
  };
  return fastest(course, cell.forms.map(inForm), layers);
}

async function kernelsOf({ variant }: Backend, headDim: number): Promise<WebAssembly.Module> {
  if (variant === 'scalar') throw new Error("this browser's WebAssembly has no SIMD, which the dense kernels need");
  const response = await fetch(new URL(`dense-${headDim}-${variant}.wasm`, import.meta.url));
  if (!response.ok) throw new Error(`expected the dense kernels from the server, got ${response.status}`);
  return WebAssembly.compile(await response.arrayBuffer());
}
