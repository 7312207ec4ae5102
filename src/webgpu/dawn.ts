// The GPU of Node, Dawn, from the optional package `webgpu`. Bundlers for browsers take dawn.browser.ts in its place (the field
// "browser" of package.json), so that neither Node's names nor the path of this file get into a page.

import { BackendError } from '../backend.ts';

/** What is used of Node, whose types not everyone who compiles this has. */
interface NodeProcess {
  readonly versions?: Readonly<Record<string, string>>;
  cwd(): string;
  getBuiltinModule?(name: 'module'): { createRequire(from: string): (name: string) => unknown };
}

/** Kept: Dawn lives as long as this reference does (README of `webgpu`). Node 20 ends all the same. */
let kept: GPU | undefined;

/**
 * Dawn.
 *
 * @param load  whether the package may be loaded
 */
export function dawn(load: boolean): GPU {
  const { process } = globalThis as { process?: NodeProcess };
  const versions = process?.versions;
  if (!versions?.['node'] || versions['bun'] || versions['deno']) throw new BackendError('webgpu', 'expected navigator.gpu, got none');
  if (!load)
    throw new BackendError('webgpu', 'is looked for in Node where "shape", "batch" or "context" says what for, or "prefer" asks for it');
  // The package is an ES module, which require() loads from these on. Node before 20.16 has no getBuiltinModule either.
  const refuseNode = (cause?: unknown): never => {
    throw new BackendError('webgpu', `expected Node 20.19, 22.12 or later, got ${versions['node']}`, cause);
  };
  if (!process?.getBuiltinModule) return refuseNode();
  try {
    // Bundlers would follow `import()`, and not find what is for Node alone. Where esbuild writes CommonJS a module has no URL.
    const from: string | undefined = import.meta.url;
    const require = process.getBuiltinModule('module').createRequire(from ?? `${process.cwd()}/`);
    kept ??= (require('webgpu') as { create(options: string[]): GPU }).create([]);
    return kept;
  } catch (cause) {
    if ((cause as { code?: string }).code === 'ERR_REQUIRE_ESM') return refuseNode(cause);
    throw new BackendError('webgpu', `expected the package "webgpu", got: ${(cause as Error).message.split('\n')[0]}`, cause);
  }
}
