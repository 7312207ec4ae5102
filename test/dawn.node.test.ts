// The package `webgpu` in Node: 132 MB of Dawn, which nobody should load who did not ask for WebGPU.

import { spawnSync } from 'node:child_process';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';

group('webgpu in Node', test => {
  test('openBackend() unasked takes wasm, loads no Dawn and prints nothing', () => {
    const code = `
      const { openBackend } = await import('nsnquant');
      const { name } = await openBackend();
      console.log(name, process.report.getReport().sharedObjects.some(file => file.endsWith('dawn.node')));`;
    const { stdout, stderr } = spawnSync(process.execPath, ['--input-type=module', '--eval', code], { encoding: 'utf8' });
    assert.is(stderr, '');
    assert.is(stdout, 'wasm false\n');
  });
});
