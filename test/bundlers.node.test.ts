// Bundles an application of every entry with the bundlers that people use, warnings counted as errors, and runs it in Chromium: in
// a page, a module worker and a service worker. Must build from the package as npm installs it, by each bundler's own defaults.
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { build } from 'esbuild';
import type { Browser } from 'playwright-core';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { launch, load, noChromium, notInstalled, project, serve } from './consumers.ts';

/** Uses something of every entry, so that nothing is shaken off, and says what came. */
const work = `
import { openBackend, KVCache } from 'nsnquant';
import { openBackend as openCpu } from 'nsnquant/cpu';
import { openKernels } from 'nsnquant/kernels';
import { hadamard } from 'nsnquant/reference';

export async function work() {
  const means = [];
  for (const backend of [await openBackend(), await openCpu({ variant: 'scalar' })]) {
    const chat = new KVCache(backend, { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 64 }).sequence();
    chat.append(0, new Float32Array(32).fill(1), new Float32Array(32).fill(0.25));
    means.push((await chat.attend(0, new Float32Array(32)).read())[31], backend.name);
  }
  const kernels = await openKernels({ headDim: 32, codec: 'nsn2' });
  const row = Float64Array.from({ length: 32 }, () => 1);
  hadamard(row, 32);
  return [...means, kernels.encode(new Float32Array(2048).fill(1)).length, Math.round(row[0] ** 2)].join(' ');
}
`;

const answer = '0.25 wasm 0.25 wasm 652 32';

const files = {
  'work.js': work,
  'page.js': `
    import { work } from './work.js';
    globalThis.worker = () => new Worker(new URL('./worker.js', import.meta.url), { type: 'module' });
    globalThis.work = work;`,
  'worker.js': `
    import { work } from './work.js';
    onmessage = () => work().catch(String).then(text => postMessage(text));`,
  'sw.js': `
    import { work } from './work.js';
    onmessage = event => event.waitUntil(work().catch(String).then(text => event.source.postMessage(text)));`,
  'index.html': '<!doctype html><link rel="icon" href="data:,"><script type="module" src="./page.js"></script>'
};

interface Built {
  /** Whatever the bundler said that is no mere news. */
  readonly warnings: readonly string[];
  /** What the service worker came out as. */
  readonly type: WorkerType;
}

/** Each writes index.html, page.js (or what index.html names instead), sw.js and what they need into `out`. */
type Bundler = (folder: string, out: string) => Promise<Built>;

const vite =
  (version: 5 | 7 | 8): Bundler =>
  async (folder, out) => {
    const warnings: string[] = [];
    const warn = (message: string) => warnings.push(message);
    const quiet = () => {};
    const customLogger = {
      info: quiet,
      warn,
      warnOnce: warn,
      error: warn,
      clearScreen: quiet,
      hasErrorLogged: () => false,
      hasWarned: false
    };
    const { build } = await load<{ build(config: object): Promise<unknown> }>(`vite${version}`);
    const input = { index: join(folder, 'index.html'), sw: join(folder, 'sw.js') };
    const rollupOptions = { input, output: { entryFileNames: '[name].js' } };
    await build({ root: folder, base: './', configFile: false, logLevel: 'warn', customLogger, build: { outDir: out, rollupOptions } });
    return { warnings, type: 'module' };
  };

const webpack: Bundler = async (folder, out) => {
  const { default: compiler } = await load<{ default(config: object): { run(done: (error: Error | null, stats: Stats) => void): void } }>(
    'webpack'
  );
  interface Stats {
    toJson(options: object): { warnings: { message: string }[]; errors: { message: string }[] };
  }
  const stats = await new Promise<Stats>((resolve, reject) =>
    compiler({
      mode: 'production',
      context: folder,
      entry: { page: './page.js', sw: './sw.js' },
      output: { path: out, filename: '[name].js' },
      performance: { hints: false } // at 244 KiB before compression it advises to load less, whatever it is
    }).run((error, stats) => (error ? reject(error) : resolve(stats)))
  );
  const { warnings, errors } = stats.toJson({ all: false, warnings: true, errors: true });
  writeFileSync(join(out, 'index.html'), files['index.html']);
  return { warnings: [...warnings, ...errors].map(({ message }) => message), type: 'classic' };
};

const rollup: Bundler = async (folder, out) => {
  interface Bundle {
    write(options: object): Promise<unknown>;
    close(): Promise<void>;
  }
  const warnings: string[] = [];
  const { rollup: build } = await load<{ rollup(options: object): Promise<Bundle> }>('rollup');
  const { nodeResolve } = await load<{ nodeResolve(options: object): object }>('@rollup/plugin-node-resolve');
  const options = { plugins: [nodeResolve({ browser: true })], onwarn: ({ message }: { message: string }) => warnings.push(message) };
  const write = async (names: readonly string[], format: string) => {
    const bundle = await build({ ...options, input: Object.fromEntries(names.map(name => [name, join(folder, `${name}.js`)])) });
    await bundle.write({ dir: out, format });
    await bundle.close();
  };
  await write(['page', 'worker'], 'es');
  await write(['sw'], 'iife');
  writeFileSync(join(out, 'index.html'), files['index.html']);
  return { warnings, type: 'classic' };
};

const esbuild: Bundler = async (folder, out) => {
  const options = { absWorkingDir: folder, outdir: out, bundle: true, minify: true, logLevel: 'silent' } as const;
  const results = [
    await build({ ...options, entryPoints: ['page.js', 'worker.js'], format: 'esm', splitting: true }),
    await build({ ...options, entryPoints: ['sw.js'], format: 'iife' })
  ];
  writeFileSync(join(out, 'index.html'), files['index.html']);
  return { warnings: results.flatMap(({ warnings }) => warnings.map(({ text }) => text)), type: 'classic' };
};

const bundlers: Readonly<Record<string, Bundler>> = {
  'Vite 5': vite(5),
  'Vite 7': vite(7),
  'Vite 8': vite(8),
  'webpack 5': webpack,
  'Rollup 4': rollup,
  esbuild
};

/** What page, worker and service worker answer; an error's text where one has none. */
async function answers(browser: Browser, url: string, type: WorkerType): Promise<Record<string, string>> {
  const tab = await browser.newPage();
  const errors: string[] = [];
  tab.on('pageerror', error => errors.push(String(error)));
  await tab.goto(url);
  await tab
    .waitForFunction(() => 'work' in globalThis, undefined, { timeout: 60_000 })
    .catch(() => {
      throw new Error(`the page did not begin: ${errors.join(', ')}`);
    });
  const result = await tab.evaluate(async type => {
    const app = globalThis as unknown as { work(): Promise<string>; worker(): Worker };
    const soon = (answer: (resolve: (text: string) => void) => void) =>
      new Promise<string>(resolve => {
        setTimeout(() => resolve('no answer'), 60_000);
        answer(resolve);
      });
    const worker = app.worker();
    const registration = await navigator.serviceWorker.register('sw.js', { type });
    const [page, inWorker, inServiceWorker] = await Promise.all([
      app.work(),
      soon(resolve => {
        worker.onmessage = ({ data }) => resolve(data);
        worker.onerror = ({ message }) => resolve(message);
        worker.postMessage('');
      }),
      soon(resolve => {
        navigator.serviceWorker.onmessage = ({ data }) => resolve(data);
        (registration.installing ?? registration.active)!.postMessage('');
      })
    ]);
    return { page, worker: inWorker, 'service worker': inServiceWorker };
  }, type);
  await tab.close();
  return result;
}

group('bundlers', test => {
  for (const [name, bundle] of Object.entries(bundlers)) {
    const title = `${name} builds page, worker and service worker without a warning, and they run`;
    const missing = noChromium ?? (name === 'esbuild' ? undefined : notInstalled);
    if (missing !== undefined) {
      test.skip(title, missing);
      continue;
    }
    test(title, async () => {
      const folder = project(`bundlers/${name}`, files);
      const out = join(folder, 'out');
      const { warnings, type } = await bundle(folder, out);
      assert.equal(warnings, []);

      const scripts = readdirSync(out, { recursive: true, encoding: 'utf8' }).filter(file => file.endsWith('.js'));
      for (const file of scripts) {
        const code = readFileSync(join(out, file), 'utf8');
        assert.not.match(code, /\bimport\s*\(/);
        assert.not.match(code, /getBuiltinModule/, 'what is for Node alone is left out');
        assert.not.match(code, new RegExp(folder), 'and with it the path it lies at');
      }

      const { server, origin } = await serve(out);
      const browser = await launch();
      try {
        assert.equal(await answers(browser, `${origin}/index.html`, type), { page: answer, worker: answer, 'service worker': answer });
      } finally {
        await browser.close();
        server.close();
      }
    });
  }
});
