// A module handed in: the package's own .wasm files, found by name as an application finds them, and what is refused. In a page
// there are no names without a bundler; forbidden.node.test.ts has one there.
import { BackendError, openBackend } from 'nsnquant';
import { openBackend as openCpu } from 'nsnquant/cpu';
import { openKernels } from 'nsnquant/kernels';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses } from './compare.ts';
import { wasm } from './verbs.ts';

const page = typeof document !== 'undefined';

/** One of the package's binaries. */
async function binary(variant: string): Promise<BufferSource> {
  const { readFile } = await import('node:fs/promises');
  const { fileURLToPath } = await import('node:url');
  return new Uint8Array(await readFile(fileURLToPath(import.meta.resolve(`nsnquant/${variant}.wasm`))));
}

/** A binary with another hash at its end: of another version, say. */
const altered = (bytes: Uint8Array) => bytes.map((byte, i) => (i === bytes.length - 1 ? byte ^ 1 : byte));

const kernels = { headDim: 32, codec: 'nsn2' } as const;
const doors = {
  openBackend,
  'openBackend of nsnquant/cpu': openCpu,
  openKernels: (options: object) => openKernels({ ...kernels, ...options })
};

group('module', test => {
  for (const { backend } of wasm) {
    const title = `nsnquant/${backend.variant}.wasm is known for what it is`;
    if (page) {
      test.skip(title, 'a page resolves no names');
      continue;
    }
    test(title, async () => {
      const module = await WebAssembly.compile(await binary(backend.variant));
      for (const open of Object.values(doors)) assert.is((await open({ module })).variant, backend.variant);
      const opened = await openBackend({ module, variant: backend.variant as 'scalar' });
      assert.is(opened.reason, `${backend.variant} was given as a module`);
    });
  }

  for (const [name, open] of Object.entries(doors)) {
    test(`${name} refuses what is no module, and modules that are not of this version`, async () => {
      await refuses(() => open({ module: null as never }), TypeError, '"module" expected WebAssembly.Module, got null');
      await refuses(() => open({ module: new Uint8Array(8) }), TypeError, '"module" expected WebAssembly.Module, got Uint8Array');
      const empty = await WebAssembly.compile(Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0));
      const unsigned = await WebAssembly.compile(
        Uint8Array.of(0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 0, 9, 8, 0x6e, 0x73, 0x6e, 0x71, 0x75, 0x61, 0x6e, 0x74)
      );
      const others = page ? [] : [await WebAssembly.compile(altered((await binary('scalar')) as Uint8Array))];
      for (const module of [empty, unsigned, ...others]) {
        await refuses(
          () => open({ module }),
          RangeError,
          '"module" expected a .wasm file of this very version of the package, got another module'
        );
      }
    });

    if (page) continue;
    test(`${name} refuses a module beside another choice`, async () => {
      const module = await WebAssembly.compile(await binary('scalar'));
      await refuses(() => open({ module, variant: 'simd128' }), RangeError, '"variant" expected scalar (that of "module"), got simd128');
      if (open === openCpu) return;
      await refuses(
        () => open({ module, prefer: 'reference' } as never),
        RangeError,
        '"prefer" expected wasm (a module is given), got reference'
      );
    });
  }

  test('an engine that refuses to compile is met as a BackendError, whichever door is tried', async () => {
    const { compile } = WebAssembly;
    const cause = new WebAssembly.CompileError('not today');
    WebAssembly.compile = () => Promise.reject(cause);
    try {
      for (const open of [() => openBackend({ variant: 'scalar' }), () => openBackend(), () => openCpu(), () => openKernels(kernels)]) {
        const error = await open().catch((error: unknown) => error);
        assert.instance(error, BackendError);
        assert.is((error as BackendError).message, 'wasm backend expected leave to compile (or a compiled "module"), got: not today');
        assert.is((error as BackendError).cause, cause);
      }
    } finally {
      WebAssembly.compile = compile;
    }
  });
});
