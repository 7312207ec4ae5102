// Where the page's model comes from: a file that the person chose, or one that the server offers. Never sends anything.
import { blobSource, remoteSource, type Source } from '@nsnquant/gguf';

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
