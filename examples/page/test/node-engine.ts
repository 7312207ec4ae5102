// Bundles node-answer.ts, so that the engine finds its packages where the page's are.
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { build } from 'esbuild';
import { common } from '../build.ts';

export async function nodeEngine(): Promise<typeof import('./node-answer.ts')> {
  const outfile = join(import.meta.dirname, '../.test/node-answer.js');
  await build({
    ...common,
    entryPoints: [join(import.meta.dirname, 'node-answer.ts')],
    outfile,
    platform: 'node',
    external: ['onnxruntime-web']
  });
  return import(pathToFileURL(outfile).href) as Promise<typeof import('./node-answer.ts')>;
}
