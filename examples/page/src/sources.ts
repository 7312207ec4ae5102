// Where the page's model comes from: a file or folder that the person chose, or one that the server offers. Never sends anything.
import { blobSource, InputError, remoteSource, type Source } from '@nsnquant/gguf';

/** A GGUF file that the server offers. */
export interface Offer {
  readonly name: string;
  readonly url: string;
}

/** A transformers.js model folder: its files by their paths in it, or where the server has them. */
export interface ModelFolder {
  readonly name: string;
  readonly files: Readonly<Record<string, File | string>>;
}

export type Chosen = File | Offer | ModelFolder;

/** `downloaded` hears how much has come where the whole file must, 0 to 1. */
export async function openSource(chosen: File | Offer, downloaded: (share: number) => unknown): Promise<Source> {
  return chosen instanceof File ? blobSource(chosen, chosen.name) : remoteSource(chosen.url, { name: chosen.name, downloaded });
}

/** What a directory input gives: the paths of all files begin with the folder's name. */
export function folderOf(files: readonly File[]): ModelFolder {
  const [name] = files[0]!.webkitRelativePath.split('/', 1) as [string];
  return { name, files: Object.fromEntries(files.map(file => [file.webkitRelativePath.slice(name.length + 1), file])) };
}

/** A folder that was dropped, with the folders in it. */
export async function droppedFolder(root: FileSystemDirectoryEntry): Promise<ModelFolder> {
  const files: Record<string, File> = {};
  const read = async (directory: FileSystemDirectoryEntry, path: string): Promise<void> => {
    const reader = directory.createReader();
    // It gives a hundred at a time, and none at the end.
    for (;;) {
      const entries = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject));
      if (entries.length === 0) return;
      for (const entry of entries) {
        if (entry.isDirectory) await read(entry as FileSystemDirectoryEntry, `${path}${entry.name}/`);
        else files[path + entry.name] = await new Promise((resolve, reject) => (entry as FileSystemFileEntry).file(resolve, reject));
      }
    }
  };
  await read(root, '');
  return { name: root.name, files };
}

/** One of a folder's files, which must be there. */
export async function fileOf({ name, files }: ModelFolder, path: string): Promise<Blob> {
  const file = files[path]!;
  if (file instanceof File) return file;
  const response = await fetch(file).catch((error: Error) => {
    throw new InputError(`${name}/${path}: expected an answer from the server, got ${error.message}; is it still running?`);
  });
  if (!response.ok) throw new InputError(`${name}/${path}: expected the server to have it, got ${response.status} ${response.statusText}`);
  return response.blob();
}

/** @throws {InputError} if the file is no text in UTF-8 */
export async function readText(file: File): Promise<string> {
  const bytes = await file.arrayBuffer();
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch {
    throw new InputError(`${file.name}: expected a GGUF file or a text in UTF-8, got other bytes`);
  }
}
