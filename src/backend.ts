// What a backend is: memory for pages, and the verbs on them. Backends know nothing of each other or of sequences.

import { checkObject, kind } from './check.ts';
import { dispose } from './dispose.ts';
import type { Data } from './format/half.ts';
import { WINDOW } from './format/layout.ts';
import type { Input, Target } from './input.ts';
import type { Layout } from './rows.ts';
import type { CacheShape } from './shape.ts';

/** Where kernels run: f64 in JavaScript, WebAssembly, or WebGPU. */
export type BackendName = 'reference' | 'wasm' | 'webgpu';

/** Where kernels run. Opened by `openBackend`, handed to `new KVCache`. */
export interface Backend {
  /** Which backend this is. */
  readonly name: BackendName;
  /** Which of its forms is in use: `simd128`, `relaxed`, `scalar`; `baseline`; or `f64`. */
  readonly variant: string;
  /** Why this one was picked, in words. */
  readonly reason: string;
  /** @internal Memory for a cache: where `shape.reserve` is set all of it, else what `reserve` asks for later. */
  createStore(shape: CacheShape): Store;
  /** @internal Compiles, without blocking, what `createStore` would else compile while its caller waits. */
  prepare?(shape: CacheShape): Promise<void>;
  /**
   * Gives back what opening it took: a GPU's device, unless that was given. From then on it and its caches refuse every call, but
   * that they may be disposed themselves.
   */
  dispose(): void;
  /** As dispose(), for `using backend = await openBackend()`. */
  [dispose](): void;
  /** @internal Refuses if it was disposed. */
  checkOpen(): void;
}

/**
 * @internal A backend of these parts.
 *
 * @param release  gives back what opening it took
 */
export function backendOf(parts: Omit<Backend, 'dispose' | typeof dispose | 'checkOpen'>, release: () => void = () => {}): Backend {
  let open = true;
  const checkOpen = (): void => {
    if (!open) throw disposedError();
  };
  const end = (): void => {
    if (open) release();
    open = false;
  };
  const { prepare } = parts;
  return {
    ...parts,
    createStore(shape) {
      checkOpen();
      return parts.createStore(shape);
    },
    ...(prepare && {
      async prepare(shape: CacheShape) {
        checkOpen();
        await prepare(shape);
      }
    }),
    dispose: end,
    [dispose]: end,
    checkOpen
  };
}

/** @internal */
export function disposedError(): TypeError {
  return new TypeError('backend expected open, got disposed');
}

/** @internal */
export function checkBackend(name: string, value: unknown): asserts value is Backend {
  checkObject(name, value);
  const { createStore, checkOpen } = value as Partial<Backend>;
  if (typeof createStore !== 'function' || typeof checkOpen !== 'function')
    throw new TypeError(`"${name}" expected what openBackend() resolves to, got ${kind(value)}`);
}

/**
 * A backend refused: the caller may try another. `backend` names it, `cause` is what it met.
 *
 * @example
 * try { await openBackend({ prefer: 'wasm' }); } catch (error) { if (error instanceof BackendError) console.log(error.backend); }
 */
export class BackendError extends Error {
  /** The backend that refused. */
  readonly backend: BackendName;
  constructor(backend: BackendName, message: string, cause?: unknown) {
    super(`${backend} backend ${message}`, { cause });
    this.name = 'BackendError';
    this.backend = backend;
  }
}

/** The result of `attend`: queued when it returns; only `read` waits. */
export interface Output<Out extends Data = Float32Array> {
  /**
   * [tokens, queryHeads, valueDim], or heads first, sequences one after another: the array that it goes to; where that is a GPUBuffer, a
   * copy of it.
   */
  read(): Promise<Out>;
}

/**
 * @internal The result of an `attend` that has run. Built here and not by the store, whose variables a function of its own would
 * keep: an Output may outlive a cache, and must not keep the cache's memory.
 */
export function outputOf<Out extends Data>(out: Out): Output<Out> {
  return { read: () => Promise.resolve(out) };
}

/** @internal Consecutive tokens of an input that go into one slot. */
export interface Run {
  readonly slot: number;
  /** First token in the slot. */
  readonly at: number;
  /** First token in the input. */
  readonly from: number;
  readonly tokens: number;
}

/** @internal What one append writes. */
export interface Write {
  readonly keys: Input;
  readonly values: Input;
  readonly layout: Layout;
  /** Oldest first, together all tokens of the input. */
  readonly runs: readonly Run[];
}

/** What `decode` gives: tokens of one layer, or where they went. */
export interface Tokens<Keys extends Target = Float32Array, Values extends Target = Float32Array> {
  /** [tokens, kvHeads, headDim], or heads first. */
  readonly keys: Keys;
  /** [tokens, kvHeads, valueDim], or heads first. */
  readonly values: Values;
}

/** @internal Bytes of a table's pages, raw windows and sinks (layout.ts draws them), and of what its sequence has learned; all copies. */
export interface Dump {
  readonly pages: readonly Uint8Array[];
  readonly raws: readonly Uint8Array[];
  readonly sinks: Uint8Array | undefined;
  /** u8 [kvHeads, headDim / 2] where keys are balanced (format/balance.ts); means something once pages are coded. */
  readonly balance: Uint8Array | undefined;
  /** f32 [kvHeads, headDim / 2], as bytes, where keys are balanced: Σ q² of pairs. */
  readonly energies: Uint8Array | undefined;
}

/**
 * @internal Where one sequence's tokens of one layer lie, oldest first: sinks (position 0 on), coded pages of 64, then raw windows of
 * which the last may be partial. Windows are numbered from 0, which begins at position `sinks`; of those that were coded some may be
 * gone. Page, slot and sequence numbers are the store's; a slot holds raw tokens.
 */
export interface PageTable {
  /** Positions: tokens that came, whether they are still held or not. */
  readonly length: number;
  /** The number under which the store keeps what this sequence has learned. */
  readonly sequence: number;
  readonly sinkSlot: number;
  readonly pages: Uint32Array;
  /** The number of every page's window. */
  readonly windows: Uint32Array;
  readonly pageCount: number;
  /** Windows that were coded: the number of the first raw window. */
  readonly coded: number;
  readonly raws: Uint32Array;
  readonly rawCount: number;
}

/** Positions. */
export interface Range {
  /** The first. */
  readonly from: number;
  /** The first beyond them. */
  readonly to: number;
}

/** @internal Tokens that lie together in a page or in a raw slot. */
export interface Piece {
  readonly coded: boolean;
  /** Of the page, or of the slot. */
  readonly number: number;
  /** The first token in it. */
  readonly at: number;
  readonly tokens: number;
  /** Of the first token. */
  readonly position: number;
  /** The first token among those that are asked for. */
  readonly first: number;
}

/** @internal What a table holds of the positions from `from` on and before `to`, by default of all, in ascending order. */
export function piecesOf(table: PageTable, sinks: number, from = 0, to = table.length): Piece[] {
  const pieces: Piece[] = [];
  let first = 0;
  const add = (coded: boolean, number: number, begin: number, end: number): void => {
    const at = Math.max(from - begin, 0);
    const tokens = Math.min(to, end) - begin - at;
    if (tokens <= 0) return;
    pieces.push({ coded, number, at, tokens, position: begin + at, first });
    first += tokens;
  };
  add(false, table.sinkSlot, 0, Math.min(sinks, table.length));
  const windowAt = (window: number): number => sinks + WINDOW * window;
  for (let n = 0; n < table.pageCount; n++) {
    const begin = windowAt(table.windows[n]!);
    add(true, table.pages[n]!, begin, begin + WINDOW);
  }
  for (let n = 0; n < table.rawCount; n++) {
    const begin = windowAt(table.coded + n);
    add(false, table.raws[n]!, begin, Math.min(begin + WINDOW, table.length));
  }
  return pieces;
}

/** @internal What a call is about to use. */
export interface Needs {
  /** Pages by layer. */
  readonly pages?: ReadonlyMap<number, readonly number[]>;
  /** Raw slots of 64 tokens, and how many each is to hold from now on: memory for more may serve as something else. */
  readonly slots?: ReadonlyMap<number, number>;
  /** Sequences: their sinks, and what they learn. */
  readonly sequences?: readonly number[];
  /** Raw slots that nobody holds or is about to: what they have may serve as something else. */
  readonly idle?: () => readonly number[];
}

/** @internal All that a cache of this shape may ever use. */
export function everything({ pageCounts, rawSlots, sequences }: CacheShape): Needs {
  const numbers = (count: number): number[] => Array.from({ length: count }, (_, n) => n);
  const pages = new Map(pageCounts.map((count, layer) => [layer, numbers(count)]));
  const slots = new Map(numbers(rawSlots).map(slot => [slot, WINDOW]));
  return { pages, slots, sequences: numbers(sequences) };
}

/**
 * @internal A cache's memory: up to `shape.pageCounts` pages of the layers, and raw slots: up to `shape.rawSlots` of 64 tokens,
 * then `shape.sinkSlots` of `shape.sinks` tokens. Only `reserve` and `attend` can be refused memory: all other verbs work on what was
 * reserved, so that whoever reserves before anything changes need undo nothing.
 */
export interface Store {
  /** Every byte allocated. */
  readonly bytes: number;
  /**
   * Memory for all of this, or for nothing: pages, slots and sequences have it from then on, unless they are said to be idle.
   *
   * @throws {BackendError} if it is refused at once
   */
  reserve(needs: Needs): void;
  /** Where memory is granted later: settles when all that was taken by now was, rejects with a BackendError if some was refused. */
  readonly ready?: Promise<void>;
  /** Where GPUBuffers are taken for inputs, queries and results. */
  readonly takesBuffers: boolean;
  /** Tokens into raw slots, rounded to f16. */
  write(layer: number, writes: readonly Write[]): void;
  copySlot(from: number, to: number): void;
  setSlot(layer: number, slot: number, bytes: Uint8Array): void;
  setPage(layer: number, page: number, bytes: Uint8Array): void;
  /** The 64 tokens of every slot into the page beside it, keys balanced as the sequence beside it has learned. */
  encode(layer: number, slots: readonly number[], pages: readonly number[], sequences: readonly number[]): void;
  /** A page's 64 tokens back into a slot. */
  decode(layer: number, page: number, slot: number, sequence: number): void;
  /**
   * Where keys are balanced: adds up what queries weigh, Σ q² of every pair of channels (format/layout.ts: channelPairs), token by
   * token, head by head, so that it does not matter how calls are split: f32 [kvHeads, headDim / 2].
   *
   * @param query  [tokens, queryHeads, headDim], or heads first, of which `count` tokens from `first` on are taken
   */
  addEnergies(layer: number, sequence: number, query: Input, layout: Layout, first: number, count: number): void;
  /** Where keys are balanced: a sequence's balance from its first windows of keys, raw in these slots, and the energies of queries. */
  learn(layer: number, sequence: number, slots: readonly number[]): void;
  /** Where keys are balanced: u8 [kvHeads, headDim / 2]. */
  setBalance(layer: number, sequence: number, balance: Uint8Array): void;
  /** Where keys are balanced: f32 [kvHeads, headDim / 2], as bytes; zeros without. */
  setEnergies(layer: number, sequence: number, energies?: Uint8Array): void;
  /** Where keys are balanced: what one sequence has learned, and the energies of its queries, for another. */
  copyBalance(layer: number, from: number, to: number): void;
  /** Pieces of a sequence as they are now, decoded, one after another. */
  read(layer: number, sequence: number, pieces: readonly Piece[], out: Tokens<Target, Target>, layout: Layout): Promise<void>;
  /** The bytes of everything a table holds now. */
  dump(layer: number, table: PageTable): Promise<Dump>;
  /**
   * Attention of the newest queries of every sequence: queries[n] is [tokens, queryHeads, headDim], its last token at the table's last
   * position. Heads first are queries, and what every sequence has of results.
   *
   * @param out      [all tokens, queryHeads, valueDim]
   * @param lse      f32 [all tokens, queryHeads]: natural logarithms of the softmax's denominators
   * @param granted  is called when there is memory for the call, before results are written, which may be over queries
   * @throws {BackendError} if there is none
   */
  attend(
    layer: number,
    tables: readonly PageTable[],
    queries: readonly Input[],
    layout: Layout,
    scale: number,
    out: Target,
    lse?: Target,
    granted?: () => void
  ): Output<Data>;
  dispose(): void;
}
