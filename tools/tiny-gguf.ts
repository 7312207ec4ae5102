// A GGUF file of a tiny Llama or one of its relatives, made in memory: for tests of engines, and of what a file may get wrong.
/** An integer is written as uint32, another number as float32; a list as int32, or as float32 where one of it is no integer. */
type Value = string | number | boolean | readonly string[] | readonly number[];

export interface TinyOptions {
  /** As the file names it. Default llama; the keys of `metadata` are written out whatever it is. */
  readonly architecture?: string;
  readonly layers?: number;
  readonly headDim?: number;
  /** Tensors of every layer, by what comes after its number. Default: a Llama's. */
  readonly parts?: Readonly<Record<string, readonly number[]>>;
  readonly metadata?: Readonly<Record<string, Value>>;
  /** Control tokens after the letters a to h. */
  readonly control?: readonly string[];
  /** Rows of the embedding matrix. Default: as many as tokens. */
  readonly rows?: number;
  /** Tensors to leave out. */
  readonly without?: readonly string[];
  /** Tensors that a Llama has not, by name, with their shapes. */
  readonly extra?: Readonly<Record<string, readonly number[]>>;
  /** GGML's number for the type of every matrix. Default F32. */
  readonly type?: number;
  /** Tensors of another shape. */
  readonly shapes?: Readonly<Record<string, readonly number[]>>;
  /** The number at an index of all weights, of which those of a tensor are some. Default: small ones that differ. */
  readonly weight?: (tensor: string, index: number) => number;
}

export const tiny = { width: 64, heads: 2, kvHeads: 1, headDim: 32, inner: 96, vocabulary: 8, layers: 2 };

const UINT32 = 4;
const INT32 = 5;
const FLOAT32 = 6;
const BOOL = 7;
const STRING = 8;
const ARRAY = 9;

export interface TinyTensor {
  readonly name: string;
  readonly shape: readonly number[]; // fastest first
}

/** The file's tensors, in order. */
export function tinyTensors({
  control = [],
  rows = tiny.vocabulary + control.length,
  without = [],
  extra = {},
  shapes = {},
  layers = tiny.layers,
  headDim = tiny.headDim,
  parts = llamaParts(headDim)
}: TinyOptions = {}): TinyTensor[] {
  const { width } = tiny;
  const ofLayer = (layer: number): [string, readonly number[]][] =>
    Object.entries(parts).map(([part, shape]) => [`blk.${layer}.${part}`, shape]);
  return (
    [
      ['token_embd.weight', [width, rows]],
      ['output_norm.weight', [width]],
      ...Array.from({ length: layers }, (_, layer) => ofLayer(layer)).flat(),
      ...Object.entries(extra)
    ] as [string, readonly number[]][]
  )
    .filter(([name]) => !without.includes(name))
    .map(([name, shape]) => ({ name, shape: shapes[name] ?? shape }));
}

/** A Llama's tensors of a layer, with their shapes. */
export function llamaParts(headDim = tiny.headDim): Record<string, readonly number[]> {
  const { width, heads, kvHeads, inner } = tiny;
  return {
    'attn_norm.weight': [width],
    'attn_q.weight': [width, heads * headDim],
    'attn_k.weight': [width, kvHeads * headDim],
    'attn_v.weight': [width, kvHeads * headDim],
    'attn_output.weight': [heads * headDim, width],
    'ffn_norm.weight': [width],
    'ffn_gate.weight': [width, inner],
    'ffn_up.weight': [width, inner],
    'ffn_down.weight': [inner, width]
  };
}

/** Weights of all tensors, one after the other. */
export function tinyWeights(options: TinyOptions = {}): Float32Array<ArrayBuffer> {
  const { weight = (_: string, i: number) => Math.sin(i * 12.9898) * 0.2 } = options;
  const tensors = tinyTensors(options);
  const weights = new Float32Array(tensors.reduce((sum, { shape }) => sum + elements(shape), 0));
  let at = 0;
  for (const { name, shape } of tensors) {
    for (const end = at + elements(shape); at < end; at++) weights[at] = weight(name, at);
  }
  return weights;
}

function elements(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

/** The same options give the same bytes. */
export function tinyGguf(options: TinyOptions = {}): Uint8Array<ArrayBuffer> {
  const { architecture = 'llama', metadata = {}, control = [], type = 0, layers = tiny.layers } = options;
  const { width, heads, kvHeads, inner } = tiny;
  const of = (key: string): string => `${architecture}.${key}`;
  const fields: Record<string, Value> = {
    'general.architecture': architecture,
    'general.name': 'tiny',
    [of('block_count')]: layers,
    [of('context_length')]: 64,
    [of('embedding_length')]: width,
    [of('feed_forward_length')]: inner,
    [of('attention.head_count')]: heads,
    [of('attention.head_count_kv')]: kvHeads,
    [of('attention.layer_norm_rms_epsilon')]: 1e-5,
    'tokenizer.ggml.model': 'gpt2',
    'tokenizer.ggml.tokens': [...'abcdefgh', ...control],
    'tokenizer.ggml.merges': [],
    'tokenizer.ggml.token_type': [...new Array<number>(tiny.vocabulary).fill(1), ...control.map(() => 3)],
    ...metadata
  };
  const tensors = tinyTensors(options);

  const bytes: number[] = [];
  const u32 = (value: number): void => {
    bytes.push(value & 255, (value >> 8) & 255, (value >> 16) & 255, (value >>> 24) & 255);
  };
  const u64 = (value: number): void => {
    u32(value);
    u32(0);
  };
  const float = (value: number): void => {
    bytes.push(...new Uint8Array(Float32Array.of(value).buffer));
  };
  const text = (value: string): void => {
    const encoded = new TextEncoder().encode(value);
    u64(encoded.length);
    bytes.push(...encoded);
  };
  const value = (value: Value): void => {
    if (typeof value === 'string') {
      u32(STRING);
      text(value);
    } else if (typeof value === 'boolean') {
      u32(BOOL);
      bytes.push(Number(value));
    } else if (typeof value === 'object') {
      u32(ARRAY);
      const isFloat = value.some(item => typeof item === 'number' && !Number.isInteger(item));
      u32(typeof value[0] === 'string' ? STRING : isFloat ? FLOAT32 : INT32);
      u64(value.length);
      for (const item of value) typeof item === 'string' ? text(item) : isFloat ? float(item) : u32(item);
    } else if (Number.isInteger(value)) {
      u32(UINT32);
      u32(value);
    } else {
      u32(FLOAT32);
      float(value);
    }
  };
  bytes.push(...new TextEncoder().encode('GGUF'));
  u32(3);
  u64(tensors.length);
  u64(Object.keys(fields).length);
  for (const [key, field] of Object.entries(fields)) {
    text(key);
    value(field);
  }
  let offset = 0;
  for (const { name, shape } of tensors) {
    text(name);
    u32(shape.length);
    shape.forEach(u64);
    u32(shape.length === 1 ? 0 : type);
    u64(offset);
    offset += elements(shape) * 4;
  }
  while (bytes.length % 32 !== 0) bytes.push(0);
  const weights = tinyWeights(options);
  const file = new Uint8Array(bytes.length + offset);
  file.set(bytes);
  file.set(new Uint8Array(weights.buffer), bytes.length);
  // A block of Q4_0 or Q4_1 begins with a scale, and that of Q4_1 has a minimum: halves, of which any bytes would be anything.
  const view = new DataView(file.buffer, bytes.length);
  const blockBytes = { 2: 18, 3: 20 }[type];
  let begin = 0;
  for (const { shape } of tensors) {
    const blocks = shape.length > 1 && blockBytes ? elements(shape) / 32 : 0;
    for (let block = 0; block < blocks; block++) {
      view.setUint16(begin + block * blockBytes!, 0x2a66 + block, true); // about 0.05
      if (type === 3) view.setUint16(begin + block * blockBytes! + 2, 0xb666, true); // −0.4
    }
    begin += elements(shape) * 4;
  }
  return file;
}
