// A model's shape, read from a GGUF file's metadata. A key that changes the result and is not used here is refused by its name.
import type { Rope } from 'nsnquant';
import { type Architecture, architectures } from './architectures.ts';
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
  /** What a cache must be, layer by layer: `layers` of `KVCache`. */
  readonly attention: readonly Attention[];
  /** What RoPE multiplies by besides: 1 but for long RoPE. */
  readonly ropeScale: number;
  /** What queries are multiplied by before attention, whose own scale is 1/√headDim. */
  readonly queryScale: number;
  readonly embeddingScale: number;
  /** The model's logits become softcap · tanh(logit / softcap); 0 for none. */
  readonly finalSoftcap: number;
  /** @internal */
  readonly architecture: Architecture;
}

/** One layer's attention. */
export interface Attention {
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  /** Fewer pairs than headDim/2 if only the first channels are rotated. */
  readonly rope: Rope | 'none';
  /** Positions that a query sees, its own among them. */
  readonly window?: number;
  readonly softcap?: number;
}

export type Metadata = Readonly<Record<string, unknown>>;

/** What the tensors say of the shape. */
export interface TensorFacts {
  /** Of token_embd.weight: [width, vocabulary]. */
  readonly embeddings: readonly number[];
  /** Of the file. */
  readonly count: number;
  /** What each pair's frequency is divided by: Llama 3's, and Phi-3's for long and short contexts; those that the file has. */
  readonly ropeFactors: Readonly<Partial<Record<RopeFactors, Float32Array>>>;
}

export const ROPE_FACTORS = ['rope_freqs.weight', 'rope_factors_long.weight', 'rope_factors_short.weight'] as const;
export type RopeFactors = (typeof ROPE_FACTORS)[number];

/** Keys that describe the file and change nothing. */
const DESCRIPTIVE = [
  'vocab_size',
  'tensor_data_layout',
  'expert_used_count',
  'rope.scaling.original_context_length',
  'rope.scaling.finetuned'
];

/** What the file says its architecture is, and what that means. */
export function architectureOf(file: string, metadata: Metadata): { readonly name: string; readonly architecture: Architecture } {
  const name = String(metadata['general.architecture']);
  const architecture = Object.hasOwn(architectures, name) ? architectures[name] : undefined;
  if (!architecture) {
    throw new InputError(`${file}: expected a model of one of the architectures ${Object.keys(architectures).join(', ')}, got ${name}`);
  }
  return { name, architecture };
}

/**
 * @param context  tokens of the longest conversation, where that is known to be less than the model's
 * @throws {InputError} for a value that is out of range, or a key that is not used and not off
 */
export function readConfig(file: string, metadata: Metadata, { embeddings, count, ropeFactors }: TensorFacts, context = Infinity): Config {
  const { name, architecture } = architectureOf(file, metadata);
  const fields = new Fields(file, name, metadata);
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
  const layers = fields.count('block_count');
  const trained = fields.count('context_length');
  // A damaged file may speak of any number of layers; which of them lacks a tensor is found later.
  const sizes = { layers: Math.min(layers, count), kvHeads, queryHeads, headDim, dims, context: Math.min(context, trained) };
  const config: Config = {
    name: String(metadata['general.name'] ?? file),
    layers,
    queryHeads,
    kvHeads,
    headDim,
    width,
    inner: fields.count('feed_forward_length'),
    vocabulary,
    context: sizes.context,
    epsilon: fields.positive('attention.layer_norm_rms_epsilon'),
    attention: attentionOf(fields, architecture, sizes, ropeFactors),
    ropeScale: fields.positive('rope.scaling.attn_factor', 1),
    queryScale: layers === architecture.wideQueries ? Math.sqrt((headDim * queryHeads) / width) : 1,
    embeddingScale: architecture.scaledEmbeddings ? Math.sqrt(width) : 1,
    finalSoftcap: architecture.softcap ? fields.cap('final_logit_softcapping', architecture.softcap.final) : 0,
    architecture
  };
  fields.refuseUnused();
  return config;
}

interface Sizes {
  readonly layers: number;
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  /** Channels of a head that rotate. */
  readonly dims: number;
  readonly context: number;
}

function attentionOf(
  fields: Fields,
  { interleaved, window, localBase, unrotated = Infinity, longRope, softcap }: Architecture,
  { layers, kvHeads, queryHeads, headDim, dims, context }: Sizes,
  ropeFactors: TensorFacts['ropeFactors']
): Attention[] {
  const original = longRope ? fields.count('rope.scaling.original_context_length', context) : Infinity;
  const chosen = longRope ? (context > original ? 'rope_factors_long.weight' : 'rope_factors_short.weight') : 'rope_freqs.weight';
  for (const [tensor, factors] of Object.entries(ropeFactors)) {
    if (factors.length !== dims / 2) {
      throw new InputError(
        `${fields.file}: tensor "${tensor}" expected ${dims / 2} elements (a factor for each pair), got ${factors.length}`
      );
    }
  }
  const rope = (base: number, stretch: number): Rope => ({
    invFreq: Float64Array.from(
      { length: dims / 2 },
      (_, pair) => base ** ((-2 * pair) / dims) / stretch / (ropeFactors[chosen]?.[pair] ?? 1)
    ),
    interleaved
  });
  const full = rope(
    fields.positive('rope.freq_base', 10000),
    ropeStretch(fields, longRope ? ['linear', 'none', 'longrope'] : ['linear', 'none'])
  );
  const local = localBase === undefined ? full : rope(fields.positive('rope.freq_base_swa', localBase), 1);
  const cap = softcap?.attention === undefined ? 0 : fields.cap('attn_logit_softcapping', softcap.attention);
  const positions = window ? fields.count('attention.sliding_window', window.otherwise) : 0;
  const isLocal = window && positions > 0 ? fields.pattern('attention.sliding_window_pattern', layers, window.every) : () => false;
  return Array.from({ length: layers }, (_, layer) => ({
    kvHeads,
    queryHeads,
    headDim,
    rope: (layer + 1) % unrotated === 0 ? 'none' : isLocal(layer) ? local : full,
    // A window as long as the context hides nothing.
    ...(isLocal(layer) && positions < context && { window: positions }),
    ...(cap > 0 && { softcap: cap })
  }));
}

/** How many times farther than trained positions reach. As in llama.cpp scaling is linear where a factor is all that is given. */
function ropeStretch(fields: Fields, known: readonly string[]): number {
  const type = fields.only('rope.scaling.type', known);
  const factor = fields.positive('rope.scaling.factor', fields.positive('rope.scale_linear', 1));
  return type === 'none' ? 1 : factor;
}

/** The metadata below the architecture's name, which remembers what was asked for. */
class Fields {
  readonly file: string;
  readonly #prefix: string;
  readonly #metadata: Metadata;
  readonly #used: Set<string>;

  constructor(file: string, architecture: string, metadata: Metadata) {
    this.file = file;
    this.#prefix = `${architecture}.`;
    this.#metadata = metadata;
    this.#used = new Set(DESCRIPTIVE.map(key => this.#prefix + key));
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

  /** What caps logits; 0 for nothing. */
  cap(key: string, otherwise: number): number {
    return this.number(key, 'number of at least 0', value => value >= 0 && value < Infinity, otherwise);
  }

  /** Which layers have a window: of so many all but the last, or layer by layer. */
  pattern(key: string, layers: number, otherwise: number): (layer: number) => boolean {
    const given = this.#get(key) ?? otherwise;
    if (Array.isArray(given)) {
      if (given.length !== layers || !given.every(value => Number(value) === 0 || Number(value) === 1)) {
        throw this.refuse(key, `true or false for each of ${layers} layers`);
      }
      return layer => Number(given[layer]) === 1;
    }
    const every = Number(given);
    if (!(every >= 1)) throw this.refuse(key, 'integer of at least 1');
    return layer => layer % every !== every - 1;
  }

  /** The value, if any, which must be one of `known`. */
  only(key: string, known: readonly unknown[]): unknown {
    const value = this.#get(key);
    if (value !== undefined && !known.includes(value)) throw this.refuse(key, known.join(' or '));
    return value;
  }

  refuse(key: string, expected: string): InputError {
    const name = this.#prefix + key;
    return new InputError(`${this.file}: "${name}" expected ${expected}, got ${said(this.#metadata[name])}`);
  }

  /** What nobody asked for would be left out in silence: windows, caps, scales. 0 and false switch such a thing off. */
  refuseUnused(): void {
    for (const [key, value] of Object.entries(this.#metadata)) {
      if (!key.startsWith(this.#prefix) || this.#used.has(key) || Number(value) === 0) continue;
      throw new InputError(`${this.file}: expected a model that does without "${key}", which this engine lacks, got ${said(value)}`);
    }
  }

  #get(key: string): unknown {
    this.#used.add(this.#prefix + key);
    return this.#metadata[this.#prefix + key];
  }
}

function said(value: unknown): string {
  if (value === undefined) return 'a file without it';
  return Array.isArray(value) ? `[${value.slice(0, 8).join(', ')}${value.length > 8 ? ', …' : ''}]` : String(value);
}
