// What the demo measures on: keys, values and queries that a real model produced, recorded in a safetensors file.
// Everything about the file is checked here, so that nothing after it has to.
import { InputError, parseSafetensors, readFloats, type Safetensors, shapeText, type Tensor } from './safetensors.ts';

export interface RecordedLayer {
  index: number; // the layer's number in the model
  keys: Float32Array; // [tokens, kvHeads, headDim], after RoPE, positions 0 … tokens − 1
  values: Float32Array; // [tokens, kvHeads, headDim]
  queries: Float32Array; // [queryTokens, queryHeads, headDim], the last queryTokens positions
}

export interface Rope {
  invFreq: number[]; // radians per token for each pair
  interleaved: boolean;
}

export interface Recording {
  model: string | undefined;
  text: string | undefined;
  tokens: number;
  queryTokens: number;
  kvHeads: number;
  queryHeads: number;
  headDim: number;
  scale: number; // logits are scale · ⟨q, k⟩
  rope: Rope | undefined;
  layers: RecordedLayer[];
}

/** The cache's limits: f16's range, and the query heads that may share one KV head. */
const MAX_MAGNITUDE = 65_504;
const MAX_GROUP = 64;

export function readRecording(file: Uint8Array): Recording {
  const parsed = parseSafetensors(file);
  const indices = layerIndices(parsed);
  const first = indices[0]!;

  const keysName = `layers.${first}.k`;
  const keys = tensor(parsed, keysName, '[tokens, kvHeads, headDim]');
  if (keys.shape.length !== 3 || keys.shape.includes(0)) {
    throw new InputError(`"${keysName}" expected shape [tokens, kvHeads, headDim], got ${shapeText(keys.shape)}`);
  }
  const [tokens, kvHeads, headDim] = keys.shape as [number, number, number];
  if (headDim % 8 !== 0 || headDim < 32 || headDim > 512) {
    throw new InputError(
      `"${keysName}" expected shape [tokens, kvHeads, headDim] with headDim a multiple of 8 from 32 to 512, got ${shapeText(keys.shape)}`
    );
  }

  const queriesName = `layers.${first}.q`;
  const headsText = kvHeads === 1 ? `1 to ${MAX_GROUP} heads` : `a multiple of ${kvHeads} up to ${MAX_GROUP * kvHeads} heads`;
  const queriesShape = `[1 to ${tokens} tokens, ${headsText}, ${headDim}] (as ${keysName})`;
  const queries = tensor(parsed, queriesName, queriesShape);
  const [queryTokens, queryHeads, queryDim] = queries.shape as [number, number, number];
  const queriesFit =
    queries.shape.length === 3 &&
    queryDim === headDim &&
    queryTokens >= 1 &&
    queryTokens <= tokens &&
    queryHeads >= kvHeads &&
    queryHeads % kvHeads === 0 &&
    queryHeads <= MAX_GROUP * kvHeads;
  if (!queriesFit) {
    throw new InputError(`"${queriesName}" expected shape ${queriesShape}, got ${shapeText(queries.shape)}`);
  }

  const metadata = readMetadata(parsed.metadata, headDim);
  const layers = indices.map((index): RecordedLayer => {
    const k = `layers.${index}.k`;
    return {
      index,
      keys: elements(parsed, k, keys.shape, keysName),
      values: elements(parsed, `layers.${index}.v`, keys.shape, k),
      queries: elements(parsed, `layers.${index}.q`, queries.shape, queriesName)
    };
  });
  return { ...metadata, tokens, queryTokens, kvHeads, queryHeads, headDim, layers };
}

/** The recording with its newest queries alone. */
export function newestQueries(recording: Recording, count = recording.queryTokens): Recording {
  const { queryTokens, queryHeads, headDim, layers } = recording;
  if (count > queryTokens) throw new InputError(`"--queries" expected at most ${queryTokens} (all that are recorded), got ${count}`);
  const from = (queryTokens - count) * queryHeads * headDim;
  return { ...recording, queryTokens: count, layers: layers.map(layer => ({ ...layer, queries: layer.queries.subarray(from) })) };
}

/** The numbers N of the tensors layers.N.k, .v and .q, in order. */
function layerIndices({ tensors }: Safetensors): number[] {
  const indices = new Set<number>();
  for (const name of tensors.keys()) {
    const match = /^layers\.(0|[1-9]\d*)\.[kvq]$/.exec(name);
    if (match) indices.add(Number(match[1]));
  }
  if (indices.size === 0) {
    throw new InputError(
      `file expected tensors "layers.N.k", "layers.N.v" and "layers.N.q", got ${
        [...tensors.keys()]
          .slice(0, 4)
          .map(name => `"${name}"`)
          .join(', ') || 'none'
      }`
    );
  }
  return [...indices].sort((a, b) => a - b);
}

function tensor({ tensors }: Safetensors, name: string, shape: string): Tensor {
  const found = tensors.get(name);
  if (!found) throw new InputError(`"${name}" expected shape ${shape}, got no such tensor`);
  return found;
}

/** A tensor's elements, once it has the shape it must share with `like` and is finite. */
function elements(parsed: Safetensors, name: string, shape: readonly number[], like: string): Float32Array {
  const expected = `${shapeText(shape)} (as ${like})`;
  const found = tensor(parsed, name, expected);
  if (found.shape.length !== shape.length || found.shape.some((size, axis) => size !== shape[axis])) {
    throw new InputError(`"${name}" expected shape ${expected}, got ${shapeText(found.shape)}`);
  }
  const data = readFloats(name, found);
  const bad = data.findIndex(x => !(Math.abs(x) <= MAX_MAGNITUDE));
  if (bad !== -1) {
    const [, heads, headDim] = shape as [number, number, number];
    const at = [Math.floor(bad / (heads * headDim)), Math.floor(bad / headDim) % heads, bad % headDim];
    throw new InputError(
      `"${name}" expected finite numbers within ±${MAX_MAGNITUDE}, shape ${shapeText(shape)}, got ${data[bad]} at ${shapeText(at)}`
    );
  }
  return data;
}

function readMetadata(metadata: Record<string, string>, headDim: number): Pick<Recording, 'model' | 'text' | 'scale' | 'rope'> {
  const { model, text, rope_base: base, rope_pairs: pairs, softmax_scale: softmaxScale } = metadata;
  if (pairs !== undefined && pairs !== 'halves' && pairs !== 'interleaved') {
    throw new InputError(`"__metadata__.rope_pairs" expected halves or interleaved, got ${JSON.stringify(pairs)}`);
  }
  const scale = softmaxScale === undefined ? 1 / Math.sqrt(headDim) : number(softmaxScale);
  if (!(scale > 0)) throw new InputError(`"__metadata__.softmax_scale" expected positive number, got ${JSON.stringify(softmaxScale)}`);
  if (base === undefined) return { model, text, scale, rope: undefined };

  const theta = number(base);
  if (!(theta > 1)) throw new InputError(`"__metadata__.rope_base" expected number above 1, got ${JSON.stringify(base)}`);
  if (pairs === undefined)
    throw new InputError('"__metadata__.rope_pairs" expected halves or interleaved (there is a rope_base), got nothing');
  const invFreq = Array.from({ length: headDim / 2 }, (_, pair) => theta ** ((-2 * pair) / headDim));
  return { model, text, scale, rope: { invFreq, interleaved: pairs === 'interleaved' } };
}

/** A finite number, or NaN: Number() alone takes '' for 0. */
function number(text: string): number {
  const value = text.trim() === '' ? NaN : Number(text);
  return Number.isFinite(value) ? value : NaN;
}
