// A Llama's shape, read from a GGUF file's metadata. A key that changes the result and is not used here is refused by its name.
import { InputError } from './source.ts';

export interface Config {
  readonly name: string;
  readonly layers: number;
  readonly queryHeads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  /** Channels between layers. */
  readonly width: number;
  /** Channels inside the feed-forward network. */
  readonly inner: number;
  /** Rows of the embedding matrix: the tokenizer's tokens, and padding after them in some files. */
  readonly vocabulary: number;
  /** Tokens that the model was made for. */
  readonly context: number;
  readonly epsilon: number;
  /** As GGUF stores Llama's keys: pairs (2i, 2i+1). Fewer pairs than headDim/2 if only some channels are rotated. */
  readonly rope: { readonly invFreq: Float64Array; readonly interleaved: true };
}

export type Metadata = Readonly<Record<string, unknown>>;

/** What the tensors say of the shape. */
export interface TensorFacts {
  /** Of token_embd.weight: [width, vocabulary]. */
  readonly embeddings: readonly number[];
  /** What each pair's frequency is divided by (Llama 3); undefined where the file has no rope_freqs.weight. */
  readonly ropeFactors: Float32Array | undefined;
}

/** Keys that describe the file and change nothing. */
const DESCRIPTIVE = [
  'llama.vocab_size',
  'llama.tensor_data_layout',
  'llama.expert_used_count',
  'llama.rope.scaling.original_context_length',
  'llama.rope.scaling.finetuned'
];

/** @throws {InputError} for a value that is out of range, or a key that is not used and not off */
export function readConfig(file: string, metadata: Metadata, { embeddings, ropeFactors }: TensorFacts): Config {
  const fields = new Fields(file, metadata);
  const [columns, vocabulary] = embeddings as [number, number];
  const width = fields.number('embedding_length', `${columns} (the columns of token_embd.weight)`, value => value === columns);
  const queryHeads = fields.count('attention.head_count');
  const kvHeads = fields.number(
    'attention.head_count_kv',
    `a divisor of ${queryHeads} (the query heads)`,
    value => queryHeads % value === 0 && value >= 1,
    queryHeads
  );
  const headDim = fields.number(
    'attention.key_length',
    'multiple of 8 from 32 to 512',
    value => value % 8 === 0 && value >= 32 && value <= 512,
    width / queryHeads
  );
  fields.number('attention.value_length', `${headDim} (the channels of a key)`, value => value === headDim, headDim);
  fields.only('attention.causal', [true]);
  if (fields.count('expert_count', 0) > 0) throw fields.refuse('expert_count', '0 (a dense model)');
  const dims = fields.number(
    'rope.dimension_count',
    `even integer up to ${headDim} (the channels of a head)`,
    value => value % 2 === 0 && value >= 2 && value <= headDim,
    headDim
  );
  if (ropeFactors && ropeFactors.length !== dims / 2) {
    throw new InputError(
      `${file}: tensor "rope_freqs.weight" expected ${dims / 2} elements (a factor for each pair), got ${ropeFactors.length}`
    );
  }
  const base = fields.positive('rope.freq_base', 10000);
  const stretch = ropeStretch(fields);
  const config: Config = {
    name: String(metadata['general.name'] ?? file),
    layers: fields.count('block_count'),
    queryHeads,
    kvHeads,
    headDim,
    width,
    inner: fields.count('feed_forward_length'),
    vocabulary,
    context: fields.count('context_length'),
    epsilon: fields.positive('attention.layer_norm_rms_epsilon'),
    rope: {
      invFreq: Float64Array.from({ length: dims / 2 }, (_, pair) => base ** ((-2 * pair) / dims) / stretch / (ropeFactors?.[pair] ?? 1)),
      interleaved: true
    }
  };
  fields.refuseUnused();
  return config;
}

/** How many times farther than trained positions reach. As in llama.cpp scaling is linear where a factor is all that is given. */
function ropeStretch(fields: Fields): number {
  const type = fields.only('rope.scaling.type', ['linear', 'none']);
  const factor = fields.positive('rope.scaling.factor', fields.positive('rope.scale_linear', 1));
  return type === 'none' ? 1 : factor;
}

/** The metadata below "llama.", which remembers what was asked for. */
class Fields {
  readonly #file: string;
  readonly #metadata: Metadata;
  readonly #used = new Set<string>(DESCRIPTIVE);

  constructor(file: string, metadata: Metadata) {
    this.#file = file;
    this.#metadata = metadata;
  }

  /** A number for which `holds`. A list of equal numbers, one a layer, counts as that number. */
  number(key: string, expected: string, holds: (value: number) => boolean, otherwise?: number): number {
    const given = this.#get(key) ?? otherwise;
    const values: readonly unknown[] = Array.isArray(given) ? given : [given];
    const [value] = values;
    const isNumber = typeof value === 'bigint' || typeof value === 'number';
    if (!isNumber || values.some(other => other !== value) || !holds(Number(value))) throw this.refuse(key, expected);
    return Number(value);
  }

  count(key: string, otherwise?: number): number {
    const least = Math.min(1, otherwise ?? 1);
    return this.number(key, `integer of at least ${least}`, value => Number.isInteger(value) && value >= least, otherwise);
  }

  positive(key: string, otherwise?: number): number {
    return this.number(key, 'number above 0', value => value > 0 && value < Infinity, otherwise);
  }

  /** The value, if any, which must be one of `known`. */
  only(key: string, known: readonly unknown[]): unknown {
    const value = this.#get(key);
    if (value !== undefined && !known.includes(value)) throw this.refuse(key, known.join(' or '));
    return value;
  }

  refuse(key: string, expected: string): InputError {
    return new InputError(`${this.#file}: "llama.${key}" expected ${expected}, got ${said(this.#metadata[`llama.${key}`])}`);
  }

  /** What nobody asked for would be left out in silence: windows, caps, scales. 0 and false switch such a thing off. */
  refuseUnused(): void {
    for (const [key, value] of Object.entries(this.#metadata)) {
      if (!key.startsWith('llama.') || this.#used.has(key) || Number(value) === 0) continue;
      throw new InputError(`${this.#file}: expected a model that does without "${key}", which this engine lacks, got ${said(value)}`);
    }
  }

  #get(key: string): unknown {
    this.#used.add(`llama.${key}`);
    return this.#metadata[`llama.${key}`];
  }
}

function said(value: unknown): string {
  if (value === undefined) return 'a file without it';
  return Array.isArray(value) ? `[${value.slice(0, 8).join(', ')}${value.length > 8 ? ', …' : ''}]` : String(value);
}
