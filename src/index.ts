/**
 * A KV cache at 1 to 4 bits. The public names, and nothing else: those of cpu.ts, with an openBackend() that knows WebGPU in place of
 * its own.
 *
 * @module nsnquant
 */

export * from './cpu.ts';
export { type GpuDevice, type OpenOptions, openBackend } from './open.ts';
