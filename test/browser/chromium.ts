// The lane that runs the tests in a page of a real browser, served from this machine.
import { existsSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { stripVTControlCharacters } from 'node:util';
import { chromiumPath, ownAdapter } from '../../tools/chromium.ts';
import type { Runtime } from '../lanes.ts';
import { type Outcome, outcome } from '../outcome.ts';
import { sandbox } from '../sandbox.ts';

const contentTypes: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript' };

const webgpu = ['--enable-unsafe-webgpu', '--enable-features=Vulkan', ...(ownAdapter ? [] : ['--use-webgpu-adapter=swiftshader'])];

/** The driver takes a second to load, of every run that needs no browser too: it is loaded where one is opened. */
const launch = async () => (await import('playwright-core')).chromium.launch({ executablePath: chromiumPath, args: webgpu });

export async function openChromium(): Promise<Runtime> {
  if (!existsSync(chromiumPath)) throw new Error(`no ${chromiumPath}; CHROMIUM_PATH may name another`);
  const server = createServer(async (request, response) => {
    const { pathname } = new URL(request.url!, 'http://localhost');
    const path = localPath(pathname);
    try {
      const body = await readFile(path);
      response.writeHead(200, { 'content-type': contentTypes[extname(path)] ?? 'application/octet-stream' }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>(listening => server.listen(0, '127.0.0.1', listening));
  server.unref(); // a probe that fails leaves it open
  const origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const { version, hasAdapter } = await probed(origin);
  return {
    version,
    hasAdapter,
    run: (file, timeoutMs, variables) =>
      runPage(`${origin}/?${new URLSearchParams({ file, NSN_REQUIRE: process.env['NSN_REQUIRE'] ?? '', ...variables })}`, timeoutMs).catch(
        (error: Error) => outcome('', error.message)
      ),
    async close() {
      server.close();
    }
  };
}

/** What the browser is, and whether a page of this origin finds an adapter in it. */
async function probed(origin: string): Promise<{ version: string; hasAdapter: boolean }> {
  const probe = await launch();
  try {
    const page = await probe.newPage();
    await page.goto(origin); // without a file to run, but secure: other pages have no WebGPU
    const hasAdapter = await page.evaluate(async () => (await navigator.gpu?.requestAdapter()) != null);
    return { version: probe.version(), hasAdapter };
  } finally {
    await probe.close();
  }
}

/** URL parsing has resolved any "..", so the path stays below the folder it is joined to. */
function localPath(pathname: string): string {
  if (pathname === '/') return fileURLToPath(new URL('page.html', import.meta.url));
  return join(sandbox, pathname.startsWith('/fixtures/') ? '.' : 'page', pathname);
}

/** In a browser of its own: all pages of one share a GPU process, in which SwiftShader compiles for one at a time. */
async function runPage(url: string, timeoutMs: number): Promise<Outcome> {
  const browser = await launch();
  const page = await browser.newPage();
  let printed = '';
  const problem = await new Promise<string | undefined>(resolve => {
    const timer = setTimeout(() => resolve(`still running after ${timeoutMs / 1000} s`), timeoutMs);
    const end = (problem?: string) => {
      clearTimeout(timer);
      resolve(problem);
    };
    page.on('console', message => {
      const text = stripVTControlCharacters(message.text());
      // In a page uvu writes by console.log: what it wants continued ends with a space, and where a line ends it says so.
      printed += /[ \n]$/.test(text) ? text : `${text}\n`;
      // One more turn of the event loop lets a rejection that nobody handled be reported first.
      if (/^\d+ passed, \d+ failed/.test(text)) {
        page
          .evaluate(() => new Promise(resolve => setTimeout(resolve)))
          .then(
            () => end(),
            error => end(error.message)
          );
      }
    });
    page.on('pageerror', error => end(`uncaught ${error.stack ?? error}`));
    page.on('crash', () => end('the page crashed'));
    page.goto(url).catch(error => end(error.message));
  });
  await browser.close();
  return outcome(printed, problem);
}
