// What is WebGPU's own: a device that openBackend() is given, one that has no memory, binds little, or is lost. What it has in common
// with other backends is tested with them (backends.ts), and one that computes wrongly in selftest.node.test.ts.

import { type CacheOptions, KVCache, openBackend, type Sequence } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group, type Register } from '../tools/group.ts';
import { attendWithinRule, expectedAttention, sameAttention } from './attention.ts';
import { gpu } from './backends.ts';
import * as brute from './brute.ts';
import { allFinite, atMost, refuses, sameBits, withinFloatRule } from './compare.ts';
import { encodedFrom, learnedFrom } from './encoded.ts';
import { altered, bindingAtMost, type Gpu, refusesDevice, selfTested, untested } from './gpu.ts';
import { rounded } from './half.ts';
import { bells, type Input, keyLike, queryWidth, uneven } from './inputs.ts';
import { blockOf, readBlock, readSaved, sidesOf } from './pages.ts';
import { NEAR_TIES, TOKEN_ERROR } from './tolerance.ts';
import { simd128 } from './verbs.ts';

/** The first test opens a backend, whose self-test compiles what the others need. */
const options = { layers: 2, ...selfTested, capacity: 1024, sequences: 4 } satisfies CacheOptions;

/** Windows with one token far from the others' magnitude. */
const magnitudes: readonly Input[] = [
  (tokens, headDim, seed) =>
    uneven(tokens, headDim, seed)
      .fill(0, 0, 5 * headDim)
      .fill(0, 6 * headDim),
  (tokens, headDim, seed) => bells(tokens, headDim, seed).map((x, i) => x * ({ 20: 2 ** -14, 40: 2 ** 13 }[Math.floor(i / headDim)] ?? 1)),
  (tokens, headDim, seed) =>
    bells(tokens, headDim, seed).map((x, i) => (Math.floor(i / headDim) === 9 ? x * 2 ** -10 : Math.sign(x) * 65504))
];

const queriesOf = ({ shape }: KVCache, tokens: number, seed = 9) => bells(tokens, queryWidth(shape), seed);

/** A sealed sequence of `tokens` tokens. */
function filled(cache: KVCache, tokens: number, seed = 1): Sequence {
  const { layers, maxAppend } = cache.shape;
  const { kvHeads, headDim } = layers[0]!;
  const width = kvHeads * headDim;
  const sequence = cache.sequence();
  for (let layer = 0; layer < layers.length; layer++) {
    const [keys, values] = [keyLike(tokens, width, seed + layer), bells(tokens, width, seed + 10 + layer)];
    for (let from = 0; from < tokens; from += maxAppend) {
      const rows = (x: Float32Array) => x.subarray(from * width, Math.min(from + maxAppend, tokens) * width);
      sequence.append(layer, rows(keys), rows(values));
    }
  }
  sequence.seal();
  return sequence;
}

if (typeof gpu === 'string') {
  group('webgpu', test => test.skip('everything on a device', gpu as string));
} else {
  const found = gpu;
  group('a webgpu device', test => deviceTests(test, found));
  group('a webgpu device that binds little', test => limitTests(test, found));
  // The last: the device is gone afterwards.
  group('a webgpu device that is lost', test => lossTests(test, found));
}

function deviceTests(test: Register, gpu: Gpu): void {
  test('openBackend() takes a device that is given and names it', async () => {
    const backend = await openBackend({ device: gpu.device });
    assert.is(backend.name, 'webgpu');
    assert.is(backend.variant, 'baseline');
    assert.match(backend.reason, gpu.description);
  });

  test('openBackend() refuses a device for another backend', async () => {
    await refuses(
      () => openBackend({ prefer: 'wasm', device: gpu.device }),
      RangeError,
      '"prefer" expected webgpu (a device is given), got wasm'
    );
  });

  for (const balance of ['learn', 'off'] as const) {
    const kind = balance === 'off' ? 'plain' : 'balanced';
    test(`encode() of tokens of any magnitude is right to near ties, writes finite numbers, and no token errs by more than its share: ${kind} keys`, async () => {
      const { headDim, kvHeads } = options;
      const width = kvHeads * headDim;
      const windows = 40;
      const shape = { ...options, balance, layers: 1, sinks: 0, capacity: 64 * windows, maxAppend: 64 * windows };
      const cache = new KVCache(untested(gpu), shape);
      const sequence = cache.sequence();
      const heads = [0, 1, 2, 3].map(n =>
        Array.from({ length: windows }, (_, seed) =>
          rounded((n < 2 ? uneven : magnitudes[seed % magnitudes.length]!)(64, headDim, seed + 100 * n))
        )
      );
      /** Head `head` of keys has windows `heads[head]`, that of values `heads[3 - head]`. */
      const sides = ([0, 1] as const).map(side => {
        const x = new Float32Array(64 * windows * width);
        for (let i = 0; i < x.length; i++) {
          const [token, head] = [Math.floor(i / width), Math.floor(i / headDim) % kvHeads];
          x[i] = heads[side === 0 ? head : 3 - head]![Math.floor(token / 64)]![(token % 64) * headDim + (i % headDim)]!;
        }
        return x;
      });
      sequence.append(0, sides[0]!, sides[1]!);
      sequence.seal();
      const { pages, balance: learned } = readSaved(await sequence.save()).layers[0]!;
      const sections = sidesOf(cache, 0);
      const ties = { near: 0, codes: 0 };
      const levels = { near: 0, codes: 0 };
      const orders = Array.from({ length: kvHeads }, (_, head) => {
        const bytes = learned?.subarray((head * headDim) / 2, ((head + 1) * headDim) / 2);
        if (!bytes) return undefined;
        // No query was seen.
        learnedFrom(`head ${head}`, bytes, heads[head]!.slice(0, 2), new Float32Array(headDim / 2), headDim, options.rope, levels);
        return brute.orderOf(bytes, headDim, options.rope);
      });
      assert.is(levels.codes, balance === 'learn' ? kvHeads * headDim : 0);
      pages.forEach((page, w) => {
        for (const side of [0, 1] as const) {
          for (let head = 0; head < kvHeads; head++) {
            const what = `window ${w}, side ${side}, head ${head}`;
            const x = heads[side === 0 ? head : 3 - head]![w]!;
            const rope = side === 0 ? options.rope : undefined;
            const order = side === 0 ? orders[head] : undefined;
            const bytes = blockOf(page, head, side, sections);
            encodedFrom(what, bytes, x, sections[side], rope, ties, order);
            const block = readBlock(bytes, sections[side]);
            for (const { scale, min } of [block.s1, ...block.o]) allFinite(`${what}: scales`, [scale, min]);
            allFinite(`${what}: s2`, block.s2);
            if (order) continue; // channels that queries do not weigh may err by more
            const decoded = brute.decode(block, rope, brute.f64);
            const norms = brute.norms(x, headDim, brute.f64);
            const step = (Math.max(...norms) - Math.min(...norms)) / 15;
            const errors = brute.norms(
              decoded.map((value, i) => value - x[i]!),
              headDim,
              brute.f64
            );
            const share = TOKEN_ERROR[side === 0 ? 'nsn4' : 'nsn2'];
            for (const [t, error] of errors.entries()) atMost(`${what}: token ${t}`, error, share * (norms[t]! + step));
          }
        }
      });
      console.log(`${ties.near} near ties in ${ties.codes} codes of uneven windows, ${levels.near} in ${levels.codes} levels`);
      atMost('share of near ties', ties.near / ties.codes, NEAR_TIES);
      cache.dispose();
    });
  }

  test('read() of an earlier attend() is not changed by a later one', async () => {
    const cache = new KVCache(untested(gpu), options);
    const sequence = filled(cache, 90);
    const queries = [1, 2].map(seed => queriesOf(cache, 1, seed));
    const [first, second] = queries.map(query => sequence.attend(0, query));
    const later = await second!.read();
    sameBits('the first', await first!.read(), await sequence.attend(0, queries[0]!).read());
    sameBits('the second', later, await sequence.attend(0, queries[1]!).read());
    assert.is(await second!.read(), later);
    cache.dispose();
  });

  test('attend() launches as many dispatches for a batch of long contexts as for one short', async () => {
    const passes: number[] = [];
    const device = altered(gpu.device, {
      createCommandEncoder: () => {
        const encoder = gpu.device.createCommandEncoder();
        return altered(encoder, {
          beginComputePass: () => {
            const pass = encoder.beginComputePass();
            passes.push(0);
            return altered(pass, {
              dispatchWorkgroups: (...counts: [number, number, number]) => {
                passes[passes.length - 1]!++;
                pass.dispatchWorkgroups(...counts);
              }
            });
          }
        });
      }
    });
    const cache = new KVCache(untested({ ...gpu, device }), options);
    // All have learned: until then what queries weigh is a dispatch of its own.
    const sequences = [140, 300, 200, 170].map((tokens, n) => filled(cache, tokens, n));
    const count = async (chosen: readonly Sequence[]) => {
      passes.length = 0;
      await cache
        .attend(
          chosen,
          0,
          chosen.map(() => queriesOf(cache, 1))
        )
        .read();
      return passes.slice();
    };
    assert.equal(await count(sequences.slice(0, 1)), [2]);
    assert.equal(await count(sequences), [2]);
    cache.dispose();
  });

  test('where reading fails in part, all that was copied is read nonetheless, so that no buffer is left behind', async () => {
    let mapped: boolean[] = [];
    const device = altered(gpu.device, {
      createBuffer: (descriptor: GPUBufferDescriptor) => {
        const buffer = gpu.device.createBuffer(descriptor);
        if (descriptor.label !== 'read back') return buffer;
        const n = mapped.push(false) - 1;
        const mapAsync = buffer.mapAsync.bind(buffer);
        const value = async (...range: Parameters<GPUBuffer['mapAsync']>) => {
          mapped[n] = true;
          if (n === 0) throw new Error('no answer');
          return mapAsync(...range);
        };
        return Object.defineProperty(buffer, 'mapAsync', { value });
      }
    });
    for (const read of [
      (sequence: Sequence, cache: KVCache) => sequence.attend(0, queriesOf(cache, 150)).read(),
      (sequence: Sequence) => sequence.decode(0)
    ]) {
      const cache = new KVCache(untested({ ...gpu, device }), options);
      const sequence = filled(cache, 150);
      mapped = [];
      await refusesDevice(() => read(sequence, cache), /^webgpu backend expected its device to finish, got: no answer$/);
      assert.ok(mapped.length > 1);
      assert.not.ok(mapped.includes(false), `${mapped}`);
      cache.dispose();
    }
  });

  /** A device that adds up what it has granted, and may be told to refuse. */
  const counting = () => {
    const state = { granted: new Map<GPUBuffer, number>(), refuses: false, bytes: () => 0 };
    state.bytes = () => [...state.granted.values()].reduce((sum, size) => sum + size, 0);
    const device = altered(gpu.device, {
      createBuffer: (descriptor: GPUBufferDescriptor) => {
        const buffer = gpu.device.createBuffer(descriptor);
        if (descriptor.label === 'read back') return buffer; // on its way, and nobody's memory
        const destroy = buffer.destroy.bind(buffer);
        state.granted.set(buffer, buffer.size);
        const value = () => {
          state.granted.delete(buffer);
          destroy();
        };
        return Object.defineProperty(buffer, 'destroy', { value });
      },
      popErrorScope: async () => {
        const { refuses } = state;
        const error = await gpu.device.popErrorScope();
        return refuses ? { message: 'no room' } : error;
      }
    });
    return { state, backend: untested({ ...gpu, device }) };
  };

  test('memory that the device refuses, at the start or later, rejects `ready` and whatever is read; what was granted is given back', async () => {
    for (const later of [false, true]) {
      const { state, backend } = counting();
      state.refuses = !later;
      const cache = new KVCache(backend, options);
      const message = new RegExp(`^webgpu backend expected \\d+ bytes ${later ? 'more' : 'for capacity 1024'}, got: no room$`);
      if (later) {
        await filled(cache, 70).attend(0, queriesOf(cache, 1)).read();
        await cache.ready;
        state.refuses = true;
        filled(cache, 200);
      }
      assert.ok(state.granted.size > 0);
      assert.is(cache.bytes, state.bytes());
      await refusesDevice(() => cache.ready, message);
      assert.equal([state.granted.size, cache.bytes], [0, 0]);
      // The memory is gone: what is queued now is refused, and the device would tell of each on the console.
      gpu.device.pushErrorScope('validation');
      const sequence = filled(cache, 70);
      await refusesDevice(() => sequence.attend(0, queriesOf(cache, 1)).read(), message);
      await refusesDevice(() => sequence.decode(0), message);
      await refusesDevice(() => sequence.save(), message);
      await gpu.device.popErrorScope();
      cache.dispose();
    }
  });

  test('a cache counts what it has taken, at every moment: chunks, room for calls, and no buffer that another took the place of', async () => {
    const { state, backend } = counting();
    const cache = new KVCache(backend, { ...options, capacity: 8192, maxAppend: 1024 });
    const taken = new Set<number>();
    const holds = () => {
      assert.is(cache.bytes, state.bytes());
      taken.add(cache.bytes);
    };
    holds();
    const sequences = [70, 700, 1500].map(tokens => {
      const sequence = filled(cache, tokens);
      holds();
      return sequence;
    });
    for (const sequence of sequences) {
      for (const tokens of [1, 40]) {
        sequence.attend(0, queriesOf(cache, tokens));
        holds();
      }
    }
    await sequences[2]!.decode(0);
    holds();
    const query = queriesOf(cache, 5);
    const before = await sequences[2]!.attend(0, query).read();
    sequences[1]!.dispose();
    const fork = sequences[2]!.fork();
    filled(cache, 1024);
    sameBits('a fork, with more behind it', await fork.attend(0, query).read(), before);
    assert.ok(taken.size > 5);
    cache.dispose();
    assert.is(state.bytes(), 0);
  });
}

function limitTests(test: Register, gpu: Gpu): void {
  const one = { ...options, layers: 1, sequences: 2, recent: 8, maxAppend: 400 };
  for (const [name, bytes, shape, long] of [
    ['64 KiB', 2 ** 16, { ...one, capacity: 2400 }, 1900],
    ['1 MiB', 2 ** 20, { ...one, capacity: 5000, kvHeads: 16, queryHeads: 48 }, 3000]
  ] as const) {
    test(`with bindings of ${name} pages and raw windows lie in several buffers, and all is as elsewhere`, async () => {
      const cache = new KVCache(untested(bindingAtMost(bytes, gpu)), shape);
      const there = new KVCache(simd128.backend, shape);
      const { pageCounts, layers, rawSlots, rawSlotBytes } = cache.shape;
      assert.ok(pageCounts[0]! * layers[0]!.page.bytes > 2 * bytes, 'pages fill more than two buffers');
      assert.ok(rawSlots * rawSlotBytes > 2 * bytes, 'raw windows fill more than two buffers');

      // The long sequence's pages come from a file, to which some are added beyond the first buffer.
      const sequences = [cache.restore(await filled(there, long).save()), filled(cache, 300, 20)];
      const width = shape.kvHeads * shape.headDim;
      sequences[0]!.append(0, keyLike(200, width, 3), bells(200, width, 4));
      for (const sequence of sequences) sequence.seal();
      const queries = [queriesOf(cache, 1, 5), queriesOf(cache, 5, 6)]; // row tiles that the self-test has
      const batch = await cache.attend(sequences, 0, queries).read();
      sameAttention(
        { gpu: true },
        'the long one',
        batch.subarray(0, queries[0]!.length),
        await sequences[0]!.attend(0, queries[0]!).read()
      );
      sameAttention({ gpu: true }, 'the short one', batch.subarray(queries[0]!.length), await sequences[1]!.attend(0, queries[1]!).read());
      for (const [n, sequence] of sequences.entries()) {
        await attendWithinRule(`sequence ${n}`, sequence, queries[n]!);
        const file = await sequence.save();
        const restored = new KVCache(simd128.backend, shape).restore(file);
        sameBits('file by way of WebAssembly', await restored.save(), file);
        await attendWithinRule(`sequence ${n} on WebAssembly`, restored, queries[n]!);
        sequence.crop(sequence.length - 210); // into a page, back to raw windows
        await attendWithinRule(`sequence ${n}, cut`, sequence, queries[n]!);
      }
      cache.dispose();
    });
  }

  test('a page that no binding can hold is refused at once', () =>
    refusesDevice(
      () => new KVCache(untested(bindingAtMost(2 ** 16, gpu)), { layers: 1, kvHeads: 64, queryHeads: 64, headDim: 512, capacity: 64 }),
      /^webgpu backend expected at most 65536 bytes for .+ \(the device's limit\), got \d+$/
    ));
}

function lossTests(test: Register, gpu: Gpu): void {
  test('rejects pending and later reads with a BackendError, and a saved sequence goes on elsewhere', async () => {
    const backend = untested(gpu);
    const cache = new KVCache(backend, options);
    const sequence = filled(cache, 150);
    const file = await sequence.save();
    const query = queriesOf(cache, 5);
    const before = await sequence.attend(0, query).read();
    const lost = /^webgpu backend (lost its device \(destroyed\)|expected its device to finish, got: )/;
    const pending = [sequence.attend(0, query).read(), sequence.decode(1), sequence.save()].map(read => refusesDevice(() => read, lost));
    gpu.device.destroy();
    await Promise.all(pending);
    await gpu.device.lost;
    for (const read of [() => sequence.attend(0, query).read(), () => sequence.decode(0), () => sequence.save()])
      await refusesDevice(read, lost);
    await refusesDevice(() => new KVCache(backend, options), lost);

    // What the CPU knows of the sequence is whole.
    assert.is(sequence.length, 150);
    assert.is(sequence.sealed.tokens, 128);
    sequence.crop(100);
    sequence.dispose();
    cache.dispose();

    const there = new KVCache(simd128.backend, options).restore(file);
    sameBits('file', await there.save(), file);
    await attendWithinRule('attention there', there, query);
    const { exact, naive } = await expectedAttention(there, 0, query, 2);
    withinFloatRule('attention before', before, exact, naive, 32);
  });
}
