// A process at a shared storage, started by processes.node.test.ts: puts and loads prompts, and may be killed in the middle of a write.

import { PrefixStore } from 'nsnquant/prefixes';
import { below, random } from './inputs.ts';
import { cacheOn, found, put, store } from './prompts.ts';
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
await shared.dispose();
