// Every refusal of options, word for word with its class; and how what came is called.

import { BackendError, type CacheOptions, codecs, KVCache, openBackend, plan } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses, sameBits } from './compare.ts';
import { cacheOn, filled, options, type Refusals, refusesAll, rope, rows, TOKEN } from './refusing.ts';
import { scalar, wasm } from './verbs.ts';

group('options of a cache', test => {
  const integers: readonly (readonly [name: keyof CacheOptions, low: number, high: number])[] = [
    ['layers', 1, 4096],
    ['kvHeads', 1, 1024],
    ['queryHeads', 1, 128],
    ['headDim', 32, 576],
    ['capacity', 1, 2 ** 24],
    ['sinks', 0, 64],
    ['recent', 0, 1024],
    ['sequences', 1, 65536],
    ['maxAppend', 1, 200]
  ];

  async function optionRefuses(more: object, type: new (...args: any[]) => Error, message: string): Promise<void> {
    const all = { ...options, ...more } as CacheOptions;
    await refuses(() => new KVCache(scalar.backend, all), type, message);
    await refuses(() => plan(all), type, message);
  }

  for (const [name, low, high] of integers) {
    test(`"${name}" is refused unless it is an integer from ${low} to ${high}`, async () => {
      for (const [value, kind] of [
        ['8', 'string'],
        [true, 'boolean'],
        [8n, 'bigint'],
        [{}, 'Object'],
        [[8], 'Array'],
        [() => 8, 'function']
      ] as const) {
        if (name === 'layers' && Array.isArray(value)) continue; // a list: below
        await optionRefuses({ [name]: value }, TypeError, `"${name}" expected integer, got ${kind}`);
      }
      for (const value of [low - 1, high + 1, low + 0.5, 2 ** 53, 1e308, 5e-324, NaN, Infinity, -Infinity]) {
        await optionRefuses({ [name]: value }, RangeError, `"${name}" expected integer from ${low} to ${high}, got ${value}`);
      }
    });
  }

  for (const name of ['layers', 'kvHeads', 'queryHeads', 'headDim', 'capacity'] as const) {
    test(`"${name}" has no default`, async () => {
      await optionRefuses({ [name]: undefined }, TypeError, `"${name}" expected integer, got undefined`);
      await optionRefuses({ [name]: null }, TypeError, `"${name}" expected integer, got null`);
    });
  }

  test('a negative zero is zero', async () => {
    assert.equal(plan({ ...options, sinks: -0, recent: -0 }), plan({ ...options, sinks: 0 }));
    const { sequence } = filled(scalar, 70, { sinks: -0 });
    sameBits('file', await sequence.save(), await filled(scalar, 70, { sinks: 0 }).sequence.save());
    sequence.crop(-0);
    assert.is(sequence.length, 0);
  });

  test('query heads must be a multiple of the KV heads', async () => {
    await optionRefuses({ kvHeads: 2, queryHeads: 3 }, RangeError, '"queryHeads" expected multiple of kvHeads (2), got 3');
    await optionRefuses({ kvHeads: 4, queryHeads: 2 }, RangeError, '"queryHeads" expected integer from 4 to 512, got 2');
  });

  test('the head dimension must be a multiple of 8', async () => {
    for (const headDim of [33, 36, 100, 511]) {
      await optionRefuses({ headDim }, RangeError, `"headDim" expected multiple of 8 from 32 to 576, got ${headDim}`);
    }
  });

  test('a codec must be one of the four, by name', async () => {
    for (const name of ['keys', 'values'] as const) {
      await optionRefuses({ [name]: 4 }, TypeError, `"${name}" expected string, got number`);
      await optionRefuses({ [name]: null }, TypeError, `"${name}" expected string, got null`);
      await optionRefuses({ [name]: codecs.nsn2 }, TypeError, `"${name}" expected string, got Object`);
      for (const value of ['nsn5', '', 'NSN2', 'toString', '__proto__']) {
        await optionRefuses({ [name]: value }, RangeError, `"${name}" expected nsn1, nsn2, nsn3 or nsn4, got ${value}`);
      }
    }
  });

  test('a list of layers has an object for each, with options of a layer', async () => {
    const two = (layer: unknown) => ({ layers: [{}, layer] });
    await optionRefuses({ layers: [] }, RangeError, '"layers.length" expected integer from 1 to 4096, got 0');
    await optionRefuses({ layers: new Array(4097).fill({}) }, RangeError, '"layers.length" expected integer from 1 to 4096, got 4097');
    await optionRefuses(two('nsn4'), TypeError, '"layers[1]" expected object, got string');
    await optionRefuses(two(null), TypeError, '"layers[1]" expected object, got null');
    await optionRefuses({ layers: new Array(2) }, TypeError, '"layers[0]" expected object, got undefined');
    await optionRefuses(two({ keys: 'nsn5' }), RangeError, '"layers[1].keys" expected nsn1, nsn2, nsn3 or nsn4, got nsn5');
    await optionRefuses(two({ values: 2 }), TypeError, '"layers[1].values" expected string, got number');
    await optionRefuses(two({ headDim: 40.5 }), RangeError, '"layers[1].headDim" expected integer from 32 to 576, got 40.5');
    await optionRefuses(two({ queryHeads: 3, kvHeads: 2 }), RangeError, '"layers[1].queryHeads" expected multiple of kvHeads (2), got 3');
    await optionRefuses(two({ rope: 'all' }), TypeError, '"layers[1].rope" expected object, got string');
    await optionRefuses(
      two({ capacity: 64 }),
      TypeError,
      '"layers[1]" expected only kvHeads, queryHeads, headDim, valueDim, keys, values, rope, window, keepSinks, softcap, slopes and sinkLogits, got capacity'
    );
  });

  test('what is added to logits has a number for every query head', async () => {
    for (const [option, least, most] of [
      ['slopes', 0, 2 ** 8],
      ['sinkLogits', -(2 ** 32), 2 ** 32]
    ] as const) {
      await optionRefuses({ [option]: 1 }, TypeError, `"${option}" expected array of numbers, got number`);
      await optionRefuses({ [option]: [] }, RangeError, `"${option}" expected length ${options.queryHeads} (query heads), got 0`);
      for (const value of [NaN, Infinity, 2 * most, least - 1]) {
        const list = new Array(options.queryHeads).fill(0);
        list[1] = value;
        await optionRefuses({ [option]: list }, RangeError, `"${option}[1]" expected number from ${least} to ${most}, got ${value}`);
      }
    }
  });

  test('windows, caps and sinks are of their kind', async () => {
    for (const window of [0, -1, 1.5, 2 ** 24 + 1])
      await optionRefuses({ window }, RangeError, `"window" expected integer from 1 to 16777216, got ${window}`);
    await optionRefuses({ window: '512' }, TypeError, '"window" expected integer, got string');
    await optionRefuses({ keepSinks: 1, window: 8 }, TypeError, '"keepSinks" expected boolean, got number');
    await optionRefuses({ keepSinks: true }, RangeError, '"keepSinks" expected false (there is no window), got true');
    await optionRefuses(
      { layers: [{}, { window: 'none', keepSinks: true }], window: 8 },
      RangeError,
      '"layers[1].keepSinks" expected false (there is no window), got true'
    );
    await optionRefuses({ layers: [{}, {}], keepSinks: true }, RangeError, '"keepSinks" expected false (no layer has a window), got true');
    for (const softcap of [0, -1, NaN, Infinity])
      await optionRefuses({ softcap }, RangeError, `"softcap" expected number from ${2 ** -32} to ${2 ** 32}, got ${softcap}`);
    await optionRefuses({ softcap: '50' }, TypeError, '"softcap" expected number, got string');
  });

  test('a rope must have finite frequencies, at most one for each pair, and a flag', async () => {
    await optionRefuses({ rope: 'neox' }, TypeError, '"rope" expected object, got string');
    await optionRefuses({ rope: {} }, TypeError, '"rope.invFreq" expected array of numbers, got undefined');
    await optionRefuses({ rope: { ...rope, invFreq: 10000 } }, TypeError, '"rope.invFreq" expected array of numbers, got number');
    await optionRefuses({ rope: { ...rope, invFreq: [] } }, RangeError, '"rope.invFreq.length" expected integer from 1 to 16, got 0');
    await optionRefuses(
      { rope: { ...rope, invFreq: new Float32Array(17) } },
      RangeError,
      '"rope.invFreq.length" expected integer from 1 to 16, got 17'
    );
    for (const value of [NaN, Infinity, -Infinity, 10000, -6.2832]) {
      await optionRefuses(
        { rope: { ...rope, invFreq: [1, value] } },
        RangeError,
        `"rope.invFreq[1]" expected number from −2π to 2π (radians per token), got ${value}`
      );
    }
    const sparse = [1, 1];
    delete sparse[1];
    for (const [invFreq, kind] of [
      [[1, 'x'], 'string'],
      [[1, null], 'null'],
      [[1, [0.5]], 'Array'],
      [sparse, 'undefined'],
      [BigInt64Array.of(1n, 0n), 'bigint']
    ] as const) {
      const at = kind === 'bigint' ? 0 : 1;
      await optionRefuses({ rope: { ...rope, invFreq } }, TypeError, `"rope.invFreq[${at}]" expected number, got ${kind}`);
    }
    for (const invFreq of [{ length: 1, 0: 1 }, new DataView(new ArrayBuffer(8)), new Set([1])]) {
      await optionRefuses(
        { rope: { ...rope, invFreq } },
        TypeError,
        `"rope.invFreq" expected array of numbers, got ${invFreq.constructor.name}`
      );
    }
    await optionRefuses({ rope: { invFreq: [1] } }, TypeError, '"rope.interleaved" expected boolean, got undefined');
    await optionRefuses({ rope: { invFreq: [1], interleaved: 1 } }, TypeError, '"rope.interleaved" expected boolean, got number');
  });

  test('a balance must be a word or the bytes of all layers and heads', async () => {
    const expected = '"balance" expected learn, off or Uint8Array';
    for (const value of ['on', '', 'Learn']) await optionRefuses({ balance: value }, RangeError, `${expected}, got ${value}`);
    for (const [value, kind] of [
      [null, 'null'],
      [true, 'boolean'],
      [[1, 2], 'Array'],
      [new Uint8ClampedArray(32), 'Uint8ClampedArray'],
      [new ArrayBuffer(32), 'ArrayBuffer']
    ] as const) {
      await optionRefuses({ balance: value }, TypeError, `${expected}, got ${kind}`);
    }
    for (const length of [0, 16, 31, 33]) {
      await optionRefuses(
        { balance: new Uint8Array(length) },
        RangeError,
        `"balance" expected length 32 (2 layers × 1 head × 16), got ${length}`
      );
    }
  });

  test('options and backend must be objects', async () => {
    for (const [value, kind] of [
      [undefined, 'undefined'],
      [null, 'null'],
      [8, 'number']
    ] as const) {
      await refuses(() => new KVCache(scalar.backend, value as never), TypeError, `"options" expected object, got ${kind}`);
      await refuses(() => plan(value as never), TypeError, `"options" expected object, got ${kind}`);
      await refuses(() => new KVCache(value as never, options), TypeError, `"backend" expected object, got ${kind}`);
    }
    await refuses(() => new KVCache('wasm' as never, options), TypeError, '"backend" expected object, got string');
  });

  test('options of a backend must be known names', async () => {
    const open = (value: unknown) => () => openBackend(value as never);
    await refusesAll([
      [open(null), TypeError, '"options" expected object, got null'],
      [open('wasm'), TypeError, '"options" expected object, got string'],
      [open({ prefer: 1 }), TypeError, '"prefer" expected string, got number'],
      [open({ prefer: null }), TypeError, '"prefer" expected string, got null'],
      [open({ prefer: 'webgl' }), RangeError, '"prefer" expected wasm, webgpu or reference, got webgl'],
      [open({ variant: 1 }), TypeError, '"variant" expected string, got number'],
      [open({ variant: null }), TypeError, '"variant" expected string, got null'],
      [open({ variant: 'avx' }), RangeError, '"variant" expected scalar, simd128 or relaxed, got avx']
    ]);
  });

  test('a device must look like one', async () => {
    class GPUAdapter {
      readonly limits = {};
      readonly info = {};
    }
    const parts = { limits: {}, queue: {}, lost: Promise.resolve({}) };
    const open = (device: unknown) => () => openBackend({ device: device as never });
    await refusesAll([
      [open(null), TypeError, '"device" expected object, got null'],
      [open('gpu'), TypeError, '"device" expected object, got string'],
      [open(new GPUAdapter()), TypeError, '"device" expected GPUDevice, got GPUAdapter'],
      [open(Promise.resolve(parts)), TypeError, '"device" expected GPUDevice, got Promise'],
      ...[{}, ...(['limits', 'queue', 'lost'] as const).map(part => ({ ...parts, [part]: undefined })), { ...parts, lost: {} }].map(
        (device): Refusals[number] => [open(device), TypeError, '"device" expected GPUDevice, got Object']
      )
    ]);
  });

  test('a backend must be one that was opened', async () => {
    const { createStore, checkOpen } = scalar.backend as unknown as Record<string, unknown>;
    for (const part of [{}, { createStore }, { checkOpen }, { createStore: 1, checkOpen }]) {
      await refuses(() => new KVCache(part as never, options), TypeError, '"backend" expected what openBackend() resolves to, got Object');
    }
  });

  const huge = { ...options, layers: 64, kvHeads: 8, queryHeads: 8, headDim: 128, capacity: 2 ** 24, maxAppend: 64 };
  for (const tested of wasm) {
    test(`${tested.name} refuses a capacity beyond 32-bit addresses, as a BackendError of "wasm"`, async () => {
      let thrown: unknown;
      try {
        cacheOn(tested, huge);
      } catch (error) {
        thrown = error;
      }
      assert.instance(thrown, BackendError);
      assert.instance(thrown, Error);
      const { name, backend, message } = thrown as BackendError;
      assert.is(name, 'BackendError');
      assert.is(backend, 'wasm');
      const [, limit, got] = /^wasm backend expected at most (\d+) bytes \(32-bit addresses\) for capacity 16777216, got (\d+)$/.exec(
        message
      ) ?? [message];
      assert.ok(Number(limit) > 2 ** 31 && Number(limit) <= 2 ** 32, message);
      assert.ok(Number(got) > plan(huge).bytes, message);
    });
  }
});

group('what came', test => {
  const sequence = cacheOn(scalar).sequence();
  const revoked = Proxy.revocable({}, {});
  revoked.revoke();
  const throwing = () => {
    throw new Error('a trap');
  };

  test('is said by its kind, whatever it is', async () => {
    for (const [value, kind] of [
      [undefined, 'undefined'],
      [null, 'null'],
      [0, 'number'],
      ['', 'string'],
      [1n, 'bigint'],
      [Symbol('s'), 'symbol'],
      [true, 'boolean'],
      [[], 'Array'],
      [{}, 'Object'],
      [Object.create(null), 'object'],
      [{ constructor: undefined }, 'object'],
      [{ constructor: { name: 7 } }, 'object'],
      [new (class {})(), 'object'],
      [new (class Tokens {})(), 'Tokens'],
      [class Tokens {}, 'class Tokens'],
      [class {}, 'class'],
      [() => {}, 'function'],
      [Promise.resolve(), 'Promise'],
      [new Map(), 'Map'],
      [new Date(NaN), 'Date'],
      [new ArrayBuffer(8), 'ArrayBuffer'],
      [new DataView(new ArrayBuffer(8)), 'DataView'],
      [new Float64Array(TOKEN), 'Float64Array'],
      [new Uint8ClampedArray(TOKEN), 'Uint8ClampedArray'],
      [new BigInt64Array(TOKEN), 'BigInt64Array'],
      [new Proxy(rows(1), {}), 'object with the prototype of Float32Array'],
      [Object.create(Float32Array.prototype), 'object with the prototype of Float32Array'],
      [Object.create(Uint16Array.prototype, { length: { value: TOKEN } }), 'object with the prototype of Uint16Array'],
      [new Proxy({}, { get: throwing }), 'object'],
      [revoked.proxy, 'object'],
      [cacheOn(scalar), 'KVCache'],
      [sequence, 'Sequence']
    ] as const) {
      if (kind !== 'number')
        await refuses(() => sequence.append(value as never, rows(1), rows(1)), TypeError, `"layer" expected integer, got ${kind}`);
      if (value === revoked.proxy) continue; // the engine refuses to look for a buffer in it
      const message = `expected Float32Array, Uint16Array or Float16Array, got ${kind}`;
      await refuses(() => sequence.append(0, value as never, rows(1)), TypeError, `"keys" ${message}`);
      await refuses(() => sequence.append(0, rows(1), value as never), TypeError, `"values" ${message}`);
      assert.is(sequence.length, 0);
    }
  });
});
