// The items of a storage, by kinds: pages under the digest of their contents, and manifests, of which each continues another.
// Whatever is in an item, reading it gives what was written, or nothing.

import { kind } from '../check.ts';
import { typedArrayName } from '../format/half.ts';
import { fromHex, toHex } from '../format/hex.ts';
import { DIGITS, sha256 } from './digest.ts';

/** The methods of an unstorage `Storage` that a store calls. */
export interface PrefixStorage {
  /** The bytes under a key, as Uint8Array or ArrayBuffer; null where there are none. */
  getItemRaw(key: string): Promise<unknown>;
  /** Puts bytes under a key, in the place of others. */
  setItemRaw(key: string, value: Uint8Array): Promise<unknown>;
  /** Removes a key, if it is there. */
  removeItem(key: string): Promise<unknown>;
  /** All keys that begin so. */
  getKeys(base: string): Promise<readonly string[]>;
}

/**
 * The storage failed; `cause` is what it threw. Nothing has changed in the cache, and the store can be asked again.
 *
 * @example
 * import { PrefixStore, StorageError } from 'nsnquant/prefixes';
 * import { createStorage } from 'unstorage';
 * const store = new PrefixStore(createStorage(), { model: 'smollm2-135m', budget: 2e9 });
 * const found = await store.load(cache, [1, 73, 4093]).catch(error => {
 *   if (error instanceof StorageError) return undefined; // a conversation goes on without
 *   throw error;
 * });
 */
export class StorageError extends Error {
  constructor(message: string, cause: unknown) {
    super(message, { cause });
    this.name = 'StorageError';
  }
}

/** @internal A piece of a prefix: what it continues, and where its pages are. */
export interface Manifest {
  /** Key of the manifest that this one continues, or the root. */
  readonly parent: string;
  /** Digest of its pages. */
  readonly pages: string;
  /** Bytes of its pages. */
  readonly bytes: number;
  /** Digest of the balance that they are coded by. */
  readonly balance: string;
}

/** The first part of every key. */
const BASE = 'nsnquant:';
/** A manifest: a digest of its key and of all that follows; parent, pages and balance; bytes of the pages as u32. */
const MANIFEST_BYTES = 4 * (DIGITS / 2) + 4;
const IS_KEY = new RegExp(`:[0-9a-f]{${DIGITS}}$`);
/** When something was last used: f64, milliseconds since 1970. */
const USED_BYTES = 8;
/** How far clocks may be apart: what was used later than that is damaged. */
const CLOCKS_MS = 24 * 60 * 60 * 1000;
/** Requests that are under way at once. */
const AT_ONCE = 16;

/** @internal */
export class Items {
  readonly #storage: PrefixStorage;

  constructor(storage: PrefixStorage) {
    this.#storage = storage;
  }

  /** Names of all items. */
  async names(): Promise<string[]> {
    const keys = await this.#attempt('list its keys', () => this.#storage.getKeys(BASE));
    return keys.filter(key => key.startsWith(BASE)).map(key => key.slice(BASE.length));
  }

  async read(name: string): Promise<Uint8Array | undefined> {
    const value = await this.#attempt(`read ${BASE}${name}`, async () => {
      const value = await this.#storage.getItemRaw(BASE + name);
      if (value instanceof Error) throw value; // the drivers for file systems give it back
      return value;
    });
    if (typedArrayName(value) === 'Uint8Array') return value as Uint8Array;
    return Object.prototype.toString.call(value) === '[object ArrayBuffer]' ? new Uint8Array(value as ArrayBuffer) : undefined;
  }

  async write(name: string, bytes: Uint8Array): Promise<void> {
    await this.#attempt(`write ${BASE}${name}`, () => this.#storage.setItemRaw(BASE + name, bytes));
  }

  async remove(name: string): Promise<void> {
    await this.#attempt(`remove ${BASE}${name}`, () => this.#storage.removeItem(BASE + name));
  }

  /** Removes all of these, manifests first: none names pages that are gone. */
  async removeAll(names: readonly string[]): Promise<void> {
    const isManifest = (name: string): boolean => name.startsWith('manifests:');
    await together(names.filter(isManifest), name => this.remove(name));
    await together(
      names.filter(name => !isManifest(name)),
      name => this.remove(name)
    );
  }

  async readPages({ pages, bytes }: Pick<Manifest, 'pages' | 'bytes'>): Promise<Uint8Array | undefined> {
    const found = await this.read(pagesName(pages, bytes));
    return found && (await sha256(found)) === pages ? found : undefined;
  }

  /** @returns the digest of these pages */
  async writePages(pages: Uint8Array): Promise<string> {
    const digest = await sha256(pages);
    await this.write(pagesName(digest, pages.length), pages);
    return digest;
  }

  async readManifest(key: string): Promise<Manifest | undefined> {
    const bytes = await this.read(manifestName(key));
    if (bytes?.length !== MANIFEST_BYTES) return undefined;
    const [check, parent, pages, balance] = [0, 1, 2, 3].map(n => toHex(bytes.subarray((n * DIGITS) / 2, ((n + 1) * DIGITS) / 2)));
    if (check !== (await sha256(checked(key, bytes)))) return undefined;
    return { parent: parent!, pages: pages!, balance: balance!, bytes: viewOf(bytes).getUint32(MANIFEST_BYTES - 4, true) };
  }

  async writeManifest(key: string, { parent, pages, balance, bytes }: Manifest): Promise<void> {
    const manifest = new Uint8Array(MANIFEST_BYTES);
    for (const [n, digest] of [parent, pages, balance].entries()) manifest.set(fromHex(digest), ((n + 1) * DIGITS) / 2);
    viewOf(manifest).setUint32(MANIFEST_BYTES - 4, bytes, true);
    manifest.set(fromHex(await sha256(checked(key, manifest))));
    await this.write(manifestName(key), manifest);
  }

  /** When the prefix of this key was used, as far as that is known. */
  async readUsed(key: string): Promise<number> {
    const bytes = await this.read(usedName(key));
    const time = bytes?.length === USED_BYTES ? viewOf(bytes).getFloat64(0, true) : 0;
    return time >= 0 && time <= Date.now() + CLOCKS_MS ? time : 0;
  }

  async writeUsed(key: string, time: number): Promise<void> {
    const bytes = new Uint8Array(USED_BYTES);
    viewOf(bytes).setFloat64(0, time, true);
    await this.write(usedName(key), bytes);
  }

  async #attempt<T>(what: string, run: () => Promise<T>): Promise<T> {
    try {
      return await run();
    } catch (cause) {
      throw new StorageError(`storage expected to ${what}, got ${cause instanceof Error ? cause.message : kind(cause)}`, cause);
    }
  }
}

/** @internal Pages say in their name how many bytes they are, so that listing names tells what a storage holds. */
export const pagesName = (digest: string, bytes: number): string => `pages:${digest}-${bytes}`;
/** @internal */
export const manifestName = (key: string): string => `manifests:${key}`;
/** @internal */
export const usedName = (key: string): string => `used:${key}`;

/** @internal Keys of the items of a kind. */
export function keysOf(names: readonly string[], kind: 'manifests' | 'used'): string[] {
  return names.filter(name => name.startsWith(`${kind}:`) && IS_KEY.test(name)).map(name => name.slice(-DIGITS));
}

/** @internal Bytes that items of these names take, their keys not counted. */
export function sizeOf(names: readonly string[]): number {
  return names.reduce((sum, name) => {
    if (name.startsWith('manifests:')) return sum + MANIFEST_BYTES;
    if (name.startsWith('used:')) return sum + USED_BYTES;
    return sum + Number(/^pages:.*-(\d+)$/.exec(name)?.[1] ?? 0);
  }, 0);
}

/**
 * @internal Runs this for all of a list, some at once; results in the order of the list. Where one fails no other is begun, and it
 * throws when those under way have ended.
 */
export async function together<T, R>(list: readonly T[], run: (item: T, index: number) => Promise<R>): Promise<R[]> {
  const results: R[] = [];
  let next = 0;
  const work = async (): Promise<void> => {
    while (next < list.length) {
      const n = next++;
      try {
        results[n] = await run(list[n]!, n);
      } catch (error) {
        next = list.length;
        throw error;
      }
    }
  };
  const workers = await Promise.allSettled(Array.from({ length: AT_ONCE }, work));
  for (const worker of workers) if (worker.status === 'rejected') throw worker.reason;
  return results;
}

/** What a manifest's digest is of: under another key it is another's. */
function checked(key: string, manifest: Uint8Array): Uint8Array {
  const copy = new Uint8Array(manifest); // slice() of a Buffer is the same memory
  copy.set(fromHex(key));
  return copy;
}

function viewOf({ buffer, byteOffset, byteLength }: Uint8Array): DataView {
  return new DataView(buffer, byteOffset, byteLength);
}
