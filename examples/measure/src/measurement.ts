// The worker's side: one context, on WebAssembly and then on WebGPU, every method against the others. What a device cannot do is a cell
// that says so, and the rest goes on.
import { openBackend, type WasmVariant } from 'nsnquant';
import type { Expected } from '../../../test/attention.ts';
import { type Context, check, contextOf, expected } from './context.ts';
import type { Competitor, Course } from './course.ts';
import { type Budget, type Method, type ModelName, models, type Place, places } from './methods.ts';
import { median, race, type Samples } from './race.ts';
import type { Cell, Facts } from './report.ts';
import { wasmCourse } from './wasm.ts';
import { describeGpu, webGpuCourse } from './webgpu.ts';

export interface Plan {
  readonly model: ModelName;
  readonly places: readonly Place[];
  /** Whether a software adapter is measured, too. */
  readonly software: boolean;
  readonly methods: readonly Method[];
  readonly budget: Budget;
}

export interface Listen {
  /** What is being done, and the share of this context that is done. */
  progress(text: string, share: number): void;
  cell(cell: Cell): void;
}

const courses: Readonly<Record<Place, (plan: Plan) => Promise<Course>>> = {
  wasm: wasmCourse,
  webgpu: ({ software }) => webGpuCourse(software)
};

/** Shares of the time in a place: to fill memories, to race, to check. */
const FILL = 0.4;
const RACE = 0.9;

export class Measurement {
  async describe(): Promise<Facts> {
    const wasm = await openBackend({ prefer: 'wasm' }).then(
      ({ variant }) => ({ variant: variant as WasmVariant }),
      (error: Error) => ({ missing: error.message })
    );
    return { wasm, gpu: await describeGpu() };
  }

  /** Resolves when all cells of the context have been told. */
  async measure(tokens: number, plan: Plan, listen: Listen): Promise<void> {
    listen.progress('drawing keys and values', 0);
    const context = contextOf(tokens, models[plan.model]);
    for (const [n, place] of plan.places.entries()) {
      const tell = (method: Method, result: Cell['result']): void => listen.cell({ place, tokens, method: method.name, result });
      const progress = (text: string, share: number): void =>
        listen.progress(`${places[place]}: ${text}`, (n + share) / plan.places.length);
      let course: Course;
      try {
        progress('opening', 0);
        course = await courses[place](plan);
      } catch (error) {
        for (const method of plan.methods) tell(method, missing(error));
        continue;
      }
      await raceIn(course, context, plan, tell, progress);
      course.close();
    }
  }
}

/** Tells of every method what became of it. */
async function raceIn(
  course: Course,
  context: Context,
  { methods, budget }: Plan,
  tell: (method: Method, result: Cell['result']) => void,
  progress: (text: string, share: number) => void
): Promise<void> {
  const { layers } = context.shape;
  const competitors: Competitor[] = [];
  for (const [n, method] of methods.entries()) {
    progress(`preparing ${method.name}`, (FILL * n) / methods.length);
    try {
      competitors.push(await course.enter(method, context));
    } catch (error) {
      tell(method, missing(error));
    }
  }
  const results = await race(
    competitors,
    competitor => course.walk(competitor, layers),
    { ...budget, resolutionMs: course.resolutionMs },
    share => progress('measuring', FILL + (RACE - FILL) * share)
  );
  for (const [n, competitor] of competitors.entries()) {
    progress(`checking ${competitor.method.name}`, RACE + ((1 - RACE) * n) / competitors.length);
    const result = results.get(competitor)!;
    tell(competitor.method, result instanceof Error ? missing(result) : await judged(course, context, competitor, result));
    competitor.dispose();
  }
}

/** A time, if what came out of the first layer and the last is right. */
async function judged(course: Course, context: Context, competitor: Competitor, { times, walks }: Samples): Promise<Cell['result']> {
  const { layers } = context.shape;
  const { method, bytes, form } = competitor;
  const outputs: Float32Array[] = [];
  let right: Expected;
  try {
    for (const layer of new Set([0, layers - 1])) outputs.push(await competitor.output(layer));
    right = await expected(context, method, course.backend);
  } catch (error) {
    return missing(error); // nothing is known of what cannot be checked
  }
  try {
    return {
      kind: 'measured',
      milliseconds: median(times) / layers,
      leastMilliseconds: Math.min(...times) / layers,
      samples: times.length,
      layers,
      walks,
      bytes,
      error: check(context, right, outputs),
      ...(form !== undefined && { form })
    };
  } catch (error) {
    return { kind: 'failed', reason: (error as Error).message };
  }
}

function missing(error: unknown): Cell['result'] {
  return { kind: 'missing', reason: error instanceof Error ? error.message : String(error) };
}
