// Picks a backend by what the machine can do.

import type { Backend, BackendName } from './backend.ts';
import { checkObject, checkOneOf } from './check.ts';
import { openReference } from './reference-backend.ts';
import { openWasm, type WasmVariant } from './wasm.ts';

export interface OpenOptions {
  /** Insist on a backend. */
  readonly prefer?: BackendName;
  /** Insist on one of its forms: `scalar`, `simd128` or `relaxed`. */
  readonly variant?: WasmVariant;
}

/**
 * Opens the backend that suits this machine: WebAssembly, in the best binary the engine validates.
 *
 * @throws {BackendError} if the engine cannot run what was asked for
 *
 * @example
 * const backend = await openBackend();
 * console.log(backend.name, backend.variant, backend.reason);
 */
export async function openBackend(options: OpenOptions = {}): Promise<Backend> {
  checkObject('options', options);
  const { prefer = 'wasm', variant } = options;
  checkOneOf('prefer', prefer, ['wasm', 'reference']);
  if (variant !== undefined) checkOneOf('variant', variant, ['scalar', 'simd128', 'relaxed']);
  if (prefer === 'reference') return openReference();
  return openWasm(variant);
}
