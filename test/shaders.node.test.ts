// The text of shaders/: what every file repeats, as each must be valid by itself, is the same in all of them.

import { readdirSync, readFileSync } from 'node:fs';
import { codecs } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';

const folder = new URL('../shaders/', import.meta.url);
const shaders = new Map(
  readdirSync(folder)
    .filter(file => file.endsWith('.wgsl'))
    .map(file => [file, readFileSync(new URL(file, folder), 'utf8')])
);

/** A function with the comment above it, in every shader that has it. */
function texts(name: string): string[] {
  const pattern = new RegExp(`(?:^//.*\\n)*^fn ${name}\\([\\s\\S]*?^}`, 'm');
  return [...shaders.values()].flatMap(text => text.match(pattern) ?? []);
}

group('shaders', test => {
  for (const [name, users] of [
    ['toHalf', 2],
    ['fromHalf', 3]
  ] as const) {
    test(`${name}() is the same text in the ${users} shaders that have it`, () => {
      assert.is(texts(name).length, users);
      for (const text of texts(name)) assert.is(text, texts(name)[0]);
    });
  }

  test('halves are read by fromHalf(), codewords apart, none of which is subnormal', () => {
    for (const [file, text] of shaders) {
      for (const line of text.replace(/\/\/.*$/gm, '').split('\n')) {
        if (/unpack|pack2x16|quantizeToF16|\bf16\b/.test(line)) assert.match(line, /unpack2x16float\((book|constants\[BOOK)/, file);
      }
    }
    for (const { codebook } of Object.values(codecs)) assert.ok(codebook.every(x => Math.abs(x) >= 2 ** -14));
  });
});
