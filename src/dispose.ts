// The name under which `using` looks for what ends an object's life.

/// <reference lib="esnext.disposable" preserve="true" />

/** `Symbol.dispose`; in engines without it what Babel and esbuild have `using` look for. */
export const dispose: typeof Symbol.dispose = Symbol.dispose ?? Symbol.for('Symbol.dispose');
