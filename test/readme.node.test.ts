// The README's example, run as it stands against the installed package; and that the README has what it promises.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from './group.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const readme = readFileSync(join(root, 'README.md'), 'utf8');
const example = /^```ts\n([\s\S]*?)^```/m.exec(readme)![1]!;

group('README', test => {
  test('the example runs and prints one line for each layer', () => {
    const file = join(root, '.test/readme-example.mjs');
    writeFileSync(file, example);
    const { status, stdout, stderr } = spawnSync(process.execPath, [file], { encoding: 'utf8' });
    assert.is(status, 0, stderr);
    const lines = stdout.trim().split('\n');
    assert.is(lines.length, 2);
    // Every value is 0.25, so whatever is attended to, the mean is 0.25.
    for (const line of lines) assert.ok(Math.abs(Number(line.split(' ').at(-1)) - 0.25) < 1e-3, line);
  });

  test('the example has about twelve lines', () => {
    assert.ok(example.trim().split('\n').length <= 13);
  });

  test('no figure is left to be filled in', () => {
    assert.not.match(readme, /@@/);
  });
});
