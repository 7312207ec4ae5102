// Finds the binary to run and compiles it: the best that the engine validates, or the one asked for.

import { type Backend, BackendError, backendOf } from '../backend.ts';
import { scalar } from './generated/scalar.ts';
import { relaxed, simd128 } from './generated/simd.ts';
import { WasmStore } from './store.ts';

/** The WebAssembly binaries: without SIMD, with it, and with relaxed SIMD. */
export type WasmVariant = 'scalar' | 'simd128' | 'relaxed';

/** What opening WebAssembly may be told. */
export interface WasmOptions {
  /** Insist on one of the binaries. By default the best that this engine validates. */
  readonly variant?: WasmVariant;
}

/** In hexadecimal. Imported statically, as everything is: service workers know no other import, nor do workers of some bundlers. */
const binaries: Readonly<Record<WasmVariant, string>> = { scalar, simd128, relaxed };

/**
 * Opens the best binary that this engine validates, or the one asked for.
 *
 * @param because  why this backend; why the binary is added
 */
export async function openWasm({ variant }: WasmOptions = {}, because?: string): Promise<Backend> {
  const { module, reason, ...chosen } = await openModule(variant);
  return backendOf({
    name: 'wasm',
    ...chosen,
    reason: because === undefined ? reason : `${because}; ${reason}`,
    createStore: shape => new WasmStore(module, shape)
  });
}

export async function openModule(variant?: WasmVariant): Promise<{ module: WebAssembly.Module; variant: WasmVariant; reason: string }> {
  if (typeof WebAssembly === 'undefined') throw new BackendError('wasm', 'expected WebAssembly, got an engine without it');
  let refused = '';
  for (const candidate of variant ? [variant] : (['relaxed', 'simd128', 'scalar'] as const)) {
    const bytes = Uint8Array.from(binaries[candidate].match(/../g)!, byte => parseInt(byte, 16));
    if (WebAssembly.validate(bytes)) {
      const reason = variant ? `${variant} was asked for` : `this engine validates ${candidate}${refused && `, not ${refused}`}`;
      return { module: await WebAssembly.compile(bytes), variant: candidate, reason };
    }
    refused = candidate;
  }
  throw new BackendError('wasm', `expected an engine that validates ${variant ?? 'WebAssembly'}, got one that does not`);
}
