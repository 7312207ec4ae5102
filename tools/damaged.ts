// Files with bytes that are wrong: refused in a sentence, or read. Nothing else may come of them.
import * as assert from 'uvu/assert';

/** Up to four bytes of the first `header` are others; one file in ten is cut off too. */
export function damaged(file: Uint8Array, header: number, next: () => number): Uint8Array<ArrayBuffer> {
  const bytes = Uint8Array.from(file);
  const count = 1 + Math.floor(4 * next());
  for (let n = 0; n < count; n++) {
    const at = Math.floor(next() * header);
    bytes[at] = next() < 0.5 ? bytes[at]! ^ (1 << Math.floor(8 * next())) : Math.floor(256 * next());
  }
  return next() < 0.1 ? bytes.subarray(0, Math.floor(next() * bytes.length)) : bytes;
}

/** Reads `count` damaged files, of which some must be refused and some not, and each refusal must be an InputError, of whichever package. */
export async function readAll(
  count: number,
  make: () => Uint8Array<ArrayBuffer>,
  read: (bytes: Uint8Array<ArrayBuffer>) => unknown
): Promise<void> {
  let refused = 0;
  for (let n = 0; n < count; n++) {
    const bytes = make();
    try {
      await read(bytes);
    } catch (error) {
      assert.is((error as Error).name, 'InputError', `file ${n}: ${(error as Error).stack}`);
      refused++;
    }
  }
  assert.ok(refused > 0 && refused < count, `${refused} of ${count} files were refused`);
}
