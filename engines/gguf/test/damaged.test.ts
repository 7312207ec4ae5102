// Damaged model files: refused in a sentence, or read. Nothing else may come of a byte that is wrong.
import { damaged, readAll } from '../../../tools/damaged.ts';
import { group } from '../../../tools/group.ts';
import { random } from '../../../tools/numbers.ts';
import { tinyGguf } from '../../../tools/tiny-gguf.ts';
import { readGguf } from '../src/gguf.ts';
import { blobSource } from '../src/source.ts';
import { openTokenizer } from '../src/tokenizer.ts';

group('damaged files', test => {
  test('a model file is opened with its tokenizer, or refused', async () => {
    const next = random(1);
    const file = tinyGguf();
    await readAll(
      400,
      () => damaged(file, 3000, next),
      async bytes => openTokenizer(await readGguf(blobSource(new Blob([bytes]), 'damaged.gguf')))
    );
  });
});
