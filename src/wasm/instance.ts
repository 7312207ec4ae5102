// Instances of a binary over memories.

import { instantiateSync } from '@assemblyscript/loader';
import type { Kernels } from './abi.ts';

/** By the section that tells a binary, not by module: Chromium holds some 180 memories in all, and each instance here has one. */
const measured = new Map<string, Kernels>();

/** An instance over one page, for its sizes: those of a memory must be known before the memory is made. */
export function sizesOf(module: WebAssembly.Module): Kernels {
  const binary = String(new Uint8Array(WebAssembly.Module.customSections(module, 'nsnquant')[0]!));
  const kernels = measured.get(binary) ?? kernelsOf(module, new WebAssembly.Memory({ initial: 1 }));
  measured.set(binary, kernels);
  return kernels;
}

/** An instance over a memory. */
export function kernelsOf(module: WebAssembly.Module, memory: WebAssembly.Memory): Kernels {
  return instantiateSync<Kernels>(module, { env: { memory } }).exports;
}
