// Damaged recordings: refused in a sentence, or read.
import { readFileSync } from 'node:fs';
import { damaged, readAll } from '../../../tools/damaged.ts';
import { group } from '../../../tools/group.ts';
import { random } from '../../../tools/numbers.ts';
import { readRecording } from '../../demo/recording.ts';

group('damaged recordings', test => {
  test('a recording is read, or refused', async () => {
    const next = random(2);
    const file = readFileSync(new URL('../../../test/fixtures/smollm2-135m-kv.safetensors', import.meta.url));
    const header = 8 + Number(file.readBigUInt64LE(0));
    await readAll(100, () => damaged(file, header, next), readRecording);
  });
});
