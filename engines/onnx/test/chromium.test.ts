// Cut models in a browser: ONNX Runtime's WebAssembly, and its WebGPU on a GPU in software.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Page } from 'playwright-core';
import * as assert from 'uvu/assert';
import { CUT_F16, CUT_F32, RAW_F16 } from '../../../test/tolerance.ts';
import { chromiumPath, ownAdapter } from '../../../tools/chromium.ts';
import { group } from '../../../tools/group.ts';
import type { DecoderOptions } from './exports.ts';
import { withPage } from './page.ts';

const ort = dirname(fileURLToPath(import.meta.resolve('onnxruntime-web/webgpu')));

const inPage = (run: (page: Page) => Promise<void>): Promise<void> =>
  withPage('page.ts', pathname => readFile(join(ort, basename(pathname))), run);

const evaluate = (page: Page, name: 'wasm' | 'webgpu', options: DecoderOptions): Promise<number> =>
  page.evaluate(`${name}(${JSON.stringify(options)})`);

group('Chromium', test => {
  if (!existsSync(chromiumPath) && process.env['NSN_REQUIRE'] !== 'all') {
    test.skip('cut models in a browser', `no ${chromiumPath}; CHROMIUM_PATH may name another`);
    return;
  }
  test('logits of cut models are those of whole ones, in WebAssembly and with tensors that stay on the GPU', () =>
    inPage(async page => {
      for (const [name, options, tolerance] of [
        ['wasm', { tied: true }, CUT_F32],
        ['wasm', { half: true }, CUT_F16],
        ['wasm', { bits: 4, attention: 'Attention', apart: 'past outside', mask: 'later' }, CUT_F32],
        ['webgpu', { layers: 2 }, CUT_F32]
      ] as const) {
        const off = await evaluate(page, name, options);
        assert.ok(off < tolerance, `${name} of ${JSON.stringify(options)}: ${off}`);
      }
    }));
  if (!ownAdapter) {
    test.skip("with nsnquant's cache on the same device", 'its self-test takes a minute in software; NSN_ADAPTER=own runs it');
    return;
  }
  test("with nsnquant's cache on the same device, logits are those of its cache in WebAssembly", () =>
    inPage(async page => {
      const off: number = await page.evaluate('cached({ layers: 2 })');
      assert.ok(off < RAW_F16, `${off}`);
    }));
});
