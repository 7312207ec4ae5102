// Where a model's bytes come from. Large files are read in parts; nothing here keeps what it has read.

import { numbersIn, type Read } from './graph.ts';
import type { File } from './protobuf.ts';

/**
 * A decoder: its bytes, a Blob, or where it is: a URL, or in Node a path. A file with external data is found beside it, or is named in
 * `externalData`.
 */
export type Source = Uint8Array | Blob | URL | string;

/** External data by the location that the model names. */
export type ExternalData = Readonly<Record<string, Source>>;

export interface Files {
  readonly model: File;
  readonly read: Read;
}

export async function openFiles(source: Source, externalData: ExternalData): Promise<Files> {
  const model = await openFile('model', source);
  const opened = new Map<string, Promise<File>>();
  const external = (location: string): Promise<File> => {
    let file = opened.get(location);
    if (!file) {
      const given = externalData[location];
      file = given === undefined ? openFile(location, beside(source, location)) : openFile(location, given);
      opened.set(location, file);
    }
    return file;
  };
  return {
    model,
    async read(tensor, from = 0, to = Infinity) {
      const { place } = tensor;
      if (!place) return numbersIn(tensor).subarray(from, to);
      const file = typeof place.file === 'string' ? await external(place.file) : place.file;
      const end = Math.min(place.from + to, place.to ?? file.size);
      if (end > file.size) throw new RangeError(`"${file.name}" expected at least ${end} bytes, got ${file.size}`);
      return file.read(place.from + from, end);
    }
  };
}

function beside(source: Source, location: string): Source {
  if (source instanceof URL) return new URL(location, source);
  if (typeof source === 'string') return source.replace(/[^/\\]*$/, '') + location;
  throw new RangeError(`"externalData" expected ${location}, which the model names, got none`);
}

async function openFile(name: string, source: Source): Promise<File> {
  if (!(typeof source === 'string' || source instanceof URL || source instanceof Blob || source instanceof Uint8Array)) {
    throw new TypeError(`"${name}" expected bytes, a Blob, a URL or a path, got ${source === null ? 'null' : typeof source}`);
  }
  if (source instanceof Uint8Array) {
    return { name, size: source.length, read: async (from, to) => source.subarray(from, to) };
  }
  if (typeof source === 'string' && /^(https?|blob|data|file):/.test(source)) return openFile(name, new URL(source));
  if (typeof source === 'string' && process?.getBuiltinModule) return pathFile(source);
  if (source instanceof URL && source.protocol === 'file:') return pathFile(source);
  const blob = source instanceof Blob ? source : await fetchBlob(source);
  return { name, size: blob.size, read: async (from, to) => new Uint8Array(await blob.slice(from, to).arrayBuffer()) };
}

/** A browser keeps a Blob outside of JavaScript's memory, on disk where it is large. */
async function fetchBlob(url: URL | string): Promise<Blob> {
  const response = await fetch(url);
  if (response.ok) return response.blob();
  throw new RangeError(`"${url}" expected a file, got status ${response.status}`);
}

/** What Node has of it, without the types of Node. */
interface FileSystem {
  readonly promises: {
    stat(path: string | URL): Promise<{ readonly size: number }>;
    open(path: string | URL): Promise<{
      read(into: Uint8Array, offset: number, length: number, position: number): Promise<{ readonly bytesRead: number }>;
      close(): Promise<void>;
    }>;
  };
}

const { process } = globalThis as { process?: { getBuiltinModule?(name: 'node:fs'): FileSystem } };

/** Reads of a call at most: Node's own bound is 2 GiB. */
const READ_MOST = 1 << 30;

async function pathFile(path: string | URL): Promise<File> {
  const { promises } = process!.getBuiltinModule!('node:fs');
  const { size } = await promises.stat(path);
  return {
    name: String(path),
    size,
    async read(from, to) {
      const handle = await promises.open(path);
      try {
        const bytes = new Uint8Array(to - from);
        for (let at = 0; at < bytes.length; ) {
          const { bytesRead } = await handle.read(bytes, at, Math.min(bytes.length - at, READ_MOST), from + at);
          if (bytesRead === 0) throw new RangeError(`"${path}" expected at least ${to} bytes, got ${from + at}`);
          at += bytesRead;
        }
        return bytes;
      } finally {
        await handle.close();
      }
    }
  };
}
