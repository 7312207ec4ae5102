// What openOnnx() says of a model, and what it refuses.
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as runtime from 'onnxruntime-node';
import * as assert from 'uvu/assert';
import { group } from '../../../tools/group.ts';
import { turnOf } from '../src/chosen.ts';
import { openOnnx } from '../src/index.ts';
import { type DecoderOptions, exportDecoder } from './exports.ts';
import { RawSequence } from './raw.ts';

const opened = async (options: DecoderOptions, given: Partial<Parameters<typeof openOnnx>[1]> = {}) => {
  const exported = exportDecoder(options);
  const externalData = options.external ? { [options.external]: exported.weights } : {};
  const model = await openOnnx(exported.model, { runtime, externalData, ...given });
  await model.release();
  return model;
};

const refused = async (options: DecoderOptions): Promise<string> => {
  try {
    await opened(options);
  } catch (error) {
    assert.instance(error, RangeError);
    return (error as Error).message;
  }
  return 'opened';
};

group('openOnnx', test => {
  test('layers are what the graph says of them', async () => {
    const { layers, config } = await opened({
      base: layer => (layer === 1 ? 1_000_000 : 10_000),
      attributes: layer => (layer === 1 ? { softcap: { float: 3 } } : { local_window_size: 7, smooth_softmax: 1 })
    });
    assert.equal(config, { vocabulary: 211, contextLength: 512 });
    const shape = { kvHeads: 2, queryHeads: 4, headDim: 32, valueDim: 32 };
    const { rope: local, ...first } = layers[0]!;
    assert.equal(first, { ...shape, window: 7, sinkLogits: new Float32Array(4) });
    const { rope: global, ...second } = layers[1]!;
    assert.equal(second, { ...shape, softcap: 3 });
    for (const [rope, base] of [
      [local, 10_000],
      [global, 1_000_000]
    ] as const) {
      assert.ok(rope && rope !== 'none' && !rope.interleaved);
      assert.is(rope.invFreq.length, 16);
      // An angle at the last power of two below 512 positions is known to an f32's rounding.
      for (let i = 0; i < 16; i++) assert.ok(Math.abs(rope.invFreq[i]! - base ** (-i / 16)) < 1e-9, `${rope.invFreq[i]} of pair ${i}`);
    }
  });

  test('rotations in nodes before an attention are found', async () => {
    for (const attention of ['GroupQueryAttention', 'MultiHeadAttention', 'Attention'] as const) {
      const causal = { MultiHeadAttention: { unidirectional: 1 }, Attention: { is_causal: 1 }, GroupQueryAttention: {} }[attention];
      const { layers } = await opened({ attention, headNorms: true, attributes: () => causal });
      assert.ok(layers.every(({ rope }) => rope !== undefined && rope !== 'none' && rope.invFreq.length === 16));
    }
  });

  test('of tables that are chosen by length the one for long sequences is told to the cache', async () => {
    for (const options of [
      { longRope: { original: 30, by: 'attention_mask' } },
      { longRope: { original: 30, by: 'position_ids' } },
      { longRope: { original: 30, by: 'position_ids' }, headNorms: true },
      { longRope: { original: 30, by: 'shapes' } }
    ] as const) {
      const { layers, config } = await opened(options);
      assert.is(config.contextLength, 512);
      for (const { rope } of layers) {
        assert.ok(rope && rope !== 'none');
        for (let i = 0; i < 16; i++) assert.ok(Math.abs(rope.invFreq[i]! - 10_000 ** (-i / 16) / (1 + 0.2 * i)) < 1e-9);
      }
    }
  });

  test('when a condition chooses the later table is found by trying it', async () => {
    const turn = async (rows: readonly [number, number], condition: (past: number, tokens: number) => boolean) => {
      const tables = rows.map(positions => ({ name: '', type: 1, shape: [positions, 4], bytes: undefined, place: undefined }));
      const chosen = { title: 'If', condition: '', tables: tables as unknown as readonly [(typeof tables)[0], (typeof tables)[0]] };
      const run = async (past: number, tokens: number) => ({ data: Uint8Array.of(condition(past, tokens) ? 1 : 0) });
      return turnOf(chosen, run as never).catch((error: RangeError) => error.message);
    };
    assert.equal(await turn([30, 100], (past, tokens) => past + tokens > 30), { length: 31, starts: [0, 30], positions: 100 });
    assert.equal(await turn([100, 100], (past, tokens) => past + tokens < 2), { length: 2, starts: [100, 0], positions: 100 });
    assert.equal(await turn([100, 30], (past, tokens) => past + tokens < 100), { length: 100, starts: [100, 0], positions: 30 });
    assert.is(await turn([30, 100], () => true), '"If" expected to choose two tables up to 100 tokens, got one');
    const other = (past: number, tokens: number) =>
      `"If" expected to choose by the sum of past and tokens, got another choice for ${past} and ${tokens}`;
    assert.is(await turn([30, 100], past => past >= 30), other(0, 31));
    assert.is(await turn([30, 100], (past, tokens) => past + 2 * tokens > 30), other(0, 29));
  });

  test('a window in a mask is told to the cache', async () => {
    const { layers } = await opened({ attention: 'MultiHeadAttention', mask: 'later or behind 6' });
    assert.equal(
      layers.map(({ window }) => window),
      [6, 6, 6]
    );
  });

  test('weights are handed to sessions once: tables of rotations and an embedding that is the head among them', async () => {
    let bytes = 0;
    const create = (model: Uint8Array, options: runtime.InferenceSession.SessionOptions) => {
      bytes += model.length + (options.externalData ?? []).reduce((sum, file) => sum + (file as { data: Uint8Array }).data.length, 0);
      return runtime.InferenceSession.create(model, options);
    };
    const { model, weights } = exportDecoder({ tied: true, external: 'weights' });
    const spied = { Tensor: runtime.Tensor, InferenceSession: { create } };
    await (await openOnnx(model, { runtime: spied, externalData: { weights } })).release();
    assert.ok(bytes < weights.length + 2 * model.length, `${bytes} of ${weights.length + model.length}`);
  });

  test('weights beyond 2 GiB of a file are read from there', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'nsnquant-'));
    try {
      const externalFrom = 3 * 2 ** 30;
      const { model, weights } = exportDecoder({ external: 'weights', externalFrom });
      await writeFile(join(folder, 'model.onnx'), model);
      const file = await open(join(folder, 'weights'), 'w'); // most of it a hole
      await file.write(weights, 0, weights.length, externalFrom);
      await file.close();
      const [far, near] = [await openOnnx(join(folder, 'model.onnx'), { runtime }), await openOnnx(exportDecoder().model, { runtime })];
      assert.equal(await far.forward([1, 2, 3], new RawSequence(far.layers)), await near.forward([1, 2, 3], new RawSequence(near.layers)));
      await Promise.all([far.release(), near.release()]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test('what is not understood is refused by its name', async () => {
    const node = 'GroupQueryAttention /layers.0.attention/GroupQueryAttention';
    assert.is(await refused({ attributes: () => ({ kv_cache_bit_width: 4 }) }), `"${node}" expected kv_cache_bit_width 0, got 4`);
    assert.is(
      await refused({ longRope: { original: 30, by: 'moving' } }),
      `"${node}" expected position_ids of the graph as position_ids, got moved`
    );
    assert.is(await refused({ attributes: () => ({ causal: 0 }) }), `"${node}" expected causal 1, got 0`);
    assert.is(await refused({ attributes: () => ({ something: 'new' }) }), `"${node}" expected no attribute something, got new`);
    assert.is(
      await refused({ mixing: 'Conv' }),
      '"Conv /mixed/Conv" expected GroupQueryAttention, MultiHeadAttention, Attention where tokens are mixed, got another operator'
    );
    const multiHead = 'MultiHeadAttention /layers.0.attention/MultiHeadAttention';
    assert.is(await refused({ attention: 'MultiHeadAttention' }), `"${multiHead}" expected to be causal, or a mask that is, got neither`);
    assert.is(
      await refused({ attention: 'MultiHeadAttention', mask: 'the first' }),
      `"${multiHead}" expected a causal mask, or one with a window, got one by which token 0 does not see token 0`
    );
    assert.is(
      await refused({ attention: 'MultiHeadAttention', mask: 'later, by degrees' }),
      `"${multiHead}" expected a mask of 0 and −∞, got -3 for token 1 in the sight of token 0`
    );
    assert.is(
      await refused({ branches: 'merged decoder' }),
      '"model" expected a decoder with a past, got one merged with one without a past, by the input use_cache_branch'
    );
    assert.is(await refused({ branches: 'decoder' }), '"If /logits/If" expected GroupQueryAttention beside it, got it in a nested graph');
    const chosen = 'expected one table of cosines and one of sines, or an If of two constants by length, got If';
    for (const [headNorms, rotating] of [
      [false, node],
      [true, 'RotaryEmbedding /layers.0.q_rotated/RotaryEmbedding']
    ] as const) {
      assert.is(await refused({ branches: 'tables', headNorms }), `"${rotating}" ${chosen} /layers.0.cos_cache.10000/If`);
      const longRope = { original: 30, by: 'shapes', computes: true } as const;
      assert.is(await refused({ longRope, headNorms }), `"${rotating}" ${chosen} /cos_cache/If`);
    }
  });

  test('options that are unknown or wrong are refused', async () => {
    const { model } = exportDecoder();
    for (const [options, message] of [
      [{ runtime, device: 'gpu' }, '"options" expected only runtime, threads, provider, externalData, got device'],
      [{}, '"runtime" expected the module onnxruntime-node or onnxruntime-web, got undefined'],
      [{ runtime, provider: 'gpu' }, '"provider" expected cpu or webgpu, got gpu'],
      [{ runtime, threads: 0 }, '"threads" expected integer from 1 to 1024, got 0']
    ] as const) {
      try {
        await (await openOnnx(model, options as never)).release();
        assert.unreachable('opened');
      } catch (error) {
        assert.is((error as Error).message, message);
      }
    }
  });

  test('bytes that are no model are refused', async () => {
    for (const [bytes, message] of [
      [new Uint8Array(), '"model" expected an ONNX model, got a file without a graph'],
      [new TextEncoder().encode('<!doctype html>'), '"model" expected a message of protobuf, got wire type 4'],
      [exportDecoder().model.subarray(0, 5000), undefined]
    ] as const) {
      try {
        await openOnnx(bytes, { runtime });
        assert.unreachable('opened');
      } catch (error) {
        assert.instance(error, RangeError);
        if (message) assert.is((error as Error).message, message);
      }
    }
  });
});
