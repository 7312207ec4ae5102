// Dispatches of shaders over lists of jobs: one list at a time in a buffer, a job a struct (structs.ts).

import type { Device, Program } from './device.ts';
import { fieldsOf, type Struct, structWords } from './structs.ts';

/** Jobs that one dispatch does at most. */
export const JOBS = 256;
/** Bytes of the largest job. */
const JOB_BYTES = 4 * fieldsOf('WriteJob').length;
/** Bytes of the list. */
export const LIST_BYTES = JOB_BYTES * JOBS;

export class Jobs {
  readonly list: GPUBuffer;
  readonly #device: Device;

  constructor(device: Device, list: GPUBuffer) {
    this.#device = device;
    this.list = list;
  }

  /** Replaces the list. */
  set<Name extends 'WriteJob' | 'ExtractJob' | 'EncodeJob' | 'DecodeJob' | 'EnergiesJob' | 'LearnJob'>(
    name: Name,
    jobs: readonly Struct<Name>[]
  ): void {
    this.#device.gpu.queue.writeBuffer(this.list, 0, structWords(name, jobs));
  }

  run(program: Program, bindings: GPUBindGroup, x: number, y = 1, z = 1): void {
    this.#device.pass(program.name, pass => {
      pass.setPipeline(this.#device.pipeline(program));
      pass.setBindGroup(0, bindings);
      pass.dispatchWorkgroups(x, y, z);
    });
  }
}

/** Numbers 0 to count − 1 by the pair of chunks that they lie in, JOBS of them at most. */
export function groups(count: number, chunksOf: (n: number) => [number, number]): [number, number, number[]][] {
  const found = new Map<string, [number, number, number[]]>();
  const full: [number, number, number[]][] = [];
  for (let n = 0; n < count; n++) {
    const [a, b] = chunksOf(n);
    const key = `${a} ${b}`;
    let group = found.get(key);
    if (!group) found.set(key, (group = [a, b, []]));
    group[2].push(n);
    if (group[2].length === JOBS) {
      full.push(group);
      found.delete(key);
    }
  }
  return [...full, ...found.values()];
}
