// Where a host compiles no WebAssembly at run time: Cloudflare's runtime, and pages of Chromium under a content security policy
// without 'wasm-unsafe-eval'. There the package says so by its own error, and runs on a module that is compiled already.
import { execFile } from 'node:child_process';
import { copyFileSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { installedPackage, launch, noChromium, notInstalled, project, serve, workerd } from './consumers.ts';

/** What both say: what is refused, and what a module computes. */
const work = `
import { openBackend, BackendError, KVCache } from 'nsnquant';
import { openBackend as openCpu } from 'nsnquant/cpu';
import { openKernels } from 'nsnquant/kernels';

const kernels = { headDim: 32, codec: 'nsn2' };

export async function refused() {
  const said = [];
  for (const open of [() => openBackend(), () => openBackend({ variant: 'scalar' }), () => openCpu(), () => openKernels(kernels)]) {
    await open().then(
      () => said.push('opened'),
      error => said.push([error instanceof BackendError, error.backend, error.message.split(', got: ')[0], error.cause?.name].join('; '))
    );
  }
  return [...new Set(said)];
}

export async function computed(module) {
  const said = [];
  for (const backend of [await openBackend({ module }), await openCpu({ module })]) {
    const chat = new KVCache(backend, { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 128 }).sequence();
    chat.append(0, new Float32Array(100 * 32).fill(1), new Float32Array(100 * 32).fill(0.25));
    chat.seal();
    said.push(backend.name, backend.variant, (await chat.attend(0, new Float32Array(32)).read())[31].toFixed(3));
  }
  const verbs = await openKernels({ ...kernels, module });
  return [...said, verbs.variant, verbs.encode(new Float32Array(2048).fill(1)).length].join(' ');
}
`;
const refusal = 'true; wasm; wasm backend expected leave to compile (or a compiled "module"); CompileError';
const result = (variant: string) => `wasm ${variant} 0.250 wasm ${variant} 0.250 ${variant} 652`;

/** Bundles one file; the .wasm files stay imports, as the hosts' own tools leave them. */
async function bundle(folder: string, file: string): Promise<void> {
  await build({
    absWorkingDir: folder,
    entryPoints: [file],
    outdir: 'out',
    bundle: true,
    format: 'esm',
    external: ['*.wasm'],
    logLevel: 'error'
  });
}

group('where nothing compiles at run time', test => {
  const binaries = ['scalar', 'simd128', 'relaxed'];

  const inWorkerd = "Cloudflare's runtime refuses to compile, and runs the three modules it was deployed with";
  if (notInstalled !== undefined) test.skip(inWorkerd, notInstalled);
  else
    test(inWorkerd, async () => {
      const folder = project('workerd', {
        'work.js': work,
        'worker.js': `
          import { computed, refused } from './work.js';
          ${binaries.map(name => `import ${name} from 'nsnquant/${name}.wasm';`).join('\n')}
          export default {
            async test() {
              console.log(JSON.stringify([await refused(), ...await Promise.all([${binaries.join()}].map(computed))]));
            }
          };`,
        'workerd.capnp': `
          using Workerd = import "/workerd/workerd.capnp";
          const config :Workerd.Config = (services = [(name = "main", worker = (compatibilityDate = "2025-01-01", modules = [
            (name = "worker", esModule = embed "out/worker.js"),
            ${binaries.map(name => `(name = "nsnquant/${name}.wasm", wasm = embed "${name}.wasm")`).join()}
          ]))]);`
      });
      await bundle(folder, 'worker.js');
      for (const name of binaries) copyFileSync(join(installedPackage, `dist/wasm/${name}.wasm`), join(folder, `${name}.wasm`));
      const { stdout, stderr } = await promisify(execFile)(workerd, ['test', join(folder, 'workerd.capnp')], { timeout: 60_000 });
      const said = /\[\[.*\]/.exec(stdout + stderr)?.[0];
      assert.equal(JSON.parse(said ?? stdout + stderr), [[refusal], ...binaries.map(result)]);
    });

  const inPage = "a page under script-src 'self' refuses to compile, and runs a module that a worker without that policy posts to it";
  if (noChromium !== undefined) test.skip(inPage, noChromium);
  else
    test(inPage, async () => {
      const folder = project('csp', {
        'work.js': work,
        'page.js': "import * as work from './work.js'; Object.assign(globalThis, { work });",
        'out/index.html': '<!doctype html><link rel="icon" href="data:,"><script type="module" src="page.js"></script>',
        'out/compile.js': "WebAssembly.compileStreaming(fetch('simd128.wasm')).then(postMessage, error => postMessage(String(error)));"
      });
      await bundle(folder, 'page.js');
      copyFileSync(join(installedPackage, 'dist/wasm/simd128.wasm'), join(folder, 'out/simd128.wasm'));
      const { server, origin } = await serve(
        join(folder, 'out'),
        (path): Record<string, string> => (path === '/compile.js' ? {} : { 'content-security-policy': "script-src 'self'" })
      );
      const browser = await launch();
      try {
        const page = await browser.newPage();
        await page.goto(`${origin}/index.html`);
        const said = await page.evaluate(async () => {
          const { refused, computed } = (globalThis as unknown as { work: Record<string, (module?: unknown) => Promise<unknown>> }).work;
          const streamed = await WebAssembly.compileStreaming(fetch('simd128.wasm')).then(
            () => 'compiled',
            error => error.name
          );
          const worker = new Worker('compile.js');
          const module = await new Promise(resolve => {
            worker.onmessage = ({ data }) => resolve(data);
          });
          return [streamed, await refused!(), await computed!(module)];
        });
        assert.equal(said, ['CompileError', [refusal], result('simd128')]);
      } finally {
        await browser.close();
        server.close();
      }
    });
});
