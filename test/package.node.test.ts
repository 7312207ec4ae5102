// Looks at the package as npm installs it: its files, its size, and what programs that check packages say of it. Must never look at
// src/ for what a user gets.
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { consumers, load, notInstalled } from './consumers.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const sandbox = join(root, '.test');
const installed = join(sandbox, 'node_modules/nsnquant');
const manifest = JSON.parse(readFileSync(join(installed, 'package.json'), 'utf8'));

/**
 * What each entry costs: bytes, minified and gzipped, with all that it imports. Whoever imports single names gets what they need
 * of it; the codebooks alone for example. Measured, and some hundredths more.
 */
const entries: readonly { readonly code: string; readonly limitBytes: number; readonly holds: readonly ('binaries' | 'shaders')[] }[] = [
  {
    code: `import { openBackend, KVCache } from 'nsnquant'; console.log(openBackend, KVCache);`,
    limitBytes: 102_000,
    holds: ['binaries', 'shaders']
  },
  {
    code: `import { openBackend, KVCache } from 'nsnquant/cpu'; console.log(openBackend, KVCache);`,
    limitBytes: 70_000,
    holds: ['binaries']
  },
  { code: `import { openKernels } from 'nsnquant/kernels'; console.log(openKernels);`, limitBytes: 56_500, holds: ['binaries'] },
  { code: `import * as reference from 'nsnquant/reference'; console.log(reference);`, limitBytes: 12_600, holds: [] },
  { code: `import { PrefixStore } from 'nsnquant/prefixes'; console.log(PrefixStore);`, limitBytes: 29_500, holds: [] },
  { code: `import { codecs } from 'nsnquant'; console.log(codecs);`, limitBytes: 7_900, holds: [] }
];

/** How a WebAssembly binary begins ("\0asm", version 1) in hexadecimal, and what every shader has. */
const marks = { binaries: '0061736d01000000', shaders: '@compute' } as const;

function filesBelow(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => relative(folder, join(entry.parentPath, entry.name)))
    .sort();
}

/** All file names that a value of "exports" leads to. */
function targets(value: string | object): string[] {
  return typeof value === 'string' ? [value] : Object.values(value).flatMap(targets);
}

/** A bundle as a user's bundler would make it, resolved in the sandbox by name. */
async function bundled(contents: string): Promise<{ code: string; imports: Set<string> }> {
  const { outputFiles, metafile } = await build({
    stdin: { contents, resolveDir: sandbox },
    bundle: true,
    minify: true,
    format: 'esm',
    platform: 'browser',
    write: false,
    metafile: true,
    logLevel: 'error'
  });
  const imports = Object.values(metafile.inputs).flatMap(input => input.imports.map(({ kind }) => kind));
  return { code: outputFiles[0]!.text, imports: new Set(imports) };
}

/** Programs that know what goes wrong between a package.json and those who read it. */
const linters = {
  async 'publint has nothing to warn of'() {
    const { publint } = await load<{ publint(options: object): Promise<{ messages: object[] }> }>('publint');
    const { messages } = await publint({ pkgDir: installed, pack: false, strict: true, level: 'warning' });
    assert.equal(messages, []);
  },
  'Are The Types Wrong? finds them right for whoever imports'() {
    // The binaries have no types: what importing one gives is for each tool to say.
    const binaries = Object.keys(manifest.exports).filter(name => name.endsWith('.wasm'));
    const attw = join(consumers, 'node_modules/.bin/attw');
    const tarball = join(sandbox, `nsnquant-${manifest.version}.tgz`);
    const args = [tarball, '--profile', 'esm-only', '--exclude-entrypoints', ...binaries.map(name => name.slice(2))];
    const { status, stdout, stderr } = spawnSync(attw, args, { encoding: 'utf8' });
    assert.is(status, 0, stdout + stderr);
  }
};

group('package', test => {
  test('npm packs dist, package.json, README.md, LICENSE and CHANGELOG.md, and nothing else', () => {
    const expected = filesBelow(join(root, 'dist')).map(file => `dist/${file}`);
    expected.push('package.json', 'README.md', 'LICENSE', 'CHANGELOG.md');
    assert.equal(filesBelow(installed), expected.sort());
  });

  test('each builder writes into a folder of its own, which it may empty', () => {
    const folders = ['assembly', 'shaders'].map(builder => {
      const named = readFileSync(join(root, builder, 'build.mjs'), 'utf8').match(/src\/[\w/]*generated/g) ?? [];
      assert.is(new Set(named).size, 1, `${builder}/build.mjs names ${named}`);
      return named[0]!;
    });
    assert.equal(folders, ['src/wasm/generated', 'src/webgpu/generated']);
  });

  test('dist holds a .js and a .d.ts for every module of src, the three binaries, and nothing else', () => {
    const names = filesBelow(join(root, 'src'))
      .filter(file => file.endsWith('.ts'))
      .map(file => file.slice(0, -'.ts'.length));
    const expected = names.flatMap(name => [`${name}.js`, `${name}.d.ts`]);
    expected.push(...['scalar', 'simd128', 'relaxed'].map(variant => `wasm/${variant}.wasm`));
    assert.equal(filesBelow(join(root, 'dist')), expected.sort());
  });

  test('"exports" names only files that are there', () => {
    for (const target of targets(manifest.exports)) {
      assert.ok(existsSync(join(installed, target)), `"exports" expected a file, got ${target}`);
    }
  });

  test('@assemblyscript/loader is the only package installed with it; webgpu is left to those who want it', () => {
    assert.equal(Object.keys(manifest.dependencies), ['@assemblyscript/loader']);
    assert.equal(Object.keys(manifest.peerDependencies), ['webgpu']);
    assert.equal(manifest.peerDependenciesMeta, { webgpu: { optional: true } });
  });

  for (const [title, run] of Object.entries(linters)) {
    if (notInstalled === undefined) test(title, run);
    else test.skip(title, notInstalled);
  }

  for (const { code, limitBytes, holds } of entries) {
    const name = code.replace(/;.*/, '');
    test(`${name} is at most ${limitBytes} bytes, gzipped, and all that it imports it imports statically`, async () => {
      const bundle = await bundled(code);
      const { length } = gzipSync(bundle.code, { level: 9 });
      console.log(`${name}: ${length} bytes gzipped, ${bundle.code.length} minified`);
      for (const [what, mark] of Object.entries(marks))
        assert.is(
          bundle.code.includes(mark),
          holds.some(held => held === what),
          what
        );
      assert.equal([...bundle.imports], ['import-statement']);
      assert.ok(length <= limitBytes, `expected at most ${limitBytes} bytes, got ${length}`);
    });
  }
});
