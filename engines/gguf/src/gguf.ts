// A GGUF file: its tensors and its shape. Refuses everything else in a sentence. Runs in a browser.
import { GGMLQuantizationType, gguf } from '@huggingface/gguf';
import { architectureOf, type Config, type Metadata, ROPE_FACTORS, type RopeFactors, readConfig } from './config.ts';
import { dequantize, type TensorType, tensorBytes, tensorTypes } from './dequantize.ts';
import { fingerprint } from './fingerprint.ts';
import { InputError, type Source } from './source.ts';

interface TensorInfo {
  readonly source: Source;
  readonly type: TensorType;
  readonly shape: readonly number[]; // fastest first, as GGUF has it
  readonly offset: number;
}

type Tensors = ReadonlyMap<string, TensorInfo>;

export class Gguf {
  readonly config: Config;
  readonly metadata: Metadata;
  readonly #sources: readonly Source[];
  readonly #tensors: Tensors;
  #fingerprint: Promise<string> | undefined;

  constructor(sources: readonly Source[], metadata: Metadata, tensors: Tensors, config: Config) {
    this.#sources = sources;
    this.metadata = metadata;
    this.#tensors = tensors;
    this.config = config;
  }

  /** For messages. */
  get file(): string {
    return this.#sources[0]!.name;
  }

  /** A checksum of all bytes. */
  fingerprint(): Promise<string> {
    this.#fingerprint ??= fingerprint(this.#sources).catch((error: unknown) => {
      this.#fingerprint = undefined; // a server may answer again
      throw error;
    });
    return this.#fingerprint;
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
    const info = find(this.file, this.#tensors, name);
    const [gotColumns, gotRows = 1] = info.shape;
    if (info.shape.length > 2 || gotColumns !== columns || gotRows !== rows) {
      throw new InputError(`${this.file}: tensor "${name}" expected shape [${columns}, ${rows}], got [${info.shape.join(', ')}]`);
    }
    return { type: info.type, data: await readTensor(info) };
  }
}

/**
 * Reads the headers of all files of a model, in order, and checks that everything its architecture needs is there, and nothing that would be left out.
 *
 * @param context  tokens of the longest conversation, where that is known to be less than the model's
 * @throws {InputError} for a file that is no GGUF, is cut short, is of another architecture, lacks a tensor, or has one too many
 */
export async function readGguf(given: Source | readonly Source[], context?: number): Promise<Gguf> {
  const sources = 'read' in given ? [given] : given;
  const file = sources[0]?.name ?? '';
  const tensors = new Map<string, TensorInfo>();
  let metadata: Metadata = {};
  for (const [part, source] of sources.entries()) {
    const read = await header(source);
    checkPart(source, read.metadata, part, sources.length);
    if (part === 0) {
      metadata = read.metadata;
      checkKind(source, metadata);
    }
    for (const { name, dtype, shape, offset } of read.tensorInfos) {
      const type = tensorType(source, name, dtype);
      const info = { source, type, shape: shape.map(Number), offset: Number(read.tensorDataOffset + offset) };
      if (info.shape[0]! % info.type.block !== 0) {
        const expected = `rows of whole blocks (${info.type.block} elements of ${info.type.name})`;
        throw new InputError(`${source.name}: tensor "${name}" expected ${expected}, got ${info.shape[0]} elements`);
      }
      tensors.set(name, info);
    }
  }
  checkSizes(tensors);

  const ropeFactors: Partial<Record<RopeFactors, Float32Array>> = {};
  for (const name of ROPE_FACTORS) {
    const info = tensors.get(name);
    if (info) ropeFactors[name] = dequantize(info.type, await readTensor(info), elementCount(info.shape));
  }
  const config = readConfig(
    file,
    metadata,
    { embeddings: find(file, tensors, 'token_embd.weight').shape, count: tensors.size, ropeFactors },
    context
  );
  const { tensors: parts, optional = [], longRope } = config.architecture;
  const factors = longRope ? ROPE_FACTORS.slice(1) : ROPE_FACTORS.slice(0, 1);
  const used = new Set<string>(['output.weight', ...factors]);
  const ofLayer = (part: string, layer: number): string => `blk.${layer}.${part}`;
  // One by one: a damaged file may speak of any number of layers.
  for (const name of ['token_embd.weight', 'output_norm.weight']) {
    find(file, tensors, name);
    used.add(name);
  }
  for (let layer = 0; layer < config.layers; layer++) {
    for (const part of parts) find(file, tensors, ofLayer(part, layer));
    for (const part of [...parts, ...optional]) used.add(ofLayer(part, layer));
  }
  const unused = [...tensors].filter(([name]) => !used.has(name));
  if (unused.length > 0) {
    const [name, { shape }] = unused[0]!;
    const more = unused.length > 1 ? ` and ${unused.length - 1} more` : '';
    throw new InputError(
      `${file}: expected a model that does without tensor "${name}", which this engine lacks, got one of shape [${shape.join(', ')}]${more}`
    );
  }
  return new Gguf(sources, metadata, tensors, config);
}

/** A split model's files say which part they are. */
function checkPart({ name }: Source, metadata: Metadata, part: number, parts: number): void {
  const count = Number(metadata['split.count'] ?? 1);
  const said = Number(metadata['split.no'] ?? 0) + 1;
  if (count !== parts) {
    const expected = parts === 1 ? 'a whole model' : `a part of ${parts}`;
    throw new InputError(`${name}: expected ${expected}, got part ${said} of ${count}; hand in all its files, in order`);
  }
  if (count > 1 && said !== part + 1) throw new InputError(`${name}: expected part ${part + 1} of ${count}, got part ${said}`);
}

/** ONNX Runtime reads a graph of less than 2 GiB, its weights in it. */
const GRAPH_BYTES = 2 ** 31;

/** That files are as long as they must be, and no matrix too large, before anything is read. */
function checkSizes(tensors: Tensors): void {
  const ends = new Map<Source, number>();
  for (const { source, type, shape, offset } of tensors.values()) {
    ends.set(source, Math.max(ends.get(source) ?? 0, offset + tensorBytes(type, elementCount(shape))));
  }
  for (const [source, end] of ends) {
    if (end > source.size) throw truncated(source, `at least ${end.toLocaleString('en-US')} bytes`);
  }
  for (const [name, { source, shape }] of tensors) {
    // Embeddings stay as the file has them, unless they are the head, too.
    if (4 * elementCount(shape) < GRAPH_BYTES || (name === 'token_embd.weight' && tensors.has('output.weight'))) continue;
    throw new InputError(
      `${source.name}: tensor "${name}" expected less than 2 GiB as f32, which is what ONNX Runtime reads, got shape [${shape.join(', ')}]; a model of smaller matrices will work`
    );
  }
}

/** What kind of file it says it is, before anything of it is looked for. */
function checkKind({ name }: Source, metadata: Metadata): void {
  const type = metadata['general.type'] ?? 'model';
  if (type !== 'model') throw new InputError(`${name}: "general.type" expected model, got ${String(type)}`);
  architectureOf(name, metadata);
}

function tensorType({ name: file }: Source, name: string, dtype: GGMLQuantizationType): TensorType {
  const type = tensorTypes[dtype];
  if (type) return type;
  const known = Object.values(tensorTypes)
    .map(each => each.name)
    .join(', ');
  throw new InputError(
    `${file}: tensor "${name}" expected one of the types ${known}, got ${GGMLQuantizationType[dtype] ?? `GGML type ${dtype}`}; convert the file to one of these`
  );
}

async function readTensor({ source, type, shape, offset }: TensorInfo): Promise<Uint8Array> {
  const bytes = tensorBytes(type, elementCount(shape));
  const data = await source.read(offset, offset + bytes);
  if (data.length !== bytes) {
    throw new InputError(`${source.name}: expected ${bytes} bytes at ${offset}, got ${data.length}; the file was changed, open it again`);
  }
  return data;
}

/** The parser takes a URL and a fetch; this fetch answers from the source, so that files, Blobs and servers are read alike. */
async function header(source: Source) {
  await checkBeginning(source);
  const fetch = async (_: unknown, init?: RequestInit): Promise<Response> => {
    const range = new Headers(init?.headers).get('range')!.match(/(\d+)-(\d+)/)!;
    const begin = Number(range[1]);
    if (begin >= source.size) throw truncated(source);
    const bytes = await source.read(begin, Math.min(source.size, Number(range[2]) + 1));
    return new Response(bytes as Uint8Array<ArrayBuffer>);
  };
  try {
    const parsed = await gguf('https://source.invalid/model.gguf', { fetch: fetch as typeof globalThis.fetch });
    // Past the end of a short file the parser reads zeros.
    const begin = Number(parsed.tensorDataOffset);
    if (begin > source.size) throw truncated(source, `at least ${begin.toLocaleString('en-US')} bytes`);
    return { ...parsed, metadata: parsed.metadata as unknown as Metadata };
  } catch (error) {
    if (error instanceof InputError) throw error;
    throw unreadable(source, (error as Error).message);
  }
}

/** Magic number, version, numbers of tensors and of metadata. */
const BEGINNING_BYTES = 24;

/** What the parser would say in words of its own, or pass: it reads the header of a big-endian file, of which tensors would be noise. */
async function checkBeginning(source: Source): Promise<void> {
  const bytes = await source.read(0, Math.min(BEGINNING_BYTES, source.size));
  if (!new TextDecoder('latin1').decode(bytes).startsWith('GGUF'.slice(0, bytes.length)))
    throw unreadable(source, 'it does not begin with GGUF');
  if (bytes.length < BEGINNING_BYTES) throw truncated(source);
  const version = new DataView(bytes.buffer, bytes.byteOffset).getUint32(4, true);
  if (version > 0xffff) throw new InputError(`${source.name}: expected a little-endian file, got a big-endian one`);
}

function unreadable(source: Source, why: string): InputError {
  return new InputError(`${source.name}: expected a GGUF file, got one whose header cannot be read (${why})`);
}

function truncated(source: Source, expected = 'a complete header'): InputError {
  return new InputError(
    `${source.name}: expected ${expected}, got a file that ends after ${source.size.toLocaleString('en-US')} bytes; it is cut short, download it again`
  );
}

function elementCount(shape: readonly number[]): number {
  return shape.reduce((product, size) => product * size, 1);
}

function find(file: string, tensors: Tensors, name: string): TensorInfo {
  const info = tensors.get(name);
  if (!info) throw new InputError(`${file}: expected tensor "${name}", got a file without it`);
  return info;
}
