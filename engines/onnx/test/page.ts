// A page in Chromium: bundled, served beside other files, and opened.
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';
import { build } from 'esbuild';
import { chromium, type Page } from 'playwright-core';
import { chromiumPath, ownAdapter } from '../../../tools/chromium.ts';

const ARGUMENTS = ['--enable-unsafe-webgpu', '--enable-features=Vulkan', ...(ownAdapter ? [] : ['--use-webgpu-adapter=swiftshader'])];
const TYPES: Readonly<Record<string, string>> = { '.mjs': 'text/javascript', '.js': 'text/javascript', '.wasm': 'application/wasm' };
/** Milliseconds for a page to answer: shaders are compiled in software, on a machine that does much else. */
const PATIENCE_MS = 120_000;

/**
 * @param script  in browser/; sets `ready` of globalThis when it can be asked
 * @param files   what lies at a path; throws where nothing does
 */
export async function withPage(
  script: string,
  files: (pathname: string) => Promise<Uint8Array>,
  run: (page: Page) => Promise<void>
): Promise<void> {
  const { outputFiles } = await build({
    entryPoints: [join(import.meta.dirname, 'browser', script)],
    outfile: 'page.js',
    bundle: true,
    format: 'esm',
    target: 'es2022',
    write: false
  });
  const bodyOf = async (pathname: string): Promise<string | Uint8Array> => {
    if (pathname === '/') return '<!doctype html><script type="module" src="page.js"></script>';
    return pathname === '/page.js' ? outputFiles[0]!.contents : files(pathname);
  };
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost');
    try {
      const body = await bodyOf(pathname);
      response.writeHead(200, { 'content-type': TYPES[extname(pathname)] ?? 'text/html', 'content-length': body.length }).end(body);
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
    await page.waitForFunction(() => 'ready' in globalThis);
    await run(page);
  } finally {
    await browser.close();
    server.close();
  }
}
