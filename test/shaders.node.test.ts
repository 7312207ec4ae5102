// The text of shaders/: what files repeat, as each must be valid by itself, is the same in all of them, and the structs that the host
// writes have the fields that src/webgpu/structs.ts names.

import { readdirSync, readFileSync } from 'node:fs';
import { codebooks } from 'nsnquant/reference';
import * as assert from 'uvu/assert';
import { codecs } from '../src/format/codec.ts';
import { cacheShape } from '../src/shape.ts';
import { Constants } from '../src/webgpu/constants.ts';
import { fieldsOf, STRUCTS } from '../src/webgpu/structs.ts';
import { group } from '../tools/group.ts';

const folder = new URL('../shaders/', import.meta.url);
const shaders = new Map(
  readdirSync(folder)
    .filter(file => file.endsWith('.wgsl'))
    .map(file => [file, readFileSync(new URL(file, folder), 'utf8')])
);

/** Structs of four words or less, in an entry of a schedule each. */
const ENTRIES = ['ChunkPair', 'Request', 'Tile', 'Split', 'RawWindow'] as const;

/** A function or struct with the comment above it, in every shader that has it. */
function texts(name: string): string[] {
  const pattern = new RegExp(`(?:^//.*\\n)*^(?:fn ${name}\\([\\s\\S]*?^}|struct ${name} {[^}]*})`, 'm');
  return [...shaders.values()].flatMap(text => text.match(pattern) ?? []);
}

group('shaders', test => {
  for (const [name, users] of [
    ['toHalf', 4],
    ['fromHalf', 5],
    ['Stage', 3],
    ['stageOf', 3],
    ['hadamardScale', 3],
    ['power', 3],
    ['pairOf', 3],
    ['tileOf', 2],
    ['rowOf', 2],
    ['requestOf', 2],
    ['Schedule', 2],
    ['Request', 2],
    ['Tile', 2]
  ] as const) {
    test(`${name} is the same text in the ${users} shaders that have it`, () => {
      assert.is(texts(name).length, users);
      for (const text of texts(name)) assert.is(text, texts(name)[0]);
    });
  }

  test('structs have the fields that the host writes, one word each, and no other struct is there', () => {
    const found = new Set<string>();
    for (const text of shaders.values()) {
      for (const [, name, body] of text.replace(/\/\/.*$/gm, '').matchAll(/^struct (\w+) {([^}]*)}/gm)) {
        found.add(name!);
        const fields = body!
          .split(',')
          .map(field => field.trim())
          .filter(field => field !== '');
        if (name === 'Schedule') assert.is(fields.pop(), 'entries: array<vec4u>');
        assert.equal(
          fields,
          fieldsOf(name as keyof typeof STRUCTS).map(field => `${field}: ${['scale', 'softcap'].includes(field) ? 'f32' : 'u32'}`),
          name
        );
      }
    }
    assert.equal([...found].sort(), Object.keys(STRUCTS).sort());
    for (const name of ENTRIES) assert.ok(fieldsOf(name).length <= 4, name);
  });

  test('stages are listed of every codec and number of channels, also where blocks of both sides have as many bytes', () => {
    for (const codec of Object.keys(codecs) as (keyof typeof codecs)[]) {
      const layers = Array.from({ length: 69 }, (_, n) => ({ headDim: 32 + 8 * n }));
      const shape = cacheShape({ layers, kvHeads: 1, queryHeads: 1, keys: codec, values: codec, capacity: 64, balance: 'off' });
      const constants = new Constants(shape);
      for (const block of shape.layers.flatMap(({ page }) => [page.keys, page.values])) {
        const { at, count } = constants.stagesOf(block);
        const stages = block.segments.flatMap(({ channel, channels, stages }) =>
          stages.map(({ column, columns }) => [channel, channels, column, columns])
        );
        const listed = Array.from({ length: count }, (_, n) => Array.from(constants.words.subarray(at + 9 * n + 1, at + 9 * n + 5)));
        assert.equal(listed, stages, `${codec}, ${block.bytes} bytes`);
      }
    }
  });

  test('a struct that lies in an entry is read from it field by field', () => {
    for (const name of ENTRIES) {
      const words = fieldsOf(name).map((_, n) => `words.${'xyzw'[n]}`);
      const reader = texts(`${name[0]!.toLowerCase()}${name.slice(1)}Of`);
      assert.ok(reader.length > 0, name);
      for (const text of reader) assert.match(text, `return ${name}(${words.join(', ')});`);
    }
  });

  test('halves are read by fromHalf(), codewords apart, none of which is subnormal', () => {
    for (const [file, text] of shaders) {
      for (const line of text.replace(/\/\/.*$/gm, '').split('\n')) {
        if (/unpack|pack2x16|quantizeToF16|\bf16\b/.test(line))
          assert.match(line, /unpack2x16float\((book\[|constants\[(stage\.book|word\]))/, file);
      }
    }
    for (const { codewords } of Object.values(codebooks)) assert.ok(codewords.every(x => Math.abs(x) >= 2 ** -14));
  });
});
