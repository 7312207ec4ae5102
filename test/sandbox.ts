// Installs the package as npm would and bundles the tests beside it. Must leave `nsnquant` to be found by name, never in src or dist.
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';

const root = fileURLToPath(new URL('..', import.meta.url));
const tests = join(root, 'test');
export const sandbox = join(root, '.test');

/** Every test file of the tree, without folder. */
export const testFiles = readdirSync(tests)
  .filter(name => name.endsWith('.test.ts'))
  .sort();

/** The bundled file's name, in the sandbox and in the page. */
export const bundled = (file: string) => file.replace(/\.ts$/, '.js');

/** Packs what `npm publish` would send and unpacks it into the sandbox, with the packages it depends on. */
export function install(): void {
  rmSync(sandbox, { recursive: true, force: true });
  const modules = join(sandbox, 'node_modules');
  const target = join(modules, 'nsnquant');
  mkdirSync(target, { recursive: true });

  // --ignore-scripts: `prepare` would build what `npm test` has just built.
  execFileSync('npm', ['pack', '--ignore-scripts', '--pack-destination', sandbox], { cwd: root, stdio: 'pipe' });
  const tarball = readdirSync(sandbox).find(name => name.endsWith('.tgz'))!;
  execFileSync('tar', ['-xzf', join(sandbox, tarball), '-C', target, '--strip-components=1']);

  const { dependencies } = JSON.parse(readFileSync(join(target, 'package.json'), 'utf8'));
  for (const name of Object.keys(dependencies)) {
    cpSync(join(root, 'node_modules', name), join(modules, name), { recursive: true });
  }
  // Without a package.json of its own the sandbox would be inside the package nsnquant, and the name would mean the
  // work tree; Deno resolves bare names only where one is.
  writeFileSync(join(sandbox, 'package.json'), JSON.stringify({ private: true, type: 'module', dependencies: { nsnquant: '*' } }));

  if (existsSync(join(tests, 'fixtures'))) cpSync(join(tests, 'fixtures'), join(sandbox, 'fixtures'), { recursive: true });
}

/** One module of test files, mostly of one, for Node, Deno and Bun; the package stays an import by name. */
export async function bundle(file: string, files: readonly string[]): Promise<void> {
  const imports = files.map(name => `await import('./${name}');\nregistered('${name}');\n`).join('');
  await build({
    stdin: {
      contents: `import { finish, registered } from '../tools/group.ts';\n${imports}await finish();\n`,
      resolveDir: tests,
      sourcefile: `${file}.entry.ts`
    },
    outfile: join(sandbox, bundled(file)),
    bundle: true,
    format: 'esm',
    platform: 'neutral',
    mainFields: ['module', 'main'],
    target: 'es2023',
    external: ['nsnquant', 'nsnquant/*', 'node:*', 'esbuild', 'unstorage/drivers/fs', 'unstorage/drivers/redis'],
    ignoreAnnotations: true, // package.json says that nothing here has side effects; a test file is nothing else
    sourcemap: 'inline',
    logLevel: 'warning'
  });
}

/** The same module with the installed package bundled in, as a page would have it. */
export async function bundleForPage(file: string): Promise<void> {
  await build({
    entryPoints: [join(sandbox, bundled(file))],
    outfile: join(sandbox, 'page', bundled(file)),
    bundle: true,
    format: 'esm',
    platform: 'browser',
    target: 'es2023',
    external: ['node:*'],
    keepNames: true, // messages say the class of what came
    sourcemap: 'inline',
    logLevel: 'warning'
  });
}
