// Times the library's calls in the same decoder loop, alone, with nothing else in the cache's way.
import type { Backend } from 'nsnquant';
import { openCache, type NsnOptions } from './nsn.ts';
import { queryAt, tokenAt } from './quality.ts';
import type { Recording } from './recording.ts';

export interface Times {
  /** Time of all attend() calls ÷ Σ over the calls of (cached tokens × KV heads). */
  attendNs: number | null;
  /** Time of all append() calls that seal windows ÷ (sealed tokens × KV heads), keys and values together. */
  encodeNs: number | null;
}

/** The fastest of so many passes, the first of which also warm up; a slow backend runs out of time before. */
export const PASSES = 7;
const BUDGET_MS = 3000;

export function timeNsn(backend: Backend, recording: Recording, options: NsnOptions): Times {
  const cache = openCache(backend, recording, options);
  let attendNs = Infinity;
  let encodeNs = Infinity;
  const start = performance.now();
  for (let pass = 0; pass < PASSES && performance.now() - start < BUDGET_MS; pass++) {
    const sequence = cache.sequence();
    const out = new Float32Array(recording.queryHeads * recording.headDim);
    let attendMs = 0, attended = 0, encodeMs = 0, sealedBytes = 0;
    for (let position = 0; position < recording.tokens; position++) {
      for (const [layer] of recording.layers.entries()) {
        const { keys, values } = tokenAt(recording, layer, position);
        const appendStart = performance.now();
        sequence.append(layer, keys, values);
        const appendMs = performance.now() - appendStart;
        if (sequence.sealed.bytes !== sealedBytes) {
          sealedBytes = sequence.sealed.bytes;
          encodeMs += appendMs;
        }
        const query = queryAt(recording, layer, position);
        if (!query) continue;
        const attendStart = performance.now();
        sequence.attend(layer, query, { scale: recording.scale, out });
        attendMs += performance.now() - attendStart;
        attended += position + 1;
      }
    }
    const sealed = sequence.sealed.tokens * recording.layers.length;
    attendNs = Math.min(attendNs, 1e6 * attendMs / (attended * recording.kvHeads));
    if (sealed > 0) encodeNs = Math.min(encodeNs, 1e6 * encodeMs / (sealed * recording.kvHeads));
    sequence.dispose();
  }
  cache.dispose();
  return { attendNs, encodeNs: encodeNs === Infinity ? null : encodeNs };
}
