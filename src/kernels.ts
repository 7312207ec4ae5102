/**
 * The verbs one by one, over a window of 64 tokens of one head: for engines with a cache of their own, and for
 * microbenchmarks. Every call copies in and out; `KVCache` does not.
 *
 * @module nsnquant/kernels
 */

import type { BackendName } from './backend.ts';
import { checkOneOf, checkOptions, kind } from './check.ts';
import { type CodecName, codecs } from './format/codec.ts';
import { typedArrayName } from './format/half.ts';
import { type Rope, WINDOW } from './format/layout.ts';
import { referenceVerbs } from './reference/verbs.ts';
import { cacheShape } from './shape.ts';
import { checkedVerbs, type Verbs, type VerbsShape } from './verbs.ts';
import { checkWasmOptions, openModule, type WasmOptions } from './wasm/open.ts';
import { wasmVerbs } from './wasm/verbs.ts';

export { BackendError, type BackendName } from './backend.ts';
export type { CodecName } from './format/codec.ts';
export type { Rope } from './format/layout.ts';
export type { Verbs } from './verbs.ts';
export type { WasmModule, WasmOptions, WasmVariant } from './wasm/open.ts';

/** What `openKernels` takes. */
export interface KernelOptions extends WasmOptions {
  /** Channels of a head: a multiple of 8 from 32 to 576. */
  readonly headDim: number;
  /** Codec of the blocks. */
  readonly codec: CodecName;
  /** Whose blocks: keys have a mean of 8 bits, values of 4. Default `keys`. */
  readonly side?: 'keys' | 'values';
  /** For keys that carry RoPE: the mean is taken before it. */
  readonly rope?: Rope;
  /** For keys that are balanced: a head's balance, u8 [headDim / 2]. Default: plain coding. */
  readonly balance?: Uint8Array;
  /** Insist on a backend. Default `wasm`. */
  readonly prefer?: Exclude<BackendName, 'webgpu'>;
}

const KERNEL_OPTIONS = [
  'headDim',
  'codec',
  'side',
  'rope',
  'balance',
  'prefer',
  'variant',
  'module'
] as const satisfies readonly (keyof KernelOptions)[];

/**
 * Opens the verbs for one head dimension and codec.
 *
 * @throws {TypeError | RangeError} for options of the wrong kind or value
 * @throws {BackendError}           if the engine cannot run what was asked for
 *
 * @example
 * const kernels = await openKernels({ headDim: 128, codec: 'nsn2' });
 * const block = kernels.encode(tokens);                 // 2,296 bytes for 64 × 128 numbers
 * const logits = kernels.scores(query, block);
 */
export async function openKernels(options: KernelOptions): Promise<Verbs> {
  checkOptions('options', options, KERNEL_OPTIONS);
  const { headDim, codec, side = 'keys', rope, balance, prefer = 'wasm', module } = options;
  checkOneOf('codec', codec, Object.keys(codecs));
  checkOneOf('side', side, ['keys', 'values']);
  checkOneOf('prefer', prefer, ['wasm', 'reference']);
  checkWasmOptions(options);
  if (module !== undefined && prefer !== 'wasm') throw new RangeError(`"prefer" expected wasm (a module is given), got ${prefer}`);
  for (const [name, value] of Object.entries({ rope, balance })) {
    if (side === 'values' && value !== undefined) throw new RangeError(`"side" expected keys ("${name}" is given), got values`);
  }
  if (balance !== undefined && typedArrayName(balance) !== 'Uint8Array') {
    throw new TypeError(`"balance" expected Uint8Array, got ${kind(balance)}`);
  }
  const cache = cacheShape({
    layers: 1,
    kvHeads: 1,
    queryHeads: 4,
    headDim,
    capacity: WINDOW,
    keys: codec,
    values: codec,
    sinks: 0,
    sequences: 1,
    reserve: true,
    ...(rope !== undefined && { rope }),
    balance: balance ?? 'off'
  });
  const profile = typeof cache.balance === 'string' ? undefined : cache.balance;
  const shape = { headDim, rope: cache.layers[0]!.rope, layout: cache.layers[0]!.page[side], balance: profile, cache };
  const verbs = prefer === 'reference' ? referenceVerbs(shape) : await openWasmVerbs(options, shape);
  return checkedVerbs(verbs, shape.layout, headDim);
}

async function openWasmVerbs(options: WasmOptions, shape: VerbsShape): Promise<Verbs> {
  const { module, variant } = await openModule(options);
  return wasmVerbs(module, variant, shape);
}
