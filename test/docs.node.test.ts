// What a newcomer reads, held to what is true: examples run, links lead somewhere. Must look at every page of the repository.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { extname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { readPage } from './markdown.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const sandbox = join(root, '.test');
const read = (file: string) => readFileSync(join(root, file), 'utf8');

const readme = readPage(read('README.md'));
const [example, ...continued] = readme.codes.filter(({ language, section }) => language === 'ts' && section !== 'GPU');
const [gpuExample] = readme.codes.filter(({ section }) => section === 'GPU');
const [html] = readme.codes.filter(({ language }) => language === 'html');

/** What Chromium shows of a page of the sandbox once its scripts have ended. */
async function shown(page: string, chromium: string): Promise<string> {
  const types: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript' };
  const server = createServer((request, response) => {
    const path = join(sandbox, new URL(request.url!, 'http://localhost').pathname);
    if (!existsSync(path)) response.writeHead(404).end();
    else response.writeHead(200, { 'content-type': types[extname(path)] ?? 'application/octet-stream' }).end(readFileSync(path));
  });
  await new Promise<void>(listening => server.listen(0, '127.0.0.1', listening));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/${page}`;
  // Virtual time stands still while scripts and requests are under way, and then leaps.
  const child = spawn(chromium, ['--headless=new', '--no-sandbox', '--virtual-time-budget=10000', '--dump-dom', url]);
  let dom = '';
  child.stdout.setEncoding('utf8').on('data', text => {
    dom += text;
  });
  await new Promise(closed => child.on('close', closed));
  server.close();
  return dom;
}

group('README', test => {
  test('has at most 2,500 words, tables and code counted', () => {
    console.log(`README: ${readme.words} words`);
    assert.ok(readme.words <= 2500, `expected at most 2500 words, got ${readme.words}`);
  });

  test('answers a newcomer in this order', () => {
    assert.equal(readme.sections, [
      'Install',
      'Example',
      'Which codec?',
      'How it works',
      'Accuracy',
      'Speed',
      'GPU',
      'API',
      'Limits',
      'File format',
      'Contributing'
    ]);
  });

  test('no figure is left to be filled in', () => {
    assert.not.match(read('README.md'), /@@/);
  });

  test('every example is run by a test of this file', () => {
    const run = [html, example, ...continued, gpuExample];
    assert.equal(
      readme.codes.filter(({ language }) => language !== ''),
      run
    );
  });

  test('the examples run in Node, as one program', () => {
    const file = join(sandbox, 'readme-example.mjs');
    writeFileSync(file, [example!, ...continued].map(({ text }) => text).join('\n'));
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
    assert.is(status, 0, stderr);
    const [first, second, branched, ...more] = stdout.trim().split('\n');
    // Every value is 0.25, so whatever is attended to, the mean is 0.25.
    for (const line of [first!, second!]) assert.ok(Math.abs(Number(line.split(' ').at(-1)) - 0.25) < 1e-3, line);
    assert.is(branched, '90 100');
    assert.equal(more, []);
  });

  test('the first example has about twelve lines', () => {
    assert.ok(example!.text.split('\n').length <= 13);
  });

  test('the import map lets a page without a bundler run the first example', async () => {
    const chromium = process.env.CHROMIUM_PATH ?? '/usr/bin/chromium';
    if (!existsSync(chromium)) {
      assert.not.match(process.env.NSN_REQUIRE ?? '', /\b(chromium|all)\b/, `no ${chromium}`);
      return console.log(`the page skipped: no ${chromium}`);
    }
    const script = `${example!.text}\ndocument.body.append(chat.length + ' tokens');`;
    writeFileSync(join(sandbox, 'readme-page.html'), `<!doctype html>${html!.text}<body><script type="module">${script}</script>`);
    assert.match(await shown('readme-page.html', chromium), /100 tokens/);
  });

  test('the example for GPUs is taken from examples/device.ts, which a test of its own runs', () => {
    const program = read('examples/device.ts').split('\n');
    for (const line of gpuExample!.text.split('\n')) assert.ok(program.includes(line), line);
  });
});
