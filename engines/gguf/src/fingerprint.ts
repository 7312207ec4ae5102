// What a model is known by: a checksum of all its bytes, read in pieces, so that a file of any size has one in a browser, too.
import { InputError, type Source } from './source.ts';

const PIECE = 2 ** 24;

/**
 * SHA-256, hexadecimal, of the SHA-256s of pieces of 16 MiB of every file, one after another. Two models of one shape may differ anywhere.
 *
 * @throws {InputError} where crypto.subtle is missing
 *
 * @example
 * const mark = await fingerprint([blobSource(new Blob(['weights']), 'model')]); // 64 digits
 */
export async function fingerprint(sources: readonly Source[]): Promise<string> {
  const { subtle } = globalThis.crypto ?? {};
  if (!subtle) throw new InputError('crypto.subtle expected object (pages need https or localhost), got undefined');
  const digests: Uint8Array[] = [];
  for (const { size, read } of sources) {
    for (let begin = 0; begin < size; begin += PIECE) {
      const bytes = await read(begin, Math.min(size, begin + PIECE));
      digests.push(new Uint8Array(await subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)));
    }
  }
  const all = new Uint8Array(32 * digests.length);
  digests.forEach((digest, n) => all.set(digest, 32 * n));
  const digest = new Uint8Array(await subtle.digest('SHA-256', all));
  return [...digest].map(byte => byte.toString(16).padStart(2, '0')).join('');
}
