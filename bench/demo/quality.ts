// Plays a recording into every row as a decoder would, and compares what comes out with exact attention in f64.
import { divergence, logProbabilities, mix } from './attention.ts';
import type { Recording } from './recording.ts';
import type { Row } from './row.ts';

export interface Quality {
  /** Relative L2: √(Σ‖out − exact‖² / Σ‖exact‖²) over all queries, heads and layers. */
  outputError: number;
  /** The same for each layer, in their order. */
  outputErrorByLayer: number[];
  /** KL(exact ‖ row) of the attention probabilities in nats, mean over queries, heads and layers. */
  attentionKL: number;
}

/** All rows side by side, so that exact attention is computed once and never stored. */
export async function measureQuality(recording: Recording, rows: readonly Row[], onToken: () => void): Promise<Quality[]> {
  const { tokens, queryTokens, queryHeads, headDim, layers } = recording;
  const exactLogP = new Float64Array(queryHeads * tokens);
  const rowLogP = new Float64Array(queryHeads * tokens);
  const exact = new Float64Array(queryHeads * headDim);
  const energies = layers.map(() => 0);
  const errors = rows.map(() => layers.map(() => 0));
  const divergences = rows.map(() => 0);

  for (let position = 0; position < tokens; position++) {
    const length = position + 1;
    for (const [layer] of layers.entries()) {
      const { keys, values } = tokenAt(recording, layer, position);
      for (const row of rows) row.append(layer, keys, values);
      const query = queryAt(recording, layer, position);
      if (!query) continue;

      logProbabilities(exactLogP, query, layers[layer]!.keys, length, recording);
      mix(exact, exactLogP, layers[layer]!.values, length, recording);
      for (const x of exact) energies[layer]! += x * x;
      for (const [r, row] of rows.entries()) {
        logProbabilities(rowLogP, query, await row.heldKeys(layer), length, recording);
        const out = await row.attend(layer, query, rowLogP);
        for (let i = 0; i < exact.length; i++) errors[r]![layer]! += (out[i]! - exact[i]!) ** 2;
        divergences[r]! += divergence(exactLogP, rowLogP, queryHeads * length);
      }
    }
    onToken();
  }

  return rows.map((_, r) => ({
    outputError: relative(sum(errors[r]!), sum(energies)),
    outputErrorByLayer: layers.map((_, layer) => relative(errors[r]![layer]!, energies[layer]!)),
    attentionKL: Math.max(0, divergences[r]! / (queryTokens * queryHeads * layers.length)) // rounding may fall below the true 0
  }));
}

/** One token's keys and values: f32 [kvHeads, headDim] each. */
export function tokenAt(
  { layers, kvHeads, headDim }: Recording,
  layer: number,
  position: number
): { keys: Float32Array; values: Float32Array } {
  const row = kvHeads * headDim;
  const { keys, values } = layers[layer]!;
  return { keys: keys.subarray(position * row, (position + 1) * row), values: values.subarray(position * row, (position + 1) * row) };
}

/** One position's query, f32 [queryHeads, headDim], if there is one. */
export function queryAt(
  { layers, tokens, queryTokens, queryHeads, headDim }: Recording,
  layer: number,
  position: number
): Float32Array | undefined {
  const at = position - (tokens - queryTokens);
  const row = queryHeads * headDim;
  return at < 0 ? undefined : layers[layer]!.queries.subarray(at * row, (at + 1) * row);
}

/** √(error / energy); where the exact output is zero, any error at all is infinite. */
function relative(error: number, energy: number): number {
  return error === 0 ? 0 : Math.sqrt(error / energy);
}

function sum(numbers: readonly number[]): number {
  return numbers.reduce((a, b) => a + b, 0);
}
