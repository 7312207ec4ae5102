/**
 * The library without WebGPU, its shaders and the reference, for those who look at every kilobyte. The names are those of
 * `nsnquant`; `openBackend` opens WebAssembly.
 *
 * @module nsnquant/cpu
 */

import type { Backend } from './backend.ts';
import { checkOptions } from './check.ts';
import { checkWasmOptions, openWasm, type WasmOptions } from './wasm/open.ts';

export { type Backend, BackendError, type BackendName, type Output, type Range, type Tokens } from './backend.ts';
export { KVCache } from './cache.ts';
export { inspect, type SavedLayer, type SavedSequence } from './file.ts';
export { type Codebook, type Codec, type CodecName, codebooks, codecs, type Segment, type Stage } from './format/codec.ts';
export type { Data, Float16ArrayLike } from './format/half.ts';
export type { BlockLayout, Heads, PageLayout, Rope, SegmentLayout, StageLayout } from './format/layout.ts';
export type { GpuBuffer, GpuTarget, GpuTokens, Input, Results, Target } from './input.ts';
export type { LayerOptions, LayerShape } from './layer.ts';
export type { Mass } from './mass.ts';
export type { AppendOptions, AttendOptions, DecodeOptions, EvictOptions, MassOptions, SaveOptions } from './options.ts';
export { type Plan, type PlanGrid, plan, type StepTime, type TimedPlan } from './plan.ts';
export type { Layout } from './rows.ts';
export { type Sealed, Sequence } from './sequence.ts';
export type { CacheOptions, CacheShape, StepShape } from './shape.ts';
export type { WasmModule, WasmOptions, WasmOptions as OpenOptions, WasmVariant } from './wasm/open.ts';

/**
 * Opens WebAssembly, in the best binary that the engine validates, or in the one asked for.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run it
 *
 * @example
 * import { KVCache, openBackend } from 'nsnquant/cpu';
 * const cache = new KVCache(await openBackend(), { layers: 30, kvHeads: 3, queryHeads: 9, headDim: 64, capacity: 8192 });
 */
export async function openBackend(options: WasmOptions = {}): Promise<Backend> {
  checkOptions('options', options, ['variant', 'module']);
  checkWasmOptions(options);
  return openWasm(options);
}
