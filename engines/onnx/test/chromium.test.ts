// Cut models in a browser: ONNX Runtime's WebAssembly, and its WebGPU on a GPU in software.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { basename, dirname, extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { chromium, type Page } from 'playwright-core';
import * as assert from 'uvu/assert';
import { CUT_F16, CUT_F32, RAW_F16 } from '../../../test/tolerance.ts';
import { chromiumPath, ownAdapter } from '../../../tools/chromium.ts';
import { group } from '../../../tools/group.ts';
import type { DecoderOptions } from './exports.ts';

const ARGUMENTS = ['--enable-unsafe-webgpu', '--enable-features=Vulkan', ...(ownAdapter ? [] : ['--use-webgpu-adapter=swiftshader'])];
const TYPES: Readonly<Record<string, string>> = { '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm' };
/** Milliseconds for a page to answer: shaders are compiled in software, on a machine that does much else. */
const PATIENCE_MS = 120_000;

const ort = dirname(fileURLToPath(import.meta.resolve('onnxruntime-web/webgpu')));

/** Bundles the page, serves it with ONNX Runtime's files, and opens it. */
async function withPage(run: (page: Page) => Promise<void>): Promise<void> {
  const { outputFiles } = await build({
    entryPoints: [join(import.meta.dirname, 'browser/page.ts')],
    outfile: 'page.js',
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false
  });
  const bodyOf = async (pathname: string): Promise<string | Uint8Array> => {
    if (pathname === '/') return '<!doctype html><script type="module" src="page.js"></script>';
    return pathname === '/page.js' ? outputFiles[0]!.contents : readFile(join(ort, basename(pathname)));
  };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost');
    try {
      const body = await bodyOf(pathname);
      response.writeHead(200, { 'content-type': TYPES[extname(pathname)] ?? 'text/html' }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>(listening => server.listen(0, '127.0.0.1', listening));
  const browser = await chromium.launch({ executablePath: chromiumPath, args: ARGUMENTS });
  try {
    const page = await browser.newPage();
    page.setDefaultTimeout(PATIENCE_MS);
    await page.goto(`http://127.0.0.1:${(server.address() as AddressInfo).port}/`);
    await page.waitForFunction(() => 'wasm' in globalThis);
    await run(page);
  } finally {
    await browser.close();
    server.close();
  }
}

const evaluate = (page: Page, name: 'wasm' | 'webgpu', options: DecoderOptions): Promise<number> =>
  page.evaluate(`${name}(${JSON.stringify(options)})`);

group('Chromium', test => {
  if (!existsSync(chromiumPath) && process.env['NSN_REQUIRE'] !== 'all') {
    test.skip('cut models in a browser', `no ${chromiumPath}; CHROMIUM_PATH may name another`);
    return;
  }
  test('logits of cut models are those of whole ones, in WebAssembly and with tensors that stay on the GPU', () =>
    withPage(async page => {
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
    withPage(async page => {
      const off: number = await page.evaluate('cached({ layers: 2 })');
      assert.ok(off < RAW_F16, `${off}`);
    }));
});
