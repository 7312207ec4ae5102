// `npm start`: builds the page and serves it, with the models that are at hand, to this machine alone.
import { existsSync, readdirSync, statSync } from 'node:fs';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { basename, dirname, join, resolve } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import sirv from 'sirv';
import { buildPage, dist } from './build.ts';

const MODEL_FOLDER = fileURLToPath(new URL('../../../shared/models/smollm2-135m', import.meta.url));

// The page loads from its own server only and sends nothing anywhere; charts set styles. ONNX Runtime compiles WebAssembly.
const POLICY =
  "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'";

/** The GGUF files beside the repository, if any. */
export function modelsAtHand(): string[] {
  if (!existsSync(MODEL_FOLDER)) return [];
  return readdirSync(MODEL_FOLDER)
    .filter(name => name.endsWith('.gguf'))
    .sort()
    .map(name => join(MODEL_FOLDER, name));
}

/** Bytes of a file; of a folder, with the paths of its files. */
function offerOf(path: string): { bytes: number; files?: string[] } {
  if (statSync(path).isFile()) return { bytes: statSync(path).size };
  const files = readdirSync(path, { recursive: true, encoding: 'utf8' }).filter(file => statSync(join(path, file)).isFile());
  const bytes = files.reduce((sum, file) => sum + statSync(join(path, file)).size, 0);
  return { bytes, files: files.map(file => file.replaceAll('\\', '/')) };
}

/** Serves dist/, the files of `models` and those in its folders, and no other file. */
export async function serve(models: readonly string[], port: number): Promise<{ origin: string; server: Server }> {
  const headers = (response: { setHeader(name: string, value: string): unknown }): void => {
    response.setHeader('content-security-policy', POLICY);
    response.setHeader('cache-control', 'no-cache');
  };
  const page = sirv(dist, { setHeaders: headers });
  const offers = models.map((path, i) => ({ name: basename(path), url: `models/${i}`, ...offerOf(path) }));
  const server = createServer((request, response) => {
    const notFound = (): void => {
      response.writeHead(404).end();
    };
    const { pathname } = new URL(request.url!, 'http://localhost');
    const [, number, inside] = pathname.match(/^\/models\/(\d+)(\/.+)?$/) ?? [];
    const path = models[Number(number)];
    if (path !== undefined) {
      request.url = inside ?? `/${encodeURIComponent(basename(path))}`;
      sirv(inside ? path : dirname(path), { dev: true, setHeaders: headers })(request, response, notFound);
    } else if (pathname === '/models.json') {
      response.writeHead(200, { 'content-type': 'application/json', 'cache-control': 'no-cache' }).end(JSON.stringify(offers));
    } else {
      page(request, response, notFound);
    }
  });
  await new Promise<void>((listening, failed) => server.once('error', failed).listen(port, '127.0.0.1', listening));
  return { origin: `http://127.0.0.1:${(server.address() as AddressInfo).port}/`, server };
}

async function main(): Promise<void> {
  const command = new Command('page')
    .description('A chat in the browser over a quantized cache.')
    .option(
      '--model <path...>',
      'GGUF files, or folders of transformers.js models, to offer (default: the GGUF files beside the repository)',
      (file: string, before: string[] | undefined) => {
        if (!existsSync(file)) throw new InvalidArgumentError('expected a file or a folder');
        return [...(before ?? []), resolve(file)];
      }
    )
    .option(
      '--port <n>',
      '0 takes a free one',
      text => {
        if (!/^\d{1,5}$/.test(text) || Number(text) > 65535) throw new InvalidArgumentError('expected integer from 0 to 65535');
        return Number(text);
      },
      8080
    )
    .parse();
  const { model = modelsAtHand(), port } = command.opts<{ model?: string[]; port: number }>();
  await buildPage();
  const { origin } = await serve(model, port).catch((error: Error) => command.error(`"--port" expected a free one, got ${error.message}`));
  console.log(
    `${origin}\noffers ${model.length === 0 ? 'no model: choose one in the page' : model.map(path => basename(path)).join(', ')}`
  );
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main();
