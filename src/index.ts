// nsnquant: a KV cache at 1 to 4 bits. The public names, and nothing else.

export { type Backend, BackendError, type BackendName, type GpuTarget, type GpuTokens, type Output, type Tokens } from './backend.ts';
export { type AttendOptions, KVCache } from './cache.ts';
export { type Codec, type CodecName, codecs } from './codec.ts';
export type { Data } from './half.ts';
export type { Rope } from './layout.ts';
export { type OpenOptions, openBackend } from './open.ts';
export { type Plan, type PlanGrid, plan, type StepTime, type TimedPlan } from './plan.ts';
export { Sequence } from './sequence.ts';
export type { CacheOptions, CacheShape } from './shape.ts';
export type { StepShape } from './step.ts';
export type { WasmVariant } from './wasm.ts';
