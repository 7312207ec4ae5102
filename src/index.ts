// nsnquant: a KV cache at 1 to 4 bits. The public names, and nothing else.

export { BackendError, type Backend, type BackendName, type GpuTarget, type GpuTokens, type Output, type Tokens } from './backend.ts';
export { KVCache, type AttendOptions } from './cache.ts';
export { codecs, type Codec, type CodecName } from './codec.ts';
export type { Data } from './half.ts';
export type { Rope } from './layout.ts';
export { openBackend, type OpenOptions } from './open.ts';
export { plan, type Plan, type PlanGrid, type StepTime, type TimedPlan } from './plan.ts';
export { Sequence } from './sequence.ts';
export type { CacheOptions, CacheShape } from './shape.ts';
export type { StepShape } from './step.ts';
export type { WasmVariant } from './wasm.ts';
