// An engine hands its own GPUDevice to the cache: keys, values, queries and results stay in GPUBuffers and never pass through
// JavaScript. Run by `npx tsx examples/device.ts` in Node (with the package `webgpu`), as it stands in a browser or in Deno.
import { KVCache, openBackend } from 'nsnquant';
import { findGpu } from '../tools/gpu.ts';

// The engine's side: a device, and buffers that its own kernels would fill.
const gpu = await findGpu();
if (typeof gpu === 'string') throw new Error(gpu);
const device = await (await gpu.requestAdapter())?.requestDevice();
if (!device) throw new Error('this machine has no GPU adapter');
const [STORAGE, COPY_DST, COPY_SRC] = [128, 8, 4];
const bufferOf = (elements: number, value: number): GPUBuffer => {
  const buffer = device.createBuffer({ size: 4 * elements, usage: STORAGE | COPY_SRC | COPY_DST });
  device.queue.writeBuffer(buffer, 0, new Float32Array(elements).fill(value));
  return buffer;
};

const backend = await openBackend({ device });
console.log(backend.reason);
const cache = new KVCache(backend, { layers: 1, kvHeads: 2, queryHeads: 4, headDim: 64, capacity: 1024 });
await cache.ready; // the memory is granted
const chat = cache.sequence();

const tokens = 100;
const keys = bufferOf(tokens * 2 * 64, 0.5);
const values = bufferOf(tokens * 2 * 64, 0.25);
const query = bufferOf(4 * 64, 1);
const out = bufferOf(4 * 64, 0);

chat.append(0, { buffer: keys, tokens }, { buffer: values, tokens });
const result = chat.attend(0, { buffer: query, tokens: 1 }, { out: { buffer: out } });
// What the engine submits from here on finds the result in `out`. Reading it is for this example only:
console.log((await result.read())[0]); // 0.25: every value is
