// A GGUF file of the Llama architecture: its shape, its tensors. Refuses everything else in a sentence. Runs in a browser.
import { gguf } from '@huggingface/gguf';
import { dequantize, type TensorType, tensorBytes, tensorTypes } from './dequantize.ts';
import { InputError, type Source } from './source.ts';

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
  readonly vocabulary: number;
  /** Tokens that the model was made for. */
  readonly context: number;
  readonly epsilon: number;
  /** As GGUF stores Llama's keys: pairs (2i, 2i+1). Fewer pairs than headDim/2 if only some channels are rotated. */
  readonly rope: { readonly invFreq: Float64Array; readonly interleaved: true };
}

interface TensorInfo {
  readonly type: TensorType;
  readonly shape: readonly number[]; // fastest first, as GGUF has it
  readonly offset: number;
}

type Metadata = Readonly<Record<string, unknown>>;

export class Gguf {
  readonly config: Config;
  readonly metadata: Metadata;
  readonly #source: Source;
  readonly #tensors: ReadonlyMap<string, TensorInfo>;

  constructor(source: Source, metadata: Metadata, tensors: ReadonlyMap<string, TensorInfo>, config: Config) {
    this.#source = source;
    this.metadata = metadata;
    this.#tensors = tensors;
    this.config = config;
  }

  /** Bytes of all tensors as f32. */
  get floatBytes(): number {
    return 4 * [...this.#tensors.values()].reduce((sum, { shape }) => sum + elementCount(shape), 0);
  }

  has(name: string): boolean {
    return this.#tensors.has(name);
  }

  /** f32 [rows, columns] of a tensor. */
  async floats(name: string, columns: number, rows = 1): Promise<Float32Array> {
    const { type, data } = await this.packed(name, columns, rows);
    return dequantize(type, data, columns * rows);
  }

  /** The bytes of a tensor as the file has them. */
  async packed(name: string, columns: number, rows = 1): Promise<{ type: TensorType; data: Uint8Array }> {
    const { type, shape, offset } = find(this.#source, this.#tensors, name);
    const [gotColumns, gotRows = 1] = shape;
    if (shape.length > 2 || gotColumns !== columns || gotRows !== rows) {
      throw new InputError(`${this.#source.name}: tensor "${name}" expected shape [${columns}, ${rows}], got [${shape.join(', ')}]`);
    }
    return { type, data: await this.#source.read(offset, offset + tensorBytes(type, columns * rows)) };
  }
}

/**
 * Reads the header and checks that everything a Llama needs is in the file.
 *
 * @throws {InputError} for a file that is no GGUF, is cut short, is of another architecture, or lacks a tensor
 */
export async function openGguf(source: Source): Promise<Gguf> {
  const { metadata, tensorInfos, tensorDataOffset } = await header(source);
  const architecture = metadata['general.architecture'];
  if (architecture !== 'llama') {
    throw new InputError(
      `${source.name}: expected a model of the architecture llama, got ${String(architecture)}; Llama, SmolLM and other models that GGUF files name so will work`
    );
  }

  const dataOffset = Number(tensorDataOffset);
  const tensors = new Map<string, TensorInfo>();
  let end = dataOffset;
  for (const { name, dtype, shape, offset } of tensorInfos) {
    const type = tensorTypes[dtype as number];
    if (!type) {
      const known = Object.values(tensorTypes)
        .map(each => each.name)
        .join(', ');
      throw new InputError(
        `${source.name}: tensor "${name}" expected one of the types ${known}, got GGML type ${dtype}; convert the file to one of these`
      );
    }
    const sizes = shape.map(Number);
    const info = { type, shape: sizes, offset: dataOffset + Number(offset) };
    end = Math.max(end, info.offset + tensorBytes(type, elementCount(sizes)));
    tensors.set(name, info);
  }
  if (end > source.size) throw truncated(source, end);

  const config = readConfig(source, metadata, tensors, await ropeFactors(source, tensors));
  for (const name of tensorNames(config.layers)) find(source, tensors, name);
  return new Gguf(source, metadata, tensors, config);
}

/** The parser takes a URL and a fetch; this fetch answers from the source, so that files, Blobs and servers are read alike. */
async function header(source: Source) {
  const fetch = async (_: unknown, init?: RequestInit): Promise<Response> => {
    const range = new Headers(init?.headers).get('range')!.match(/(\d+)-(\d+)/)!;
    const begin = Number(range[1]);
    if (begin >= source.size) throw truncated(source, undefined);
    const bytes = await source.read(begin, Math.min(source.size, Number(range[2]) + 1));
    return new Response(bytes as Uint8Array<ArrayBuffer>);
  };
  try {
    const parsed = await gguf('https://source.invalid/model.gguf', { fetch: fetch as typeof globalThis.fetch });
    // Past the end of a short file the parser reads zeros.
    if (Number(parsed.tensorDataOffset) > source.size) throw truncated(source, Number(parsed.tensorDataOffset));
    return { ...parsed, metadata: parsed.metadata as unknown as Metadata };
  } catch (error) {
    if (error instanceof InputError) throw error;
    throw new InputError(`${source.name}: expected a GGUF file, got one whose header cannot be read (${(error as Error).message})`);
  }
}

function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function truncated(source: Source, needed: number | undefined): InputError {
  const expected = needed === undefined ? 'a complete header' : `at least ${needed.toLocaleString('en-US')} bytes`;
  return new InputError(
    `${source.name}: expected ${expected}, got a file that ends after ${source.size.toLocaleString('en-US')} bytes; it is cut short, download it again`
  );
}

function find(source: Source, tensors: ReadonlyMap<string, TensorInfo>, name: string): TensorInfo {
  const info = tensors.get(name);
  if (!info) throw new InputError(`${source.name}: expected tensor "${name}", got a file without it`);
  return info;
}

/** One by one: a damaged file may speak of any number of layers. */
function* tensorNames(layers: number): Generator<string> {
  yield* ['token_embd.weight', 'output_norm.weight'];
  const parts = ['attn_norm', 'attn_q', 'attn_k', 'attn_v', 'attn_output', 'ffn_norm', 'ffn_gate', 'ffn_up', 'ffn_down'];
  for (let layer = 0; layer < layers; layer++) yield* parts.map(part => `blk.${layer}.${part}.weight`);
}

function readConfig(
  source: Source,
  metadata: Metadata,
  tensors: ReadonlyMap<string, TensorInfo>,
  factors: Float32Array | undefined
): Config {
  const number = (key: string, otherwise?: number): number => {
    const value = metadata[key] ?? otherwise;
    if (typeof value !== 'number' && typeof value !== 'bigint')
      throw new InputError(`${source.name}: expected a number for "${key}", got ${typeof value}`);
    return Number(value);
  };
  const checked = (key: string, expected: string, holds: (value: number) => boolean, otherwise?: number): number => {
    const value = number(key, otherwise);
    if (!holds(value)) throw new InputError(`${source.name}: "${key}" expected ${expected}, got ${value}`);
    return value;
  };
  const [columns, vocabulary] = find(source, tensors, 'token_embd.weight').shape as [number, number];
  const width = checked('llama.embedding_length', `${columns} (the columns of token_embd.weight)`, value => value === columns);
  const queryHeads = checked('llama.attention.head_count', 'integer of at least 1', value => Number.isInteger(value) && value >= 1);
  const kvHeads = checked(
    'llama.attention.head_count_kv',
    `a divisor of ${queryHeads} (the query heads)`,
    value => queryHeads % value === 0 && value >= 1,
    queryHeads
  );
  const headDim = checked(
    'llama.attention.key_length',
    'multiple of 8 from 32 to 512',
    value => value % 8 === 0 && value >= 32 && value <= 512,
    width / queryHeads
  );
  const scaling = metadata['llama.rope.scaling.type'] ?? 'none';
  if (scaling !== 'none' && scaling !== 'linear') {
    throw new InputError(`${source.name}: "llama.rope.scaling.type" expected none or linear, got ${String(scaling)}`);
  }
  if (number('llama.expert_count', 0) > 0) {
    throw new InputError(`${source.name}: expected a dense model, got a mixture of ${number('llama.expert_count')} experts`);
  }
  const positive = (key: string, otherwise?: number): number =>
    checked(key, 'number above 0', value => value > 0 && value < Infinity, otherwise);
  const stretch = scaling === 'linear' ? positive('llama.rope.scaling.factor', 1) : 1;
  const dims = checked(
    'llama.rope.dimension_count',
    `even integer up to ${headDim} (the channels of a head)`,
    value => value % 2 === 0 && value >= 2 && value <= headDim,
    headDim
  );
  const base = positive('llama.rope.freq_base', 10000);
  return {
    name: String(metadata['general.name'] ?? source.name),
    layers: checked('llama.block_count', 'integer of at least 1', value => Number.isInteger(value) && value >= 1),
    queryHeads,
    kvHeads,
    headDim,
    width,
    inner: number('llama.feed_forward_length'),
    vocabulary,
    context: number('llama.context_length'),
    epsilon: positive('llama.attention.layer_norm_rms_epsilon'),
    rope: {
      invFreq: Float64Array.from({ length: dims / 2 }, (_, pair) => base ** ((-2 * pair) / dims) / stretch / (factors?.[pair] ?? 1)),
      interleaved: true
    }
  };
}

/** What Llama 3 divides its frequencies by. */
async function ropeFactors(source: Source, tensors: ReadonlyMap<string, TensorInfo>): Promise<Float32Array | undefined> {
  const info = tensors.get('rope_freqs.weight');
  if (!info) return undefined;
  const elements = info.shape[0]!;
  return dequantize(info.type, await source.read(info.offset, info.offset + tensorBytes(info.type, elements)), elements);
}
