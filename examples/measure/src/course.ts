// A place to race in: what WebAssembly and WebGPU have in common.
import type { Backend } from 'nsnquant';
import type { Context } from './context.ts';
import type { Method } from './methods.ts';

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
