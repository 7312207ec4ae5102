// Bundles the page into dist/: page, worker, and the dense kernels and shaders that nsnquant is compared with.
import { spawnSync } from 'node:child_process';
import { cp, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build, type Plugin } from 'esbuild';
import { compile } from '../../bench/baselines/compile.ts';
import { type ModelShape, models } from './src/methods.ts';

const here = fileURLToPath(new URL('.', import.meta.url));
export const dist = join(here, 'dist');

/** A page reads no files: the shaders' text takes the place of what reads them. */
const shaders: Plugin = {
  name: 'shaders',
  setup({ onLoad }) {
    onLoad({ filter: /bench\/baselines\/shaders\.ts$/ }, () => ({
      contents: `
        import dense from './dense.wgsl';
        import densemerge from './densemerge.wgsl';
        import bandwidth from './bandwidth.wgsl';
        export const shaders = { dense, densemerge, bandwidth };`
    }));
  }
};

/** @param shapes  of the models that can be measured: kernels take seconds to compile */
export async function buildPage(shapes: readonly ModelShape[] = Object.values(models)): Promise<void> {
  await rm(dist, { recursive: true, force: true });
  await build({
    absWorkingDir: here,
    bundle: true,
    format: 'esm',
    target: 'es2022',
    nodePaths: [join(here, 'node_modules')],
    logLevel: 'warning',
    entryPoints: ['src/main.ts', 'src/worker.ts', 'src/style.css'],
    outdir: dist,
    platform: 'browser',
    minify: true,
    sourcemap: true,
    plugins: [shaders],
    loader: { '.wgsl': 'text' },
    define: { COMMIT: JSON.stringify(commit()) }
  });
  await cp(join(here, 'src/index.html'), join(dist, 'index.html'));
  for (const { headDim } of shapes) {
    for (const variant of ['simd128', 'relaxed']) {
      await writeFile(join(dist, `dense-${headDim}-${variant}.wasm`), await compile({ headDim, relaxed: variant === 'relaxed' }));
    }
  }
}

/** Of the repository that this is built in, marked where files have changed since; empty where it is none. */
function commit(): string {
  return spawnSync('git', ['describe', '--always', '--dirty', '--exclude=*'], { cwd: here, encoding: 'utf8' }).stdout?.trim() ?? '';
}
