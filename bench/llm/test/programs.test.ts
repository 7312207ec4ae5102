// A short form of every command, and the engine's checks against independent implementations. Needs the model and the texts.
import { execFile } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { InputError } from '../engine/source.ts';
import { findModel, openModel, readText } from '../node.ts';
import { group } from './group.ts';

const here = join(import.meta.dirname, '..');
const folder = mkdtempSync(join(tmpdir(), 'nsnquant-llm-'));
process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
const modelFile = await findModel(undefined).catch((error: unknown) => {
  if (!(error instanceof InputError)) throw error;
  console.log(`commands skipped: ${error.message}`);
});

/** A program's output and exit code. */
function run(program: string, args: readonly string[], input = ''): Promise<{ code: number; stdout: string; stderr: string }> {
  return new Promise(done => {
    const child = execFile(process.execPath, [join(here, 'node_modules/tsx/dist/cli.mjs'), join(here, `${program}.ts`), ...args], { cwd: folder, timeout: 600_000 },
      (error, stdout, stderr) => done({ code: error ? Number(error.code ?? 1) : 0, stdout, stderr }));
    child.stdin!.end(input);
  });
}

if (modelFile !== undefined) group('commands', test => {
  test('WikiText-2 is 303,415 tokens', async () => {
    const model = await openModel(undefined);
    assert.is(model.encode(await readText('wikitext')).length, 303_415);
    await model.release();
  });
  test('quality measures 512 tokens within the known quality, and goes on from its state', async () => {
    const args = ['--text', 'wikitext', '--sequences', '1', '--tokens', '512', '--methods', 'raw,nsn2,nsn4,q4_0+hadamard', '--json', 'quality.json'];
    const first = await run('quality', [...args, '--fresh']);
    assert.is(first.code, 0, first.stderr);
    const rows = JSON.parse(readFileSync(join(folder, 'quality.json'), 'utf8')) as { keys: string; ppl: number; kld: number; bitsPerElement: number; ci: object }[];
    assert.equal(rows.map(row => row.keys), ['raw', 'nsn2', 'nsn4', 'q4_0+hadamard']);
    // 20.976, 0.0284 and 0.00159 measured; room for another machine's order of addition.
    assert.ok(Math.abs(rows[0]!.ppl / 20.976 - 1) < 0.005, `${rows[0]!.ppl}`);
    assert.ok(rows[1]!.kld > 0.015 && rows[1]!.kld < 0.04, `${rows[1]!.kld}`);
    assert.ok(rows[2]!.kld > 0.0008 && rows[2]!.kld < 0.0025, `${rows[2]!.kld}`);
    assert.match(readFileSync(join(folder, 'quality.html'), 'utf8'), /<svg/);
    const again = await run('quality', args);
    assert.not.match(again.stderr, /method \d/);
    assert.equal(again.stdout.split('\n').slice(6), first.stdout.split('\n').slice(6));
  });
  test('speed prints a row for every cache', async () => {
    const { code, stdout, stderr } = await run('speed', ['--contexts', '128', '--thread-counts', '1', '--methods', 'nsn4/nsn2', '--steps', '4', '--json', 'speed.json']);
    assert.is(code, 0, stderr);
    assert.equal([...stdout.matchAll(/^\| ([^|]+?) +\|/gm)].map(match => match[1]).slice(2), ['f32', 'int8 (as q8_0)', 'f32 by the host engine', 'nsn4/nsn2']);
    const rows = JSON.parse(readFileSync(join(folder, 'speed.json'), 'utf8')) as Record<string, number>[];
    assert.ok(rows.every(row => row.tokenMs! > row.attendMs! && row.attendMs! > 0));
  });
  test('longcontext finds numbers in 512 tokens', async () => {
    const { code, stderr } = await run('longcontext', ['--lengths', '512', '--methods', 'raw,nsn4', '--json', 'long.json']);
    assert.is(code, 0, stderr);
    const rows = JSON.parse(readFileSync(join(folder, 'long.json'), 'utf8')) as { found: number; needles: number }[];
    assert.ok(rows.every(row => row.found >= row.needles - 1), JSON.stringify(rows));
  });
  test('chat answers, saves, loads and says what it cannot do', async () => {
    const long = `${'word '.repeat(300)}\n`;
    const { code, stdout, stderr } = await run('chat', ['--capacity', '256'], `What is the capital of France?\n/save chat\n/new\n/load chat\n${long}/load nothing\n`);
    assert.is(code, 0, stderr);
    assert.match(stdout, /Paris/);
    assert.match(stdout, /saved (\d+) tokens[^]*loaded \1 tokens; the last question was: What is the capital of France\?/);
    assert.match(stdout, /expected a conversation of fewer than 256 tokens \(the cache's capacity\), got 3\d\d/);
    assert.match(stdout, /ENOENT/);
  });
  test('bad input ends in one sentence', async () => {
    writeFileSync(join(folder, 'cut.gguf'), readFileSync(modelFile).subarray(0, 3_000_000));
    for (const [program, args, message] of [
      ['quality', ['--model', 'cut.gguf'], /^cut\.gguf: expected at least [\d,]+ bytes, got a file that ends after 3,000,000 bytes; it is cut short, download it again\n$/],
      ['chat', ['--model', 'nowhere.gguf'], /^"--model" expected a file, or OWNER\/NAME\/FILE\.gguf on Hugging Face, got nowhere\.gguf, which does not exist\n$/],
      ['quality', ['--methods', 'nsn5'], /^"--methods" expected one of .*, got nsn5\n$/],
      ['speed', ['--contexts', '9000'], /expected at most 8124 tokens \(the model's context less those measured\), got 9000\n$/],
      ['longcontext', ['--depths', '101'], /^"--depths" expected at most 8 numbers from 1 to 100, got 101\n$/]
    ] as const) {
      const { code, stderr } = await run(program, args);
      assert.is(code, 1);
      assert.match(stderr, message);
    }
  });
});
