// Bundles the page into dist/: page, worker, ONNX Runtime's WebAssembly. Everything comes from node_modules, nothing from elsewhere.
import { cp, rm } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type BuildOptions, build } from 'esbuild';

const here = fileURLToPath(new URL('.', import.meta.url));
export const dist = join(here, 'dist');
/** The ONNX Runtime that transformers.js brings, of a version of its own. */
const runtime = dirname(createRequire(fileURLToPath(import.meta.resolve('@huggingface/transformers'))).resolve('onnxruntime-web/webgpu'));

/** What page and tests have in common. */
export const common: BuildOptions = {
  absWorkingDir: here,
  bundle: true,
  format: 'esm',
  target: 'es2022',
  logLevel: 'warning'
};

export async function buildPage(): Promise<void> {
  await rm(dist, { recursive: true, force: true });
  await build({
    ...common,
    entryPoints: ['src/main.ts', 'src/worker.ts', 'src/style.css'],
    outdir: dist,
    platform: 'browser',
    splitting: true,
    minify: true,
    sourcemap: true,
    // Its build for browsers, which its package.json names under "browser" but leaves out of "exports".
    alias: { '@huggingface/gguf': join(here, '../../node_modules/@huggingface/gguf/dist/browser/index.mjs') },
    loader: { '.wasm': 'file' }
  });
  await cp(join(here, 'src/index.html'), join(dist, 'index.html'));
  for (const name of ['ort-wasm-simd-threaded.asyncify.mjs', 'ort-wasm-simd-threaded.asyncify.wasm'])
    await cp(join(runtime, name), join(dist, 'transformers', name));
}
