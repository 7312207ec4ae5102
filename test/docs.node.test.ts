// What a newcomer reads, held to what is true: examples run, links lead somewhere. Must look at every page of the repository.
import { spawn, spawnSync } from 'node:child_process';
import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { dirname, extname, join, relative } from 'node:path';
import { fileURLToPath } from 'node:url';
import { gzipSync } from 'node:zlib';
import { build, transformSync } from 'esbuild';
import { type CodecName, plan } from 'nsnquant';
import * as assert from 'uvu/assert';
import { parse } from 'yaml';
import { chromiumPath } from '../tools/chromium.ts';
import { group } from '../tools/group.ts';
import { noChromium } from './consumers.ts';
import { readPage } from './markdown.ts';
import { HALVES } from './tolerance.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const sandbox = join(root, '.test');
const read = (file: string) => readFileSync(join(root, file), 'utf8');

const readme = readPage(read('README.md'));
const [example, ...continued] = readme.codes.filter(({ language, section }) => language === 'ts' && section !== 'GPU');
const [gpuExample] = readme.codes.filter(({ section }) => section === 'GPU');
const [html] = readme.codes.filter(({ language }) => language === 'html');

/** Files of the repository below a folder, as paths from the root; without what is installed or generated. */
function filesBelow(folder: string): string[] {
  return readdirSync(join(root, folder), { withFileTypes: true }).flatMap(entry => {
    const path = join(folder, entry.name);
    if (entry.isDirectory()) return ignored.has(entry.name) || ignored.has(path) ? [] : filesBelow(path);
    return [path];
  });
}

const ignored = new Set(['.git', ...read('.gitignore').match(/^[^*\n]+(?=\/$)/gm)!]);
const pages = filesBelow('.').filter(file => file.endsWith('.md'));

/** What Chromium shows of a page of the sandbox once its scripts have ended. */
async function shown(page: string): Promise<string> {
  const types: Record<string, string> = { '.html': 'text/html', '.js': 'text/javascript' };
  const server = createServer((request, response) => {
    const path = join(sandbox, new URL(request.url!, 'http://localhost').pathname);
    if (!existsSync(path)) response.writeHead(404).end();
    else response.writeHead(200, { 'content-type': types[extname(path)] ?? 'application/octet-stream' }).end(readFileSync(path));
  });
  await new Promise<void>(listening => server.listen(0, '127.0.0.1', listening));
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/${page}`;
  // Virtual time stands still while scripts and requests are under way, and then leaps.
  const child = spawn(chromiumPath, ['--headless=new', '--no-sandbox', '--virtual-time-budget=10000', '--dump-dom', url]);
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

  test('the figures of its tables are those of BENCHMARKS.md', () => {
    const measured = readPage(read('BENCHMARKS.md')).rows;
    const quoted = readme.rows.filter(({ section }) => ['Accuracy', 'Speed'].includes(section));
    assert.ok(quoted.length >= 10);
    for (const { cells } of quoted) {
      // README leaves columns out.
      const within = measured.some(row => {
        let at = 0;
        return cells.every(cell => {
          at = row.cells.indexOf(cell, at) + 1;
          return at > 0;
        });
      });
      assert.ok(within, cells.join(' | '));
    }
  });

  test('the bits and megabytes of its codecs are what plan() says', () => {
    const model = { layers: 32, kvHeads: 8, queryHeads: 32, headDim: 128, capacity: 8192 }; // Llama 3.1 8B
    const rows = readme.rows.filter(({ section }) => section === 'Which codec?').map(({ cells }) => cells);
    const f16 = rows.pop()!;
    assert.is(f16.at(-1), `${(plan(model).f16BytesPerToken * 8192) / 2 ** 20} MiB`);
    assert.is(rows.length, 4);
    for (const [, pair, ...said] of rows) {
      const [keys, values] = pair!.split(' / ') as [CodecName, CodecName];
      const [small, large] = [64, 128].map(headDim => plan({ ...model, headDim, keys, values }));
      const bits = [small!, large!].map(({ bitsPerElement }) => bitsPerElement.toFixed(2));
      assert.equal(said, [...bits, `${Math.round((large!.bytesPerToken * 8192) / 2 ** 20)} MiB`], pair);
    }
  });

  test('the sizes it promises are those of its entries, bundled and gzipped, or up to 4 KB more', async () => {
    const [, ...promised] = /at most (\d+) KB.*?at most (\d+) KB/i.exec(read('README.md'))!;
    for (const [n, entry] of ['nsnquant', 'nsnquant/cpu'].entries()) {
      const contents = `import { openBackend, KVCache } from '${entry}'; console.log(openBackend, KVCache);`;
      const stdin = { contents, resolveDir: sandbox };
      const { outputFiles } = await build({ stdin, bundle: true, minify: true, format: 'esm', write: false, logLevel: 'error' });
      const kilobytes = gzipSync(outputFiles[0]!.contents, { level: 9 }).length / 1000;
      const most = Number(promised[n]);
      assert.ok(kilobytes <= most && kilobytes > most - 4, `${entry} has ${kilobytes} KB, and README promises ${most}`);
    }
  });

  test('every example is run by a test of this file', () => {
    const run = [html, example, ...continued, gpuExample];
    assert.equal(
      readme.codes.filter(({ language }) => language !== '' && language !== 'text'),
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
    for (const line of [first!, second!]) assert.ok(Math.abs(Number(line.split(' ').at(-1)) - 0.25) <= HALVES, line);
    assert.is(branched, '90 100');
    assert.equal(more, []);
  });

  test('the first example has about twelve lines', () => {
    assert.ok(example!.text.split('\n').length <= 13);
  });

  const inPage = 'the import map lets a page without a bundler run the first example';
  if (noChromium !== undefined) test.skip(inPage, noChromium);
  else
    test(inPage, async () => {
      const script = `${example!.text}\ndocument.body.append(chat.length + ' tokens');`;
      writeFileSync(join(sandbox, 'readme-page.html'), `<!doctype html>${html!.text}<body><script type="module">${script}</script>`);
      assert.match(await shown('readme-page.html'), /100 tokens/);
    });

  test('the example for GPUs is taken from examples/device.ts, which a test of its own runs', () => {
    const program = read('examples/device.ts').split('\n');
    for (const line of gpuExample!.text.split('\n')) assert.ok(program.includes(line), line);
  });
});

group('docs/models.md', test => {
  test('its example runs, and says what it prints', () => {
    const { text } = readPage(read('docs/models.md')).codes.find(({ language }) => language === 'ts')!;
    const file = join(sandbox, 'models-example.mjs');
    const before = "import { KVCache, openBackend, plan } from 'nsnquant';\nconst backend = await openBackend({ prefer: 'wasm' });";
    writeFileSync(file, transformSync(`${before}\n${text}`, { loader: 'ts' }).code);
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
    assert.is(status, 0, stderr);
    assert.is(Number(stdout).toFixed(2), /\/\/ (\d\.\d\d) /.exec(text)?.[1]);
  });
});

group('CONTRIBUTING', test => {
  test('the test that it shows is a test: it runs and passes', async () => {
    const example = readPage(read('CONTRIBUTING.md')).codes.find(({ language }) => language === 'ts')!;
    const outfile = join(sandbox, 'contributing-example.js');
    await build({
      stdin: {
        contents: `${example.text}\nimport { finish } from '../tools/group.ts';\nawait finish();\n`,
        resolveDir: join(root, 'test')
      },
      outfile,
      bundle: true,
      format: 'esm',
      platform: 'node',
      packages: 'external',
      ignoreAnnotations: true,
      logLevel: 'error'
    });
    const env = { ...process.env, NSN_WITHOUT_WEBGPU: 'what it shows is not about GPUs' };
    const { status, stdout, stderr } = spawnSync(process.execPath, [outfile], { encoding: 'utf8', env });
    assert.is(status, 0, stdout + stderr);
    assert.match(stdout, /^[1-9]\d* passed, 0 failed/m);
  });
});

/** Paths of a drawing of the tree, folders with a slash at their end. A line is a path below the nearest line that is less indented. */
function drawn(tree: string): string[] {
  const folders: string[] = [];
  return tree.split('\n').map(line => {
    const [, indent, name] = /^( *)(\S+)/.exec(line)!;
    folders.length = indent!.length / 2;
    const path = folders.join('') + name;
    folders.push(name!);
    return path;
  });
}

group('ARCHITECTURE', test => {
  const [tree] = readPage(read('ARCHITECTURE.md')).codes.filter(({ section }) => section === 'Tree');
  const paths = drawn(tree!.text);
  /** Folders without lines below them stand for all that they hold. */
  const whole = paths.filter(path => path.endsWith('/') && !paths.some(other => other !== path && other.startsWith(path)));

  test('drawn() reads a drawing', () => {
    assert.equal(drawn('a/    one\n  b.ts  two\n  c/\n    d.ts\ne/'), ['a/', 'a/b.ts', 'a/c/', 'a/c/d.ts', 'e/']);
  });

  test('the tree draws nothing that is not there, and nothing twice', () => {
    for (const path of paths) assert.ok(existsSync(join(root, path)), path);
    assert.is(new Set(paths).size, paths.length);
  });

  test('the tree draws every file in its folders', () => {
    for (const file of filesBelow('.').filter(file => file.includes('/'))) {
      assert.ok(paths.includes(file) || whole.some(folder => file.startsWith(folder)), `ARCHITECTURE.md has no line for ${file}`);
    }
  });
});

group('links', test => {
  const anchors = new Map(pages.map(page => [page, readPage(read(page)).anchors]));

  test('there are pages, and links in them', () => {
    assert.ok(pages.includes('README.md') && pages.length >= 5, pages.join());
    assert.ok(readme.links.length >= 10);
  });

  for (const page of pages) {
    test(`those of ${page} lead to files and headings that are there`, () => {
      for (const link of readPage(read(page)).links) {
        if (/^(https?|mailto):/.test(link)) continue;
        const [path, anchor] = link.split('#') as [string, string?];
        const target = path === '' ? page : relative(root, join(root, dirname(page), decodeURI(path)));
        assert.ok(!target.startsWith('..') && existsSync(join(root, target)), `${page} links to ${link}`);
        if (anchor === undefined) continue;
        assert.ok(statSync(join(root, target)).isFile() && anchors.get(target)?.has(anchor), `${page} links to ${link}`);
      }
    });
  }
});

group('what a host of the repository reads', test => {
  const manifest = JSON.parse(read('package.json'));

  test('CITATION.cff and CHANGELOG.md are of the version of package.json', () => {
    assert.is(parse(read('CITATION.cff')).version, manifest.version);
    assert.ok(readPage(read('CHANGELOG.md')).sections.includes(manifest.version));
  });

  test('every file is one home: repository, homepage, bugs and the address of SECURITY.md', () => {
    const { hostname } = new URL(manifest.homepage);
    assert.is(new URL(manifest.bugs.url).hostname, hostname);
    assert.is(new URL(manifest.repository.url.replace(/^git\+/, '')).hostname, hostname);
    assert.is(new URL(parse(read('CITATION.cff')).url).hostname, hostname);
    assert.match(read('SECURITY.md'), `@${hostname}**`);
  });

  for (const file of filesBelow('.github/ISSUE_TEMPLATE').filter(file => !file.endsWith('config.yml'))) {
    test(`${file} is a form: fields with labels, and ids of their own`, () => {
      const form = parse(read(file));
      for (const name of ['name', 'description']) assert.type(form[name], 'string');
      const fields = form.body.filter((item: { type: string }) => item.type !== 'markdown');
      for (const { type, attributes } of fields) assert.ok(['input', 'textarea'].includes(type) && attributes.label.length > 0);
      assert.is(new Set(fields.map((item: { id: string }) => item.id)).size, fields.length);
    });
  }

  test('a report of a fault asks for backend.reason, versions and the options of the cache', () => {
    const { body } = parse(read('.github/ISSUE_TEMPLATE/bug.yml'));
    assert.match(JSON.stringify(body.find((item: { id?: string }) => item.id === 'reason')), 'backend.reason');
    const required = body.filter((item: { validations?: { required: boolean } }) => item.validations?.required);
    for (const id of ['reason', 'runtime', 'options'])
      assert.ok(
        required.some((item: { id: string }) => item.id === id),
        id
      );
  });
});
