// The backends whose verbs are functions, reference and WebAssembly, and what is known of any. Must open no GPU: tests of arithmetic
// alone wait for none. One that this engine cannot run is printed, with the reason, never passed over.

import { type Backend, openBackend } from 'nsnquant';
import { type KernelOptions, openKernels, type Verbs } from 'nsnquant/kernels';
import { left } from './variables.ts';

export interface Tested {
  /** As titles have it: `reference`, `wasm scalar`, `wasm simd128`, `wasm relaxed`, `webgpu`. */
  readonly name: string;
  readonly backend: Backend;
  /**
   * Whether this is a GPU. There a new shape compiles pipelines, for seconds each on a software adapter: where many shapes say
   * the same of a cache, take a few. And floats that are added up in other pieces differ in their last bits.
   */
  readonly gpu: boolean;
}

export interface TestedVerbs extends Tested {
  /** The verbs of `nsnquant/kernels` on this backend. */
  kernels(options: KernelOptions): Promise<Verbs>;
}

type Choice = Pick<KernelOptions, 'prefer' | 'variant'>;

async function open(name: string, choice: Choice): Promise<TestedVerbs> {
  return { name, backend: await openBackend(choice), gpu: false, kernels: options => openKernels({ ...options, ...choice }) };
}

/** `(module (func (param v128 v128 v128) (result v128) … f32x4.relaxed_madd))`: what the engine says, asked without the package. */
const relaxedProbe = Uint8Array.of(
  0,
  0x61,
  0x73,
  0x6d,
  1,
  0,
  0,
  0,
  1,
  8,
  1,
  0x60,
  3,
  0x7b,
  0x7b,
  0x7b,
  1,
  0x7b,
  3,
  2,
  1,
  0,
  10,
  13,
  1,
  11,
  0,
  0x20,
  0,
  0x20,
  1,
  0x20,
  2,
  0xfd,
  0x85,
  0x02,
  0x0b
);

// Deno, Bun and Chromium are known to have relaxed SIMD. Were one to lose it, or the probe to be wrong, it must show.
const known = 'Deno' in globalThis || 'Bun' in globalThis || (typeof document !== 'undefined' && /Chrome\//.test(navigator.userAgent));

/** Whether this engine runs relaxed SIMD; where it does, the relaxed binary must open. */
export const hasRelaxed = known || WebAssembly.validate(relaxedProbe);

export const reference = await open('reference', { prefer: 'reference' });
export const scalar = await open('wasm scalar', { variant: 'scalar' });
export const simd128 = await open('wasm simd128', { variant: 'simd128' });
export const relaxed = hasRelaxed ? await open('wasm relaxed', { variant: 'relaxed' }) : undefined;
if (!relaxed) console.log('relaxed skipped: this engine does not validate relaxed SIMD');

const here = (tested: TestedVerbs) => !left.includes(tested.name);

/** Those that are WebAssembly, but for what this lane leaves to others. */
export const wasm: readonly TestedVerbs[] = [scalar, simd128, ...(relaxed ? [relaxed] : [])].filter(here);

/** Those that have verbs as functions, but for what this lane leaves to others. */
export const withVerbs: readonly TestedVerbs[] = [...[reference].filter(here), ...wasm];

/** Whether what tests left of the scalar binary and of simd128 may be compared. */
export const comparesBinaries = wasm.includes(scalar) && wasm.includes(simd128);
