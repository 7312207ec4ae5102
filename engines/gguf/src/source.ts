// Where a model's bytes come from: a file, a Blob that a person chose, a server. Must run in a browser: no node: imports.

/** Bytes that can be read anywhere. */
export interface Source {
  /** For messages. */
  readonly name: string;
  readonly size: number;
  /** Bytes begin to end − 1; the caller keeps within the size. */
  read(begin: number, end: number): Promise<Uint8Array>;
}

/** What is wrong with what a person gave, in a sentence that says all there is to say: programs print it without a stack. */
export class InputError extends Error {
  override readonly name = 'InputError';
}

/** A Blob, of which only what is asked for is read. */
export function blobSource(blob: Blob, name: string): Source {
  return {
    name,
    size: blob.size,
    read: async (begin, end) => new Uint8Array(await blob.slice(begin, end).arrayBuffer())
  };
}
