// Where the page's model comes from: a file that the person chose, or one that the server offers. Never sends anything.
import { blobSource, InputError, type Source } from '@nsnquant/gguf';

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

/** Reads by ranges, so that only one copy of the file is ever held, in f32; from a server whose ranges cannot be used the file comes whole. */
async function remoteSource({ name, url }: Offer, downloaded: (share: number) => unknown): Promise<Source> {
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

async function whole(name: string, response: Response, downloaded: (share: number) => unknown): Promise<Blob> {
  const size = Number(response.headers.get('content-length'));
  let got = 0;
  const counted = response.body!.pipeThrough(
    new TransformStream<Uint8Array<ArrayBuffer>, Uint8Array<ArrayBuffer>>({
      transform(chunk, controller) {
        got += chunk.length;
        if (size > 0) downloaded(Math.min(1, got / size)); // compressed on the way, more comes than was said
        controller.enqueue(chunk);
      }
    })
  );
  return new Response(counted).blob().catch(error => broken(name, error));
}

function broken(name: string, error: Error): never {
  throw new InputError(`${name}: expected the server to go on, got ${error.message}; is it still running?`);
}
