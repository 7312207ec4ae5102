// Competitors on WebGPU, and their clock: timestamps of the GPU where there are any, else the wall clock over many dispatches.
import { type Backend, openBackend } from 'nsnquant';
import { Bandwidth, Dense as DenseShaders, type Form } from '../../../bench/baselines/densegpu.ts';
import { type Format, filledCache, savedSequence, sequenceBytes } from '../../../bench/gpu/caches.ts';
import { openGpu } from '../../../bench/gpu/device.ts';
import { Watch } from '../../../bench/gpu/watch.ts';
import type { Context } from './context.ts';
import { type Competitor, type Course, fastest } from './course.ts';
import type { Dense, Method } from './methods.ts';
import type { Gpu } from './report.ts';

/** Other memory that is read before a walk: more than the caches of nearly all GPUs hold. */
const OTHER_BYTES = 96 * 2 ** 20;
/** Browsers round timestamps to this, unless they are told not to. */
const ROUNDED_MS = 0.1;
/** Of one sample by the wall clock, in which waiting for the GPU counts once. */
const WALL_MS = 30;
const USAGE = { COPY_SRC: 4, COPY_DST: 8, STORAGE: 128 } as const;

/** The GPU of this browser, or why there is none that can be measured. */
export async function describeGpu(): Promise<Gpu | { missing: string }> {
  const opened = await open();
  if (typeof opened === 'string') return { missing: opened };
  const { device, name, software } = opened;
  const info = device.adapterInfo as GPUAdapterInfo | undefined; // browsers of 2024 have none
  const { vendor = '', architecture = '', device: model = '', description = '' } = info ?? { description: name };
  const clock = device.features.has('timestamp-query') ? 'timestamp-query' : 'wall clock';
  device.destroy();
  return { vendor, architecture, device: model, description, software, clock };
}

async function open(): ReturnType<typeof openGpu> {
  if (!('gpu' in navigator)) {
    return isSecureContext ? 'this browser has no WebGPU, or not in workers' : 'a browser has WebGPU only over https or from this machine';
  }
  return openGpu().catch((error: Error) => error.message);
}

/** @param measured  whether a software adapter is taken, too */
export async function webGpuCourse(measured: boolean): Promise<Course> {
  const opened = await open();
  if (typeof opened === 'string') throw new Error(opened);
  const { device, name, software } = opened;
  if (software && !measured) {
    device.destroy();
    throw new Error(`${name} is a CPU that acts as a GPU: its times would say nothing about GPUs`);
  }
  const watch = new Watch(device);
  const errors: string[] = [];
  device.addEventListener('uncapturederror', event => errors.push(event.error.message));
  const backend = await openBackend({ prefer: 'webgpu', device: watch.device });
  const other = new Bandwidth(device, software ? 2 ** 20 : OTHER_BYTES);
  const check = (): void => {
    if (errors.length > 0) throw new Error(errors.splice(0)[0]);
  };
  const walk = async ({ run }: Competitor, layers: number): Promise<number> => {
    const once = (): void => {
      for (let layer = 0; layer < layers; layer++) run(layer);
    };
    let ms: number;
    if (watch.timestamps) {
      other.read(other.forms[0]!);
      ms = (await watch.time(once)).spanNs! / 1e6;
    } else ms = await wallMs(watch, once);
    check();
    return ms;
  };
  const course: Course = {
    backend,
    resolutionMs: watch.timestamps ? ROUNDED_MS : 0, // the wall clock's samples are long as they are
    walk,
    async enter(method, context) {
      const { kept } = method;
      const competitor = await (typeof kept === 'string'
        ? dense(course, watch, software, method, kept, context)
        : coded(backend, device, method, kept, context));
      check();
      return competitor;
    },
    close() {
      other.dispose();
      backend.dispose();
      device.destroy();
    }
  };
  return course;
}

/** Of one walk, the mean of as many as are queued at once for the wait not to count. */
async function wallMs(watch: Watch, once: () => void): Promise<number> {
  for (let walks = 1; ; walks *= 2) {
    const { wallNs } = await watch.time(() => {
      for (let n = 0; n < walks; n++) once();
    });
    if (wallNs >= WALL_MS * 1e6 || walks >= 1024) return wallNs / 1e6 / walks;
  }
}

async function coded(
  backend: Backend,
  device: GPUDevice,
  method: Method,
  format: Format,
  { shape, heads, queries }: Context
): Promise<Competitor> {
  const saved = await savedSequence(format, { ...shape, layers: 1 }, heads);
  // A sequence for every layer: none shares a page.
  const { cache, sequences } = await filledCache(backend, format, { ...shape, layers: 1, batch: shape.layers }, saved);
  // As an engine has them: nothing passes through JavaScript.
  const usage = USAGE.COPY_SRC | USAGE.COPY_DST | USAGE.STORAGE;
  const [query, out] = ['queries', 'output'].map(label => device.createBuffer({ label, size: queries.byteLength, usage })) as [
    GPUBuffer,
    GPUBuffer
  ];
  device.queue.writeBuffer(query, 0, queries);
  const attend = (layer: number) => sequences[layer]!.attend(0, { buffer: query, tokens: 1 }, { out: { buffer: out } });
  return {
    method,
    bytes: sequenceBytes(format, shape),
    run: layer => void attend(layer),
    output: layer => attend(layer).read(),
    dispose() {
      cache.dispose();
      for (const buffer of [query, out]) buffer.destroy();
    }
  };
}

async function dense(
  course: Course,
  watch: Watch,
  software: boolean,
  method: Method,
  kind: Dense,
  { shape, heads, queries }: Context
): Promise<Competitor> {
  const { kvHeads, group, headDim, context: tokens, layers } = shape;
  const shaders = await DenseShaders.create(watch.device, kind, { sequences: 1, tokens, kvHeads, group, headDim, layers }, heads);
  const scaled = queries.map(x => (x * Math.LOG2E) / Math.sqrt(headDim));
  const inForm = (form: Form): Competitor => ({
    method,
    form: `${form.threads} threads, ${64 * form.spanTiles} tokens a workgroup`,
    bytes: shaders.layerBytes,
    run: layer => shaders.attend(layer, scaled, form),
    output(layer) {
      shaders.attend(layer, scaled, form);
      return shaders.read();
    },
    dispose: () => shaders.dispose()
  });
  // A software adapter takes seconds to compile each number of threads, and likes few workgroups.
  const forms = software ? [shaders.forms.findLast(({ threads }) => threads === 128)!] : shaders.forms;
  try {
    return await fastest(course, forms.map(inForm), layers);
  } catch (error) {
    shaders.dispose();
    throw error;
  }
}
