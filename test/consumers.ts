// The bundlers, compilers and browsers that the package is tried with, and empty projects to try it in. Theirs is a package of
// its own, test/consumers: where it is not installed that is said, and NSN_REQUIRE=consumers makes it a failure.
import { existsSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { readFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import { createRequire } from 'node:module';
import type { AddressInfo } from 'node:net';
import { dirname, extname, join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import type { Browser } from 'playwright-core';

const root = fileURLToPath(new URL('..', import.meta.url));
export const consumers = join(root, 'test/consumers');
const required = (names: RegExp) => names.test(process.env['NSN_REQUIRE'] ?? '');

/** Why nothing of test/consumers can be used. */
export const notInstalled = existsSync(join(consumers, 'node_modules')) ? undefined : 'npm ci --prefix test/consumers was not run';
if (notInstalled && required(/\b(consumers|all)\b/)) throw new Error(notInstalled);

const chromiumPath = process.env['CHROMIUM_PATH'] ?? '/usr/bin/chromium';
export const noChromium = existsSync(chromiumPath) ? undefined : `no ${chromiumPath}; CHROMIUM_PATH may name another`;
if (noChromium && required(/\b(chromium|all)\b/)) throw new Error(noChromium);

/** A package of test/consumers. */
export async function load<T>(name: string): Promise<T> {
  const loader = (await import(pathToFileURL(join(consumers, 'load.js')).href)) as { load(name: string): Promise<T> };
  return loader.load(name);
}

export function launch(): Promise<Browser> {
  const { chromium } = createRequire(join(root, 'package.json'))('playwright-core') as typeof import('playwright-core');
  return chromium.launch({ executablePath: chromiumPath });
}

/** Where the package lies as npm installs it, with what it depends on. */
export const modules = join(root, '.test/node_modules');
export const installedPackage = join(modules, 'nsnquant');

/** Cloudflare's runtime. */
export const workerd = join(consumers, 'node_modules/.bin/workerd');

/** A folder of the sandbox, from where `nsnquant` is found as npm installs it, with these files and no others. */
export function project(name: string, files: Readonly<Record<string, string>>): string {
  const folder = join(root, '.test', name);
  rmSync(folder, { recursive: true, force: true });
  for (const [file, text] of Object.entries(files)) {
    mkdirSync(dirname(join(folder, file)), { recursive: true });
    writeFileSync(join(folder, file), text);
  }
  return folder;
}

const contentTypes: Readonly<Record<string, string>> = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.wasm': 'application/wasm'
};

/** Serves a folder; `headers` for every answer. */
export async function serve(
  folder: string,
  headers: (path: string) => Record<string, string> = () => ({})
): Promise<{ server: Server; origin: string }> {
  const server = createServer(async (request, response) => {
    // URL parsing has resolved any "..".
    const { pathname } = new URL(request.url!, 'http://localhost');
    try {
      const body = await readFile(join(folder, pathname));
      response.writeHead(200, { 'content-type': contentTypes[extname(pathname)] ?? 'text/plain', ...headers(pathname) }).end(body);
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise<void>(listening => server.listen(0, '127.0.0.1', listening));
  return { server, origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}` };
}
