// Conversations on disk: with the model that they are of, both files of them, or not at all.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { markOf, readKept, writeKept } from '../kept.ts';

group('kept conversations', test => {
  const folder = mkdtempSync(join(tmpdir(), 'nsnquant-kept-'));
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }));
  const at = (name: string): string => join(folder, name);
  const transcript = { messages: [{ role: 'user', content: 'abc' }] as const, tokens: [0, 1, 2] };
  const cache = Uint8Array.of(1, 2, 3);
  const bytes = tinyGguf();
  writeFileSync(at('a.gguf'), bytes);
  bytes[bytes.length - 1]! ^= 1;
  writeFileSync(at('b.gguf'), bytes);

  test('come back with the model that they were kept with, and not with other weights of the same shape', async () => {
    const [a, b] = [await markOf(at('a.gguf')), await markOf(at('b.gguf'))];
    await writeKept(at('kept'), cache, transcript, a);
    assert.equal(await readKept(at('kept'), a), { cache, transcript });
    await refuses(
      () => readKept(at('kept'), b),
      `${at('kept')}.json: expected a conversation with b.gguf (SHA-256 ${b.sha256.slice(0, 12)}…), got one with a.gguf (SHA-256 ${a.sha256.slice(0, 12)}…)`
    );
  });
  test('whose files do not belong together are refused', async () => {
    const mark = await markOf(at('a.gguf'));
    await writeKept(at('other'), cache, transcript, mark);
    for (const bytes of [cache.subarray(1), Uint8Array.of(1, 2, 2)]) {
      writeFileSync(at('other'), bytes);
      await refuses(
        () => readKept(at('other'), mark),
        `${at('other')}: expected the cache that ${at('other')}.json was kept with, got other bytes`
      );
    }
  });
  test('whose text is another thing are refused', async () => {
    const mark = await markOf(at('a.gguf'));
    await writeKept(at('bad'), cache, transcript, mark);
    const text = JSON.parse(readFileSync(at('bad.json'), 'utf8')) as object;
    const changes = [{ model: undefined }, { model: 'a.gguf' }, { cache: 1 }, { tokens: 'abc' }, { tokens: [0.5] }, { messages: [{}] }];
    for (const json of ['', 'null', '[]', ...changes.map(change => JSON.stringify({ ...text, ...change }))]) {
      writeFileSync(at('bad.json'), json);
      await refuses(() => readKept(at('bad'), mark), `${at('bad')}.json: expected the text of a kept conversation, got something else`);
    }
  });
});
