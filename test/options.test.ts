// Every options object of the API refuses what it does not know: a misspelled option must never pass for its default. All that the
// package exports is called here, so that a new function, method or option cannot be left out.

import * as api from 'nsnquant';
import * as cpu from 'nsnquant/cpu';
import * as kernels from 'nsnquant/kernels';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses } from './compare.ts';
import { scalar } from './verbs.ts';

const { KVCache, openBackend, plan } = api;
const { openKernels } = kernels;

/** Neither is an options object: what a page's GPU gives. */
class Device {
  readonly limits = {};
  readonly queue = {};
  readonly lost = Promise.resolve({});
}
class Buffer {
  readonly size = 1024;
  readonly usage = 12;
}
const buffer = new Buffer() as unknown as GPUBuffer;

const cacheOptions = {
  layers: 2,
  kvHeads: 1,
  queryHeads: 1,
  headDim: 32,
  valueDim: 32,
  keys: 'nsn4',
  values: 'nsn2',
  rope: { invFreq: [1], interleaved: false },
  window: 60,
  keepSinks: true,
  softcap: 50,
  slopes: [0.1],
  sinkLogits: [1],
  capacity: 64,
  balance: 'learn',
  sinks: 4,
  recent: 0,
  sequences: 4,
  maxAppend: 64,
  reserve: true
} as const;
const tokens = { buffer, tokens: 1, offset: 0, format: 'f32' } as const;
const row = new Float32Array(32);

const cache = new KVCache(scalar.backend, cacheOptions);
const sequence = cache.sequence();
sequence.append(0, row, row);

/** Arguments of calls that hold every option there is; none where nothing but numbers, arrays and bytes is taken. */
const calls: Readonly<Record<string, readonly [call: (...args: never[]) => unknown, ...argumentLists: readonly unknown[][]] | 'none'>> = {
  BackendError: 'none',
  KVCache: [(options: api.CacheOptions) => new KVCache(scalar.backend, options), [cacheOptions]],
  'KVCache.append': [
    (keys: api.GpuTokens, values: api.GpuTokens, options?: api.AppendOptions) => cache.append([sequence], 0, [keys], [values], options),
    [tokens, row, { layout: 'tokens-first' }],
    [row, tokens]
  ],
  'KVCache.attend': [
    (query: Float32Array | api.GpuTokens, options?: api.AttendOptions) => cache.attend([sequence], 0, [query], options),
    [tokens],
    [row, { scale: 1, out: { buffer, offset: 0, format: 'f16' }, lse: row, layout: 'heads-first' }],
    [row, { scale: 1, out: row, lse: { buffer, offset: 0, format: 'f32' }, layout: 'tokens-first' }]
  ],
  'KVCache.dispose': 'none',
  'KVCache.reorder': 'none',
  'KVCache.restore': 'none',
  'KVCache.sequence': 'none',
  Sequence: 'none',
  'Sequence.balance': 'none',
  'Sequence.append': [
    (keys: api.GpuTokens, values: api.GpuTokens, options?: api.AppendOptions) => sequence.append(0, keys, values, options),
    [tokens, row, { layout: 'tokens-first' }],
    [row, tokens]
  ],
  'Sequence.attend': [
    (query: Float32Array | api.GpuTokens, options?: api.AttendOptions) => sequence.attend(0, query, options),
    [tokens],
    [row, { scale: 1, out: { buffer, offset: 0, format: 'f16' }, lse: row, layout: 'heads-first' }],
    [row, { scale: 1, out: row, lse: { buffer, offset: 0, format: 'f32' }, layout: 'tokens-first' }]
  ],
  'Sequence.crop': 'none',
  'Sequence.decode': [
    (options: api.DecodeOptions) => sequence.decode(0, options),
    [{ from: 0, to: 1, out: { keys: { buffer, offset: 0, format: 'f32' }, values: row }, layout: 'tokens-first' }],
    [{ from: 0, to: 1, out: { keys: row, values: { buffer, offset: 0, format: 'f32' } }, layout: 'tokens-first' }]
  ],
  'Sequence.dispose': 'none',
  'Sequence.evict': [(options: api.EvictOptions) => sequence.evict(options), [{ from: 0, to: 1, layer: 0 }]],
  'Sequence.fork': 'none',
  'Sequence.mass': [(options?: api.MassOptions) => sequence.mass(0, row, options), [{ scale: 1 }]],
  'Sequence.ranges': 'none',
  'Sequence.save': [(options?: api.SaveOptions) => sequence.save(options), [{ metadata: undefined }]],
  'Sequence.seal': 'none',
  'Sequence.tokens': 'none',
  inspect: 'none',
  openBackend: [
    openBackend,
    [{ prefer: 'webgpu', variant: 'scalar', module: undefined, device: new Device(), shape: cacheOptions, batch: 1, context: 1 } as unknown]
  ],
  'openBackend of nsnquant/cpu': [cpu.openBackend, [{ variant: 'scalar', module: undefined }]],
  openKernels: [
    openKernels,
    [
      {
        headDim: 32,
        codec: 'nsn2',
        side: 'keys',
        rope: cacheOptions.rope,
        balance: new Uint8Array(16),
        prefer: 'wasm',
        variant: 'scalar',
        module: undefined
      }
    ]
  ],
  plan: [plan, [cacheOptions], [cacheOptions, { backends: [scalar.backend], batch: [1], context: [1] }]]
};

/** Functions, and classes with their methods. */
function callables(module: object): string[] {
  return Object.entries(module).flatMap(([name, value]) => {
    if (typeof value !== 'function') return [];
    const methods = Object.entries(Object.getOwnPropertyDescriptors(value.prototype ?? {}));
    return [name, ...methods.filter(([method, { value }]) => method !== 'constructor' && value).map(([method]) => `${name}.${method}`)];
  });
}

const isPlain = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && Object.getPrototypeOf(value) === Object.prototype && !('createStore' in value);

/** Every plain object in a value, with a function that gives the value with another in its place. */
function plainObjects(value: unknown): [object: Record<string, unknown>, replace: (by: unknown) => unknown][] {
  if (!isPlain(value)) return [];
  const inner = Object.entries(value).flatMap(([key, child]) =>
    plainObjects(child).map(([object, replace]): [Record<string, unknown>, (by: unknown) => unknown] => [
      object,
      by => ({ ...value, [key]: replace(by) })
    ])
  );
  return [[value, by => by], ...inner];
}

async function messageOf(run: () => unknown): Promise<string> {
  try {
    await run();
  } catch (error) {
    assert.ok(error instanceof TypeError || error instanceof RangeError, `${error}`);
    return error.message;
  }
  return 'nothing thrown';
}

group('options objects', test => {
  test('of everything exported are known here', () => {
    const { openBackend, ...same } = cpu;
    const { openKernels, ...sameAgain } = kernels;
    for (const [name, value] of Object.entries({ ...same, ...sameAgain })) assert.is((api as Record<string, unknown>)[name], value);
    const names = [...callables(api), ...callables({ 'openBackend of nsnquant/cpu': openBackend, openKernels })];
    assert.equal(names.sort(), Object.keys(calls).sort());
  });

  for (const [name, entry] of Object.entries(calls)) {
    if (entry === 'none') continue;
    const [call, ...argumentLists] = entry;
    test(`of ${name} refuse what they do not know, naming what they do, and the call above gives all of that`, async () => {
      let met = 0;
      for (const args of argumentLists) {
        for (const [at, arg] of args.entries()) {
          for (const [object, replace] of plainObjects(arg)) {
            const changed = args.with(at, replace({ ...object, unknownOption: undefined })) as never[];
            const message = await messageOf(() => call(...changed));
            const [, known] = /^".+" expected (?:only (.+)|layer numbers from 0 to 1), got unknownOption$/.exec(message) ?? [
              assert.unreachable(`${Object.keys(object)}: ${message}`)
            ];
            if (known !== undefined) assert.equal(known.split(/, | and /), Object.keys(object));
            met++;
          }
        }
      }
      assert.ok(met > 0);
    });
  }

  test('are refused with the class and the words of every other refusal', async () => {
    await refuses(
      () => new KVCache(scalar.backend, { ...cacheOptions, rope: { ...cacheOptions.rope, theta: 1e4 } as never }),
      TypeError,
      '"rope" expected only invFreq and interleaved, got theta'
    );
    await refuses(
      () => sequence.attend(0, row, { softcap: 50 } as never),
      TypeError,
      '"options" expected only scale, out, lse and layout, got softcap'
    );
    await refuses(
      () => openBackend({ shape: { ...cacheOptions, windows: 512 } as never }),
      TypeError,
      '"shape" expected only layers, kvHeads, queryHeads, headDim, valueDim, keys, values, rope, window, keepSinks, softcap, slopes, sinkLogits, capacity, balance, sinks, recent, sequences, maxAppend and reserve, got windows'
    );
  });

  test('of a layer may say that it is without what stands beside the list', () => {
    const none = { rope: 'none', window: 'none', softcap: 'none', slopes: 'none', sinkLogits: 'none' } as const;
    const layersOf = (options: api.CacheOptions) => new KVCache(scalar.backend, options).shape.layers;
    const [told, without] = layersOf({ ...cacheOptions, layers: [{}, none] });
    assert.equal([told], layersOf({ ...cacheOptions, layers: 1 }));
    assert.equal([without], layersOf({ ...cacheOptions, ...none, keepSinks: false, layers: 1 }));
    assert.not.equal(told, without);
  });

  test('take undefined for what is left out', async () => {
    const { layers, kvHeads, queryHeads, headDim, capacity, ...rest } = cacheOptions;
    const none = (options: object) => Object.fromEntries(Object.keys(options).map(key => [key, undefined]));
    const least = { layers, kvHeads, queryHeads, headDim, capacity, ...none(rest) };
    assert.equal(plan(least), plan({ layers, kvHeads, queryHeads, headDim, capacity }));
    assert.equal(plan({ ...least, layers: [{}, { keys: undefined, values: undefined } as never] }), plan(least));
    assert.is((await sequence.attend(0, row, { scale: undefined, out: undefined } as never).read()).length, 32);
    const shape = least as api.StepShape;
    assert.is(
      (await openBackend({ ...none({ module: 0, device: 0, batch: 0, context: 0 }), variant: 'scalar', shape, prefer: undefined as never }))
        .name,
      'wasm'
    );
    assert.is(
      (
        await openKernels({
          headDim,
          codec: 'nsn2',
          ...none({ side: 0, balance: 0 }),
          rope: undefined as never,
          prefer: undefined as never,
          variant: undefined as never
        })
      ).name,
      'wasm'
    );
  });

  test('may be made in any way that reading them does not tell apart', async () => {
    const expected = plan(cacheOptions);
    class Options {
      get layers() {
        return 2;
      }
    }
    const { layers: _, ...others } = cacheOptions;
    const made = [
      Object.assign(Object.create(null), cacheOptions),
      Object.create(cacheOptions),
      Object.freeze({ ...cacheOptions }),
      new Proxy(cacheOptions, {}),
      Object.assign(new Options(), others),
      { ...cacheOptions, [Symbol('mine')]: 1 },
      { ...cacheOptions, layers: [{}, Object.create({ keys: 'nsn4' })] } // all of them have nsn4
    ];
    for (const options of made) {
      assert.equal(plan(options), expected);
      assert.equal((await plan(options, { backends: [], batch: [1], context: [1] })).bytes, expected.bytes);
      assert.is((await openBackend({ variant: 'scalar', shape: options })).name, 'wasm');
    }
    await refuses(
      () => plan(Object.create({ ...cacheOptions, windows: 1 })),
      TypeError,
      `"options" expected only ${Object.keys(cacheOptions)
        .join(', ')
        .replace(/, (\w+)$/, ' and $1')}, got windows`
    );
  });

  test('are not to blame for what a page adds to every object', () => {
    Object.defineProperty(Object.prototype, 'everywhere', { value: 1, enumerable: true, configurable: true });
    try {
      assert.equal(plan(cacheOptions), plan({ ...cacheOptions }));
    } finally {
      delete (Object.prototype as { everywhere?: number }).everywhere;
    }
  });

  test('are no arrays, maps or promises, which would pass for an object without options', async () => {
    for (const [value, kind] of [
      [[], 'Array'],
      [row, 'Float32Array'],
      [new Map(), 'Map'],
      [Promise.resolve({}), 'Promise'],
      [new Date(0), 'Date']
    ] as const) {
      const message = `"options" expected object, got ${kind}`;
      await refuses(() => sequence.attend(0, row, value as never), TypeError, message);
      await refuses(() => openBackend(value as never), TypeError, message);
      await refuses(() => openKernels(value as never), TypeError, message);
      await refuses(() => plan(value as never), TypeError, message);
      await refuses(() => plan({ ...cacheOptions, layers: [{}, value as never] }), TypeError, `"layers[1]" expected object, got ${kind}`);
    }
  });
});
