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

export async function openSource(file: Source | Blob | URL | string): Promise<Source> {
  if (file instanceof Blob) return blobSource(file, (file as Partial<File>).name ?? 'model');
  return typeof file === 'string' || file instanceof URL ? urlSource(`${file}`) : file;
}

/** A file on a server, read by ranges, so that only one copy of it is ever held. */
async function urlSource(url: string): Promise<Source> {
  const name = url.replace(/[?#].*/, '').replace(/.*\//, '') || url;
  const read = async (begin: number, end: number): Promise<Response> => {
    const response = await fetch(url, { headers: { range: `bytes=${begin}-${end - 1}` } }).catch((error: Error) => {
      throw new InputError(`${name}: expected an answer from the server, got ${error.message}`);
    });
    if (response.status === 206) return response;
    await response.body?.cancel();
    const got = response.ok ? 'all of them' : `${response.status} ${response.statusText}`;
    throw new InputError(`${name}: expected bytes ${begin} to ${end - 1} from the server, got ${got}`);
  };
  const first = await read(0, 1);
  await first.body?.cancel();
  const size = Number(first.headers.get('content-range')?.split('/')[1]);
  // Another origin's server may hide the header, or not know the size.
  if (!(size > 0)) throw new InputError(`${name}: expected the server to say its size, got an answer without it`);
  return { name, size, read: async (begin, end) => new Uint8Array(await (await read(begin, end)).arrayBuffer()) };
}
