// The end of a backend: it gives back a device that is its own, once, and no other; after it every call is refused in the same words.

import { type Backend, KVCache, openBackend } from 'nsnquant';
import * as assert from 'uvu/assert';
import type { Backend as Inside } from '../src/backend.ts';
// Not by openBackend: every device would wait for a self-test.
import { webGpuBackend } from '../src/webgpu/store.ts';
import { group } from '../tools/group.ts';
import { gpu as found } from './backends.ts';
import { refuses } from './compare.ts';
import { altered, selfTested } from './gpu.ts';
import { normal } from './inputs.ts';
import { hasRelaxed } from './verbs.ts';

const options = { layers: 2, ...selfTested, kvHeads: 1, queryHeads: 3, capacity: 256, sequences: 2 } as const;
const message = 'backend expected open, got disposed';
const symbol: typeof Symbol.dispose = Symbol.dispose ?? Symbol.for('Symbol.dispose'); // as esbuild and Babel have it

const device = typeof found === 'string' ? undefined : found.device;
let destroyed = 0;
/** The tests' device, which outlives them. */
const counted = (device: GPUDevice) =>
  altered(device, {
    destroy: () => {
      destroyed++;
    }
  });

const opened: readonly (readonly [name: string, open: () => Backend | Promise<Backend>, destroys: number])[] = [
  ['reference', () => openBackend({ prefer: 'reference' }), 0],
  ...(['scalar', 'simd128', ...(hasRelaxed ? (['relaxed'] as const) : [])] as const).map(
    variant => [`wasm ${variant}`, () => openBackend({ variant }), 0] as const
  ),
  ...(device === undefined
    ? []
    : [true, false].map(own => {
        const open = () => webGpuBackend({ device: counted(device), description: '', own }, 'to be disposed');
        return [`webgpu on ${own ? 'its own' : 'a given'} device`, open, Number(own)] as const;
      }))
];

for (const [name, open, destroys] of opened) {
  group(`dispose() of ${name}`, test => {
    test('gives a device back once if it is its own, and refuses every call to it and to its caches from then on', async () => {
      destroyed = 0;
      const backend = await open();
      const cache = new KVCache(backend, options);
      const sequence = cache.sequence();
      for (const layer of [0, 1]) sequence.append(layer, normal(70, 32, 1), normal(70, 32, 2));
      const file = await sequence.save();
      const output = sequence.attend(0, normal(1, 96, 3));
      const result = await output.read();
      assert.is(destroyed, 0);
      backend.dispose();
      backend.dispose();
      backend[symbol]();
      assert.is(destroyed, destroys);

      for (const call of [
        () => new KVCache(backend, options),
        () => (backend as Inside).createStore(cache.shape),
        ...((backend as Inside).prepare ? [() => (backend as Inside).prepare!(cache.shape)] : []),
        () => cache.bytes,
        () => cache.ready,
        () => cache.sequence(),
        () => cache.restore(file),
        () => cache.append([sequence], 0, [normal(1, 32, 4)], [normal(1, 32, 5)]),
        () => cache.attend([sequence], 0, [normal(1, 96, 3)]),
        () => sequence.append(0, normal(1, 32, 4), normal(1, 32, 5)),
        () => sequence.attend(0, normal(1, 96, 3)),
        () => sequence.seal(),
        () => sequence.decode(0),
        () => sequence.balance(),
        () => sequence.fork(),
        () => sequence.crop(0),
        () => sequence.save()
      ])
        await refuses(call, TypeError, message);
      // What was read is there, and caches may end after their backend.
      assert.is(await output.read(), result);
      sequence.dispose();
      cache.dispose();
      cache.dispose();
    });
  });
}

if (device !== undefined) {
  group('dispose() of webgpu', test => {
    test('rejects what was queued and not read, and gives back every buffer that is its own', async () => {
      const alive = new Set<GPUBuffer>();
      const watched = altered(device, {
        createBuffer(descriptor: GPUBufferDescriptor) {
          const buffer = device.createBuffer(descriptor);
          alive.add(buffer);
          const destroy = buffer.destroy.bind(buffer);
          buffer.destroy = () => {
            alive.delete(buffer);
            destroy();
          };
          return buffer;
        }
      });
      const backend = webGpuBackend({ device: watched, description: '', own: false }, 'to be disposed');
      const cache = new KVCache(backend, options);
      const sequence = cache.sequence();
      sequence.append(0, normal(5, 32, 1), normal(5, 32, 2));
      await sequence.attend(0, normal(1, 96, 3)).read(); // its read-back buffer is kept for the next
      const [first, second] = [sequence.attend(0, normal(1, 96, 4)), sequence.attend(0, normal(1, 96, 5))];
      const pending = [first.read(), second.read()];
      backend.dispose();
      for (const read of pending) await refuses(() => read, TypeError, message);
      cache.dispose();
      assert.is(alive.size, 0);
    });
  });
}
