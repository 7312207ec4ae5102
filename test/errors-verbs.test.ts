// Every refusal by the verbs, word for word with its class.

import { BackendError } from 'nsnquant';
import { BackendError as KernelError, openKernels } from 'nsnquant/kernels';
import * as assert from 'uvu/assert';
import { group } from '../tools/group.ts';
import { refuses } from './compare.ts';
import { beyond, HEAD_DIM, type Refusals, refusesAll, rope, rows, withAt } from './refusing.ts';
import { withVerbs } from './verbs.ts';

group('refusals by the kernels', test => {
  test('options must be known', async () => {
    const open = (more: object) => () => openKernels({ headDim: 64, codec: 'nsn2', ...more } as never);
    await refusesAll([
      [() => openKernels(undefined as never), TypeError, '"options" expected object, got undefined'],
      [open({ codec: undefined }), TypeError, '"codec" expected string, got undefined'],
      [open({ codec: 2 }), TypeError, '"codec" expected string, got number'],
      [open({ codec: 'nsn5' }), RangeError, '"codec" expected nsn1, nsn2, nsn3 or nsn4, got nsn5'],
      [open({ prefer: 'webgl' }), RangeError, '"prefer" expected wasm or reference, got webgl'],
      [open({ headDim: '64' }), TypeError, '"headDim" expected integer, got string'],
      [open({ headDim: 584 }), RangeError, '"headDim" expected integer from 32 to 576, got 584'],
      [open({ headDim: 68 }), RangeError, '"headDim" expected multiple of 8 from 32 to 576, got 68'],
      [open({ rope: { invFreq: [1] } }), TypeError, '"rope.interleaved" expected boolean, got undefined'],
      [open({ side: null }), TypeError, '"side" expected string, got null'],
      [open({ side: 'queries' }), RangeError, '"side" expected keys or values, got queries'],
      [open({ side: 'values', rope }), RangeError, '"side" expected keys ("rope" is given), got values'],
      [open({ side: 'values', balance: new Uint8Array(32) }), RangeError, '"side" expected keys ("balance" is given), got values'],
      [open({ balance: 'learn' }), TypeError, '"balance" expected Uint8Array, got string'],
      [open({ balance: null }), TypeError, '"balance" expected Uint8Array, got null'],
      [open({ balance: new Int8Array(32) }), TypeError, '"balance" expected Uint8Array, got Int8Array'],
      [open({ balance: new Uint8Array(64) }), RangeError, '"balance" expected length 32 (1 layer × 1 head × 32), got 64']
    ]);
  });

  test('a variant must be known', async () => {
    await refuses(
      () => openKernels({ headDim: 64, codec: 'nsn2', variant: 'avx' as never }),
      RangeError,
      '"variant" expected scalar, simd128 or relaxed, got avx'
    );
    await refuses(
      () => openKernels({ headDim: 64, codec: 'nsn2', variant: 2 as never }),
      TypeError,
      '"variant" expected string, got number'
    );
  });

  test('what an engine cannot run is refused as the BackendError that nsnquant/kernels exports', async () => {
    const { validate } = WebAssembly;
    WebAssembly.validate = () => false;
    try {
      await refuses(
        () => openKernels({ headDim: 64, codec: 'nsn2', variant: 'scalar' }),
        KernelError,
        'wasm backend expected an engine that validates scalar, got one that does not'
      );
    } finally {
      WebAssembly.validate = validate;
    }
    assert.is(KernelError, BackendError);
  });

  for (const tested of withVerbs) {
    test(`${tested.name} refuses windows, blocks and heads that do not fit`, async () => {
      const verbs = await tested.kernels({ headDim: HEAD_DIM, codec: 'nsn2' });
      const block = verbs.encode(rows(64));
      const most = block.length;
      for (const name of ['normalize', 'shift', 'normalizeAgain', 'hadamard', 'encode', 'quantize'] as const) {
        const run = (x: unknown) => () => verbs[name](x as never, 4);
        const x = name === 'quantize' ? 'y' : 'x';
        await refusesAll([
          [run([1]), TypeError, `"${x}" expected Float32Array, got Array`],
          [run(new Float64Array(2048)), TypeError, `"${x}" expected Float32Array, got Float64Array`],
          [run(rows(63)), RangeError, `"${x}" expected length 2048 (64 tokens × 32), got 2016`],
          ...beyond.map((value): Refusals[number] => [
            run(withAt(rows(64), 99, value)),
            RangeError,
            `"${x}[99]" expected number from −65504 to 65504, got ${value}`
          ])
        ]);
      }
      await refusesAll([
        [() => verbs.quantize(withAt(rows(64), 7, 26), 4), RangeError, '"y[7]" expected number from −25 to 25 (‖y‖ = √headDim), got 26'],
        [() => verbs.quantize(withAt(rows(64), 8, -26), 4), RangeError, '"y[8]" expected number from −25 to 25 (‖y‖ = √headDim), got -26'],
        ...[1, 3, 16].map((channels): Refusals[number] => [
          () => verbs.quantize(rows(64), channels as never),
          RangeError,
          `"channels" expected 8, 4 or 2, got ${channels}`
        ]),
        [() => verbs.quantize(rows(64), '4' as never), TypeError, '"channels" expected number, got string'],
        [() => verbs.quantize(rows(64), undefined as never), TypeError, '"channels" expected number, got undefined']
      ]);
      for (const channels of [8, 4, 2] as const) {
        assert.is(verbs.quantize(withAt(withAt(rows(64), 7, 25), 8, -25), channels).length, 2048 / channels);
      }
      const query = rows(1);
      const weights = new Float32Array(64);
      for (const value of [undefined, 'x'] as const) {
        const kind = typeof value;
        await refusesAll([
          [() => verbs.decode(value as never), TypeError, `"block" expected Uint8Array, got ${kind}`],
          [() => verbs.scores(query, value as never), TypeError, `"block" expected Uint8Array, got ${kind}`],
          [() => verbs.mix(weights, value as never), TypeError, `"block" expected Uint8Array, got ${kind}`],
          [() => verbs.scores(value as never, block), TypeError, `"queries" expected Float32Array, got ${kind}`],
          [() => verbs.mix(value as never, block), TypeError, `"weights" expected Float32Array, got ${kind}`]
        ]);
      }
      for (const length of [0, most - 1, most + 1]) {
        const message = `"block" expected length ${most} (64 tokens × 32 in nsn2), got ${length}`;
        await refusesAll([
          [() => verbs.decode(new Uint8Array(length)), RangeError, message],
          [() => verbs.scores(query, new Uint8Array(length)), RangeError, message],
          [() => verbs.mix(weights, new Uint8Array(length)), RangeError, message]
        ]);
      }
      for (const heads of [0, 0.5, 1.25, 5]) {
        await refusesAll([
          [
            () => verbs.scores(new Float32Array(heads * 32), block),
            RangeError,
            `"queries" expected length 32 to 128 (1 to 4 heads × 32), got ${heads * 32}`
          ],
          [
            () => verbs.mix(new Float32Array(heads * 64), block),
            RangeError,
            `"weights" expected length 64 to 256 (1 to 4 heads × 64), got ${heads * 64}`
          ]
        ]);
      }
      await refusesAll([
        [() => verbs.scores(withAt(query, 2, NaN), block), RangeError, '"queries[2]" expected number from −65504 to 65504, got NaN'],
        [
          () => verbs.mix(withAt(weights, 2, Infinity), block),
          RangeError,
          '"weights[2]" expected number from −65504 to 65504, got Infinity'
        ]
      ]);
    });
  }
});
