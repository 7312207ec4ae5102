// The demo on recordings of other models than its own: what balancing keys gains where attention looks at few channels.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { atMost } from './compare.ts';
import { fewPairs } from './recording.ts';
import { FEW_PAIRS } from './tolerance.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

group('demo', test => {
  test('shows what balancing gains over plain keys where one pair of channels in 16 carries the logits', () => {
    const input = join(root, '.test', 'few-pairs.safetensors');
    writeFileSync(input, fewPairs(500, 64));
    const json = join(root, '.test', 'few-pairs.json');
    const args = ['tsx', 'bench/demo/index.ts', '--input', input, '--json', json, '--report', join(root, '.test', 'few-pairs.html')];
    const { status, stdout, stderr } = spawnSync('npx', args, { cwd: root, encoding: 'utf8' });
    assert.is(status, 0, stderr);
    assert.match(stdout, /4 query heads, 1 KV heads of 256; RoPE known/);
    assert.match(stdout, /first 132 positions are not in the recording, so that queries of the last 64 stand in for them/);
    const divergences = (row: RegExp): number[] => {
      const cells = stdout.split('\n').find(line => row.test(line))!;
      return cells.split('|').slice(2, -1).map(Number);
    };
    for (const [codec, most] of Object.entries(FEW_PAIRS)) {
      const [plain, , balanced] = divergences(new RegExp(`^\\| ${codec} +\\| +\\S+ \\| +\\S+ \\| +\\S+ \\|$`)) as [number, number, number];
      console.log(`${codec}: KL ${balanced}, plain ${plain}`);
      atMost(`${codec}, KL to that of plain keys`, balanced / plain, most);
    }
  });
});
