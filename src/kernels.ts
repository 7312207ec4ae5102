/**
 * The verbs one by one, over a window of 64 tokens of one head: for engines with a cache of their own, and for
 * microbenchmarks. Every call copies in and out; `KVCache` does not.
 *
 * @module nsnquant/kernels
 */

import type { BackendName } from './backend.ts';
import { checkOneOf, checkOptions } from './check.ts';
import { type CodecName, codecs } from './format/codec.ts';
import { type Rope, WINDOW } from './format/layout.ts';
import { referenceVerbs } from './reference/verbs.ts';
import { type CacheShape, cacheShape } from './shape.ts';
import { checkedVerbs, type Verbs } from './verbs.ts';
import { checkWasmOptions, openModule, type WasmOptions } from './wasm/open.ts';
import { wasmVerbs } from './wasm/verbs.ts';

export { BackendError, type BackendName } from './backend.ts';
export type { CodecName } from './format/codec.ts';
export type { Rope } from './format/layout.ts';
export type { Verbs } from './verbs.ts';
export type { WasmModule, WasmOptions, WasmVariant } from './wasm/open.ts';

/** What `openKernels` takes. */
export interface KernelOptions extends WasmOptions {
  /** Channels of a head: a multiple of 8 from 32 to 512. */
  readonly headDim: number;
  /** Codec of the blocks. */
  readonly codec: CodecName;
  /** For keys that carry RoPE: the mean is taken before it. */
  readonly rope?: Rope;
  /** Insist on a backend. Default `wasm`. */
  readonly prefer?: Exclude<BackendName, 'webgpu'>;
}

const KERNEL_OPTIONS = ['headDim', 'codec', 'rope', 'prefer', 'variant', 'module'] as const satisfies readonly (keyof KernelOptions)[];

/**
 * Opens the verbs for one head dimension and codec.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run what was asked for
 *
 * @example
 * const kernels = await openKernels({ headDim: 128, codec: 'nsn2' });
 * const block = kernels.encode(tokens);                 // 2,304 bytes for 64 × 128 numbers
 * const logits = kernels.scores(query, block);
 */
export async function openKernels(options: KernelOptions): Promise<Verbs> {
  checkOptions('options', options, KERNEL_OPTIONS);
  const { headDim, codec, rope, prefer = 'wasm', module } = options;
  checkOneOf('codec', codec, Object.keys(codecs));
  checkOneOf('prefer', prefer, ['wasm', 'reference']);
  checkWasmOptions(options);
  if (module !== undefined && prefer !== 'wasm') throw new RangeError(`"prefer" expected wasm (a module is given), got ${prefer}`);
  const shape = cacheShape({
    layers: 1,
    kvHeads: 1,
    queryHeads: 4,
    headDim,
    capacity: WINDOW,
    keys: codec,
    values: codec,
    sinks: 0,
    sequences: 1,
    ...(rope !== undefined && { rope })
  });
  const verbs = prefer === 'reference' ? referenceVerbs(shape) : await openWasmVerbs(options, shape);
  return checkedVerbs(verbs, shape.pages[0]!.keys, headDim);
}

async function openWasmVerbs(options: WasmOptions, shape: CacheShape): Promise<Verbs> {
  const { module, variant } = await openModule(options);
  return wasmVerbs(module, variant, shape);
}
