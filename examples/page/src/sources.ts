// Where the page's model comes from: a file that the person chose, or one that the server offers. Never sends anything.
import { blobSource, InputError, remoteSource, type Source } from '@nsnquant/gguf';

/** A model that the server offers. */
export interface Offer {
  readonly name: string;
  readonly url: string;
}

export type Chosen = File | Offer;

/** `downloaded` hears how much has come where the whole file must, 0 to 1. */
export async function openSource(chosen: Chosen, downloaded: (share: number) => unknown): Promise<Source> {
  return chosen instanceof File ? blobSource(chosen, chosen.name) : remoteSource(chosen.url, { name: chosen.name, downloaded });
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
