// Proves that the harness bites: each way in which a test file can go wrong must come out as a failure.
import { spawnSync } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { build } from 'esbuild';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { type Outcome, outcome } from './outcome.ts';

const tests = fileURLToPath(new URL('../test', import.meta.url));

/** What becomes of a test file with this text, in Node. */
async function run(text: string): Promise<Outcome> {
  const { outputFiles } = await build({
    stdin: { contents: `import { group, finish, registered } from '../tools/group.ts';\n${text}\nawait finish();`, resolveDir: tests },
    bundle: true,
    format: 'esm',
    platform: 'node',
    write: false
  });
  const child = spawnSync(process.execPath, ['--input-type=module'], { input: outputFiles[0]!.text, encoding: 'utf8' });
  return outcome(child.stdout + child.stderr, child.status === 0 ? undefined : `ended with exit code ${child.status}`);
}

/** A file's text, and the passed, failed and skipped tests that must be counted for it. */
const cases: Record<string, [text: string, passed: number, failed: number, skipped: number]> = {
  'a file that is fine': [`group('g', test => { test('a', () => {}); test('b', async () => {}); });`, 2, 0, 0],
  'a skipped test': [`group('g', test => { test('a', () => {}); test.skip('b', 'no adapter'); });`, 1, 0, 1],
  'a test that throws': [`group('g', test => { test('a', () => { throw new Error('no'); }); test('b', () => {}); });`, 1, 1, 0],
  'a test that rejects': [`group('g', test => { test('a', async () => { throw new Error('no'); }); });`, 0, 1, 0],
  'a test that throws what is not an Error': [`group('g', test => { test('a', () => { throw 'no'; }); test('b', () => {}); });`, 1, 1, 0],
  'a failure in the first group only': [
    `group('g', test => { test('a', () => { throw new Error('no'); }); }); group('h', test => { test('b', () => {}); });`,
    1,
    1,
    0
  ],
  'a hook of uvu that throws': [
    `import { suite } from 'uvu'; const s = suite('s'); s.before(() => { throw new Error('no'); }); s('a', () => {}); s.run();`,
    0,
    1,
    0
  ],
  'a suite of uvu that is never run': [`import { suite } from 'uvu'; suite('s')('a', () => {});`, 0, 1, 0],
  'a file without tests': ['', 0, 1, 0],
  'several files, one of them without tests': [
    `group('g', test => { test('a', () => {}); }); registered('a.test.ts'); registered('b.test.ts');`,
    1,
    1,
    0
  ],
  'a group without tests': [`group('g', () => {});`, 0, 1, 0],
  'an async group': [`group('g', async test => { test('a', () => {}); await null; test('b', () => {}); });`, 0, 1, 0],
  'a test inside a test': [`group('g', test => { test('a', () => { test('b', () => {}); }); });`, 0, 1, 0],
  'set-up that throws': [`group('g', test => { test('a', () => {}); }); throw new Error('no');`, 0, 1, 0],
  'a test that never settles': [`group('g', test => { test('a', () => new Promise(() => {})); });`, 0, 1, 0],
  'a test that exits': [`group('g', test => { test('a', () => process.exit(0)); });`, 0, 1, 0],
  'a rejection that nobody handles': [`group('g', test => { test('a', () => { Promise.reject(new Error('no')); }); });`, 1, 1, 0],
  'an error after the last test': [
    `group('g', test => { test('a', () => { setTimeout(() => { throw new Error('no'); }, 50); }); });`,
    1,
    1,
    0
  ]
};

group('group', test => {
  for (const [name, [text, ...expected]] of Object.entries(cases)) {
    test(`${name} counts as ${expected[0]} passed, ${expected[1]} failed, ${expected[2]} skipped`, async () => {
      const { passed, failed, skipped, output } = await run(text);
      assert.equal([passed, failed, skipped], expected, output);
    });
  }
});
