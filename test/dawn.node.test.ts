// The package `webgpu` in Node: 132 MB of Dawn, which nobody should load who did not ask for WebGPU, and what is said where it
// cannot be loaded. In a project outside the repository, which has that package too.

import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { modules } from './consumers.ts';

const ask = `openBackend({ prefer: 'webgpu' }).catch(error => error.message).then(console.log);`;
const create = 'create = () => ({ requestAdapter: async () => null })';
const esModule = { 'package.json': '{ "type": "module", "main": "index.js" }', 'index.js': `export const ${create};` };
const commonJs = { 'package.json': '{ "main": "index.js" }', 'index.js': `exports.${create};` };

interface Told {
  /** Of Node. */
  readonly flags?: readonly string[];
  /** What is run first. */
  readonly before?: string;
  /** For an application that was bundled for Node, nsnquant in it: as what. */
  readonly bundle?: 'cjs' | 'esm';
}

/** What `openBackend({ prefer: 'webgpu' })` says in an empty project that has nsnquant and, if it is given, this package `webgpu`. */
async function says(webgpu: Readonly<Record<string, string>> | undefined, { flags = [], before = '', bundle }: Told = {}): Promise<string> {
  const folder = mkdtempSync(join(tmpdir(), 'nsnquant-'));
  try {
    for (const [file, text] of Object.entries(webgpu ?? {})) {
      mkdirSync(join(folder, 'node_modules/webgpu'), { recursive: true });
      writeFileSync(join(folder, 'node_modules/webgpu', file), text);
    }
    let args = ['--input-type=module', '--eval', `${before} const { openBackend } = await import('nsnquant'); ${ask}`];
    if (bundle) {
      const stdin = { contents: `import { openBackend } from 'nsnquant'; ${ask}`, resolveDir: join(modules, '..') };
      args = [join(folder, bundle === 'cjs' ? 'app.cjs' : 'app.mjs')];
      const { warnings } = await build({ stdin, bundle: true, platform: 'node', format: bundle, outfile: args[0]!, logLevel: 'silent' });
      assert.equal(warnings, []);
    } else {
      for (const name of ['nsnquant', '@assemblyscript/loader'])
        cpSync(join(modules, name), join(folder, 'node_modules', name), { recursive: true });
    }
    const { stdout, stderr } = spawnSync(process.execPath, [...flags, ...args], { cwd: folder, encoding: 'utf8' });
    return stderr + stdout;
  } finally {
    rmSync(folder, { recursive: true });
  }
}

group('webgpu in Node', test => {
  test('openBackend() unasked takes wasm, loads no Dawn and prints nothing', () => {
    const code = `
      const { openBackend } = await import('nsnquant');
      const { name } = await openBackend();
      console.log(name, process.report.getReport().sharedObjects.some(file => file.endsWith('dawn.node')));`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', code], { encoding: 'utf8' });
    assert.is(stderr, '');
    assert.is(stdout, 'wasm false\n');
  });

  const missing = `webgpu backend expected the package "webgpu", got: Cannot find module 'webgpu'\n`;
  const found = 'webgpu backend expected an adapter, got none\n';

  test('openBackend() that is asked says so where the package is not installed', async () => assert.is(await says(undefined), missing));

  test('openBackend() that is asked loads the package, an ES module as it is or CommonJS, and prints nothing', async () => {
    for (const webgpu of [esModule, commonJs]) assert.is(await says(webgpu), found);
  });

  for (const bundle of ['esm', 'cjs'] as const) {
    test(`a server that is bundled as ${bundle} loads the package, if there is one`, async () => {
      assert.is(await says(esModule, { bundle }), found);
      assert.is(await says(undefined, { bundle }), missing);
    });
  }

  test('openBackend() that is asked says which Node it takes where there is no way to load an ES module', async () => {
    const message = `webgpu backend expected Node 20.19, 22.12 or later, got ${process.versions.node}\n`;
    assert.is(await says(undefined, { before: 'process.getBuiltinModule = undefined;' }), message);
    // As Node 20.16 to 20.18 and 22.3 to 22.11 are: there it is the package that cannot be loaded, unless it is CommonJS.
    const flags = ['--no-experimental-require-module'];
    assert.is(await says(esModule, { flags }), message);
    assert.is(await says(commonJs, { flags }), found);
    assert.is(await says(undefined, { flags }), missing);
  });
});
