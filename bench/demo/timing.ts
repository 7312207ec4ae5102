// Times the library's calls in the same decoder loop, alone, with nothing else in the cache's way; and dense attention
// at the same lengths. No row's errors come from here.
import type { Backend } from 'nsnquant';
import { openDense } from '../baselines/compile.ts';
import type { Kind } from '../baselines/dense.ts';
import { type NsnOptions, openCache, teach } from './nsn.ts';
import { queryAt, tokenAt } from './quality.ts';
import type { Recording } from './recording.ts';

export interface Times {
  /** Time of all attend() calls ÷ Σ over the calls of (cached tokens × KV heads). */
  attendNs: number | null;
  /** Time of all append() calls that seal windows ÷ (sealed tokens × KV heads), keys and values together. */
  encodeNs: number | null;
}

/** The fastest of so many passes counts, the first of which warm up. */
export const PASSES = 7;
/** No pass begins after this time; the first also ends at it once it has attended, which cuts the reference backend short. */
const BUDGET_MS = 3000;

export function timeNsn(backend: Backend, recording: Recording, options: NsnOptions): Times {
  // On a GPU calls return before they are done, and one sequence of a small model is not what it is for: `npm run bench` times it.
  if (backend.name === 'webgpu') return { attendNs: null, encodeNs: null };
  const cache = openCache(backend, recording, options);
  let attendNs = Infinity;
  let encodeNs = Infinity;
  const start = performance.now();
  const late = (): boolean => performance.now() - start > BUDGET_MS;
  for (let pass = 0; pass < PASSES && !late(); pass++) {
    const sequence = cache.sequence();
    const out = new Float32Array(recording.queryHeads * recording.headDim);
    let attendMs = 0,
      attended = 0,
      encodeMs = 0,
      sealedBytes = 0;
    for (let position = 0; position < recording.tokens; position++) {
      if (pass === 0 && attended > 0 && late()) break;
      for (const [layer] of recording.layers.entries()) {
        const { keys, values } = tokenAt(recording, layer, position);
        const appendStart = performance.now();
        sequence.append(layer, keys, values);
        const appendMs = performance.now() - appendStart;
        if (sequence.sealed.bytes !== sealedBytes) {
          sealedBytes = sequence.sealed.bytes;
          encodeMs += appendMs;
        }
        teach(sequence, recording, layer, position, options);
        const query = queryAt(recording, layer, position);
        if (!query) continue;
        const attendStart = performance.now();
        sequence.attend(layer, query, { scale: recording.scale, out });
        attendMs += performance.now() - attendStart;
        attended += position + 1;
      }
    }
    const sealed = sequence.sealed.tokens * recording.layers.length;
    attendNs = Math.min(attendNs, (1e6 * attendMs) / (attended * recording.kvHeads));
    if (sealed > 0) encodeNs = Math.min(encodeNs, (1e6 * encodeMs) / (sealed * recording.kvHeads));
    sequence.dispose();
  }
  cache.dispose();
  return { attendNs, encodeNs: encodeNs === Infinity ? null : encodeNs };
}

/**
 * Attention over dense keys and values of each kind by the benchmark's tuned kernels, at the mean length of the queries:
 * where a call's time is a constant and a share per token, that is the same as the mean over all lengths. The fastest of
 * the kind's forms. Null where there are no kernels: other head dimensions than multiples of 32, scalar WebAssembly.
 */
export async function timeDense(backend: Backend, recording: Recording, kinds: readonly Kind[]): Promise<(number | null)[]> {
  const { tokens, queryTokens, kvHeads, queryHeads, headDim, layers } = recording;
  if (headDim % 32 !== 0 || !['simd128', 'relaxed'].includes(backend.variant)) return kinds.map(() => null);
  const dense = await openDense({ relaxed: backend.variant === 'relaxed', headDims: [headDim] });
  const length = Math.ceil((tokens - queryTokens + 1 + tokens) / 2);
  const groups = queryHeads / kvHeads;
  return kinds.map(kind => {
    const cell = dense.cell({ kind, headDim, groups, tokens: length, heads: layers.length * kvHeads });
    for (const [layer, { keys, values }] of layers.entries()) {
      for (let head = 0; head < kvHeads; head++) {
        cell.fill(layer * kvHeads + head, headOf(keys, head, length, recording), headOf(values, head, length, recording));
      }
    }
    const out = new Float32Array(groups * headDim);
    let attendNs = Infinity;
    for (const form of cell.forms) {
      const start = performance.now();
      for (let pass = 0; pass < PASSES && performance.now() - start < BUDGET_MS; pass++) {
        const passStart = performance.now();
        for (let position = tokens - queryTokens; position < tokens; position++) {
          for (const [layer] of layers.entries()) {
            const query = queryAt(recording, layer, position)!;
            for (let head = 0; head < kvHeads; head++) {
              cell.attend(layer * kvHeads + head, query.subarray(head * out.length, (head + 1) * out.length), out, form);
            }
          }
        }
        const attended = queryTokens * layers.length * length * kvHeads;
        attendNs = Math.min(attendNs, (1e6 * (performance.now() - passStart)) / attended);
      }
    }
    return attendNs;
  });
}

/** One KV head of the first tokens: f32 [length, headDim] from f32 [tokens, kvHeads, headDim]. */
function headOf(data: Float32Array, head: number, length: number, { kvHeads, headDim }: Recording): Float32Array {
  const out = new Float32Array(length * headDim);
  for (let t = 0; t < length; t++) {
    const at = (t * kvHeads + head) * headDim;
    out.set(data.subarray(at, at + headDim), t * headDim);
  }
  return out;
}
