// The GPU of whatever engine this is: its own, or in Node that of the package `webgpu` (Dawn). Opens no device.

const globals = globalThis as { Bun?: unknown; Deno?: unknown; process?: unknown; navigator?: { gpu?: GPU } };

/** Kept: Dawn lives as long as its reference does. */
const kept: GPU[] = [];

/** Dawn in Node, with its own flags, or why it does not load. */
export async function dawn(...flags: string[]): Promise<GPU | string> {
  const name = 'webgpu'; // in a variable: what imports this is bundled, the package is not
  try {
    const gpu = ((await import(name)) as { create(flags: string[]): GPU }).create(flags);
    kept.push(gpu);
    return gpu;
  } catch (error) {
    return (error as Error).message.split('\n')[0]!;
  }
}

/** The GPU, or why there is none. The flags are for Dawn alone. */
export async function findGpu(...flags: string[]): Promise<GPU | string> {
  const { gpu } = globals.navigator ?? {};
  if (gpu) return gpu;
  const isNode = globals.process !== undefined && globals.Deno === undefined && globals.Bun === undefined;
  return isNode ? dawn(...flags) : 'this engine has no navigator.gpu';
}
