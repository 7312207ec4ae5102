// What is stored of a sequence: the data of its file, cut between windows and put together again.
//
// All layers of a window are one piece. A piece for every layer is slower to write and to read: 20 MB of SmolLM2-135M (30 layers) in files
// 229 and 135 ms instead of 39 and 32, in Redis 82 and 83 instead of 122 and 72.

import { WINDOW } from '../format/layout.ts';
import { type FileData, type Header, type Tensor, tensorsOf } from '../header.ts';
import { type CacheShape, LEARNED_WINDOWS } from '../shape.ts';

/**
 * How sequences of a shape are cut. The first piece has the sinks, what was learned of keys, and the windows that it is learned from:
 * these tokens together tell what is in it. Every other piece has the pages of one window.
 */
export class Pieces {
  readonly #shape: CacheShape;
  /** Windows of the first piece. */
  readonly #first: number;

  constructor(shape: CacheShape) {
    this.#shape = shape;
    this.#first = shape.balance === 'learn' ? LEARNED_WINDOWS : 1;
  }

  /** Pieces that so many coded windows make. */
  count(windows: number): number {
    return Math.max(0, windows - this.#first + 1);
  }

  /** Pieces whose tokens are among the first `length`. */
  within(length: number): number {
    return this.count(Math.floor((length - this.#shape.sinks) / WINDOW));
  }

  /** Tokens that so many pieces stand for. */
  length(count: number): number {
    return count === 0 ? 0 : this.#shape.sinks + WINDOW * this.#to(count - 1);
  }

  /** Whether a file has all of a piece: what is behind a sliding window is gone. */
  has({ windows }: Header, piece: number): boolean {
    const own = Array.from({ length: this.#to(piece) - this.#from(piece) }, (_, n) => this.#from(piece) + n);
    return windows.every(held => own.every(window => held.includes(window)));
  }

  /** A piece of a file's data. */
  cut(header: Header, tensors: readonly Tensor[], data: Uint8Array, piece: number): Uint8Array {
    return gather(data, rangesOf(header, tensors, this.#from(piece), this.#to(piece)));
  }

  /** What the file holds of the sequence that these pieces, from the first on, are of. */
  join(pieces: readonly Uint8Array[]): FileData {
    const header = this.#header(pieces.length);
    const tensors = tensorsOf(header);
    const data = new Uint8Array(tensors.at(-1)!.end);
    for (const [n, piece] of pieces.entries()) {
      let at = 0;
      for (const { begin, end } of rangesOf(header, tensors, this.#from(n), this.#to(n))) {
        data.set(piece.subarray(at, (at += end - begin)), begin);
      }
    }
    return { header, data };
  }

  /** Windows of a piece, from this on and up to that. */
  #from(piece: number): number {
    return piece === 0 ? 0 : this.#to(piece - 1);
  }

  #to(piece: number): number {
    return this.#first + piece;
  }

  /** The header of a file of so many pieces. */
  #header(count: number): Header {
    const same = <T>(value: T): T[] => this.#shape.layers.map(() => value);
    const coded = this.#to(count - 1);
    const windows = Array.from({ length: coded }, (_, window) => window);
    return {
      shape: this.#shape,
      length: this.length(count),
      coded: same(coded),
      windows: same(windows),
      dropped: same(0),
      whole: same(Infinity),
      counted: same(0),
      metadata: Object.freeze({})
    };
  }
}

/** What a file's layers have learned of their keys; no bytes where keys are plain. */
export function balanceOf(tensors: readonly Tensor[], data: Uint8Array): Uint8Array {
  return gather(
    data,
    tensors.filter(({ name }) => name.endsWith('.balance'))
  );
}

type Range = Pick<Tensor, 'begin' | 'end'>;

/** Where in a file's data the windows `from` to `to` are, and with the first of them what there is once. */
function rangesOf({ windows }: Header, tensors: readonly Tensor[], from: number, to: number): Range[] {
  let layer = 0;
  return tensors.flatMap(({ name, rowBytes, begin, end }): Range[] => {
    if (name.endsWith('.pages')) {
      const first = begin + windows[layer++]!.indexOf(from) * rowBytes;
      return [{ begin: first, end: first + (to - from) * rowBytes }];
    }
    return from === 0 && (name.endsWith('.sinks') || name.endsWith('.balance')) ? [{ begin, end }] : [];
  });
}

function sizeOf(ranges: readonly Range[]): number {
  return ranges.reduce((sum, { begin, end }) => sum + end - begin, 0);
}

/** A copy: storages may keep what they are given. */
function gather(data: Uint8Array, ranges: readonly Range[]): Uint8Array {
  const bytes = new Uint8Array(sizeOf(ranges));
  let at = 0;
  for (const { begin, end } of ranges) {
    bytes.set(data.subarray(begin, end), at);
    at += end - begin;
  }
  return bytes;
}
