// Tokens on their way into raw slots: arrays and GPUBuffers are staged in two buffers, as many as these hold, with the jobs of
// write.wgsl that spread them.

import type { Write } from '../backend.ts';
import { wordsOf } from '../format/half.ts';
import { WINDOW } from '../format/layout.ts';
import { type Input, isF16, isGpuTokens, tokensOf } from '../input.ts';
import { eachRun, type Rows, stridesOf } from '../rows.ts';
import { type CacheShape, slotTokens } from '../shape.ts';
import { JOBS } from './jobs.ts';
import type { Memory, PerToken } from './memory.ts';
import type { Struct } from './structs.ts';

/** Records a copy from an engine's buffer. */
export type Copy = (encoder: GPUCommandEncoder) => void;

/** A job of write.wgsl, and the slot that it writes. */
export interface SlotJob {
  readonly slot: number;
  readonly job: Omit<Struct<'WriteJob'>, 'slot'>;
}

/** A window as decode.wgsl leaves it in the buffers, into a whole slot. */
export function decodedWindow(kvHeads: number): SlotJob['job'] {
  return {
    keys: 0,
    values: 0,
    tokens: WINDOW,
    firstToken: 0,
    capacity: WINDOW,
    halfKeys: 0,
    halfValues: 0,
    ...stridesOf({ layout: 'tokens-first', tokens: WINDOW, heads: kvHeads })
  };
}

/** Where rows go: a buffer of the cache's, from a byte on. */
export interface Place {
  readonly buffer: GPUBuffer;
  readonly offset: number;
}

/** Some tokens of an input into a place, as an array of these alone: now, or by copies that are added. */
export function stage(
  queue: GPUQueue,
  input: Input,
  rows: Rows,
  channels: number,
  from: number,
  tokens: number,
  { buffer, offset }: Place,
  copies: Copy[]
): void {
  const rowBytes = channels * (isF16(input) ? 2 : 4);
  eachRun(rows, from, tokens, (row, partRow, count) => {
    const to = offset + partRow * rowBytes;
    if (isGpuTokens(input)) {
      const begin = (input.offset ?? 0) + row * rowBytes;
      copies.push(encoder => encoder.copyBufferToBuffer(input.buffer as GPUBuffer, begin, buffer, to, count * rowBytes));
    } else {
      const words = wordsOf(input).subarray(row * channels, (row + count) * channels);
      queue.writeBuffer(buffer, to, words as Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>);
    }
  });
}

export class Staging {
  readonly #queue: GPUQueue;
  readonly #shape: CacheShape;
  readonly #memory: Pick<Memory, 'staged' | 'stage'>;

  constructor(queue: GPUQueue, shape: CacheShape, memory: Pick<Memory, 'staged' | 'stage'>) {
    this.#queue = queue;
    this.#shape = shape;
    this.#memory = memory;
  }

  /**
   * Stages everything, part by part.
   *
   * @param perToken  elements of a token of `kvHeads` heads
   * @param flush     queues a part's copies and jobs, after which the buffers may be written anew
   */
  write(
    writes: readonly Write[],
    kvHeads: number,
    perToken: PerToken,
    flush: (jobs: readonly SlotJob[], copies: readonly Copy[]) => void
  ): void {
    const { staged: rooms } = this.#memory;
    const most = this.#memory.stage(
      writes.reduce((sum, { keys }) => sum + tokensOf(keys, perToken[0]), 0),
      perToken
    );
    let used = 0; // tokens
    let jobs: SlotJob[] = [];
    let copies: Copy[] = [];
    const next = (): void => {
      flush(jobs, copies);
      used = 0;
      jobs = [];
      copies = [];
    };
    for (const { keys, values, layout, runs } of writes) {
      const rows = { layout, tokens: tokensOf(keys, perToken[0]), heads: kvHeads };
      for (let n = 0; n < runs.length; ) {
        if (used + runs[n]!.tokens > most || jobs.length === JOBS) next();
        const first = n;
        let staged = 0;
        for (; n < runs.length && used + staged + runs[n]!.tokens <= most && jobs.length + n - first < JOBS; n++) staged += runs[n]!.tokens;
        const { from } = runs[first]!;
        const strides = stridesOf({ ...rows, tokens: staged });
        for (const { slot, at, from: token, tokens } of runs.slice(first, n)) {
          // Rows of f16 lie at the beginning of the room for f32.
          const word = (side: 0 | 1): number => {
            const row = (token - from) * strides.tokenRows;
            return used * perToken[side] + (row * perToken[side]) / kvHeads / (isF16(side === 0 ? keys : values) ? 2 : 1);
          };
          jobs.push({
            slot,
            job: {
              keys: word(0),
              values: word(1),
              tokens,
              firstToken: at,
              capacity: slotTokens(this.#shape, slot),
              halfKeys: Number(isF16(keys)),
              halfValues: Number(isF16(values)),
              ...strides
            }
          });
        }
        for (const side of [0, 1] as const) {
          const place = { buffer: rooms[side].buffer, offset: 4 * used * perToken[side] };
          stage(this.#queue, side === 0 ? keys : values, rows, perToken[side] / kvHeads, from, staged, place, copies);
        }
        used += staged;
      }
    }
    if (jobs.length > 0) next();
  }
}
