// What a backend is: memory for pages, and the verbs on them. Backends know nothing of each other or of sequences.

import type { Data } from './half.ts';
import type { CacheShape } from './shape.ts';

export type BackendName = 'reference' | 'wasm' | 'webgpu';

/** Where kernels run. Opened by `openBackend`, handed to `new KVCache`. */
export interface Backend {
  readonly name: BackendName;
  /** Which of its forms is in use: `simd128`, `relaxed`, `scalar`; `baseline`; or `f64`. */
  readonly variant: string;
  /** Why this one was picked, in words. */
  readonly reason: string;
  /** Memory for a cache. Everything is allocated here, nothing later. */
  createStore(shape: CacheShape): Store;
}

/**
 * A backend refused: the caller may try another. `backend` names it, `cause` is what it met.
 *
 * @example
 * try { await openBackend({ prefer: 'wasm' }); } catch (error) { if (error instanceof BackendError) console.log(error.backend); }
 */
export class BackendError extends Error {
  readonly backend: BackendName;
  constructor(backend: BackendName, message: string, cause?: unknown) {
    super(`${backend} backend ${message}`, { cause });
    this.name = 'BackendError';
    this.backend = backend;
  }
}

/** The result of `attend`: queued when it returns; only `read` waits. */
export interface Output {
  /** f32 [tokens, queryHeads, headDim], sequences one after another. */
  read(): Promise<Float32Array>;
}

export interface Tokens {
  /** f32 [tokens, kvHeads, headDim] */
  readonly keys: Float32Array;
  readonly values: Float32Array;
}

/** Bytes of a table's pages, raw windows and sinks (layout.ts draws them); all copies. */
export interface Dump {
  readonly pages: readonly Uint8Array[];
  readonly raws: readonly Uint8Array[];
  readonly sinks: Uint8Array | undefined;
}

/**
 * Where one sequence's tokens of one layer lie, oldest first: sinks (position 0 on), coded pages of 64, then raw windows of
 * which the last may be partial. Page and place numbers are the store's; a place holds raw tokens.
 */
export interface PageTable {
  length: number;
  readonly sinkPlace: number;
  readonly pages: Uint32Array;
  pageCount: number;
  readonly raws: Uint32Array;
  rawCount: number;
}

/**
 * A cache's memory: `shape.pagesPerLayer` pages for every layer, and raw places: `shape.rawPages` of 64 tokens, then
 * `shape.sinkPlaces` of `shape.sinks` tokens.
 */
export interface Store {
  /** Every byte allocated. */
  readonly bytes: number;
  /** Where memory is granted later: settles when it was, rejects with a BackendError if it was refused. */
  readonly ready?: Promise<void>;
  /** Tokens [from, from + tokens) of keys and values into a place, from its token `at` on, rounded to f16. */
  write(place: number, at: number, keys: Data, values: Data, from: number, tokens: number): void;
  copyPlace(from: number, to: number): void;
  setPlace(place: number, bytes: Uint8Array): void;
  setPage(layer: number, page: number, bytes: Uint8Array): void;
  /** A place's 64 tokens into a page. */
  encode(layer: number, place: number, page: number): void;
  /** A page's 64 tokens back into a place. */
  decode(layer: number, page: number, place: number): void;
  /** Everything a table holds now, decoded. */
  read(layer: number, table: PageTable): Promise<Tokens>;
  /** The bytes of everything a table holds now. */
  dump(layer: number, table: PageTable): Promise<Dump>;
  /**
   * Attention of the newest queries of every sequence: queries[n] is f32 [tokens, queryHeads, headDim], its last token at
   * the table's last position.
   *
   * @param out  f32, the length of all queries together
   */
  attend(layer: number, tables: readonly PageTable[], queries: readonly Float32Array[], scale: number, out: Float32Array): Output;
  dispose(): void;
}
