// The tiny model as a source.
import { type TinyOptions, tinyGguf } from '../../../tools/tiny-gguf.ts';
import { blobSource, type Source } from '../src/source.ts';

export function tinySource(options?: TinyOptions): Source {
  return blobSource(new Blob([tinyGguf(options)]), 'tiny.gguf');
}
