// Examples in docstrings, as editors and the pages of the API show them: each compiles, and runs against the installed package.
import { spawnSync } from 'node:child_process';
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { transform } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = join(root, '.test', 'docstrings');

interface Example {
  /** Its file in src/, and which one of that. */
  readonly name: string;
  readonly code: string;
}

const examples = readdirSync(join(root, 'src'), { recursive: true, encoding: 'utf8' })
  .filter(file => file.endsWith('.ts') && !file.includes('generated'))
  .sort()
  .flatMap((file): Example[] => {
    const blocks = readFileSync(join(root, 'src', file), 'utf8').match(/@example\n([\s\S]*?)(?=\*\/|\* @)/g) ?? [];
    return blocks.map((block, n) => ({
      name: `${file} ${n + 1}`,
      code: block.replace('@example\n', '').replace(/^ *\* ?/gm, '')
    }));
  });

const onGpu = ({ code }: Example) => code.includes('buffer:');

/** What examples take for granted: a backend, a cache with two conversations of 128 tokens, and more to append and to ask. */
const imports = `import { BackendError, codebooks, codecs, inspect, KVCache, openBackend, plan } from 'nsnquant';
import { openKernels } from 'nsnquant/kernels';
`;
const conversation = `import { KVCache as Cache, openBackend as open } from 'nsnquant';
const backend = await open({ prefer: 'wasm' });
const cache = new Cache(backend, { layers: 1, kvHeads: 1, queryHeads: 4, headDim: 128, capacity: 1024 });
const [chat, branch] = [cache.sequence(), cache.sequence()];
for (const sequence of [chat, branch]) sequence.append(0, new Float32Array(128 * 128), new Float32Array(128 * 128));
const layer = 0;
`;
const arrays = `const tokens = new Float32Array(64 * 128);
const [keys, values, k1, k2, v1, v2] = Array.from({ length: 6 }, () => new Float32Array(128)) as [Float32Array, Float32Array, Float32Array, Float32Array, Float32Array, Float32Array];
const [query, q1, q2] = Array.from({ length: 3 }, () => new Float32Array(4 * 128)) as [Float32Array, Float32Array, Float32Array];
const store = { put: async (_name: string, _bytes: Uint8Array) => {} };
`;
const buffers = `declare const keys: GPUBuffer, values: GPUBuffer, attention: GPUBuffer;
const query = new Float32Array(4 * 128);
`;

/** An example as a module. One that imports what it uses is given no other imports. */
function program(example: Example): string {
  const own = example.code.match(/^import .*$/gm);
  const body = example.code.replace(/^import .*$/gm, '');
  return `${own ? own.join('\n') : imports}\n${conversation}${onGpu(example) ? buffers : arrays}{\n${body}}\nexport {};\n`;
}

const options = {
  compilerOptions: {
    target: 'es2023',
    lib: ['es2023', 'dom', 'esnext.disposable'],
    module: 'esnext',
    moduleResolution: 'bundler',
    types: [],
    strict: true,
    noEmit: true,
    skipLibCheck: true
  },
  include: ['*.ts']
};

group('docstrings', test => {
  test('there are examples of every entry', () => {
    console.log(`${examples.length} examples`);
    for (const entry of ['cache', 'sequence', 'open', 'plan', 'kernels', 'file', 'prefixes']) {
      assert.ok(
        examples.some(({ name }) => name.startsWith(`${entry}.ts`)),
        entry
      );
    }
  });

  test('every example compiles', () => {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    for (const example of examples) writeFileSync(join(folder, `${fileName(example)}.ts`), program(example));
    writeFileSync(join(folder, 'tsconfig.json'), JSON.stringify(options));
    const compiler = join(root, 'node_modules/typescript/bin/tsc');
    const { status, stdout, stderr } = spawnSync(process.execPath, [compiler, '-p', folder], { encoding: 'utf8' });
    assert.is(status, 0, stdout + stderr);
  });

  for (const example of examples.filter(example => !onGpu(example))) {
    test(`${example.name} runs`, async () => {
      const file = join(folder, `${fileName(example)}.mjs`);
      writeFileSync(file, (await transform(program(example), { loader: 'ts', target: 'es2023' })).code);
      await import(file);
    });
  }
});

function fileName({ name }: Example): string {
  return name.replace(/\W+/g, '-');
}
