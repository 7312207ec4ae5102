// Where the page's model comes from: a file that the person chose, or one that the server offers. Never sends anything.
import { blobSource, InputError, type Source } from '../../../bench/llm/engine/source.ts';

/** A model that the server offers. */
export interface Offer {
  readonly name: string;
  readonly url: string;
}

export type Chosen = File | Offer;

/** `downloaded` hears how much has come where the whole file must, 0 to 1. */
export async function openSource(chosen: Chosen, downloaded: (share: number) => unknown): Promise<Source> {
  return chosen instanceof File ? blobSource(chosen, chosen.name) : remoteSource(chosen, downloaded);
}

/** Reads by ranges, so that only one copy of the file is ever held, in f32; from a server without ranges the file comes whole. */
async function remoteSource({ name, url }: Offer, downloaded: (share: number) => unknown): Promise<Source> {
  const load = async (range: string): Promise<Response> => {
    const response = await fetch(url, { headers: { range } }).catch((error: Error) => {
      throw new InputError(`${name}: expected an answer from the server, got ${error.message}; is it still running?`);
    });
    if (!response.ok) throw new InputError(`${name}: expected the server to have it, got ${response.status} ${response.statusText}`);
    return response;
  };
  const first = await load('bytes=0-0');
  const size = Number(first.headers.get('content-range')?.split('/')[1]);
  if (first.status !== 206 || !Number.isSafeInteger(size)) return blobSource(await whole(first, downloaded), name);
  await first.body?.cancel();
  return {
    name,
    size,
    read: async (begin, end) => new Uint8Array(await (await load(`bytes=${begin}-${end - 1}`)).arrayBuffer())
  };
}

async function whole(response: Response, downloaded: (share: number) => unknown): Promise<Blob> {
  const size = Number(response.headers.get('content-length'));
  let got = 0;
  const counted = response.body!.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        got += chunk.length;
        if (size > 0) downloaded(got / size);
        controller.enqueue(chunk);
      }
    })
  );
  return new Response(counted).blob();
}
