// What the programs need of Node: the model file, texts, ONNX Runtime's native flavor.

import { existsSync, readdirSync } from 'node:fs';
import { open, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type HostOptions, InputError, type Model, openGguf, type Source } from '@nsnquant/gguf';
import * as runtime from 'onnxruntime-node';

const shared = fileURLToPath(new URL('../../../shared', import.meta.url));
const MODEL_FOLDER = join(shared, 'models/smollm2-135m');
const texts = { wikitext: 'wiki.test.raw', 'war-and-peace': 'war-and-peace.txt' } as const;

export const textNames = Object.keys(texts);
export { runtime };

/** The file that --model names, or the environment variable NSN_MODEL, or the one beside the repository. */
export async function findModel(option: string | undefined): Promise<string> {
  const path = option ?? process.env['NSN_MODEL'];
  if (path !== undefined) return existsSync(path) ? path : download(path);
  try {
    const file = readdirSync(MODEL_FOLDER).find(name => name.endsWith('.gguf'));
    if (file) return join(MODEL_FOLDER, file);
  } catch {
    // Said below, with what would help.
  }
  throw new InputError('expected a model: give a GGUF file with --model or NSN_MODEL');
}

/** OWNER/NAME/FILE.gguf of Hugging Face, into its usual cache folder. */
async function download(name: string): Promise<string> {
  const [owner, repo, ...file] = name.split('/');
  if (!/^[\w.-]+\/[\w.-]+\/.+\.gguf$/.test(name))
    throw new InputError(`"--model" expected a file, or OWNER/NAME/FILE.gguf on Hugging Face, got ${name}, which does not exist`);
  const { downloadFileToCacheDir } = await import('@huggingface/hub');
  return downloadFileToCacheDir({ repo: `${owner}/${repo}`, path: file.join('/') }).catch((error: Error) => {
    throw new InputError(`"--model" expected a file, or one that Hugging Face has, got ${name} (${error.message})`);
  });
}

export async function fileSource(path: string): Promise<Source> {
  const unreadable = (error: Error): never => {
    throw new InputError(`"--model" expected a readable file, got ${error.message}`);
  };
  const stats = await stat(path).catch(unreadable);
  if (!stats.isFile()) throw new InputError(`"--model" expected a file, got ${path}, which is none`);
  const { size } = stats;
  return {
    name: basename(path),
    size,
    async read(begin, end) {
      const file = await open(path).catch(unreadable);
      try {
        const bytes = new Uint8Array(end - begin);
        const { bytesRead } = await file.read(bytes, 0, bytes.length, begin);
        return bytes.subarray(0, bytesRead);
      } finally {
        await file.close();
      }
    }
  };
}

export async function openModel(option: string | undefined, { threads = 1 }: HostOptions = {}): Promise<Model> {
  return openGguf(await fileSource(await findModel(option)), { threads, runtime });
}

/** A text by its name, or a file. */
export async function readText(name: string): Promise<string> {
  const path = name in texts ? join(shared, 'text', texts[name as keyof typeof texts]) : name;
  return readFile(path, 'utf8').catch((error: Error) => {
    throw new InputError(`"--text" expected ${textNames.join(', ')} or a file, got ${error.message}`);
  });
}
