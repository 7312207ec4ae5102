// What a program measures: a cache that also says what it takes.
import type { Cache } from '@nsnquant/gguf';

export interface HeldCache extends Cache {
  /** Bytes held now, everything counted: coded tokens with their metadata, sinks, raw tokens, page tables, what was learned, codebooks. */
  readonly bytes: number;
  /** Bits per element of coded tokens alone, their metadata included; null while there are none. */
  readonly codedBits: number | null;
  /** Forgets the tokens from position `length` on, which must not have been coded yet where the format cannot take them apart. */
  crop(length: number): void;
  dispose(): void;
}

/** Tokens that are coded together. */
export const WINDOW = 64;
