// Prefix stores of several processes at one storage, in files and in a real Redis server, of which one is killed while it writes.
// Where there is no redis-server that is said, and NSN_REQUIRE=redis makes it a failure.

import { spawn, spawnSync } from 'node:child_process';
import { mkdtempSync, readdirSync, readFileSync, rmSync, truncateSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import { PrefixStore, StorageError } from 'nsnquant/prefixes';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { cacheOn, found, keysOf, namedPages, put, store } from './prompts.ts';
import { openShared, prompts } from './shared.ts';
import { simd128 } from './verbs.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const folder = mkdtempSync(join(tmpdir(), 'nsnquant-'));
const socket = join(folder, 'redis.sock');
const writer = join(root, '.test', 'writer.js');
await build({
  entryPoints: [join(root, 'test/writer.ts')],
  outfile: writer,
  bundle: true,
  format: 'esm',
  platform: 'node',
  packages: 'external',
  logLevel: 'error'
});

const noRedis = spawnSync('redis-server', ['--version']).status === 0 ? undefined : 'no redis-server';
if (noRedis && /\b(redis|all)\b/.test(process.env['NSN_REQUIRE'] ?? '')) throw new Error(noRedis);

/** Keeps nothing on disk, and listens at a socket of its own alone. */
const server = noRedis
  ? undefined
  : spawn('redis-server', ['--port', '0', '--unixsocket', socket, '--save', '', '--appendonly', 'no', '--dir', folder], {
      stdio: 'ignore'
    });
process.on('exit', () => {
  server?.kill('SIGKILL');
  rmSync(folder, { recursive: true, force: true });
});
for (let tries = 0; server && !readdirSync(folder).includes('redis.sock'); tries++) {
  if (server.exitCode !== null || tries === 300) throw new Error(`redis-server expected to start, got exit code ${server.exitCode}`);
  await new Promise(resolve => setTimeout(resolve, 100));
}

const cache = cacheOn(simd128.backend);
/** Whole windows that leave a token. */
const whole = (tokens: number): number => 4 + 64 * Math.floor((tokens - 5) / 64);

/** Runs a writer, and says how it ended. */
function write(...args: readonly (string | number)[]): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, [writer, ...args.map(String)], { stdio: ['ignore', 'ignore', 'pipe'] });
    let errors = '';
    child.stderr.setEncoding('utf8').on('data', text => {
      errors += text;
    });
    child.on('error', reject);
    child.on('close', (code, signal) => resolve(signal ?? (code === 0 ? 'ended' : errors)));
  });
}

for (const [kind, missing] of [
  ['files', undefined],
  ['Redis', noRedis]
] as const) {
  group(`prefixes of processes, ${kind}`, test => {
    const title = 'writers at once, one killed in the middle: every prefix is whole or absent';
    if (missing) return test.skip(title, missing);
    const placeOf = (name: string): string => (kind === 'Redis' ? socket : join(folder, name));

    for (const [budget, kills] of [
      [Infinity, [1, 4, 9, 14]],
      [60_000, [2, 7]]
    ] as const) {
      test(`${title}, ${budget} bytes`, async () => {
        const place = placeOf(`${budget}`);
        const storage = openShared(kind, place);
        for (const [round, kill] of kills.entries()) {
          await new PrefixStore(storage, store).clear();
          const ends = await Promise.all([1, 2, 3].map(n => write(kind, place, 10 * round + n, budget, n === 2 ? kill : 0)));
          assert.equal(ends, ['ended', 'SIGKILL', 'ended']);
          const prefixes = new PrefixStore(storage, { ...store, budget });
          for (const prompt of prompts) await found(prefixes, cache, prompt);
          // Evicted by one while another puts them again, pages may be named that are not there: those are found to be absent.
          if (budget === Infinity) await namedPages(storage);
        }
        const prefixes = new PrefixStore(storage, store);
        for (let piece = 0; piece < 8; piece++) {
          for (const prompt of prompts) await put(prefixes, cache, prompt);
          for (const prompt of prompts) await found(prefixes, cache, prompt);
        }
        for (const prompt of prompts) assert.is(await found(prefixes, cache, prompt), whole(prompt.length));
        await storage.dispose();
      });
    }

    test('another process finds what this one put', async () => {
      const place = placeOf('another');
      const storage = openShared(kind, place);
      await new PrefixStore(storage, store).clear();
      await put(new PrefixStore(storage, store), cache, prompts[0]!);
      const again = openShared(kind, place);
      assert.is(await found(new PrefixStore(again, store), cache, prompts[1]!), 132);
      await Promise.all([storage.dispose(), again.dispose()]);
    });
  });
}

group('prefixes in files', test => {
  test('a file that is cut off is as if it were not there', async () => {
    const place = join(folder, 'cut');
    const storage = openShared('files', place);
    const prefixes = new PrefixStore(storage, store);
    await put(prefixes, cache, prompts[0]!);
    for (const kind of ['pages', 'manifests'] as const) {
      for (const key of await keysOf(storage, kind)) {
        const file = join(place, key.replaceAll(':', '/'));
        truncateSync(file, readFileSync(file).length >> 1);
        assert.ok((await found(prefixes, cache, prompts[0]!)) < whole(300), file);
        await put(prefixes, cache, prompts[0]!);
        assert.is(await found(prefixes, cache, prompts[0]!), whole(300));
      }
    }
  });

  test('a folder that cannot be read is a storage that fails', async () => {
    const place = join(folder, 'cut', 'nsnquant');
    rmSync(place, { recursive: true });
    const prefixes = new PrefixStore(openShared('files', join(writer, 'no folder')), store);
    for (const run of [() => put(prefixes, cache, prompts[0]!), () => prefixes.load(cache, prompts[0]!)]) {
      let thrown: unknown;
      try {
        await run();
      } catch (error) {
        thrown = error;
      }
      assert.ok(thrown instanceof StorageError, `${thrown}`);
      assert.match(thrown.message, /^storage expected to read nsnquant:manifests:\w+, got ENOTDIR: /);
    }
  });
});

if (server) {
  group('Redis', test => {
    test('a server that has gone is a storage that fails', async () => {
      const storage = openShared('Redis', socket);
      const prefixes = new PrefixStore(storage, store);
      await put(prefixes, cache, prompts[0]!);
      server.kill('SIGKILL');
      await new Promise(resolve => server.once('close', resolve));
      let thrown: unknown;
      try {
        await prefixes.load(cache, prompts[0]!);
      } catch (error) {
        thrown = error;
      }
      assert.ok(thrown instanceof StorageError, `${thrown}`);
      await storage.dispose();
    });
  });
}
