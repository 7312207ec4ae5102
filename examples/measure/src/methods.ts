// What is measured: ways to keep keys and values, and the models whose attention it is. Plain data, for page, worker and table.
import type { CodecName } from 'nsnquant';
import type { Format } from '../../../bench/gpu/caches.ts';

/** Where attention is computed. */
export const places = { wasm: 'WebAssembly', webgpu: 'WebGPU' } as const;
export type Place = keyof typeof places;

/** Keys and values as plain numbers: shaders and kernels of bench/baselines. */
export type Dense = 'f32' | 'f16';

/** One way to keep keys and values. */
export interface Method {
  readonly name: MethodName;
  /** Plain numbers, or the codecs of keys and values. */
  readonly kept: Dense | Format;
}
export type MethodName = (typeof NAMES)[number];

/** As they are shown: what all else is compared with comes first, then the finest codec. */
const NAMES = ['f16', 'f32', 'nsn4', 'nsn3', 'nsn3 / nsn2', 'nsn2', 'nsn1'] as const;

export const methods: readonly Method[] = NAMES.map(name => {
  if (name === 'f16' || name === 'f32') return { name, kept: name };
  const [keys, values = keys] = name.split(' / ') as [CodecName, CodecName?];
  return { name, kept: { name, keys, values, balanced: true } };
});

/** The attention of one layer of a model. */
export interface ModelShape {
  readonly kvHeads: number;
  /** Query heads of one KV head. */
  readonly group: number;
  readonly headDim: number;
}

export const models = {
  'Llama 3.2 1B': { kvHeads: 8, group: 4, headDim: 64 },
  'Llama 3.1 8B': { kvHeads: 8, group: 4, headDim: 128 }
} as const satisfies Record<string, ModelShape>;
export type ModelName = keyof typeof models;

/** How much is measured. Where a device is so slow that `seconds` go by first, a context may have fewer samples, but never fewer than 5. */
export interface Budget {
  readonly tokens: readonly number[];
  /** Of every method. */
  readonly samples: number;
  /** For the samples of one context and place. */
  readonly seconds: number;
}

export const budgets = {
  short: { tokens: [4096], samples: 15, seconds: 10 },
  full: { tokens: [4096, 16_384, 32_768], samples: 31, seconds: 30 }
} as const satisfies Record<string, Budget>;
export type BudgetName = keyof typeof budgets;
