// What stands in for a transformers.js model's session: takes and gives what that does, but keeps the past in a cache. Never loads
// transformers.js.

import type { KVCache, Sequence } from 'nsnquant';
import type { InferenceSession, Tensor, TensorConstructor } from 'onnxruntime-common';
import type { OnnxModel } from './model.ts';

/** Tokens of one row of a batch, and the columns of padding before them. */
export interface Row {
  readonly sequence: Sequence;
  readonly padding: number;
  /** Pasts that go on from it. */
  holders: number;
}

const known = new WeakMap<Sequence, Row>();

/** The row of a sequence: one, whoever asks. */
export function rowOf(sequence: Sequence, padding: number): Row {
  const row = known.get(sequence) ?? { sequence, padding, holders: 0 };
  known.set(sequence, row);
  return row;
}

/** What the tensors of one call's past stand for. transformers.js takes it for a buffer on a GPU: it hands it on, and says when it is done. */
export class Past {
  readonly rows: readonly Row[];
  /** Columns of each row, with padding. */
  readonly columns: number;
  #held = true;

  constructor(rows: readonly Row[], columns: number) {
    this.rows = rows;
    this.columns = columns;
    for (const row of rows) row.holders++;
    forgotten.register(this, rows, this);
  }

  release(): void {
    if (!this.#held) return;
    this.#held = false;
    forgotten.unregister(this);
    release(this.rows);
  }
}

/** Nobody has to dispose a DynamicCache whose tensors are in JavaScript's memory; nor one whose tensors are these. */
const forgotten = new FinalizationRegistry<readonly Row[]>(release);

function release(rows: readonly Row[]): void {
  for (const row of rows) if (--row.holders === 0) row.sequence.dispose();
}

/** The session that it takes the place of. */
export type Replaced = InferenceSession & { readonly config?: { readonly device?: string } };

type Integers = BigInt64Array | Int32Array;

export class CompressedSession {
  readonly inputNames: readonly string[];
  readonly inputMetadata: InferenceSession['inputMetadata'];
  readonly outputNames: readonly string[];
  readonly outputMetadata: InferenceSession['outputMetadata'];
  /** What transformers.js has noted: type and device. */
  readonly config: Replaced['config'];
  readonly #model: OnnxModel;
  readonly #cache: KVCache;
  readonly #Tensor: TensorConstructor;
  readonly #dispose: () => Promise<void>;
  /** The call that runs: the next one waits for it, as both may be about one sequence. */
  #last: Promise<unknown> = Promise.resolve();

  constructor(replaced: Replaced, model: OnnxModel, cache: KVCache, Tensor: TensorConstructor, dispose: () => Promise<void>) {
    // generate() asks for the last logits of a prompt alone where a session has this input.
    this.inputNames = [...new Set([...replaced.inputNames, 'num_logits_to_keep'])];
    this.inputMetadata = replaced.inputMetadata;
    this.outputNames = replaced.outputNames;
    this.outputMetadata = replaced.outputMetadata;
    this.config = replaced.config;
    this.#model = model;
    this.#cache = cache;
    this.#Tensor = Tensor;
    this.#dispose = dispose;
  }

  /**
   * @param feeds  input_ids i64 [batch, tokens], and what else the model takes: attention_mask [batch, columns], position_ids
   *               [batch, tokens], num_logits_to_keep [], past_key_values of an earlier call, or of no tokens
   * @returns      logits f32 [batch, tokens or num_logits_to_keep, vocabulary], 0 where padding is, and the present of every layer
   */
  run(feeds: Readonly<Record<string, Tensor>>): Promise<Record<string, Tensor>> {
    const run = this.#last.then(() => this.#run(feeds));
    const done = () => {}; // of its results nothing is kept: they hold sequences
    this.#last = run.then(done, done);
    return run;
  }

  release(): Promise<void> {
    return this.#dispose();
  }

  /** Tensors for a past, under the names of inputs (`past_key_values`) or outputs (`present`). */
  tensors(past: Past, names: 'past_key_values' | 'present'): Record<string, Tensor> {
    const tensors: Record<string, Tensor> = {};
    for (const input of this.inputMetadata) {
      if (!input.name.startsWith('past_key_values.') || !input.isTensor) continue;
      const dims = [past.rows.length, input.shape[1] as number, past.columns, input.shape[3] as number];
      const options = { dataType: input.type, dims, dispose: () => past.release() };
      tensors[input.name.replace('past_key_values', names)] = this.#Tensor.fromGpuBuffer(past as never, options as never);
    }
    return tensors;
  }

  async #run(feeds: Readonly<Record<string, Tensor>>): Promise<Record<string, Tensor>> {
    const ids = feeds['input_ids']!;
    const [batch, columns] = ids.dims as [number, number];
    const past = pastOf(feeds);
    if (past && past.rows.length !== batch) {
      throw new RangeError(`"input_ids" expected ${past.rows.length} rows (those of past_key_values), got ${batch}`);
    }
    const before = past?.columns ?? 0;
    const paddings = paddingsOf(feeds['attention_mask'], batch, before + columns);
    past?.rows.forEach(({ padding }, row) => {
      if (paddings[row] !== padding) {
        throw new RangeError(`"attention_mask" expected ${padding} columns of padding in row ${row}, as before, got ${paddings[row]}`);
      }
    });
    const firsts = paddings.map(padding => Math.max(0, padding - before)); // columns of this call that are padding
    checkPositions(feeds['position_ids'], paddings, before, columns);

    const rows = this.#rows(past, paddings);
    try {
      const tokens = firsts.map((first, row) =>
        Array.from((ids.data as Integers).subarray(row * columns + first, (row + 1) * columns), Number)
      );
      const kept = Number((feeds['num_logits_to_keep']?.data as Integers | undefined)?.[0] ?? 0);
      const shown = kept > 0 ? Math.min(kept, columns) : columns;
      const sequences = rows.map(({ sequence }) => sequence);
      const results = await this.#model.forward(tokens, sequences, { logits: shown === 1 ? 'last' : 'all' });
      const present = new Past(rows, before + columns);
      return { logits: this.#logits(results, shown), ...this.tensors(present, 'present') };
    } catch (error) {
      for (const row of rows) if (row.holders === 0) row.sequence.dispose();
      throw error;
    }
  }

  /** Where the call's tokens go: sequences that end where the past does, else forks of them that do. */
  #rows(past: Past | undefined, paddings: readonly number[]): Row[] {
    const rows: Row[] = [];
    try {
      for (const [n, padding] of paddings.entries()) {
        const row = past?.rows[n];
        const length = past ? past.columns - padding : 0;
        if (row?.sequence.length === length) {
          rows.push(row);
          continue;
        }
        rows.push(rowOf(row ? row.sequence.fork() : this.#cache.sequence(), padding));
        rows[n]!.sequence.crop(length);
      }
      return rows;
    } catch (error) {
      for (const row of rows) if (row.holders === 0) row.sequence.dispose();
      throw error;
    }
  }

  /** The last `shown` columns of every row. */
  #logits(results: readonly Float32Array[], shown: number): Tensor {
    const { vocabulary } = this.#model.config;
    const data = new Float32Array(results.length * shown * vocabulary);
    for (const [row, result] of results.entries()) {
      const newest = result.subarray(Math.max(0, result.length - shown * vocabulary));
      data.set(newest, (row + 1) * shown * vocabulary - newest.length);
    }
    return new this.#Tensor('float32', data, [results.length, shown, vocabulary]);
  }
}

/** What the tensors of a past stand for, all the same; none where they are of no tokens. */
export function pastOf(tensors: Readonly<Record<string, Tensor>>): Past | undefined {
  let first: Past | 'none' | undefined;
  for (const [name, tensor] of Object.entries(tensors)) {
    if (!name.startsWith('past_key_values.')) continue;
    const past = tensor.location === 'gpu-buffer' ? (tensor.gpuBuffer as unknown) : undefined;
    // Of one that was disposed transformers.js itself says so.
    if (past === undefined && tensor.dims[2] !== 0) {
      throw new RangeError(`"${name}" expected a past of this compressed model, got ${tensor.dims[2]} tokens from elsewhere`);
    }
    if (past !== undefined && !(past instanceof Past))
      throw new RangeError(`"${name}" expected a past of this compressed model, got a GPUBuffer`);
    first ??= past ?? 'none';
    if (first !== (past ?? 'none')) throw new RangeError(`"${name}" expected to be of the same call as the others, got another's`);
  }
  return first === 'none' ? undefined : first;
}

/** Columns of padding before the tokens of every row. Padding elsewhere is refused: tokens of a cache have no gaps. */
function paddingsOf(mask: Tensor | undefined, batch: number, columns: number): number[] {
  if (!mask) return new Array(batch).fill(0);
  if (mask.dims.join() !== [batch, columns].join()) {
    throw new RangeError(`"attention_mask" expected dims ${batch},${columns} (rows, columns with those of the past), got ${mask.dims}`);
  }
  const data = mask.data as Integers;
  return Array.from({ length: batch }, (_, row) => {
    const seen = Array.from(data.subarray(row * columns, (row + 1) * columns), Number);
    const padding = seen.indexOf(1);
    if (padding < 0) throw new RangeError(`"attention_mask" expected a token in row ${row}, got padding alone`);
    const gap = seen.indexOf(0, padding);
    if (gap >= 0) throw new RangeError(`"attention_mask" expected padding before the tokens of row ${row} only, got 0 at ${gap}`);
    return padding;
  });
}

/** Positions must be counted from 0 or from 1, as transformers.js does for some models: rotations tell differences alone. */
function checkPositions(positions: Tensor | undefined, paddings: readonly number[], before: number, columns: number): void {
  if (!positions) return;
  const data = positions.data as Integers;
  let start: number | undefined;
  for (const [row, padding] of paddings.entries()) {
    for (let column = Math.max(0, padding - before); column < columns; column++) {
      const expected = before + column - padding;
      const got = Number(data[row * columns + column]);
      start ??= got - expected === 1 ? 1 : 0;
      if (got !== expected + start) throw new RangeError(`"position_ids" expected ${expected + start} at ${row},${column}, got ${got}`);
    }
  }
}
