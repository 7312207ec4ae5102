// Holds the import direction of src/, assembly/ and shaders/ to a table. Must be read before src/: the table is the architecture.
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/**
 * What each part of src/ may import: a folder, or a file at the top. A row names rows above it only, so that imports point one way:
 * doors → page table → backend (an interface) ← reference | wasm | webgpu → format.
 */
const allowed: Record<string, readonly string[]> = {
  // What bytes mean: numbers and plain data, read by all.
  format: [],
  rope: ['format'],

  // What a backend is, and what it is asked for.
  check: ['format'],
  dispose: [],
  layer: ['check', 'format'],
  shape: ['check', 'format', 'layer'],
  input: ['check', 'format'],
  rows: [],
  backend: ['check', 'dispose', 'format', 'input', 'layer', 'rows', 'shape'],
  gone: ['backend', 'format', 'shape'],
  header: ['check', 'format', 'gone', 'layer', 'rope', 'shape'],
  file: ['backend', 'check', 'format', 'gone', 'header', 'shape'],
  timing: ['backend', 'format', 'layer', 'shape'],
  verbs: ['backend', 'check', 'format', 'input', 'shape'],

  // Where kernels run. Backends never see each other, and the reference is built from nothing generated.
  reference: ['backend', 'format', 'input', 'rows', 'shape', 'verbs'],
  wasm: ['@assemblyscript/loader', 'backend', 'check', 'format', 'input', 'layer', 'rope', 'rows', 'shape', 'verbs'],
  webgpu: ['backend', 'format', 'input', 'layer', 'rope', 'rows', 'shape', 'timing'],

  // Sequences and their cache: two doors to one core, which stands on the page table.
  pool: ['format', 'shape'],
  pagetable: ['backend', 'check', 'format', 'gone', 'layer', 'pool', 'shape'],
  filling: ['format', 'pagetable'],
  sealing: ['backend', 'filling', 'format', 'pagetable', 'pool', 'shape'],
  mass: ['backend', 'format', 'shape'],
  options: ['backend', 'check', 'input', 'rows'],
  attending: ['backend', 'check', 'gone', 'input', 'options', 'pagetable', 'rows', 'shape'],
  decoding: ['backend', 'check', 'input', 'options', 'shape'],
  branching: ['backend', 'filling', 'format', 'pagetable', 'pool', 'sealing', 'shape'],
  core: [
    'attending',
    'backend',
    'branching',
    'check',
    'decoding',
    'file',
    'filling',
    'format',
    'gone',
    'header',
    'input',
    'layer',
    'mass',
    'options',
    'pagetable',
    'pool',
    'sealing',
    'shape'
  ],
  sequence: ['backend', 'check', 'core', 'dispose', 'file', 'format', 'header', 'input', 'mass', 'options', 'pagetable', 'shape'],
  cache: ['backend', 'check', 'core', 'dispose', 'file', 'input', 'options', 'pagetable', 'sequence', 'shape'],

  // The other doors.
  open: ['backend', 'check', 'reference', 'shape', 'timing', 'wasm', 'webgpu'],
  kernels: ['backend', 'check', 'format', 'reference', 'shape', 'verbs', 'wasm'],
  prefixes: ['cache', 'check', 'file', 'format', 'header', 'sequence', 'shape'],
  plan: ['backend', 'check', 'format', 'shape', 'timing'],
  cpu: [
    'backend',
    'cache',
    'check',
    'file',
    'format',
    'input',
    'layer',
    'mass',
    'options',
    'plan',
    'rows',
    'sequence',
    'shape',
    'timing',
    'wasm'
  ],
  index: ['cpu', 'open']
};

/** The specifier of every import and re-export, of types and by `import()` too. */
function imports(text: string): string[] {
  const statement =
    /^\s*(?:import|export)\b[^;'"`]*?\bfrom\s*['"]([^'"]+)['"]|^\s*import\s*['"]([^'"]+)['"]|\bimport\(\s*['"]([^'"]+)['"]/gm;
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

/** What modules import that is not here. */
const packages = ['@assemblyscript/loader'];

/** As resolve(), but AssemblyScript names no extensions, and finds "lanes" in one of two folders (asconfig.json). */
function targetsOf(file: string, specifier: string): string[] {
  if (!file.startsWith('assembly/')) return [resolve(file, specifier)];
  return specifier === 'lanes' ? ['scalar', 'simd'].map(kind => `assembly/lanes/${kind}/lanes.ts`) : [`${resolve(file, specifier)}.ts`];
}

/** The row of a module: its folder, or its name at the top of src/. */
const row = (path: string) => path.replace(/^src\//, '').replace(/(\/.*|\.ts)$/, '');

/** A circle of modules, if there is one. */
function circle(graph: ReadonlyMap<string, readonly string[]>): string[] | undefined {
  const done = new Set<string>();
  const visit = (module: string, path: readonly string[]): string[] | undefined => {
    if (path.includes(module)) return [...path.slice(path.indexOf(module)), module];
    if (done.has(module)) return undefined;
    for (const next of graph.get(module) ?? []) {
      const found = visit(next, [...path, module]);
      if (found) return found;
    }
    done.add(module);
    return undefined;
  };
  for (const module of graph.keys()) {
    const found = visit(module, []);
    if (found) return found;
  }
  return undefined;
}

group('layers', test => {
  test('imports() sees every form of import', () => {
    assert.equal(
      imports(
        [
          `import { a } from './a.ts';`,
          `import { b, type B } from "./b.ts";`,
          `import type { C } from './c.ts';`,
          `export type { D } from './d.ts';`,
          `import {\n  c,\n  d,\n} from './e.ts';`,
          `import './f.ts';`,
          `export * from './g.ts';`,
          `export { g } from './h.ts';`,
          `const h = await import('./i.ts');`,
          `export const from = 'nowhere';`
        ].join('\n')
      ),
      ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i'].map(name => `./${name}.ts`)
    );
  });

  test('circle() finds one', () => {
    assert.equal(
      circle(
        new Map([
          ['a', ['b']],
          ['b', ['c', 'd']],
          ['c', []],
          ['d', ['b']]
        ])
      ),
      ['b', 'd', 'b']
    );
    assert.is(
      circle(
        new Map([
          ['a', ['b', 'c']],
          ['b', ['c']],
          ['c', []]
        ])
      ),
      undefined
    );
  });

  test('a row names rows above it only', () => {
    const above = new Set<string>();
    for (const [part, targets] of Object.entries(allowed)) {
      for (const target of targets) {
        assert.ok(above.has(target) || !(target in allowed), `${part} may import ${target}, which is not above it`);
      }
      above.add(part);
    }
  });

  test('backends may not import each other', () => {
    const backends = ['reference', 'wasm', 'webgpu'];
    for (const backend of backends)
      assert.equal(
        backends.filter(other => allowed[backend]!.includes(other)),
        []
      );
  });

  test('wasm alone may import the loader', () => {
    const rows = Object.keys(allowed).filter(part => allowed[part]!.includes('@assemblyscript/loader'));
    assert.equal(rows, ['wasm']);
  });

  test('the table names every part of src/ and no other', () => {
    assert.equal([...new Set(modules.map(row))].sort(), Object.keys(allowed).sort());
  });

  for (const [folder, files] of [
    ['src', modules],
    ['assembly', filesOf('assembly').filter(file => file.endsWith('.ts'))]
  ] as const) {
    test(`no module of ${folder}/ imports itself by way of others`, () => {
      const graph = new Map(
        files.map(file => [file, imports(readFileSync(join(root, file), 'utf8')).flatMap(specifier => targetsOf(file, specifier))])
      );
      // What is resolved wrongly would be in no circle.
      for (const target of [...graph.values()].flat()) assert.ok(graph.has(target) || packages.includes(target), target);
      assert.is(circle(graph)?.join(' → '), undefined);
    });
  }

  for (const file of modules) {
    test(`${file} imports only what the table allows`, () => {
      for (const specifier of imports(readFileSync(join(root, file), 'utf8'))) {
        const target = specifier.startsWith('.') ? row(resolve(file, specifier)) : specifier;
        assert.ok(target === row(file) || allowed[row(file)]?.includes(target), `${file} imports ${specifier}`);
      }
    });
  }

  for (const folder of ['assembly', 'shaders']) {
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

/** What a file around src/ may import of the repository, by the innermost of these folders that it lies in; ! takes out again. */
const around: Record<string, readonly string[]> = {
  // Tests, benches and examples stand on it: it stands on nothing.
  tools: ['tools'],
  // It times what is inside src/, too.
  bench: ['bench', '!bench/llm', 'src', 'tools'],
  'bench/llm': ['bench', 'src', 'tools'],
  // Packages of their own: they import the library, and one another, as anyone would.
  'engines/onnx': ['engines/onnx', 'tools'],
  // What tests forgive stands in one file.
  'engines/onnx/test': ['engines/onnx', 'test/tolerance.ts', 'tools'],
  'engines/gguf': ['engines/gguf', 'tools'],
  // People copy from here: what an example needs must come with the package, or be small.
  examples: ['examples', 'tools'],
  // The cache that the engine is given has no package of its own yet, nor has what counts its codebooks.
  'examples/page': ['examples/page', 'bench/bytes.ts', 'bench/llm/caches/nsn.ts', 'tools'],
  // A model folder as that engine's tests write it.
  'examples/page/test': ['examples/page', 'bench/llm/caches/nsn.ts', 'engines/onnx/test/folder.ts', 'tools'],
  // It measures as the benchmark does, and checks as the tests do.
  'examples/measure': [
    'examples/measure',
    'bench',
    '!bench/llm',
    'test/attention.ts',
    'test/compare.ts',
    'test/half.ts',
    'test/tolerance.ts',
    'tools'
  ],
  test: ['test', 'src', 'tools', 'examples/device.ts'],
  // A model for the engine's example.
  'test/engines.node.test.ts': ['test', 'tools', 'engines/onnx/test/exports.ts']
};

function mayImport(file: string, target: string): boolean {
  const isIn = (path: string, folder: string): boolean => path === folder || path.startsWith(`${folder}/`);
  const folders = Object.keys(around).filter(folder => isIn(file, folder));
  const innermost = folders.reduce((a, b) => (b.length > a.length ? b : a));
  const row = around[innermost]!;
  return row.some(folder => isIn(target, folder)) && !row.some(folder => folder.startsWith('!') && isIn(target, folder.slice(1)));
}

group('around src/', test => {
  test('mayImport() holds the table', () => {
    for (const [file, target, may] of [
      ['bench/attend.ts', 'bench/data.ts', true],
      ['bench/attend.ts', 'tools/numbers.ts', true],
      ['bench/attend.ts', 'test/gpu.ts', false],
      ['bench/attend.ts', 'examples/device.ts', false],
      ['bench/attend.ts', 'bench/llm/stats.ts', false],
      ['bench/llm/quality.ts', 'bench/table.ts', true],
      ['bench/llm/quality.ts', 'engines/gguf/src/model.ts', false],
      ['engines/gguf/src/model.ts', 'bench/llm/stats.ts', false],
      ['engines/onnx/test/a.ts', 'tools/group.ts', true],
      ['engines/onnx/test/a.ts', 'test/tolerance.ts', true],
      ['engines/onnx/src/a.ts', 'test/tolerance.ts', false],
      ['engines/onnx/src/a.ts', 'src/index.ts', false],
      ['engines/onnx/src/a.ts', 'engines/gguf/src/b.ts', false],
      ['examples/device.ts', 'tools/gpu.ts', true],
      ['examples/device.ts', 'src/index.ts', false],
      ['examples/page/src/conversation.ts', 'bench/llm/caches/nsn.ts', true],
      ['examples/page/src/main.ts', 'bench/llm/chat.ts', false],
      ['examples/page/src/main.ts', 'engines/onnx/test/folder.ts', false],
      ['examples/measure/src/a.ts', 'bench/data.ts', true],
      ['examples/measure/src/a.ts', 'bench/llm/stats.ts', false],
      ['tools/gpu.ts', 'src/index.ts', false],
      ['test/cache.test.ts', 'bench/data.ts', false]
    ] as const)
      assert.is(mayImport(file, target), may, `${file} imports ${target}`);
  });

  /** Files of the repository, without what is installed or built. */
  const own = (folder: string, type: RegExp) =>
    filesOf(folder).filter(file => type.test(file) && !/\/(node_modules|dist|\.test)\//.test(file));
  for (const folder of ['tools', 'bench', 'engines', 'examples', 'test']) {
    test(`${folder}/ imports only what the table allows`, () => {
      for (const file of own(folder, /\.m?ts$/).filter(file => !file.startsWith('bench/baselines/dense/'))) {
        for (const specifier of imports(readFileSync(join(root, file), 'utf8'))) {
          if (!specifier.startsWith('.')) continue;
          const target = resolve(file, specifier);
          assert.ok(mayImport(file, target), `${file} imports ${target}`);
        }
      }
    });
  }

  /** Files that would gain nothing from being cut, and why. */
  const longer: Readonly<Record<string, string>> = {
    'shaders/attend.wgsl': 'WGSL has no imports, and one entry point reads it all',
    'shaders/encode.wgsl': 'as attend.wgsl: every phase works on what the one before left in workgroup memory',
    'test/cache.test.ts': 'one list of what sequences do, over one set of helpers',
    'test/history.ts': 'one class, whose calls share all of its state',
    'test/refusals.test.ts': 'one list of what is refused, in the order of the doors'
  };

  test('no file has more than 400 lines, but those that are named', () => {
    const folders = ['src', 'assembly', 'shaders', 'test', 'tools', 'bench', 'engines', 'examples'];
    const files = folders.flatMap(folder => own(folder, /\.(m?ts|mjs|wgsl|css|html)$/)).filter(file => !file.includes('/generated/'));
    for (const file of Object.keys(longer)) assert.ok(files.includes(file), file);
    for (const file of files) {
      const lines = readFileSync(join(root, file), 'utf8').split('\n').length - 1;
      assert.ok(lines <= 400 || file in longer, `${file} has ${lines} lines`);
    }
  });
});
