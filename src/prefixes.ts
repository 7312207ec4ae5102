/**
 * Prefixes that conversations, processes and machines share, kept in any storage of
 * [unstorage](https://unstorage.unjs.io): memory, files, IndexedDB, Redis, S3 and others.
 *
 * @module nsnquant/prefixes
 */

import { KVCache, restoreInto } from './cache.ts';
import { checkObject, checkOptions, kind } from './check.ts';
import { layOut, readContents } from './file.ts';
import { typedArrayName } from './format/half.ts';
import { tensorsOf } from './header.ts';
import { chainOf, NONE, rootOf, sha256 } from './prefixes/digest.ts';
import { evict } from './prefixes/evict.ts';
import { Items, type Manifest, manifestName, type PrefixStorage, sizeOf, together } from './prefixes/items.ts';
import { balanceOf, Pieces } from './prefixes/pieces.ts';
import { contentsOf, Sequence, wholeOf } from './sequence.ts';
import type { CacheShape } from './shape.ts';

export { type PrefixStorage, StorageError } from './prefixes/items.ts';

/** What `new PrefixStore` takes. */
export interface PrefixStoreOptions {
  /** What tells the model's weights from all others: a name with a version, or a checksum. Prefixes of another are never found. */
  readonly model: string;
  /** Bytes that the storage may hold of all models together; Infinity where it has a bound of its own. */
  readonly budget: number;
}

const OPTIONS = ['model', 'budget'] as const satisfies readonly (keyof PrefixStoreOptions)[];
const METHODS = ['getItemRaw', 'setItemRaw', 'removeItem', 'getKeys'] as const satisfies readonly (keyof PrefixStorage)[];

/** Others write to a storage too. It is listed anew when this share of the budget was written. */
const UNSEEN = 1 / 16;

/** Token ids. */
export type TokenIds = ArrayLike<number | bigint>;

/**
 * Coded prefixes of sequences, found by their tokens.
 *
 * `put` cuts a sequence into pieces of one window and stores each under the SHA-256 of its contents; a manifest for every piece, under a
 * hash chain over the model, the shape of the cache and the token ids, says which comes next. So the longest stored prefix of a prompt is
 * found without knowing what was stored, and what prompts share is there once. Where a cache learns its balance, the first 128 tokens
 * after the sinks are one piece, as they decide how the others are coded; by a profile (option `balance`), or plain, every 64 are.
 *
 * Any number of stores, in processes and on machines, may use a storage at once. Pages are written before the manifests that name them.
 * What is damaged, was half-written by a process that was killed, or was evicted by another is found out by its hash and is as if it were
 * not there. A hash is no signature: who may write to the storage may change what is found. Token ids must tell all that the model saw:
 * give images ids of their own.
 *
 * @throws {TypeError}  if an argument is of the wrong kind, or the engine has no `crypto.subtle` (pages need https or localhost)
 * @throws {RangeError} if `budget` is not above 0
 *
 * @example
 * import { PrefixStore } from 'nsnquant/prefixes';
 * import { createStorage } from 'unstorage';
 * const store = new PrefixStore(createStorage(), { model: 'smollm2-135m', budget: 2e9 });
 * const prompt = Array.from({ length: chat.length + 20 }, (_, n) => n);
 * chat.append(0, new Float32Array(20 * 128), new Float32Array(20 * 128));
 * console.log(await store.put(chat, prompt)); // 132: all coded windows
 * branch.dispose();
 * const again = (await store.load(cache, prompt)) ?? cache.sequence();
 * console.log(again.length); // 132: the model has still to see the other 16
 */
export class PrefixStore {
  readonly #items: Items;
  readonly #model: string;
  readonly #budget: number;
  /** Bytes that the storage held when it was listed, and those written since. */
  #listed = Infinity;
  #written = 0;
  /** When something was used last, by this store. */
  #now = 0;

  constructor(storage: PrefixStorage, options: PrefixStoreOptions) {
    checkObject('storage', storage);
    for (const method of METHODS) {
      if (typeof storage[method] !== 'function') {
        throw new TypeError(`"storage.${method}" expected function (a Storage of unstorage), got ${kind(storage[method])}`);
      }
    }
    checkOptions('options', options, OPTIONS);
    const { model, budget } = options;
    if (typeof model !== 'string') throw new TypeError(`"model" expected string, got ${kind(model)}`);
    if (typeof budget !== 'number') throw new TypeError(`"budget" expected number, got ${kind(budget)}`);
    if (!(budget > 0)) throw new RangeError(`"budget" expected bytes above 0, got ${budget}`);
    if (!globalThis.crypto?.subtle) throw new TypeError('crypto.subtle expected object (pages need https or localhost), got undefined');
    this.#items = new Items(storage);
    this.#model = model;
    this.#budget = budget;
  }

  /**
   * Stores a sequence's coded windows, those that are not stored yet. Complete windows are sealed first, as by `seal()`. What is stored is
   * the sequence at the time of the call: it may go on meanwhile. Where layers have sliding windows, what is behind them can no longer be
   * stored, nor what follows it: put a long prompt every so often while it is processed.
   *
   * @param sequence  a sequence of any cache
   * @param tokens    the ids of its tokens, all of them
   * @returns         tokens of it that `load` finds now: the sinks and whole windows, 0 where too few are coded
   * @throws {TypeError}    if an argument is of the wrong kind, or the sequence was disposed
   * @throws {RangeError}   if there are more or fewer ids than tokens, or one is no integer from 0 to 2³² − 1; if layers hold
   *                        different numbers of tokens; or if tokens were evicted, as what came after was made without them
   * @throws {StorageError} if the storage fails
   *
   * @example
   * import { PrefixStore } from 'nsnquant/prefixes';
   * import { createStorage } from 'unstorage';
   * const store = new PrefixStore(createStorage(), { model: 'smollm2-135m', budget: 2e9 });
   * const stored = await store.put(chat, new Int32Array(chat.length)); // 0: its first windows are not coded yet
   */
  async put(sequence: Sequence, tokens: TokenIds): Promise<number> {
    if (!(sequence instanceof Sequence)) throw new TypeError(`"sequence" expected Sequence, got ${kind(sequence)}`);
    const ids = checkTokens(tokens);
    checkWhole(sequence);
    if (ids.length !== sequence.length) {
      throw new RangeError(`"tokens" expected length ${sequence.length} (one id for each token of the sequence), got ${ids.length}`);
    }
    const { shape } = sequence;
    const { header, data } = layOut(shape, await contentsOf(sequence));
    const tensors = tensorsOf(header);
    const pieces = new Pieces(shape);
    const count = pieces.count(Math.min(...header.coded));
    const balance = balanceOf(tensors, data);
    const own = balance.length > 0 ? await sha256(balance) : NONE;
    const { root, keys } = await this.#chain(shape, pieces, ids, count);
    const stored = linked(await together(keys, key => this.#items.readManifest(key)));
    // Under another balance, which other queries may have taught, neither can continue the other: the longer one stays.
    const from = stored[0] && stored[0].balance !== own ? (stored.length < count ? 0 : count) : stored.length;
    let to = from;
    while (to < count && pieces.has(header, to)) to++;
    const length = to || stored.length;
    if (length === 0) return 0;

    // Pages first, manifests last: whoever is killed in between has stored nothing, and whoever finds a manifest finds its pages.
    const missing = keys.slice(from, to);
    const written = await together(missing, async (_, n): Promise<Manifest> => {
      const piece = pieces.cut(header, tensors, data, from + n);
      const pages = await this.#items.writePages(piece);
      return { parent: keys[from + n - 1] ?? root, pages, bytes: piece.length, balance: own };
    });
    await this.#use(keys[length - 1]!);
    await together(missing, (key, n) => this.#items.writeManifest(key, written[n]!));

    this.#written += written.reduce((sum, { bytes }) => sum + bytes, 0) + sizeOf(missing.map(manifestName));
    const gone = await this.#evict();
    const left = keys.findIndex((key, n) => n < length && gone.has(key));
    return pieces.length(left < 0 ? length : left);
  }

  /**
   * How many tokens of the longest stored prefix `load` would find. No page is read.
   *
   * @param cache   a cache that would take it
   * @param tokens  the ids of a prompt
   * @throws {TypeError | RangeError | StorageError} as `load` does
   *
   * @example
   * import { PrefixStore } from 'nsnquant/prefixes';
   * import { createStorage } from 'unstorage';
   * const store = new PrefixStore(createStorage(), { model: 'smollm2-135m', budget: 2e9 });
   * const length = await store.find(cache, [1, 73, 4093]); // 0
   */
  async find(cache: KVCache, tokens: TokenIds): Promise<number> {
    const { pieces, keys } = await this.#longest(cache, tokens);
    return pieces.length(keys.length);
  }

  /**
   * The longest stored prefix of a prompt, as a sequence. It is shorter than the prompt by one token at least, for the model to be asked
   * with: what comes next is the query at the prompt's last token.
   *
   * @param cache   a cache of the shape that the prefix was stored from; capacity, sequences and backend may differ
   * @param tokens  the ids of a prompt
   * @returns       a sequence of the cache, whose `length` says how many of the tokens it has; undefined if none are stored
   * @throws {TypeError}    if an argument is of the wrong kind
   * @throws {RangeError}   if an id is no integer from 0 to 2³² − 1; or if tokens or sequences are too many for the cache
   * @throws {StorageError} if the storage fails; whatever throws, the cache is as it was
   *
   * @example
   * import { PrefixStore } from 'nsnquant/prefixes';
   * import { createStorage } from 'unstorage';
   * const store = new PrefixStore(createStorage(), { model: 'smollm2-135m', budget: 2e9 });
   * const prompt = [1, 73, 4093];
   * const next = (await store.load(cache, prompt)) ?? branch;
   * const unseen = prompt.slice(next.length); // what the model has still to see
   */
  async load(cache: KVCache, tokens: TokenIds): Promise<Sequence | undefined> {
    const { pieces, keys } = await this.#longest(cache, tokens);
    const read = await together(keys, async key => {
      const manifest = await this.#items.readManifest(key);
      return { manifest, pages: manifest && (await this.#items.readPages(manifest)) };
    });
    const { length } = linked(read.map(({ manifest }) => manifest));
    const found = read.slice(0, length).map(({ pages }) => pages);
    const bad = found.indexOf(undefined);
    const good = (bad < 0 ? found : found.slice(0, bad)) as Uint8Array[];
    // The next put writes these pages again. They stay, as they may be those of a writer who is not through.
    if (bad >= 0) await this.#items.remove(manifestName(keys[bad]!));
    if (good.length === 0) return undefined;
    await this.#use(keys[good.length - 1]!);
    return restoreInto(cache, readContents(cache.shape, pieces.join(good)));
  }

  /**
   * Bytes of all pages, manifests and times of use in the storage, of every model; their keys are not counted.
   *
   * @throws {StorageError} if the storage fails
   */
  async bytes(): Promise<number> {
    return sizeOf(await this.#items.names());
  }

  /**
   * Removes all that stores keep in the storage, of every model. What else is in it stays.
   *
   * @throws {StorageError} if the storage fails
   */
  async clear(): Promise<void> {
    await this.#items.removeAll(await this.#items.names());
  }

  /**
   * Keys of the longest stored prefix, which leaves the last token out: by halves, as whatever continues a prefix was stored after it, and
   * is evicted before it. Where that failed to be, what is found is shorter, or load() finds where it ends.
   *
   * Of 32,768 tokens in files 0.5 ms; to read manifests one after another until one is missing, in lots that double, takes 33 ms.
   */
  async #longest(cache: KVCache, tokens: TokenIds): Promise<{ pieces: Pieces; keys: readonly string[] }> {
    if (!(cache instanceof KVCache)) throw new TypeError(`"cache" expected KVCache, got ${kind(cache)}`);
    const ids = checkTokens(tokens);
    const pieces = new Pieces(cache.shape);
    const { keys } = await this.#chain(cache.shape, pieces, ids, pieces.within(ids.length - 1));
    let [least, most] = [0, keys.length];
    while (least < most) {
      const asked = Math.ceil((least + most) / 2);
      if (await this.#items.readManifest(keys[asked - 1]!)) least = asked;
      else most = asked - 1;
    }
    return { pieces, keys: keys.slice(0, least) };
  }

  async #chain(shape: CacheShape, pieces: Pieces, ids: Uint32Array, count: number): Promise<{ root: string; keys: string[] }> {
    const root = await rootOf(this.#model, shape);
    const ends = Array.from({ length: count }, (_, n) => pieces.length(n + 1));
    return { root, keys: await chainOf(root, ids, ends) };
  }

  /** A prefix is used now, and later than what was used before. */
  async #use(key: string): Promise<void> {
    this.#now = Math.max(Date.now(), this.#now + 1);
    await this.#items.writeUsed(key, this.#now);
  }

  /** Holds the storage to the budget, as far as this store knows it to be larger. Keys of what is gone. */
  async #evict(): Promise<ReadonlySet<string>> {
    if (this.#listed + this.#written <= this.#budget && this.#written <= UNSEEN * this.#budget) return new Set();
    const { bytes, gone } = await evict(this.#items, this.#budget);
    this.#listed = bytes;
    this.#written = 0;
    return gone;
  }
}

/** Refuses a sequence of which something was evicted that tokens after it would have seen: what stands for them was made without. */
function checkWhole(sequence: Sequence): void {
  for (const [layer, positions] of wholeOf(sequence).entries()) {
    if (positions === Infinity) continue;
    throw new RangeError(
      `"sequence" expected tokens that saw all they should, got layer ${layer} with something evicted from position ${positions} on`
    );
  }
}

/** Manifests up to the first that is not there, or is of pages that are coded by another balance. Keys tell all else. */
function linked(manifests: readonly (Manifest | undefined)[]): Manifest[] {
  const end = manifests.findIndex(manifest => !manifest || manifest.balance !== manifests[0]?.balance);
  return (end < 0 ? manifests : manifests.slice(0, end)) as Manifest[];
}

/** Token ids, copied. */
function checkTokens(tokens: unknown): Uint32Array {
  if (!Array.isArray(tokens) && typedArrayName(tokens) === undefined) {
    throw new TypeError(`"tokens" expected array of integers, got ${kind(tokens)}`);
  }
  const ids = tokens as TokenIds;
  return Uint32Array.from({ length: ids.length }, (_, n) => {
    const id = ids[n];
    const number = typeof id === 'bigint' ? Number(id) : id;
    if (typeof number !== 'number') throw new TypeError(`"tokens[${n}]" expected integer, got ${kind(id)}`);
    if (!(Number.isInteger(number) && number >= 0 && number < 2 ** 32)) {
      throw new RangeError(`"tokens[${n}]" expected integer from 0 to ${2 ** 32 - 1}, got ${id}`);
    }
    return number;
  });
}
