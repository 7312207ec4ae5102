// In the page: asks a worker of its own for several things at once, as the page itself never does.
import { proxy, wrap } from 'comlink';
import type { Conversation, Settings } from '../src/conversation.ts';

/** What came of two questions, a restart and other settings, asked for before the first answer has ended. */
export async function together(name: string, bytes: readonly number[]): Promise<string[]> {
  const worker = new Worker('worker.js', { type: 'module' });
  const conversation = wrap<Conversation>(worker);
  const settings: Settings = { attention: 'wasm', keys: 'nsn4', values: 'nsn2', capacity: 256 };
  await conversation.open(
    new File([Uint8Array.from(bytes)], name),
    proxy(() => undefined)
  );
  await conversation.configure(settings);
  const ask = (): Promise<string> =>
    conversation.ask(
      'abcdefgh',
      { temperature: 0, maxAnswer: 4 },
      proxy(() => undefined)
    );
  const results = await Promise.allSettled([ask(), ask(), conversation.restart(), conversation.configure(settings)]);
  const after = await ask();
  worker.terminate();
  return [...results.map(result => (result.status === 'fulfilled' ? String(result.value) : (result.reason as Error).message)), after];
}
