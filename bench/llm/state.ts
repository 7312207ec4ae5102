// What was measured so far, so that a long run can be stopped and go on. Nothing measured by other code or another model is taken.
import { createHash } from 'node:crypto';
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { TokenStats } from './stats.ts';

export interface Measurement {
  readonly stats: TokenStats;
  readonly bytes: number;
  readonly codedBits: number | null;
}

const here = dirname(fileURLToPath(import.meta.url));
const FOLDER = join(here, '.state');

/** A checksum of all code that measurements depend on, and of the model's own. */
export function fingerprint(model: string): string {
  const hash = createHash('sha256');
  const library = dirname(fileURLToPath(import.meta.resolve('nsnquant')));
  const engine = dirname(fileURLToPath(import.meta.resolve('@nsnquant/gguf')));
  const files = [
    ...[library, engine, join(here, 'caches')].flatMap(filesOf),
    join(here, 'evaluate.ts'),
    join(here, '../baselines/ggml.ts'),
    join(here, '../bytes.ts')
  ];
  for (const file of files) hash.update(readFileSync(file));
  return hash.update(model).digest('hex');
}

function filesOf(folder: string): string[] {
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter(entry => entry.isFile() && /\.[jt]s$/.test(entry.name))
    .map(({ parentPath, name }) => join(parentPath, name))
    .sort();
}

export class State {
  readonly #fingerprint: string;

  constructor(checksum: string) {
    this.#fingerprint = checksum;
    mkdirSync(FOLDER, { recursive: true });
  }

  get(key: string): Measurement | undefined {
    let text: string;
    try {
      text = readFileSync(this.#path(key), 'utf8');
    } catch {
      return undefined;
    }
    const { bytes, codedBits, ...series } = JSON.parse(text) as { bytes: number; codedBits: number | null } & Record<
      keyof TokenStats,
      string
    >;
    const floats = (base64: string): Float64Array => new Float64Array(Uint8Array.from(Buffer.from(base64, 'base64')).buffer);
    return {
      bytes,
      codedBits,
      stats: { nll: floats(series.nll), rawNll: floats(series.rawNll), kld: floats(series.kld), same: floats(series.same) }
    };
  }

  set(key: string, { stats, bytes, codedBits }: Measurement): void {
    const series = Object.entries(stats).map(([name, values]) => [name, Buffer.from((values as Float64Array).buffer).toString('base64')]);
    const path = this.#path(key);
    // Whole or not at all: a stopped program must leave no half file.
    writeFileSync(`${path}.new`, JSON.stringify({ key, bytes, codedBits, ...Object.fromEntries(series) }));
    renameSync(`${path}.new`, path);
  }

  forget(key: string): void {
    rmSync(this.#path(key), { force: true });
  }

  #path(key: string): string {
    return join(FOLDER, `${createHash('sha256').update(`${this.#fingerprint} ${key}`).digest('hex').slice(0, 32)}.json`);
  }
}
