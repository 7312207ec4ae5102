// Dawn, as the package `webgpu` brings it to Node, for the tests alone.

type Dawn = { create(flags: string[]): GPU };

/** Whether NSN_REQUIRE makes a missing adapter a failure. */
export const required = /\b(webgpu|all)\b/.test(process.env.NSN_REQUIRE ?? '');

/** Kept: Dawn lives as long as its reference does. */
const kept: GPU[] = [];

/** A GPU, or why there is none. */
export async function dawn(...flags: string[]): Promise<GPU | string> {
  const name = 'webgpu';   // in a variable: the tests are bundled, the package is not
  try {
    const gpu = ((await import(name)) as Dawn).create(flags);
    kept.push(gpu);
    return gpu;
  } catch (error) {
    return (error as Error).message.split('\n')[0]!;
  }
}
