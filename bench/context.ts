// What every table of the benchmark is handed.

import type { WasmVariant } from 'nsnquant';
import type { Gpu } from './gpu/device.ts';

export interface Context {
  readonly variant: WasmVariant;
  readonly quick: boolean;
  /** The only head dimension, and number of query heads, of the attend table, where one is asked for. */
  readonly headDim: number | undefined;
  readonly queryHeads: number | undefined;
  /** The GPU of the webgpu table, or why there is none. */
  readonly gpu: Gpu | string;
  /** GiB that one cell of the webgpu table may fill. */
  readonly gpuMemory: number;
  print(text: string): void;
  progress(text: string): void;
}
