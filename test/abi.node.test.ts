// What the binaries export, and the structs that the host writes and they read, are declared twice, in TypeScript and in
// AssemblyScript: they must agree.

import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { CODEBOOK, ITEM, RAW, SEGMENT, SHAPE, SIDE, STAGE, struct } from '../src/wasm/abi.ts';
import { group } from '../tools/group.ts';

const read = (path: string) => readFileSync(fileURLToPath(new URL(`../${path}`, import.meta.url)));
const source = read('assembly/abi.ts').toString();

/** Names and types of a class's fields; one that is a class is a pointer to it, a usize. */
function fieldsOf(name: string): Record<string, string> {
  const body = new RegExp(`class ${name} \\{([^}]*)\\}`).exec(source)?.[1] ?? '';
  return Object.fromEntries(
    Array.from(body.matchAll(/^ {2}(\w+): (\w+);/gm), ([, field, type]) => [field!, /^[A-Z]/.test(type!) ? 'usize' : type!])
  );
}

group('the binary interface', test => {
  const structs = { Codebook: CODEBOOK, Stage: STAGE, Segment: SEGMENT, Side: SIDE, Shape: SHAPE, Item: ITEM, Raw: RAW };

  for (const [name, fields] of Object.entries(structs)) {
    test(`${name} has the same fields in the same order on either side`, () => {
      assert.equal(Object.entries(fields), Object.entries(fieldsOf(name)));
    });
  }

  test('every class that the binaries read is among them', () => {
    assert.equal(Array.from(source.matchAll(/class (\w+)/g), match => match[1]).sort(), Object.keys(structs).sort());
  });

  for (const variant of ['scalar', 'simd128']) {
    test(`Kernels names what the binary exports, and nothing else: ${variant}`, () => {
      const body = /interface Kernels [^{]*\{([^}]*)\}/.exec(read('src/wasm/abi.ts').toString())![1]!;
      const exported = WebAssembly.Module.exports(new WebAssembly.Module(read(`src/wasm/generated/${variant}.wasm`)));
      assert.equal(
        exported.flatMap(({ kind, name }) => (kind === 'function' ? [name] : [])).sort(),
        Array.from(body.matchAll(/^ {2}(\w+)\(/gm), match => match[1]).sort()
      );
    });

    test(`structs are as large as the binary says: ${variant}`, () => {
      const module = new WebAssembly.Module(read(`src/wasm/generated/${variant}.wasm`));
      const { exports } = new WebAssembly.Instance(module, { env: { memory: new WebAssembly.Memory({ initial: 1 }) } });
      const bytes = (name: string) => (exports[name] as () => number)();
      const sizes = [SHAPE, ITEM, RAW].map(fields => 4 * Object.keys(fields).length);
      assert.equal([bytes('shapeBytes'), bytes('itemBytes'), bytes('rawBytes')], sizes);
    });
  }

  test('struct() writes every field in its place, floats as floats', () => {
    const fields = { a: 'usize', b: 'f32', c: 'i32' } as const;
    const words = struct(fields, { c: 3, a: 0xfffffff0, b: 0.5 });
    assert.equal(Array.from(words), [0xfffffff0, 0x3f000000, 3]);
  });
});
