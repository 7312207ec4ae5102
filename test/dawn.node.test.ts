// The package `webgpu` in Node: 132 MB of Dawn, which nobody should load who did not ask for WebGPU, and what is said where it
// cannot be loaded. In a project outside the repository, which has that package too.

import { spawnSync } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { modules } from './consumers.ts';

/** What `openBackend({ prefer: 'webgpu' })` says in a project with these packages beside nsnquant. */
function saysIn(packages: Readonly<Record<string, Readonly<Record<string, string>>>>, before = ''): string {
  const folder = mkdtempSync(join(tmpdir(), 'nsnquant-'));
  try {
    for (const name of ['nsnquant', '@assemblyscript/loader'])
      cpSync(join(modules, name), join(folder, 'node_modules', name), { recursive: true });
    for (const [name, files] of Object.entries(packages)) {
      mkdirSync(join(folder, 'node_modules', name));
      for (const [file, text] of Object.entries(files)) writeFileSync(join(folder, 'node_modules', name, file), text);
    }
    const code = `${before}
      const { openBackend } = await import('nsnquant');
      console.log(await openBackend({ prefer: 'webgpu' }).catch(error => error.message));`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', code], { cwd: folder, encoding: 'utf8' });
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

  test('openBackend() that is asked says so where the package is not installed', () => {
    assert.is(saysIn({}), `webgpu backend expected the package "webgpu", got: Cannot find module 'webgpu'\n`);
  });

  test('openBackend() that is asked loads the package, an ES module as it is or CommonJS, and prints nothing', () => {
    const create = 'create = () => ({ requestAdapter: async () => null })';
    for (const files of [
      { 'package.json': '{ "type": "module", "main": "index.js" }', 'index.js': `export const ${create};` },
      { 'package.json': '{ "main": "index.js" }', 'index.js': `exports.${create};` }
    ]) {
      assert.is(saysIn({ webgpu: files }), 'webgpu backend expected an adapter, got none\n');
    }
  });

  test('openBackend() that is asked says which Node it takes where there is no way to load an ES module', () => {
    const node = process.versions.node;
    assert.is(saysIn({}, 'process.getBuiltinModule = undefined;'), `webgpu backend expected Node 20.19 or later, got ${node}\n`);
  });
});
