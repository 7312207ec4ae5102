// Compiles the dense baselines, one binary per head dimension and instruction set, and keeps them in node_modules/.cache.
// dense/ is AssemblyScript and nothing else.

import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Dense } from './dense.ts';

const source = fileURLToPath(new URL('dense/', import.meta.url));
const cache = fileURLToPath(new URL('../../node_modules/.cache/nsnquant-dense/', import.meta.url));

/** The binary for one head dimension; `relaxed`: multiplications fused with additions (relaxed SIMD). */
export async function compile({ headDim, relaxed }: { headDim: number; relaxed: boolean }): Promise<Uint8Array<ArrayBuffer>> {
  const options = [
    'index.ts',
    '--outFile',
    'dense.wasm',
    '-O3',
    '--noAssert',
    '--runtime',
    'stub',
    '--importMemory',
    '--noExportMemory',
    '--memoryBase',
    '1024',
    '--enable',
    relaxed ? 'simd,relaxed-simd' : 'simd',
    '--use',
    `HEAD_DIM=${headDim}`,
    '--disableWarning',
    '112' // v128 results of functions that only this program's other files call
  ];
  const hash = createHash('sha256').update(options.join(' '));
  for (const name of readdirSync(source).sort()) hash.update(name).update(readFileSync(source + name));
  const file = `${cache}${hash.digest('hex').slice(0, 16)}.wasm`;
  try {
    return new Uint8Array(readFileSync(file));
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
  }

  const { default: asc } = await import('assemblyscript/asc');
  let binary = new Uint8Array();
  const { error, stderr } = await asc.main(['--baseDir', source, ...options], {
    writeFile(_name, contents) {
      binary = new Uint8Array(contents as Uint8Array);
    }
  });
  if (error) throw new Error(`bench/baselines/dense does not compile:\n${stderr.toString()}`, { cause: error });
  mkdirSync(cache, { recursive: true });
  writeFileSync(`${file}.${process.pid}`, binary); // renamed when complete, for another process may be looking
  renameSync(`${file}.${process.pid}`, file);
  return binary;
}

/**
 * @param options.relaxed   multiplications fused with additions, where the engine validates relaxed SIMD
 * @param options.headDims  head dimensions to compile for, multiples of 32
 */
export async function openDense({ relaxed, headDims = [64, 128] }: { relaxed: boolean; headDims?: number[] }): Promise<Dense> {
  const modules = new Map<number, WebAssembly.Module>();
  for (const headDim of headDims) {
    if (headDim % 32 !== 0) throw new RangeError(`"headDims" expected multiples of 32, got ${headDim}`);
    const binary = await compile({ headDim, relaxed });
    if (!WebAssembly.validate(binary)) throw new Error(`"relaxed" expected false on an engine without relaxed SIMD, got ${relaxed}`);
    modules.set(headDim, await WebAssembly.compile(binary));
  }
  return new Dense(relaxed, modules);
}
