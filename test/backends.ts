// Every backend that the suites run on. One that this engine cannot run is printed, with the reason, never passed over.

import { openDevice, scattered, untested } from './gpu.ts';
import { gpuRequired } from './variables.ts';
import { type Tested, withVerbs } from './verbs.ts';

/** The device that this file's tests share, or why there is none. */
export const gpu = await openDevice();
if (typeof gpu !== 'string') console.log(`webgpu: ${gpu.description}`);
else if (gpuRequired) throw new Error(`webgpu: ${gpu}`);
else console.log(`webgpu skipped: ${gpu}`);

/** WebGPU as it is. */
export const webgpu: Tested | undefined = typeof gpu === 'string' ? undefined : { name: 'webgpu', backend: untested(gpu), gpu: true };

/** WebGPU with bindings of 128 KiB, the least that 64 query heads a KV head take, and every page in one of its own. The same pipelines: it costs no compiling. */
export const scatteredWebgpu: Tested | undefined =
  typeof gpu === 'string' ? undefined : { name: 'webgpu, scattered', backend: scattered(gpu, 2 ** 17), gpu: true };

export const backends: readonly Tested[] = [...withVerbs, ...(webgpu && scatteredWebgpu ? [webgpu, scatteredWebgpu] : [])];
