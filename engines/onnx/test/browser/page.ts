// What the page in Chromium runs: cut models over ONNX Runtime's build for browsers, in WebAssembly and on the GPU.
import { openBackend } from 'nsnquant';
import * as runtime from 'onnxruntime-web/webgpu';
import { relativeL2 } from '../../../../tools/numbers.ts';
import { type OnnxModel, openOnnx } from '../../src/index.ts';
import { type DecoderOptions, type Exported, exportDecoder } from '../exports.ts';
import { RawSequence } from '../raw.ts';
import { Whole } from '../whole.ts';
import { GpuSequence } from './naive.ts';

runtime.env.wasm.wasmPaths = '/ort/';
runtime.env.wasm.numThreads = 1;

const PARTS = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8], [9], [7, 9, 3]];

/** How far logits of a cut model are from the whole one's, at most. */
async function off(model: OnnxModel, sequence: RawSequence | GpuSequence, exported: Exported, external?: string): Promise<number> {
  const whole = await Whole.open(runtime, exported, external);
  let most = 0;
  for (const part of PARTS) {
    const [actual, expected] = [await model.forward(part, sequence, { logits: 'all' }), await whole.forward(part)];
    most = Math.max(most, relativeL2(actual, expected));
  }
  await model.release();
  await whole.release();
  return most;
}

/** In WebAssembly, with file and weights behind URLs. */
async function wasm(options: DecoderOptions): Promise<number> {
  const exported = exportDecoder({ ...options, external: 'weights' });
  const url = (bytes: Uint8Array) => new URL(URL.createObjectURL(new Blob([bytes as Uint8Array<ArrayBuffer>])));
  const model = await openOnnx(url(exported.model), { runtime, externalData: { weights: url(exported.weights) } });
  return off(model, new RawSequence(model.layers), exported, 'weights');
}

/** On the GPU, where nothing of tokens may pass through JavaScript. */
async function webgpu(options: DecoderOptions): Promise<number> {
  const exported = exportDecoder(options);
  const model = await openOnnx(exported.model, { runtime, provider: 'webgpu' });
  return off(model, new GpuSequence(model.device as GPUDevice, model.layers), exported);
}

/** On the GPU with nsnquant's own cache on the same device, against such a cache in WebAssembly. */
async function cached(options: DecoderOptions): Promise<number> {
  const { model: bytes } = exportDecoder(options);
  const models = [await openOnnx(bytes, { runtime, provider: 'webgpu' }), await openOnnx(bytes, { runtime })];
  const backends = [await openBackend({ device: models[0]!.device! }), await openBackend({ prefer: 'wasm' })];
  const logits: Float32Array[] = [];
  for (const [n, model] of models.entries()) {
    const sequence = model.cache(backends[n]!, { capacity: 64, sequences: 1 }).sequence();
    for (const part of PARTS) logits[n] = await model.forward(part, sequence, { logits: 'all' });
    await model.release();
  }
  return relativeL2(logits[0]!, logits[1]!);
}

Object.assign(globalThis, { wasm, webgpu, cached, ready: true });
