// examples/read.py, which is written from docs/format.md alone, gives what decode() gives. Where there is no Python with numpy that is said,
// and NSN_REQUIRE=python makes it a failure.

import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type CacheOptions, codecs, KVCache } from 'nsnquant';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { withinFloatRule } from './compare.ts';
import { exactRope, keyLike, normal, ropes } from './inputs.ts';
import { reference, simd128 } from './verbs.ts';

const root = fileURLToPath(new URL('..', import.meta.url));
const python = (...args: string[]) => spawnSync('python3', args, { cwd: root, maxBuffer: 2 ** 28 });

const noNumpy = python('-c', 'import numpy').status === 0 ? undefined : 'no python3 with numpy';
if (noNumpy && /\b(python|all)\b/.test(process.env['NSN_REQUIRE'] ?? '')) throw new Error(noNumpy);

const names = Object.keys(codecs) as (keyof typeof codecs)[];
/** [what, options, tokens] */
const files: readonly (readonly [what: string, options: Partial<CacheOptions>, tokens: number])[] = [
  ...names.map(name => [`keys in ${name}`, { keys: name, values: names.at(names.indexOf(name) - 1)! }, 200] as const),
  ...names.map(name => [`plain keys in ${name}`, { keys: name, balance: 'off' }, 100] as const),
  ...[32, 40, 64, 80, 96, 128].flatMap(headDim =>
    (['nsn1', 'nsn2', 'nsn3'] as const).map(keys => [`${headDim} channels, keys in ${keys}`, { headDim, keys }, 140] as const)
  ),
  ...Object.entries(ropes(72)).map(([name, rope]) => [name, { headDim: 72, rope }, 140] as const),
  [
    'layers of other heads, channels and rotations',
    { layers: [{ headDim: 64, queryHeads: 2 }, { kvHeads: 1, queryHeads: 1, rope: 'none' }, {}], rope: exactRope(32) },
    200
  ],
  ['another codec in a layer', { layers: [{}, { keys: 'nsn1', values: 'nsn4' }], rope: exactRope(32) }, 140],
  ['evicted tokens', {}, 300],
  ['no sinks', { sinks: 0 }, 129],
  ['recent windows', { recent: 1 }, 200],
  ['one KV head of 512 channels', { headDim: 512, kvHeads: 1, queryHeads: 1 }, 70],
  ['sinks alone', {}, 3],
  ['as many tokens as a page', { sinks: 0 }, 64],
  ['no tokens', {}, 0]
];

group('examples/read.py', test => {
  if (noNumpy) return test.skip('reads files', noNumpy);

  const path = join(root, '.test', 'reader.safetensors');

  for (const [what, more, tokens] of files) {
    test(`reads a file: ${what}`, async () => {
      const options: CacheOptions = { layers: 2, kvHeads: 2, queryHeads: 2, headDim: 32, capacity: 400, ...more };
      const cache = new KVCache(simd128.backend, options);
      const { layers } = cache.shape;
      const saved = cache.sequence();
      layers.forEach(({ kvHeads, headDim, valueDim }, layer) => {
        if (tokens === 0) return;
        saved.append(layer, keyLike(tokens, kvHeads * headDim, layer), normal(tokens, kvHeads * valueDim, layer));
        // What is learned depends on queries, of which no two channels have the same.
        const query = normal(tokens * kvHeads, headDim, 9).map((x, i) => x * (1 + (i % headDim)));
        saved.attend(layer, query);
      });
      if (what.startsWith('evicted')) saved.evict({ from: 68, to: 132, layer: 0 });
      const file = await saved.save();
      writeFileSync(path, file);
      const { status, stdout, stderr } = python('examples/read.py', path);
      assert.is(status, 0, stderr.toString());
      const numbers = new Float32Array(new Uint8Array(stdout).buffer);
      const sequence = new KVCache(reference.backend, options).restore(file);
      let at = 0;
      for (const [layer, { headDim }] of layers.entries()) {
        const { keys, values } = await sequence.decode(layer);
        for (const [side, expected] of [keys, values].entries()) {
          // Both are f64 until the end: their last roundings differ at most.
          withinFloatRule(`layer ${layer}, side ${side}`, numbers.subarray(at, at + expected.length), expected, expected, headDim);
          at += expected.length;
        }
      }
      assert.is(numbers.length, at);
      cache.dispose();
    });
  }

  test('refuses a damaged file', async () => {
    const cache = new KVCache(simd128.backend, { layers: 1, kvHeads: 1, queryHeads: 1, headDim: 32, capacity: 64 });
    const sequence = cache.sequence();
    sequence.append(0, normal(5, 32, 1), normal(5, 32, 2));
    const file = await sequence.save();
    file[file.length - 1]! ^= 1;
    writeFileSync(path, file);
    const { status, stderr } = python('examples/read.py', path);
    assert.is(status, 1);
    assert.match(stderr.toString(), 'damaged or cut off');
  });
});
