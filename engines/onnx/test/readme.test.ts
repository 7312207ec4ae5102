// The README's example, as it stands there, beside a model.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { exportDecoder } from './exports.ts';

group('README', test => {
  test('its example runs', async () => {
    const readme = await readFile(join(import.meta.dirname, '../README.md'), 'utf8');
    const example = /```ts\n([\s\S]*?)```/.exec(readme)![1]!;
    // In the package, where it finds what it imports.
    const folder = await mkdtemp(join(import.meta.dirname, '../dist/readme-'));
    const printed: string[] = [];
    const { log } = console;
    try {
      const { model, weights } = exportDecoder({ external: 'model.onnx_data' });
      await writeFile(join(folder, 'model.onnx'), model);
      await writeFile(join(folder, 'model.onnx_data'), weights);
      await writeFile(join(folder, 'example.mjs'), example.replace("'model.onnx'", JSON.stringify(join(folder, 'model.onnx'))));
      console.log = (...parts) => printed.push(parts.join(' '));
      await import(pathToFileURL(join(folder, 'example.mjs')).href);
    } finally {
      console.log = log;
      await rm(folder, { recursive: true });
    }
    assert.match(printed.join('\n'), /^13 tokens in \d+ bytes$/);
  });
});
