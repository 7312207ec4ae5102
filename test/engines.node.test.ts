// What a newcomer does with each engine: installs it as npm packs it into an empty project, copies the README's first example beside a model,
// and runs it, in Node and built by Vite in a page. Must find no engine in the work tree.
import { execFile } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import * as assert from 'uvu/assert';
import { exportDecoder } from '../engines/onnx/test/exports.ts';
import { group } from '../tools/group.ts';
import { tinyGguf } from '../tools/tiny-gguf.ts';
import { launch, load, noChromium, notInstalled, project, serve } from './consumers.ts';

const run = promisify(execFile);
const root = fileURLToPath(new URL('..', import.meta.url));
/** The first example of each prints this at its end. */
const printed = { onnx: /^13 tokens in \d+ bytes$/m, gguf: /^640 tokens in \d+ bytes$/m } as const;
type Engine = keyof typeof printed;
const engines = Object.keys(printed) as Engine[];

const folder = project('engines', { 'package.json': '{ "private": true, "type": "module" }' });
const installed = (name: Engine) => join(folder, 'node_modules/@nsnquant', name);

/** As npm does it: packed, which builds it, and unpacked. What it depends on is found in the folders around. */
async function install(name: Engine): Promise<void> {
  mkdirSync(installed(name), { recursive: true });
  const { stdout } = await run('npm', ['pack', '--silent', '--pack-destination', folder], { cwd: join(root, 'engines', name) });
  const tarball = stdout.trim().split('\n').at(-1)!;
  await run('tar', ['-xzf', join(folder, tarball), '-C', installed(name), '--strip-components=1']);
}

/** Packages that a module or its types import: what is missing among an engine's dependencies, the folders around would hide. */
function packagesOf(code: string): string[] {
  const specifiers = code.replace(/\/\*.*?\*\//gs, '').matchAll(/\b(?:from|import) ?\(?'((?:@[^/']+\/)?[^./'][^/':]*)(?=[/'])/g);
  return [...specifiers].map(([, name]) => name!);
}

function example(name: Engine): string {
  const [, code] = /^```[jt]s\n(.*?)^```/ms.exec(readFileSync(join(installed(name), 'README.md'), 'utf8'))!;
  return code!;
}

/** The same in a page: what is Node's alone is the page's, or left out. */
function inPage(code: string): string {
  return code
    .replace('onnxruntime-node', 'onnxruntime-web')
    .replaceAll('process.stdout.write(', 'document.body.append(')
    .replace(/^.*(?:node:fs|writeFile).*\n/gm, '');
}

/** What the examples name, where a program in Node is and where Vite takes what pages fetch. */
function writeModels(): void {
  const { model, weights } = exportDecoder({ external: 'model.onnx_data' });
  const gguf = tinyGguf({ metadata: { 'llama.context_length': 640 } }); // of 512 tokens is the first answer, the second ends when it is full
  mkdirSync(join(folder, 'public'));
  for (const [name, bytes] of Object.entries({ 'model.onnx': model, 'model.onnx_data': weights, 'model.gguf': gguf })) {
    for (const place of ['', 'public']) writeFileSync(join(folder, place, name), bytes);
  }
}

group('engines', test => {
  test('are packed and unpacked', async () => {
    await Promise.all(engines.map(install));
    writeModels();
  });

  for (const name of engines) {
    test(`@nsnquant/${name} imports only what its package.json names`, () => {
      const { dependencies, peerDependencies } = JSON.parse(readFileSync(join(installed(name), 'package.json'), 'utf8'));
      const dist = join(installed(name), 'dist');
      const imported = new Set(readdirSync(dist).flatMap(file => packagesOf(readFileSync(join(dist, file), 'utf8'))));
      assert.ok(imported.has('nsnquant'));
      for (const name of imported) assert.ok(name in { ...dependencies, ...peerDependencies }, name);
    });

    test(`@nsnquant/${name}: the README's first example runs in Node`, async () => {
      const file = join(folder, `${name}.js`);
      writeFileSync(file, example(name));
      assert.match((await run(process.execPath, [file], { cwd: folder })).stdout, printed[name]);
    });
  }

  const title = 'the same examples, built by Vite, run in a page';
  const missing = noChromium ?? notInstalled;
  if (missing !== undefined) {
    test.skip(title, missing);
    return;
  }
  test(title, async () => {
    for (const name of engines) writeFileSync(join(folder, `${name}-page.js`), inPage(example(name)));
    const scripts = engines.map(name => `<script type="module" src="./${name}-page.js"></script>`).join('');
    writeFileSync(join(folder, 'index.html'), `<!doctype html><link rel="icon" href="data:," />${scripts}<body></body>`);
    const { build } = await load<{ build(config: object): Promise<unknown> }>('vite8');
    const out = join(folder, 'out');
    await build({ root: folder, base: './', configFile: false, logLevel: 'silent', build: { outDir: out } });

    const { server, origin } = await serve(out);
    const browser = await launch();
    try {
      const page = await browser.newPage();
      const said: string[] = [];
      const answered = new Promise<void>(resolve => {
        const hear = (text: string, ends: boolean) => {
          said.push(text);
          if (ends || engines.every(name => printed[name].test(said.join('\n')))) resolve();
        };
        page.on('console', message => hear(message.text(), false));
        page.on('pageerror', error => hear(String(error), true));
        setTimeout(() => hear('nothing more in a minute', true), 60_000).unref();
      });
      await page.goto(`${origin}/index.html`);
      await answered;
      for (const name of engines) assert.match(said.join('\n'), printed[name]);
    } finally {
      await browser.close();
      server.close();
    }
  });
});
