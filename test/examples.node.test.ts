// Snippets of examples/ run as they stand. Where there is no device that is said; NSN_REQUIRE=webgpu makes it a failure.
import { spawnSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { required } from './gpu.ts';
import { group } from './group.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Whether a program that ended badly says that it found no device, where none is required. */
const lacksDevice = (stderr: string) => !required && /no GPU adapter|expected an adapter|did not load|Cannot find package/.test(stderr);

group('examples', test => {
  test('device.ts gives the mean of equal values, from the engine\'s buffer into the engine\'s buffer', () => {
    const { status, stdout, stderr } = spawnSync('npx', ['tsx', 'examples/device.ts'], { cwd: root, encoding: 'utf8' });
    if (status !== 0 && lacksDevice(stderr)) return console.log(`device.ts skipped: ${stderr.trim().split('\n').at(-1)}`);
    assert.is(status, 0, stderr);
    assert.match(stdout, /^its device was given; adapter .+\n0\.25\n$/);
  });

  test('the demo says the same of the cache on WebGPU as on WebAssembly', () => {
    const run = (backend: string) => {
      const json = join(root, '.test', `demo-${backend}.json`);
      const args = ['tsx', 'examples/demo.ts', '--backend', backend, '--queries', '1', '--json', json, '--report', join(root, '.test', `demo-${backend}.html`)];
      const { status, stderr } = spawnSync('npx', args, { cwd: root, encoding: 'utf8' });
      return { status, stderr, json };
    };
    const gpu = run('webgpu');
    if (gpu.status !== 0 && lacksDevice(gpu.stderr)) return console.log(`the demo on WebGPU skipped: ${gpu.stderr.trim().split('\n').at(-1)}`);
    assert.is(gpu.status, 0, gpu.stderr);
    const cpu = run('wasm');
    assert.is(cpu.status, 0, cpu.stderr);
    const results = [gpu, cpu].map(({ json }) => JSON.parse(readFileSync(json, 'utf8')) as Record<string, unknown>[]);
    results[1]!.forEach((row, i) => {
      const other = results[0]![i]!;
      for (const name of ['keys', 'values', 'bytes']) assert.is(other[name], row[name]);
      // Near ties may fall the other way, a few in a thousand codes: they move an error of one query by less than 2 % of itself.
      for (const name of ['outputError', 'attentionKL']) {
        const [a, b] = [other[name] as number, row[name] as number];
        assert.ok(Math.abs(a - b) <= 0.02 * b, `${row.keys}/${row.values} ${name}: ${a} on webgpu, ${b} on wasm`);
      }
    });
  });
});
