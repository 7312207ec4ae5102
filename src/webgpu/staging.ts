// Tokens on their way into raw slots: arrays and GPUBuffers are staged in two buffers, as many as these hold, with the jobs of
// write.wgsl that spread them.

import type { Write } from '../backend.ts';
import { isHalf, wordsOf } from '../format/half.ts';
import { WINDOW } from '../format/layout.ts';
import { type Input, isGpuTokens } from '../input.ts';
import { JOBS } from './jobs.ts';
import type { Struct } from './structs.ts';

/** Records a copy from an engine's buffer. */
export type Copy = (encoder: GPUCommandEncoder) => void;

/** A job of write.wgsl, and the slot that it writes. */
export interface SlotJob {
  readonly slot: number;
  readonly job: Omit<Struct<'WriteJob'>, 'slot'>;
}

/** Elements of a token, of all KV heads. */
export type PerToken = readonly [keys: number, values: number];

/** A window as decode.wgsl leaves it in the buffers, into a whole slot. */
export const DECODED_WINDOW: SlotJob['job'] = {
  keys: 0,
  values: 0,
  tokens: WINDOW,
  firstToken: 0,
  capacity: WINDOW,
  halfKeys: 0,
  halfValues: 0
};

export class Staging {
  /** f32 [tokens, kvHeads, headDim], and [tokens, kvHeads, valueDim]; or f16 from the same beginnings on. */
  readonly buffers: readonly [keys: GPUBuffer, values: GPUBuffer];
  readonly #queue: GPUQueue;
  readonly #capacityOf: (slot: number) => number;

  /**
   * @param capacityOf  tokens that a slot holds
   */
  constructor(queue: GPUQueue, buffers: readonly [GPUBuffer, GPUBuffer], capacityOf: (slot: number) => number) {
    this.buffers = buffers;
    this.#queue = queue;
    this.#capacityOf = capacityOf;
  }

  /** Tokens of `perToken` elements that they hold. */
  tokens(perToken: PerToken): number {
    return Math.floor(this.buffers[0].size / (4 * Math.max(...perToken)));
  }

  /**
   * Stages everything, part by part.
   *
   * @param flush  queues a part's copies and jobs, after which the buffers may be written anew
   */
  write(writes: readonly Write[], perToken: PerToken, flush: (jobs: readonly SlotJob[], copies: readonly Copy[]) => void): void {
    const most = this.tokens(perToken);
    let used = 0; // tokens
    let jobs: SlotJob[] = [];
    let copies: Copy[] = [];
    const next = (): void => {
      flush(jobs, copies);
      used = 0;
      jobs = [];
      copies = [];
    };
    for (const { keys, values, runs } of writes) {
      const [halfKeys, halfValues] = [holdsHalves(keys), holdsHalves(values)];
      for (let n = 0; n < runs.length; ) {
        if (used + runs[n]!.tokens > most || jobs.length === JOBS) next();
        const { from } = runs[n]!;
        let staged = 0;
        for (; n < runs.length && used + staged + runs[n]!.tokens <= most && jobs.length < JOBS; n++) {
          const { slot, at, tokens } = runs[n]!;
          // Rows of f16 lie at the beginning of the room for f32.
          const word = (side: 0 | 1, half: boolean): number => (used + staged / (half ? 2 : 1)) * perToken[side];
          jobs.push({
            slot,
            job: {
              keys: word(0, halfKeys),
              values: word(1, halfValues),
              tokens,
              firstToken: at,
              capacity: this.#capacityOf(slot),
              halfKeys: Number(halfKeys),
              halfValues: Number(halfValues)
            }
          });
          staged += tokens;
        }
        for (const side of [0, 1] as const) {
          this.#stage(this.buffers[side], used, side === 0 ? keys : values, perToken[side], from, staged, copies);
        }
        used += staged;
      }
    }
    if (jobs.length > 0) next();
  }

  /** Tokens of an input, from `from` on, into a buffer from token `at` on: now, or by a copy that is added. */
  #stage(buffer: GPUBuffer, at: number, input: Input, perToken: number, from: number, tokens: number, copies: Copy[]): void {
    const to = at * perToken * 4;
    if (isGpuTokens(input)) {
      const tokenBytes = perToken * (input.format === 'f16' ? 2 : 4);
      const begin = (input.offset ?? 0) + from * tokenBytes;
      copies.push(encoder => encoder.copyBufferToBuffer(input.buffer as GPUBuffer, begin, buffer, to, tokens * tokenBytes));
    } else {
      const rows = wordsOf(input).subarray(from * perToken, (from + tokens) * perToken);
      this.#queue.writeBuffer(buffer, to, rows as Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>);
    }
  }
}

function holdsHalves(input: Input): boolean {
  return isGpuTokens(input) ? input.format === 'f16' : isHalf(input);
}
