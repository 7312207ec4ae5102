// Where things lie in a memory. What was given back is taken again, by whatever fits; else the memory's end moves. Numbers only: it never
// sees a byte.

import { align } from '../format/layout.ts';

const ALIGNMENT = 16;

interface Range {
  readonly at: number;
  readonly bytes: number;
}

export class Arena {
  /** Nobody has had what is from here on. */
  end: number;
  /** Ascending; none touches the next. */
  #free: readonly Range[];

  constructor(end: number, free: readonly Range[] = []) {
    this.end = end;
    this.#free = free;
  }

  copy(): Arena {
    return new Arena(this.end, this.#free);
  }

  /** The first place that is large enough. */
  take(bytes: number): number {
    const size = align(bytes, ALIGNMENT);
    const n = this.#free.findIndex(range => range.bytes >= size);
    if (n < 0) {
      this.end += size;
      return this.end - size;
    }
    const { at, bytes: room } = this.#free[n]!;
    this.#free = this.#free.flatMap((range, i) => (i !== n ? range : room === size ? [] : { at: at + size, bytes: room - size }));
    return at;
  }

  give(at: number, bytes: number): void {
    const size = align(bytes, ALIGNMENT);
    const before = this.#free.filter(range => range.at < at);
    const after = this.#free.slice(before.length);
    let range: Range = { at, bytes: size };
    const last = before.at(-1);
    if (last && last.at + last.bytes === at) {
      before.pop();
      range = { at: last.at, bytes: last.bytes + size };
    }
    const [next] = after;
    if (next && at + size === next.at) {
      after.shift();
      range = { at: range.at, bytes: range.bytes + next.bytes };
    }
    this.#free = [...before, range, ...after];
  }
}
