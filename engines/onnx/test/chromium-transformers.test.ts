// transformers.js in a browser, with a cache under its model.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { chromiumPath, ownAdapter } from '../../../tools/chromium.ts';
import { group } from '../../../tools/group.ts';
import type { Turns } from './browser/transformers.ts';
import { writeFolder } from './folder.ts';
import { withPage } from './page.ts';

/** The ONNX Runtime that transformers.js brings. */
const { resolve } = createRequire(fileURLToPath(import.meta.resolve('@huggingface/transformers')));
const ort = dirname(resolve('onnxruntime-web/webgpu'));

group('transformers.js in Chromium', test => {
  if (!existsSync(chromiumPath) && process.env['NSN_REQUIRE'] !== 'all') {
    test.skip('a compressed model in a browser', `no ${chromiumPath}; CHROMIUM_PATH may name another`);
    return;
  }
  const giveTheSame = async (device: 'wasm' | 'webgpu'): Promise<void> => {
    const folder = await writeFolder();
    const files = (pathname: string) =>
      readFile(pathname.startsWith('/ort/') ? join(ort, basename(pathname)) : join(folder.path, pathname));
    try {
      await withPage('transformers.ts', files, async page => {
        const { own, stored, compressed, backend } = (await page.evaluate(`turns('${device}')`)) as Turns;
        assert.is(own.length, 30 + 8 + 3 + 8);
        assert.equal(stored, own);
        assert.equal(compressed, own);
        assert.is(backend, device);
      });
    } finally {
      await folder.remove();
    }
  };
  test('a compressed model gives the tokens of the model itself, and so does its past compressed between turns', () => giveTheSame('wasm'));
  if (ownAdapter) test('on a GPU, too, with the cache on the same device', () => giveTheSame('webgpu'));
  else test.skip('on a GPU, too', "the cache's self-test takes minutes in software; NSN_ADAPTER=own runs it");
});
