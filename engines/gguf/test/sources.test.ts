// Where a model comes from: paths, URLs, Blobs, bytes and parts; servers without ranges, and files that do not belong together.
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { readGguf } from '../src/gguf.ts';
import { openGguf } from '../src/open.ts';
import { type GgufFile, openSources, remoteSource } from '../src/sources.ts';
import { tinySource } from './tiny.ts';

const folder = mkdtempSync(join(tmpdir(), 'nsnquant-gguf-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const file = tinyGguf();
const path = join(folder, 'tiny.gguf');
writeFileSync(path, file);

/** A tiny model in two files: all but layer 1, and layer 1. */
const parts = ['attn_norm', 'attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_norm', 'ffn_gate', 'ffn_up', 'ffn_down'];
const layer = (n: number): string[] => parts.map(part => `blk.${n}.${part}.weight`);
const part = (no: number, without: readonly string[]) => tinyGguf({ metadata: { 'split.count': 2, 'split.no': no }, without });
const split = [part(0, layer(1)), part(1, ['token_embd.weight', 'output_norm.weight', ...layer(0)])] as const;
split.forEach((bytes, n) => writeFileSync(join(folder, `split-0000${n + 1}-of-00002.gguf`), bytes));

group('a model', test => {
  test('is opened from a path, a URL of a file, a Blob, bytes, or what reads like a file', async () => {
    const names: string[] = [];
    for (const from of [path, pathToFileURL(path), new File([file], 'tiny.gguf'), new Blob([file]), file, tinySource()] as GgufFile[]) {
      const [source] = await openSources(from);
      assert.equal(await source!.read(100, 110), file.subarray(100, 110));
      assert.is(source!.size, file.length);
      names.push(source!.name);
    }
    assert.equal(names, ['tiny.gguf', 'tiny.gguf', 'tiny.gguf', 'model.gguf', 'model.gguf', 'tiny.gguf']);
  });
  test('that is not there, or no file, is refused in a sentence', async () => {
    await refuses(() => openGguf(join(folder, 'none.gguf'), { runtime }), /^expected a file that can be read, got ENOENT/);
    await refuses(() => openGguf(folder, { runtime }), `expected a file, got ${folder}, which is none`);
    for (const wrong of [1, null, undefined, {}]) {
      try {
        await openGguf(wrong as never, { runtime });
        assert.unreachable('expected an error');
      } catch (error) {
        assert.instance(error, TypeError);
      }
    }
  });
  test('in parts is that model: by the path of any part, or all of them in order', async () => {
    for (const from of [join(folder, 'split-00001-of-00002.gguf'), join(folder, 'split-00002-of-00002.gguf'), [...split]]) {
      const gguf = await readGguf(await openSources(from));
      for (const [name, columns, rows] of [
        ['blk.0.ffn_up.weight', 64, 96],
        ['blk.1.ffn_up.weight', 64, 96]
      ] as const)
        assert.equal((await gguf.floats(name, columns, rows)).length, columns * rows);
    }
    const model = await openGguf([...split], { runtime });
    assert.is(model.config.layers, 2);
    assert.is.not(await model.fingerprint(), await (await openGguf(file, { runtime })).fingerprint());
  });
  test('in parts of which one is missing, or in another place, is refused', async () => {
    await refuses(
      () => openGguf(split[1], { runtime }),
      'model.gguf: expected a whole model, got part 2 of 2; hand in all its files, in order'
    );
    await refuses(() => openGguf([split[1], split[0]], { runtime }), 'model.gguf: expected part 1 of 2, got part 2');
    await refuses(
      () => openGguf([...split, split[1]], { runtime }),
      'model.gguf: expected a part of 3, got part 1 of 2; hand in all its files, in order'
    );
    rmSync(join(folder, 'split-00002-of-00002.gguf'));
    await refuses(() => openGguf(join(folder, 'split-00001-of-00002.gguf'), { runtime }), /^expected a file that can be read, got ENOENT/);
  });
  test('with a matrix of 2 GiB is refused before it is read', () => {
    const rows = 2 ** 23;
    const source = { ...tinySource({ extra: { 'output.weight': [64, 8] } }), size: 2 ** 40 };
    return refuses(
      () => readGguf(declaring(source, rows)),
      `tiny.gguf: tensor "output.weight" expected less than 2 GiB as f32, which is what ONNX Runtime reads, got shape [64, ${rows}]; a model of smaller matrices will work`
    );
  });
});

/** The file with another number of rows of output.weight, whose shape is [64, 8] in it. */
function declaring<T extends { read(begin: number, end: number): Promise<Uint8Array> }>(source: T, rows: number): T {
  // Its length is before it: other names end so.
  const name = new TextEncoder().encode(`${String.fromCharCode(13, 0, 0, 0, 0, 0, 0, 0)}output.weight`);
  return {
    ...source,
    async read(begin: number, end: number) {
      const bytes = Uint8Array.from(await source.read(begin, end));
      const at = bytes.findIndex((_, i) => name.every((byte, n) => bytes[i + n] === byte));
      if (at >= 0) new DataView(bytes.buffer).setBigUint64(at + name.length + 4 + 8, BigInt(rows), true);
      return bytes;
    }
  };
}

group('a server', test => {
  const real = globalThis.fetch;
  const answering = async <T>(answer: (range: [number, number] | undefined, n: number) => Response, run: () => Promise<T>): Promise<T> => {
    let n = 0;
    globalThis.fetch = async (_, init) => {
      const range = new Headers(init?.headers).get('range')?.match(/(\d+)-(\d+)/);
      return answer(range ? [Number(range[1]), Math.min(Number(range[2]) + 1, file.length)] : undefined, n++);
    };
    try {
      return await run();
    } finally {
      globalThis.fetch = real;
    }
  };
  const whole = () => new Response(file, { headers: { 'content-length': `${file.length}` } });
  const ranges =
    (said: (begin: number, end: number) => Record<string, string>) =>
    (range: [number, number] | undefined): Response =>
      range ? new Response(file.slice(...range), { status: 206, headers: said(...range) }) : whole();
  const honest = ranges((begin, end) => ({ 'content-range': `bytes ${begin}-${end - 1}/${file.length}` }));
  const url = 'https://models.invalid/a/tiny.gguf?download=1';

  for (const [what, answer] of [
    ['with ranges', honest],
    ['that hides Content-Range', ranges(() => ({}))],
    ['that does not know the size', ranges((begin, end) => ({ 'content-range': `bytes ${begin}-${end - 1}/*` }))],
    ['without ranges', whole]
  ] as const) {
    test(`${what} gives the model`, () =>
      answering(answer, async () => {
        const source = await remoteSource(url);
        assert.equal([source.name, source.size], ['tiny.gguf', file.length]);
        assert.equal(await source.read(100, 110), file.subarray(100, 110));
        await readGguf(source);
      }));
  }
  test('says how much has come where all must', async () => {
    const shares: number[] = [];
    await answering(whole, () => remoteSource(url, { downloaded: share => shares.push(share) }));
    assert.is(shares.at(-1), 1);
  });
  test('that gives no ranges any more, or other bytes, or nothing, is named', async () => {
    const read = async () => (await remoteSource(url)).read(100, 110);
    const cases: [Parameters<typeof answering>[0], string][] = [
      [
        (range, n) => (n === 0 ? honest(range) : whole()),
        'expected bytes 100 to 109 from the server, got all of them; it gave ranges before'
      ],
      [
        (range, n) => (n === 0 ? honest(range) : new Response('abc', { status: 206 })),
        'expected 10 bytes from the server, got 3; was the file changed?'
      ],
      [() => new Response('', { status: 404, statusText: 'Not Found' }), 'expected the server to have it, got 404 Not Found']
    ];
    for (const [answer, message] of cases) await refuses(() => answering(answer, read), `tiny.gguf: ${message}`);
  });
});
