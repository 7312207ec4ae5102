// Finds the binary to run and compiles it: the best that the engine validates, or the one asked for.

import { type Backend, BackendError, backendOf } from '../backend.ts';
import { checkOneOf, kind } from '../check.ts';
import { fromHex, toHex } from '../format/hex.ts';
import { scalar } from './generated/scalar.ts';
import { relaxed, simd128 } from './generated/simd.ts';
import { WasmStore } from './store.ts';

/** The WebAssembly binaries: without SIMD, with it, and with relaxed SIMD. */
export type WasmVariant = 'scalar' | 'simd128' | 'relaxed';

/** A WebAssembly.Module, typed so that nobody needs the types of browsers. */
export type WasmModule = object;

/** What opening WebAssembly may be told. */
export interface WasmOptions {
  /** Insist on one of the binaries: `scalar`, `simd128` or `relaxed`. By default the best that this engine validates. */
  readonly variant?: WasmVariant;
  /**
   * One of the package's binaries, compiled: `nsnquant/scalar.wasm`, `nsnquant/simd128.wasm` or `nsnquant/relaxed.wasm`. For hosts
   * that run only what was compiled when it was deployed, and for many workers that share what one of them compiled.
   */
  readonly module?: WasmModule;
}

/** In hexadecimal. Imported statically, as everything is: service workers know no other import, nor do workers of some bundlers. */
const binaries: Readonly<Record<WasmVariant, string>> = { scalar, simd128, relaxed };
/** The fastest first. */
const VARIANTS = ['relaxed', 'simd128', 'scalar'] as const;

/** @internal @throws {TypeError | RangeError} where an option is of the wrong kind or value */
export function checkWasmOptions({ variant, module }: WasmOptions): void {
  if (variant !== undefined) checkOneOf('variant', variant, ['scalar', 'simd128', 'relaxed']);
  if (module === undefined) return;
  if (!isModule(module)) throw new TypeError(`"module" expected WebAssembly.Module, got ${kind(module)}`);
  const own = variantOf(module);
  if (!own) throw new RangeError('"module" expected a .wasm file of this very version of the package, got another module');
  if (variant !== undefined && variant !== own) throw new RangeError(`"variant" expected ${own} (that of "module"), got ${variant}`);
}

/** By its tag: it may come from another realm. */
function isModule(value: unknown): value is WebAssembly.Module {
  return Object.prototype.toString.call(value) === '[object WebAssembly.Module]';
}

/** Which of this version's binaries a module was compiled from: each ends with a section that holds a hash of all before it. */
function variantOf(module: WebAssembly.Module): WasmVariant | undefined {
  const [section] = WebAssembly.Module.customSections(module, 'nsnquant');
  if (!section?.byteLength) return undefined;
  const digits = toHex(new Uint8Array(section));
  return VARIANTS.find(variant => binaries[variant].endsWith(digits));
}

/**
 * @internal Opens the module given, the binary asked for, or the best that this engine validates.
 *
 * @param because  why this backend; why the binary is added
 */
export async function openWasm(options: WasmOptions = {}, because?: string): Promise<Backend> {
  const { module, reason, ...chosen } = await openModule(options);
  return backendOf({
    name: 'wasm',
    ...chosen,
    reason: because === undefined ? reason : `${because}; ${reason}`,
    createStore: shape => new WasmStore(module, shape)
  });
}

/** @internal As openWasm, for those who lay out memory themselves. The options are checked already. */
export async function openModule(
  options: WasmOptions
): Promise<{ readonly module: WebAssembly.Module; readonly variant: WasmVariant; readonly reason: string }> {
  if (typeof WebAssembly === 'undefined') throw new BackendError('wasm', 'expected WebAssembly, got an engine without it');
  const { variant, module } = options;
  if (module !== undefined) {
    const given = module as WebAssembly.Module;
    const own = variantOf(given)!;
    return { module: given, variant: own, reason: `${own} was given as a module` };
  }
  let refused = '';
  for (const candidate of variant ? [variant] : VARIANTS) {
    const bytes = fromHex(binaries[candidate]);
    if (WebAssembly.validate(bytes)) {
      const reason = variant ? `${variant} was asked for` : `this engine validates ${candidate}${refused && `, not ${refused}`}`;
      return { module: await compile(bytes), variant: candidate, reason };
    }
    refused = candidate;
  }
  throw new BackendError('wasm', `expected an engine that validates ${variant ?? 'WebAssembly'}, got one that does not`);
}

/** Workers of Cloudflare compile nothing at run time, nor do pages whose content security policy lacks 'wasm-unsafe-eval'. */
async function compile(bytes: BufferSource): Promise<WebAssembly.Module> {
  try {
    return await WebAssembly.compile(bytes);
  } catch (cause) {
    throw new BackendError('wasm', `expected leave to compile (or a compiled "module"), got: ${(cause as Error).message}`, cause);
  }
}
