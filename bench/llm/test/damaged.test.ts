// Damaged model files and recordings: refused in a sentence, or read. Nothing else may come of a byte that is wrong.
import { readFileSync } from 'node:fs';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { readRecording } from '../../demo/recording.ts';
import { InputError as RecordingError } from '../../demo/safetensors.ts';
import { openGguf } from '../engine/gguf.ts';
import { blobSource, InputError } from '../engine/source.ts';
import { openTokenizer } from '../engine/tokenizer.ts';

/** Numbers from 0 to 1, the same every time. */
function random(seed: number): () => number {
  let state = seed;
  return () => (state = (Math.imul(state, 1664525) + 1013904223) >>> 0) / 2 ** 32;
}

/** Up to four bytes of the first `header` are others; one file in ten is cut off too. */
function damaged(file: Uint8Array, header: number, next: () => number): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from(file);
  const count = 1 + Math.floor(4 * next());
  for (let n = 0; n < count; n++) {
    const at = Math.floor(next() * header);
    bytes[at] = next() < 0.5 ? bytes[at]! ^ (1 << Math.floor(8 * next())) : Math.floor(256 * next());
  }
  return next() < 0.1 ? bytes.subarray(0, Math.floor(next() * bytes.length)) : bytes;
}

/** Reads `count` damaged files, of which some must be refused and some not, and each refusal must be of the kind `refusal`. */
async function readAll(
  count: number,
  make: () => Uint8Array<ArrayBuffer>,
  read: (bytes: Uint8Array<ArrayBuffer>) => unknown,
  refusal: new (message: string) => Error
) {
  let refused = 0;
  for (let n = 0; n < count; n++) {
    const bytes = make();
    try {
      await read(bytes);
    } catch (error) {
      assert.instance(error, refusal, `file ${n}: ${(error as Error).stack}`);
      refused++;
    }
  }
  assert.ok(refused > 0 && refused < count, `${refused} of ${count} files were refused`);
}

group('damaged files', test => {
  test('a model file is opened with its tokenizer, or refused', async () => {
    const next = random(1);
    const file = tinyGguf();
    await readAll(
      400,
      () => damaged(file, 3000, next),
      async bytes => openTokenizer(await openGguf(blobSource(new Blob([bytes]), 'damaged.gguf'))),
      InputError
    );
  });

  test('a recording is read, or refused', async () => {
    const next = random(2);
    const file = readFileSync(new URL('../../../test/fixtures/smollm2-135m-kv.safetensors', import.meta.url));
    const header = 8 + Number(file.readBigUInt64LE(0));
    await readAll(100, () => damaged(file, header, next), readRecording, RecordingError);
  });
});
