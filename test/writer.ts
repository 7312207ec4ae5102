// A process at a shared storage, started by processes.node.test.ts: puts and loads prompts, and is killed in the middle of a write if
// that is asked for.

import { PrefixStore } from 'nsnquant/prefixes';
import { below, random } from './inputs.ts';
import { cacheOn, found, idsOf, put, store } from './prompts.ts';
import { openShared, prompts } from './shared.ts';
import { simd128 } from './verbs.ts';

const [kind, place, seed, budget, killedAt] = process.argv.slice(2) as [string, string, string, string, string];
const shared = openShared(kind, place);
let writes = 0;
const storage: typeof shared = {
  ...shared,
  setItemRaw(key, value) {
    const write = shared.setItemRaw(key, value);
    if (++writes === Number(killedAt)) process.kill(process.pid, 'SIGKILL');
    return write;
  }
};
const cache = cacheOn(simd128.backend);
const prefixes = new PrefixStore(storage, { ...store, budget: Number(budget) });
const next = random(Number(seed));
for (let call = 0; call < 12; call++) {
  const prompt = prompts[below(next, prompts.length)]!;
  if (next() < 0.6) await put(prefixes, cache, prompt);
  else await found(prefixes, cache, prompt);
}
// What others have put is not written again, so that all calls may have come to fewer writes: prompts of its own always are.
for (let call = 0; writes < Number(killedAt); call++) await put(prefixes, cache, idsOf(140, 1000 * Number(seed) + call));
await shared.dispose();
