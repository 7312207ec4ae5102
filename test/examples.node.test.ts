// The demo runs as it stands on a GPU, too. Where there is no device that is said; NSN_REQUIRE=webgpu makes it a failure.
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { gpu } from './backends.ts';
import { OTHER_TIES } from './tolerance.ts';

const root = fileURLToPath(new URL('..', import.meta.url));

/** Keys and values of a recording's first tokens and one query, of its first layer: what a GPU in software does in seconds. */
function beginning(recording: Buffer, tokens: number): Uint8Array {
  const headerBytes = Number(recording.readBigUInt64LE(0));
  const header = JSON.parse(recording.toString('utf8', 8, 8 + headerBytes));
  const kept: Record<string, unknown> = { __metadata__: header.__metadata__ };
  const data: Uint8Array[] = [];
  let end = 0;
  for (const [side, rows] of [
    ['k', tokens],
    ['v', tokens],
    ['q', 1]
  ] as const) {
    const {
      dtype,
      shape: [, heads, headDim],
      data_offsets: [from]
    } = header[`layers.0.${side}`];
    const bytes = 2 * rows * heads * headDim; // f16
    data.push(recording.subarray(8 + headerBytes + from, 8 + headerBytes + from + bytes));
    kept[`layers.0.${side}`] = { dtype, shape: [rows, heads, headDim], data_offsets: [end, (end += bytes)] };
  }
  const text = Buffer.from(JSON.stringify(kept));
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(BigInt(text.length));
  return Buffer.concat([length, text, ...data]);
}

group('examples', test => {
  if (typeof gpu === 'string') return test.skip('the demo on a GPU', gpu);
  test('the demo says the same of the cache on WebGPU as on WebAssembly', () => {
    const input = join(root, '.test', 'demo.safetensors');
    writeFileSync(input, beginning(readFileSync(join(root, 'test/fixtures/smollm2-135m-kv.safetensors')), 300));
    const run = (backend: string) => {
      const json = join(root, '.test', `demo-${backend}.json`);
      const args = [
        'tsx',
        'bench/demo/index.ts',
        '--input',
        input,
        '--backend',
        backend,
        '--codecs',
        'nsn4/nsn2', // the other pairs are the same calls, and half a minute of compiling
        '--json',
        json,
        '--report',
        join(root, '.test', `demo-${backend}.html`)
      ];
      const { status, stderr } = spawnSync('npx', args, { cwd: root, encoding: 'utf8' });
      return { status, stderr, json };
    };
    const onGpu = run('webgpu');
    assert.is(onGpu.status, 0, onGpu.stderr);
    const onCpu = run('wasm');
    assert.is(onCpu.status, 0, onCpu.stderr);
    // Both kinds of keys beside f32 and ggml's formats.
    const results = [onGpu, onCpu].map(({ json }) => JSON.parse(readFileSync(json, 'utf8')) as Record<string, unknown>[]);
    results[1]!.forEach((row, i) => {
      const other = results[0]![i]!;
      for (const name of ['keys', 'values', 'bytes']) assert.is(other[name], row[name]);
      for (const name of ['outputError', 'attentionKL']) {
        const [a, b] = [other[name] as number, row[name] as number];
        assert.ok(Math.abs(a - b) <= OTHER_TIES * b, `${row['keys']}/${row['values']} ${name}: ${a} on webgpu, ${b} on wasm`);
      }
    });
  });
});
