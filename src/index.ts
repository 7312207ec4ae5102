// nsnquant: a KV cache at 1 to 4 bits. The public names, and nothing else.

export { type Backend, BackendError, type BackendName, type Output, type Tokens } from './backend.ts';
export { KVCache } from './cache.ts';
export type { AttendOptions } from './core.ts';
export { type Codec, type CodecName, codecs } from './format/codec.ts';
export type { Data } from './format/half.ts';
export type { Rope } from './format/layout.ts';
export type { GpuTarget, GpuTokens } from './input.ts';
export { type OpenOptions, openBackend } from './open.ts';
export { type Plan, type PlanGrid, plan, type StepTime, type TimedPlan } from './plan.ts';
export { Sequence } from './sequence.ts';
export type { CacheOptions, CacheShape, StepShape } from './shape.ts';
export type { WasmVariant } from './wasm/open.ts';
