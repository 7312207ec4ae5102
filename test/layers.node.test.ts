// Holds the import direction of src/, assembly/ and shaders/ to a table. Must be read before src/: the table is the architecture.
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from './group.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/**
 * What each file of src/ may import at run time. A row names rows above it only, so there can be no cycle. Types are erased:
 * `import type` may also point back (a sequence knows its cache's type).
 */
const allowed: Record<string, readonly string[]> = {
  // Numbers and plain data, read by all.
  half: [],
  codebook: [],
  codec: ['codebook', 'half'],
  layout: [],
  backend: [],
  check: ['backend', 'half'],
  shape: ['check', 'codec', 'layout'],
  file: ['layout'],
  pool: ['layout'],

  // Where kernels run. Backends never see each other, and the reference is built from nothing generated.
  'paper2-codebook': [],
  paper2: ['half', 'paper2-codebook'],
  reference: ['half', 'layout', 'paper2'],
  'reference-backend': ['half', 'layout', 'reference'],
  grid: [],
  rope: ['layout'],
  'generated/scalar': [],
  'generated/simd': [],
  'generated/shaders': [],
  gpu: ['backend'],
  device: ['backend', 'generated/shaders'],
  arena: ['backend'],
  programs: ['codec', 'half', 'layout', 'rope'],
  work: ['layout', 'programs'],
  webgpu: ['arena', 'backend', 'device', 'half', 'layout', 'programs', 'work'],
  wasm: ['@assemblyscript/loader', 'backend', 'generated/scalar', 'generated/simd', 'grid', 'half', 'layout', 'rope'],

  // The public edge: with `shape`, which reads options, the only files that check arguments.
  step: ['backend', 'layout', 'shape'],
  selftest: ['layout', 'reference-backend', 'shape', 'step'],
  open: ['backend', 'check', 'gpu', 'reference-backend', 'selftest', 'shape', 'step', 'wasm', 'webgpu'],
  kernels: ['check', 'codec', 'layout', 'reference', 'shape', 'wasm'],
  sequence: ['check', 'file', 'layout'],
  cache: ['backend', 'check', 'file', 'pool', 'sequence', 'shape'],
  plan: ['check', 'layout', 'shape', 'step'],
  index: ['backend', 'cache', 'codec', 'open', 'plan', 'sequence']
};

const edge = ['shape', 'open', 'index', 'cache', 'sequence', 'plan', 'kernels'];

/** The specifier of every import and re-export that survives compilation, `import()` too. */
function imports(text: string): string[] {
  const statement =
    /^\s*(?:import|export)\b(?!\s+type\b)[^;'"`]*?\bfrom\s*['"]([^'"]+)['"]|^\s*import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/gm;
  return [...text.matchAll(statement)].map(match => (match[1] ?? match[2] ?? match[3])!);
}

function filesOf(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile())
    .map(entry => relative(root, join(entry.parentPath, entry.name)))
    .sort();
}

/** Without the binaries, which lie beside the modules generated from them. */
const modules = filesOf('src').filter(file => file.endsWith('.ts'));

/** The path from the repository's root of what `file` imports; a package's name stays as it is. */
function resolve(file: string, specifier: string): string {
  return specifier.startsWith('.') ? join(dirname(file), specifier) : specifier;
}

const row = (path: string) => path.replace(/^src\//, '').replace(/\.ts$/, '');

group('layers', test => {
  test('imports() sees every form of import', () => {
    assert.equal(
      imports(
        [
          `import { a } from './a.ts';`,
          `import { b, type B } from "./b.ts";`,
          `import type { Erased } from './erased.ts';`,
          `export type { ErasedToo } from './erased.ts';`,
          `import {\n  c,\n  d,\n} from './c.ts';`,
          `import './e.ts';`,
          `export * from './f.ts';`,
          `export { g } from './g.ts';`,
          `const h = await import('./h.ts');`,
          `export const from = 'nowhere';`
        ].join('\n')
      ),
      ['./a.ts', './b.ts', './c.ts', './e.ts', './f.ts', './g.ts', './h.ts']
    );
  });

  test('the table allows no cycle', () => {
    const above = new Set<string>();
    for (const [file, targets] of Object.entries(allowed)) {
      for (const target of targets) {
        assert.ok(above.has(target) || !(target in allowed), `${file} may import ${target}, which is not above it`);
      }
      above.add(file);
    }
  });

  test('the table names every module of src/ and no other', () => {
    assert.equal(modules.map(row).sort(), Object.keys(allowed).sort());
  });

  for (const file of modules) {
    test(`${file} imports only what the table allows`, () => {
      const text = readFileSync(join(root, file), 'utf8');
      for (const specifier of imports(text)) {
        const target = row(resolve(file, specifier));
        assert.ok(allowed[row(file)]?.includes(target), `${file} imports ${target}`);
      }
    });
  }

  test('the table itself keeps the rules', () => {
    for (const [file, targets] of Object.entries(allowed)) {
      if (targets.includes('check')) assert.ok(edge.includes(file), `${file} may import check`);
      if (targets.includes('@assemblyscript/loader')) assert.is(file, 'wasm');
    }
    for (const backend of ['wasm', 'webgpu']) {
      assert.not(allowed[backend]!.some(target => /^(reference|wasm|webgpu)/.test(target)));
    }
    assert.not(allowed.reference!.includes('wasm'));
    assert.not(allowed.reference!.some(target => target.startsWith('generated/')));
  });

  for (const folder of ['assembly', 'shaders'].filter(folder => existsSync(join(root, folder)))) {
    test(`${folder}/ imports nothing from outside itself`, () => {
      for (const file of filesOf(folder)) {
        for (const specifier of imports(readFileSync(join(root, file), 'utf8'))) {
          const target = resolve(file, specifier);
          assert.ok(!specifier.startsWith('.') || target.startsWith(`${folder}/`), `${file} imports ${target}`);
        }
      }
    });
  }
});
