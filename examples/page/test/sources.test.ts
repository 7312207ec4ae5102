// A model from servers that answer requests for ranges in their own ways; what is read of it is right, or refused in a sentence.
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { openSource } from '../src/sources.ts';

const file = Uint8Array.from({ length: 1000 }, (_, i) => i % 251);

interface Request {
  readonly begin: number;
  readonly end: number;
  readonly isRange: boolean;
  /** From 0 on. */
  readonly number: number;
}

type Answer = (request: Request) => Response;

const part =
  (contentRange: (begin: number, end: number) => string | undefined): Answer =>
  ({ begin, end, isRange }) => {
    if (!isRange) return new Response(file);
    const value = contentRange(begin, end);
    return new Response(file.subarray(begin, end), { status: 206, headers: value === undefined ? {} : { 'content-range': value } });
  };
const honest = part((begin, end) => `bytes ${begin}-${end - 1}/${file.length}`);

/** What the source gives of bytes 100 to 109 while the server answers so, its size, and the bytes that were sent. */
async function read(answer: Answer) {
  const { fetch } = globalThis;
  let number = 0;
  let sent = 0;
  globalThis.fetch = async (_, init) => {
    const range = new Headers(init?.headers).get('range')?.match(/^bytes=(\d+)-(\d+)$/);
    const [begin, end] = range ? [Number(range[1]), Number(range[2]) + 1] : [0, file.length];
    const response = answer({ begin, end, isRange: range !== undefined, number: number++ });
    sent += (
      await response
        .clone()
        .arrayBuffer()
        .catch(() => new ArrayBuffer())
    ).byteLength;
    return response;
  };
  try {
    const source = await openSource({ name: 'm.gguf', url: 'https://server.invalid/m.gguf' }, () => undefined);
    return { bytes: await source.read(100, 110), size: source.size, sent };
  } finally {
    globalThis.fetch = fetch;
  }
}

async function refuses(answer: Answer, message: string): Promise<void> {
  const error = await read(answer).then(
    () => undefined,
    (error: Error) => error
  );
  assert.is(`${error?.name}: ${error?.message}`, `InputError: ${message}`);
}

group('a server', test => {
  test('that gives ranges is asked for no more than is read', async () => {
    assert.equal(await read(honest), { bytes: file.slice(100, 110), size: 1000, sent: 11 });
  });
  test('whose ranges cannot be used gives the whole file', async () => {
    for (const [title, answer] of Object.entries<Answer>({
      'no ranges': () => new Response(file),
      'a hidden header': part(() => undefined),
      'an unknown size': part((begin, end) => `bytes ${begin}-${end - 1}/*`),
      'no size': part((begin, end) => `bytes ${begin}-${end - 1}`)
    })) {
      const { bytes, size } = await read(answer);
      assert.equal({ bytes, size }, { bytes: file.slice(100, 110), size: 1000 }, title);
    }
  });
  test('that stops giving ranges, or gives other bytes, is refused in a sentence', async () => {
    await refuses(
      request => (request.number === 0 ? honest(request) : new Response(file)),
      'm.gguf: expected bytes 100 to 109 from the server, got all of them; it gave ranges before'
    );
    await refuses(
      request => honest({ ...request, end: request.number === 0 ? 1 : 105 }),
      'm.gguf: expected 10 bytes from the server, got 5; was the file changed?'
    );
    await refuses(
      ({ number }) => new Response(null, { status: number === 0 ? 404 : 200, statusText: 'Not Found' }),
      'm.gguf: expected the server to have it, got 404 Not Found'
    );
  });
  test('that breaks off is refused in a sentence', async () => {
    const breaking = () =>
      new ReadableStream({
        pull(controller) {
          controller.error(new TypeError('network error'));
        }
      });
    const message = 'm.gguf: expected the server to go on, got network error; is it still running?';
    await refuses(() => new Response(breaking()), message);
    await refuses(request => (request.number === 0 ? honest(request) : new Response(breaking(), { status: 206 })), message);
    await refuses(() => {
      throw new TypeError('Failed to fetch');
    }, 'm.gguf: expected an answer from the server, got Failed to fetch; is it still running?');
  });
});
