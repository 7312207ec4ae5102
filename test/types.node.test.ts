// What compilers make of the package's types: every supported TypeScript, every way of resolving modules, with the types of browsers
// and without, library files checked too. Must compile what a user would write, in an empty project.
import { spawnSync } from 'node:child_process';
import { readdirSync, readFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { consumers, installedPackage, notInstalled, project } from './consumers.ts';

/** Every entry, and most of what can be called. */
const everywhere = `
import { openBackend, KVCache, codecs, inspect, plan, BackendError } from 'nsnquant';
import type { Backend, CacheOptions, GpuBuffer, GpuDevice, GpuTarget, GpuTokens, OpenOptions, Output, Plan, Rope, SavedSequence, SaveOptions, Sequence, WasmModule } from 'nsnquant';
import * as cpu from 'nsnquant/cpu';
import { BackendError as KernelError, openKernels, type KernelOptions, type Verbs } from 'nsnquant/kernels';
import type * as kernels from 'nsnquant/kernels';
import { type PrefixStorage, PrefixStore, type PrefixStoreOptions, StorageError, type TokenIds } from 'nsnquant/prefixes';
import * as reference from 'nsnquant/reference';

const rope: Rope = { invFreq: [1, 0.1], interleaved: true };
const options: CacheOptions = { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 64, capacity: 128, keys: 'nsn4', values: 'nsn2', rope };
const chosen: OpenOptions = { prefer: 'wasm', variant: 'simd128', shape: options };
const backend: Backend = await openBackend(chosen);
using cache = new KVCache(backend, options);
const sequence: Sequence = cache.sequence();
sequence.append(0, new Float32Array(64), new Uint16Array(64));
const output: Output = sequence.attend(0, new Float32Array(128), { scale: 0.125 });
export const numbers: Float32Array = await output.read();
const saving: SaveOptions = { metadata: { model: 'smollm2-135m' } };
export const bytes: Uint8Array = await sequence.save(saving);
const saved: SavedSequence = inspect(bytes);
export const model: string | undefined = saved.metadata['model'];
const sizes: Plan = plan(options);
export const fastest: Backend | undefined = (await plan(options, { backends: [backend], batch: [1], context: [64] })).steps[0]?.fastest;
export const text: string = backend.name + backend.variant + backend.reason + sizes.bytes + codecs.nsn2.name;
try {
  new cpu.KVCache(await cpu.openBackend({ variant: 'scalar' }), options).restore(bytes).fork().crop(0);
} catch (error) {
  if (error instanceof BackendError) throw error.cause;
}
declare const storage: PrefixStorage;
const storing: PrefixStoreOptions = { model: 'smollm2-135m', budget: 2e9 };
const ids: TokenIds = [1n, 73, 4093];
export const found: Sequence | undefined = await new PrefixStore(storage, storing).load(cache, ids);
export const failed = (error: unknown): boolean => error instanceof StorageError;
const kernelOptions: KernelOptions = { headDim: 64, codec: 'nsn2' };
const verbs: Verbs = await openKernels(kernelOptions);
export const block: Uint8Array = verbs.encode(new Float32Array(4096));
reference.hadamard(new Float64Array(64), 64);

// What an entry's signatures name, it has.
export const refused = (error: unknown): kernels.BackendName | undefined => (error instanceof KernelError ? error.backend : undefined);
export const asked: { codec: kernels.CodecName; rope: kernels.Rope; module: kernels.WasmModule; variant: kernels.WasmVariant } & kernels.WasmOptions =
  { codec: 'nsn2', rope, module: {}, variant: 'scalar' };
export const codec: reference.Codec = codecs['nsn2' satisfies reference.CodecName];
reference.shift(new Float64Array(64), 64, 8, rope satisfies reference.Rope);
export const code: number = reference.codebookQuantizer(reference.codebooks[4]).quantize(new Float64Array(64), 0);

declare const device: GpuDevice, buffer: GpuBuffer, module: WasmModule;
await openBackend({ device });
await openBackend({ module });
const tokens: GpuTokens = { buffer, tokens: 1, format: 'f16' };
const out: GpuTarget = { buffer, offset: 16 };
sequence.append(0, tokens, tokens);
sequence.attend(0, { buffer, tokens: 1 }, { out });

// What is read is of the type that was asked for.
const query = new Uint16Array(64);
const floats: Float32Array = await sequence.attend(0, query, { layout: 'heads-first' }).read();
const halves: Uint16Array = await sequence.attend(0, query, { out: new Uint16Array(64) }).read();
const copied: Uint16Array = await cache.attend([sequence], 0, [query], { out: { buffer, format: 'f16' } }).read();
const copy: Float32Array = await cache.attend([sequence], 0, [query], { out: { buffer } }).read();
const either: Float32Array | Uint16Array = await sequence.attend(0, query, { out }).read();
export const read = [floats, halves, copied, copy, either];
// @ts-expect-error
export const wrong: Float32Array = await sequence.attend(0, query, { out: { buffer, format: 'f16' } }).read();
// @ts-expect-error
sequence.attend(0, query, { layout: 'channels-first' });

// Were types lost, any of these would do.
// @ts-expect-error
new KVCache(backend, { ...options, keys: 'nsn5' });
// @ts-expect-error
sequence.append(0, [1], [2]);
// @ts-expect-error
reference.hadamard('x', 64);
// @ts-expect-error: what is inside is no one else's
backend.createStore;
// @ts-expect-error
new cpu.KVCache({ name: 'wasm' }, options);
`;

/** What browsers and engines hand in. */
const browser = `
import { openBackend, KVCache } from 'nsnquant';
import { openKernels } from 'nsnquant/kernels';

declare const device: GPUDevice, buffer: GPUBuffer;
const cache = new KVCache(await openBackend({ device }), { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 64 });
cache.sequence().attend(0, { buffer, tokens: 1 }, { out: { buffer } });
const module = await WebAssembly.compileStreaming(fetch('simd128.wasm'));
await openBackend({ module });
await openKernels({ headDim: 32, codec: 'nsn1', module });
// @ts-expect-error
await openBackend({ device: buffer });
// @ts-expect-error
cache.sequence().attend(0, { buffer: device, tokens: 1 });
`;

/** Before version 6 the types of browsers know no GPU; then they come from @webgpu/types. */
const compilers = [
  { name: 'TypeScript 5.4', path: 'typescript54', gpu: ['@webgpu/types'] },
  { name: 'TypeScript 5.9', path: 'typescript59', gpu: ['@webgpu/types'] },
  { name: 'TypeScript 6', path: 'typescript6', gpu: [] },
  { name: 'TypeScript 7', path: 'typescript7', gpu: [] }
] as const;

const resolutions = [
  { module: 'node16', moduleResolution: 'node16' },
  { module: 'nodenext', moduleResolution: 'nodenext' },
  { module: 'esnext', moduleResolution: 'bundler' }
] as const;

/** The projects that a compiler is tried with: a folder each. */
function files(gpu: readonly string[]): Record<string, string> {
  const all: Record<string, string> = { 'package.json': '{ "private": true, "type": "module" }' };
  for (const { module, moduleResolution } of resolutions) {
    for (const dom of [false, true]) {
      const folder = `${moduleResolution} ${dom ? 'with' : 'without'} the types of browsers`;
      const compilerOptions = {
        module,
        moduleResolution,
        target: 'es2022',
        lib: ['es2022', ...(dom ? ['dom'] : [])],
        types: dom ? gpu : [],
        typeRoots: [join(consumers, 'node_modules')],
        strict: true,
        exactOptionalPropertyTypes: true,
        skipLibCheck: false,
        skipDefaultLibCheck: true, // TypeScript's own files alone
        noEmit: true
      };
      all[`${folder}/tsconfig.json`] = JSON.stringify({ compilerOptions });
      all[`${folder}/everywhere.ts`] = everywhere;
      if (dom) all[`${folder}/browser.ts`] = browser;
    }
  }
  return all;
}

/** The .d.ts files that an entry leads to. */
function declarations(entry: string, found = new Set<string>()): Set<string> {
  if (found.has(entry)) return found;
  found.add(entry);
  for (const [, specifier] of readFileSync(entry, 'utf8').matchAll(/(?:from|import\() ?['"](\.[^'"]+)\.(?:ts|js)['"]/g)) {
    declarations(`${join(dirname(entry), specifier!)}.d.ts`, found);
  }
  return found;
}

group('types', test => {
  for (const { name, path, gpu } of compilers) {
    const title = `${name} compiles what users write, however modules are resolved, with the types of browsers and without`;
    if (notInstalled !== undefined) {
      test.skip(title, notInstalled);
      continue;
    }
    test(title, () => {
      const folder = project(`types/${path}`, files(gpu));
      const manifest = JSON.parse(readFileSync(join(consumers, 'node_modules', path, 'package.json'), 'utf8'));
      const tsc = join(consumers, 'node_modules', path, manifest.bin.tsc);
      const projects = readdirSync(folder).filter(name => name !== 'package.json');
      assert.is(projects.length, 6);
      // In one process, which reads what they share once: a third of the time.
      const { status, stdout } = spawnSync(process.execPath, [tsc, '--build', '--verbose', ...projects], { cwd: folder, encoding: 'utf8' });
      assert.is(status, 0, stdout);
      assert.is(stdout.match(/Building project/g)?.length, projects.length, stdout);
    });
  }

  test('declarations that an entry leads to declare only what an entry exports, and hold no binary', () => {
    const { exports } = JSON.parse(readFileSync(join(installedPackage, 'package.json'), 'utf8'));
    const doors = Object.values(exports).flatMap(entry => {
      const { types } = entry as { types?: string };
      return types === undefined ? [] : [join(installedPackage, types)];
    });
    assert.is(doors.length, 5);
    const files = new Set(doors.flatMap(door => [...declarations(door)]));
    assert.ok(files.size > 10);
    const texts = [...files].map(file => readFileSync(file, 'utf8'));
    for (const text of texts) assert.ok(text.length < 20_000, text.slice(0, 200));

    const declared = (text: string) =>
      [...text.matchAll(/^export (?:declare )?(?:function|const|class|interface|type) (\w+)/gm)].map(([, name]) => name!);
    const listed = (text: string) => [...text.matchAll(/^export (?:type )?\{([^}]*)\}/gm)].flatMap(([, names]) => names!.match(/\w+/g)!);
    const exported = new Set(doors.map(door => readFileSync(door, 'utf8')).flatMap(text => [...declared(text), ...listed(text)]));
    exported.add('dispose'); // stands for Symbol.dispose in the names of methods
    assert.equal(
      texts.flatMap(declared).filter(name => !exported.has(name)),
      []
    );
  });
});
