// The tiny model as a source, and what is wrong with what a person gave: an InputError, whose sentence is the test's matter.
import * as assert from 'uvu/assert';
import { type TinyOptions, tinyGguf } from '../../../tools/tiny-gguf.ts';
import { blobSource, InputError, type Source } from '../engine/source.ts';

export function tinySource(options?: TinyOptions): Source {
  return blobSource(new Blob([tinyGguf(options)]), 'tiny.gguf');
}

export async function refuses(run: () => Promise<unknown>, message: RegExp | string): Promise<void> {
  try {
    await run();
  } catch (error) {
    assert.instance(error, InputError, String(error));
    if (typeof message === 'string') assert.is((error as Error).message, message);
    else assert.match((error as Error).message, message);
    return;
  }
  assert.unreachable('expected an error');
}
