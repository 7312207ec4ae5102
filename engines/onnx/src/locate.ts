// Where transformers.js has the files of a model that it loaded. Must look where it looks, in its order.

import { env, ModelRegistry, type PreTrainedModel } from '@huggingface/transformers';
import type { Replaced } from './session.ts';
import type { ExternalData, Source } from './source.ts';

/** A decoder's file, and what lies beside it. */
export interface Located {
  readonly source: Source;
  readonly externalData?: ExternalData;
}

/** What transformers.js takes for a model on a hub; all else is a folder. */
const HUB_ID = /^(\b[\w\-.]+\b\/)?\b[\w\-.]{1,96}\b$/;

/** @param id  what `from_pretrained` was given */
export async function locate(id: string, { config }: PreTrainedModel, session: Replaced): Promise<Located> {
  const options = { config, ...session.config };
  const files = (await ModelRegistry.get_model_files(id, options as never)).filter(file => file.includes('.onnx'));
  const [source, ...data] = await Promise.all(files.map(file => find(id, file)));
  const names = files.slice(1).map(file => file.replace(/.*\//, ''));
  return { source: source!, externalData: Object.fromEntries(names.map((name, n) => [name, data[n]!])) };
}

async function find(id: string, file: string): Promise<Source> {
  const local = `${HUB_ID.test(id) ? withSlash(env.localModelPath) : ''}${withSlash(id)}${file}`;
  const exists = fileSystem?.existsSync;
  if (exists) {
    const paths = [...(env.cacheDir ? [`${withSlash(env.cacheDir)}${withSlash(id)}${file}`] : []), local];
    const path = paths.find(path => exists(path));
    if (path) return path;
    throw new RangeError(`"source" expected the model's folder, its name, or its file, got ${id}: there is no ${paths.join(' and no ')}`);
  }
  const remote =
    withSlash(env.remoteHost) + withSlash(env.remotePathTemplate).replaceAll('{model}', id).replaceAll('{revision}', 'main') + file;
  if (env.useBrowserCache) {
    const cache = await caches.open(env.cacheKey);
    const response = (await cache.match(local)) ?? (await cache.match(remote));
    if (response) return response.blob();
  }
  return new URL(env.allowLocalModels ? local : remote, location.href);
}

function withSlash(path: string): string {
  return path.replace(/\/?$/, '/');
}

const fileSystem = (
  globalThis as { process?: { getBuiltinModule?(name: 'node:fs'): { existsSync(path: string): boolean } } }
).process?.getBuiltinModule?.('node:fs');
