// `npm start`: builds the page and serves it, to this machine alone unless told otherwise.
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { pathToFileURL } from 'node:url';
import { Command, InvalidArgumentError } from 'commander';
import sirv from 'sirv';
import { buildPage, dist } from './build.ts';

const HEADERS = {
  // The page loads from its own server only and sends nothing anywhere; charts set styles.
  'content-security-policy':
    "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
  // An isolated page has a clock of microseconds, where others' may tick in whole milliseconds.
  'cross-origin-opener-policy': 'same-origin',
  'cross-origin-embedder-policy': 'require-corp',
  'cache-control': 'no-cache'
} as const;

export async function serve(port: number, host = '127.0.0.1'): Promise<{ origin: string; server: Server }> {
  const page = sirv(dist, {
    setHeaders(response) {
      for (const [name, value] of Object.entries(HEADERS)) response.setHeader(name, value);
    }
  });
  const server = createServer((request, response) =>
    page(request, response, () => {
      response.writeHead(404).end();
    })
  );
  await new Promise<void>((listening, failed) => server.once('error', failed).listen(port, host, listening));
  return { origin: `http://${host}:${(server.address() as AddressInfo).port}/`, server };
}

async function main(): Promise<void> {
  const command = new Command('measure')
    .description("A page that measures attention on the visitor's own device.")
    .option('--host <address>', 'where to listen; 0.0.0.0 lets in whoever reaches this machine', '127.0.0.1')
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
  const { host, port } = command.opts<{ host: string; port: number }>();
  await buildPage();
  const { origin } = await serve(port, host).catch((error: Error) =>
    command.error(`"--host" and "--port" expected a free address, got ${error.message}`)
  );
  console.log(origin);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) await main();
