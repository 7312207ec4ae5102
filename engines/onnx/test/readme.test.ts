// The README's examples, as they stand there, beside tiny models in place of those that they name.
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { chdir, cwd } from 'node:process';
import { pathToFileURL } from 'node:url';
import { env } from '@huggingface/transformers';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { exportDecoder } from './exports.ts';
import { writeFolder } from './folder.ts';

const root = join(import.meta.dirname, '..');
const readme = await readFile(join(root, 'README.md'), 'utf8');
const examples = [...readme.matchAll(/```ts\n([\s\S]*?)```/g)].map(([, code]) => code!);
/** What each prints, where that is one thing alone. */
const printed = [/^13 tokens in \d+ bytes$/, /assistant/, /^$/, /^\d+ \d+ \d+$/];

group('README', test => {
  for (const [n, code] of examples.entries()) {
    test(`example ${n + 1} runs, in ten lines beside its imports`, async () => {
      const lines = code.split('\n').filter(line => line !== '' && !line.startsWith('import '));
      assert.ok(lines.length <= 10, `${lines.length} lines`);
      const models = await writeFolder();
      const { model, weights } = exportDecoder({ external: 'model.onnx_data' });
      await writeFile(join(models.path, 'model.onnx'), model);
      await writeFile(join(models.path, 'model.onnx_data'), weights);
      // In the package, where it finds what it imports.
      const folder = await mkdtemp(join(root, 'dist', 'readme-'));
      await writeFile(join(folder, 'example.mjs'), code);
      const texts: string[] = [];
      const before = cwd();
      const { log } = console;
      env.allowRemoteModels = false;
      chdir(models.path);
      try {
        console.log = (...parts) => texts.push(parts.map(part => (typeof part === 'object' ? JSON.stringify(part) : part)).join(' '));
        await import(pathToFileURL(join(folder, 'example.mjs')).href);
      } finally {
        console.log = log;
        chdir(before);
        await models.remove();
        await rm(folder, { recursive: true });
      }
      assert.match(texts.join('\n'), printed[n]!);
    });
  }
});
