// A place to race in: what WebAssembly and WebGPU have in common.
import type { Backend } from 'nsnquant';
import type { Context } from './context.ts';
import type { Method } from './methods.ts';
import { race } from './race.ts';

/** One way to attend over several layers of a context. */
export interface Competitor {
  readonly method: Method;
  readonly form?: string;
  /** That attention reads in one layer. */
  readonly bytes: number;
  /** Attends in one layer; a GPU has only been told to when it returns. */
  run(layer: number): void;
  /** Attends, and resolves to what came out: f32 [kvHeads, group, headDim]. */
  output(layer: number): Promise<Float32Array>;
  dispose(): void;
}

export interface Course {
  readonly backend: Backend;
  /** Of the clock of `walk`. */
  readonly resolutionMs: number;
  /** Fills the memory of a competitor. Throws where there is too little. */
  enter(method: Method, context: Context): Promise<Competitor>;
  /** Milliseconds of attention in all layers, one after the other. */
  walk(competitor: Competitor, layers: number): Promise<number>;
  close(): void;
}

/** None of a dense kernel's forms is the best in every shape. */
export async function fastest(course: Course, forms: readonly Competitor[], layers: number): Promise<Competitor> {
  const { resolutionMs } = course;
  const results = await race(forms, form => course.walk(form, layers), { samples: 5, seconds: 3, resolutionMs });
  const least = (form: Competitor): number => {
    const result = results.get(form)!;
    if (result instanceof Error) throw result;
    return Math.min(...result.times);
  };
  return forms.reduce((best, form) => (least(form) < least(best) ? form : best));
}
