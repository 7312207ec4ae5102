// Profiles: learned from a text as a sequence learns from its beginning, and kept on disk with the model that they are of.
import { mkdtempSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { openGguf } from '@nsnquant/gguf';
import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { refuses } from '../../../tools/refuses.ts';
import { tiny, tinyGguf } from '../../../tools/tiny-gguf.ts';
import { DenseAttention } from '../caches/dense.ts';
import { openCache, parseMethod } from '../caches/methods.ts';
import type { NsnCache } from '../caches/nsn.ts';
import { windowChunks } from '../evaluate.ts';
import { learnProfile, readProfile, writeProfile } from '../profile.ts';

const model = await openGguf(new Blob([tinyGguf({ metadata: { 'llama.context_length': 256 } })]), { runtime });
const { config } = model;
const resources = { model, config, backend: await openBackend(), dense: await DenseAttention.open(runtime, config) };
const tokens = Array.from({ length: 133 }, (_, i) => (i * i + Math.floor(i / 7)) % tiny.vocabulary);
const folder = mkdtempSync(join(tmpdir(), 'profile-'));

group('profiles', test => {
  test('of a sequence of 132 tokens are what the sequence learns', async () => {
    const cache = openCache(parseMethod('nsn2'), resources, 256, 132) as NsnCache;
    for (const [from, to] of windowChunks(tokens.length, 4)) await model.forward(tokens.slice(from, to), cache);
    const learned = await cache.sequence.balance();
    const profile = await learnProfile(resources, [tokens.slice(0, 132)], () => {});
    assert.is(profile.length, tiny.layers * tiny.kvHeads * (tiny.headDim / 2));
    // Half octaves of keys and of queries: one more or less where f16, which the cache learns from, is on the other side of an edge.
    const apart = profile.map((byte, i) => Math.abs((byte & 15) - (learned[i]! & 15)) + Math.abs((byte >> 4) - (learned[i]! >> 4)));
    assert.ok(apart.every(levels => levels <= 1) && apart.filter(levels => levels > 0).length <= 1, `${profile} for ${learned}`);
    assert.ok(new Set(profile).size > 4, 'pairs differ');
  });
  test('code a sequence as if it had learned them, from its first window on', async () => {
    const profile = await learnProfile(resources, [tokens.slice(0, 132)], () => {});
    const cache = openCache(parseMethod('nsn2'), { ...resources, profile }, 256, 68) as NsnCache;
    await model.forward(tokens.slice(0, 68), cache);
    await model.forward(tokens.slice(68, 69), cache);
    assert.is(cache.sequence.sealed.tokens, 64);
    assert.equal(await cache.sequence.balance(), profile);
  });
  test('are read as they were written, and of another model refused', async () => {
    const file = join(folder, 'balance.json');
    const mark = { name: 'tiny.gguf', sha256: 'a'.repeat(64) };
    await writeProfile(file, Uint8Array.of(0, 17, 255), mark);
    assert.equal(await readProfile(file, mark), Uint8Array.of(0, 17, 255));
    await refuses(
      () => readProfile(file, { name: 'other.gguf', sha256: 'b'.repeat(64) }),
      `${file}: expected a profile of other.gguf (SHA-256 bbbbbbbbbbbb…), got one of tiny.gguf (SHA-256 aaaaaaaaaaaa…)`
    );
    for (const text of ['', '{}', '{"model":{"name":"a","sha256":"b"}}', 'null']) {
      writeFileSync(file, text);
      await refuses(() => readProfile(file, mark), `${file}: expected a profile that calibrate made, got something else`);
    }
    await refuses(() => readProfile(join(folder, 'nowhere'), mark), /^"--balance" expected a readable file, got ENOENT/);
  });
});
