// What a person hands in as a model: a path, a URL, a Blob or bytes; of a split one all parts. Runs in a browser, where paths are URLs.
import { blobSource, InputError, type Source } from './source.ts';

/** A GGUF file: in Node its path; its URL; a Blob or File; its bytes; or whatever can be read in parts. */
export type GgufFile = string | URL | Blob | Uint8Array<ArrayBuffer> | Source;

export interface SourceOptions {
  /** Hears how much has come where a server gives no ranges and the whole file must, 0 to 1. */
  readonly downloaded?: (share: number) => unknown;
}

/**
 * Every file of a model. Of one that is split, a path or URL of any part stands for all.
 *
 * @throws {InputError} for a file or server that cannot be read
 */
export async function openSources(from: GgufFile | readonly GgufFile[], options: SourceOptions = {}): Promise<Source[]> {
  const files = Array.isArray(from) ? (from as readonly GgufFile[]) : partsOf(from as GgufFile);
  if (files.length === 0) throw new InputError('expected at least one file, got none');
  return Promise.all(files.map(file => openSource(file, options)));
}

async function openSource(file: GgufFile, options: SourceOptions): Promise<Source> {
  if (file instanceof Blob) return blobSource(file, (file as Partial<File>).name ?? 'model.gguf');
  if (ArrayBuffer.isView(file)) return blobSource(new Blob([file]), 'model.gguf');
  if (typeof file !== 'string' && !(file instanceof URL)) {
    if (typeof file?.read === 'function') return file;
    throw new TypeError(`"file" expected string, URL, Blob, Uint8Array or Source, got ${file === null ? 'null' : typeof file}`);
  }
  const path = typeof file === 'string' && file.startsWith('file:') ? new URL(file) : file;
  const isFile = path instanceof URL ? path.protocol === 'file:' : !/^\w+:\/\//.test(path);
  return isFile && filesystem() ? fileSource(path) : remoteSource(String(path), options);
}

/** MODEL-00001-of-00003.gguf and those after it, where the name is such; else the file alone. */
function partsOf(file: GgufFile): GgufFile[] {
  if (typeof file !== 'string' && !(file instanceof URL)) return [file];
  const name = String(file);
  const [, count] = name.match(/-\d{5}-of-(\d{5})\.gguf(?=$|\?)/) ?? [];
  if (count === undefined) return [file];
  return Array.from({ length: Number(count) }, (_, n) => {
    const part = name.replace(/-\d{5}-of-(?=\d{5}\.gguf(?:$|\?))/, `-${String(n + 1).padStart(5, '0')}-of-`);
    return file instanceof URL ? new URL(part) : part;
  });
}

/** What is used of node:fs/promises, without which a bundler would have to know of it. */
interface FileSystem {
  stat(path: string | URL): Promise<{ readonly size: number; isFile(): boolean }>;
  open(path: string | URL): Promise<{
    read(to: Uint8Array, offset: number, length: number, position: number): Promise<{ readonly bytesRead: number }>;
    close(): Promise<void>;
  }>;
}

function filesystem(): FileSystem | undefined {
  const { process } = globalThis as { process?: { getBuiltinModule?(name: string): unknown } };
  return process?.getBuiltinModule?.('node:fs/promises') as FileSystem | undefined;
}

/** Node reads fewer than 2 GiB at once. */
const MAX_READ = 2 ** 30;

/** @throws {InputError} for what is no file that can be read */
async function fileSource(path: string | URL): Promise<Source> {
  const { stat, open } = filesystem()!;
  const unreadable = (error: Error): never => {
    throw new InputError(`expected a file that can be read, got ${error.message}`);
  };
  const stats = await stat(path).catch(unreadable);
  if (!stats.isFile()) throw new InputError(`expected a file, got ${path}, which is none`);
  return {
    name: nameOf(path),
    size: stats.size,
    async read(begin, end) {
      const file = await open(path).catch(unreadable);
      try {
        const bytes = new Uint8Array(end - begin);
        let got = 0;
        while (got < bytes.length) {
          const { bytesRead } = await file.read(bytes, got, Math.min(MAX_READ, bytes.length - got), begin + got);
          if (bytesRead === 0) break;
          got += bytesRead;
        }
        return bytes.subarray(0, got);
      } finally {
        await file.close();
      }
    }
  };
}

/**
 * Reads by ranges, so that only one copy of the file is ever held; from a server whose ranges cannot be used the file comes whole.
 *
 * @throws {InputError} if the server does not answer, or has no such file
 */
export async function remoteSource(
  url: string,
  { name = nameOf(url), downloaded }: SourceOptions & { name?: string } = {}
): Promise<Source> {
  const first = await load(name, url, { range: 'bytes=0-0' });
  // Another origin's server may hide the header, or not know the size.
  const size = Number(first.headers.get('content-range')?.split('/')[1]);
  if (first.status === 206 && size > 0) {
    await first.body?.cancel();
    return { name, size, read: (begin, end) => readRange(name, url, begin, end) };
  }
  if (first.status !== 206) return blobSource(await whole(name, first, downloaded), name);
  await first.body?.cancel();
  return blobSource(await whole(name, await load(name, url), downloaded), name);
}

async function readRange(name: string, url: string, begin: number, end: number): Promise<Uint8Array> {
  const response = await load(name, url, { range: `bytes=${begin}-${end - 1}` });
  if (response.status !== 206) {
    await response.body?.cancel();
    throw new InputError(`${name}: expected bytes ${begin} to ${end - 1} from the server, got all of them; it gave ranges before`);
  }
  const bytes = await response.arrayBuffer().catch(error => broken(name, error));
  if (bytes.byteLength !== end - begin) {
    throw new InputError(`${name}: expected ${end - begin} bytes from the server, got ${bytes.byteLength}; was the file changed?`);
  }
  return new Uint8Array(bytes);
}

async function load(name: string, url: string, headers: HeadersInit = {}): Promise<Response> {
  const response = await fetch(url, { headers }).catch((error: Error) => {
    throw new InputError(`${name}: expected an answer from the server, got ${error.message}; is it still running?`);
  });
  if (!response.ok) throw new InputError(`${name}: expected the server to have it, got ${response.status} ${response.statusText}`);
  return response;
}

async function whole(name: string, response: Response, downloaded: SourceOptions['downloaded']): Promise<Blob> {
  const size = Number(response.headers.get('content-length'));
  let got = 0;
  const counted = response.body!.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        got += chunk.length;
        if (size > 0) downloaded?.(Math.min(1, got / size)); // compressed on the way, more comes than was said
        controller.enqueue(chunk);
      }
    })
  );
  return new Response(counted).blob().catch(error => broken(name, error));
}

function broken(name: string, error: Error): never {
  throw new InputError(`${name}: expected the server to go on, got ${error.message}; is it still running?`);
}

/** What follows the last slash. */
function nameOf(path: string | URL): string {
  return String(path)
    .replace(/[?#].*$/, '')
    .split(/[\\/]/)
    .at(-1)!;
}
