// What is kept of a cache whose memory was given back: nothing of it, whatever its user still holds. Node alone, as it takes a
// collector that runs when asked.
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { type Backend, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend as Inside } from '../src/backend.ts';
import { group } from '../tools/group.ts';
import { backends } from './backends.ts';
import { normal } from './inputs.ts';

setFlagsFromString('--expose-gc');
const collect: () => void = runInNewContext('gc');

/** A backend whose stores can be watched. */
function watched(opened: Backend): { backend: Backend; alive(): boolean } {
  const inside = opened as Inside;
  let store: WeakRef<object> | undefined;
  const backend: Inside = {
    ...inside,
    createStore(shape) {
      const made = inside.createStore(shape);
      store = new WeakRef(made);
      return made;
    }
  };
  return { backend, alive: () => store?.deref() !== undefined };
}

/** Some turns of the event loop, in which promises and finished GPU work let go of what they hold, and a collection after each. */
async function collected(alive: () => boolean): Promise<boolean> {
  for (let turn = 0; turn < 20 && alive(); turn++) {
    await new Promise(resolve => setTimeout(resolve, 0));
    collect();
  }
  return !alive();
}

for (const { name, backend } of backends) {
  group(`memory given back on ${name}`, test => {
    test('a disposed cache’s store is collected while the cache, its sequences and outputs are kept', async () => {
      const { backend: seen, alive } = watched(backend);
      const use = async () => {
        const cache = new KVCache(seen, { layers: 1, kvHeads: 1, queryHeads: 2, headDim: 32, capacity: 128 });
        const sequence = cache.sequence();
        sequence.append(0, normal(70, 32, 1), normal(70, 32, 2));
        const outputs = [1, 2].map(tokens => sequence.attend(0, normal(tokens, 64, 3)));
        await outputs[0]!.read();
        assert.ok(alive());
        cache.dispose();
        return { cache, sequence, outputs };
      };
      const kept = await use();
      assert.ok(await collected(alive), 'the store is still reachable');
      assert.is((await kept.outputs[0]!.read()).length, 64);
      assert.is((await kept.outputs[1]!.read()).length, 128);
      assert.is(kept.sequence.length, 70);
    });
  });
}
