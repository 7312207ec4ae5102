// A reader of the safetensors format: 8 bytes of header length, a JSON header, then the tensors without gaps.
// It checks everything that the format promises and knows nothing of what the tensors mean.
import { fromHalf } from '../../src/format/half.ts';

/** A file, or a tensor in it, that is not as it should be. The message is meant for the person who gave the file. */
export class InputError extends Error {
  override name = 'InputError';
}

export interface Tensor {
  dtype: string;
  shape: number[];
  data: Uint8Array; // a view of the file, of any alignment
}

export interface Safetensors {
  metadata: Record<string, string>;
  tensors: Map<string, Tensor>;
}

/** The limit of the format's own reader: a length beyond it means that this is some other kind of file. */
const MAX_HEADER_BYTES = 100_000_000;

const DTYPE_BYTES = new Map(
  Object.entries({
    BOOL: 1,
    U8: 1,
    I8: 1,
    F8_E4M3: 1,
    F8_E5M2: 1,
    F8_E8M0: 1,
    I16: 2,
    U16: 2,
    F16: 2,
    BF16: 2,
    I32: 4,
    U32: 4,
    F32: 4,
    I64: 8,
    U64: 8,
    F64: 8
  })
);

export function parseSafetensors(file: Uint8Array): Safetensors {
  if (file.length < 8) throw new InputError(`file expected safetensors, at least 8 bytes, got ${file.length}`);
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  const headerLength = view.getBigUint64(0, true);
  if (headerLength > MAX_HEADER_BYTES) {
    throw new InputError(`file expected safetensors, header length <= ${MAX_HEADER_BYTES}, got ${headerLength}`);
  }
  const headerBytes = Number(headerLength);
  if (8 + headerBytes > file.length) {
    throw new InputError(
      `file expected at least ${8 + headerBytes} bytes (8 + header length ${headerBytes}), got ${file.length}: truncated or not safetensors`
    );
  }
  const header = parseHeader(file.subarray(8, 8 + headerBytes));
  const data = file.subarray(8 + headerBytes);

  const metadata: Record<string, string> = {};
  const tensors = new Map<string, Tensor>();
  const spans: { name: string; begin: number; end: number }[] = [];
  for (const [name, entry] of Object.entries(header)) {
    if (!isObject(entry)) throw new InputError(`"${name}" expected object in the header, got ${JSON.stringify(entry)}`);
    if (name === '__metadata__') {
      for (const [key, value] of Object.entries(entry)) {
        if (typeof value !== 'string') throw new InputError(`"__metadata__.${key}" expected string, got ${JSON.stringify(value)}`);
        metadata[key] = value;
      }
      continue;
    }
    const { dtype, shape, data_offsets: offsets } = entry;
    if (typeof dtype !== 'string') throw new InputError(`"${name}" expected dtype string, got ${JSON.stringify(dtype)}`);
    if (!isSizes(shape)) throw new InputError(`"${name}" expected shape of non-negative integers, got ${JSON.stringify(shape)}`);
    if (!isSizes(offsets) || offsets.length !== 2) {
      throw new InputError(`"${name}" expected data_offsets [begin, end], got ${JSON.stringify(offsets)}`);
    }
    const [begin, end] = offsets as [number, number];
    if (end > data.length) {
      throw new InputError(`"${name}" expected ${8 + headerBytes + end} bytes of file, got ${file.length}: truncated`);
    }
    // A dtype that is not in the table may be newer than this reader: its size is unknown, its place is still checked.
    const elementBytes = DTYPE_BYTES.get(dtype);
    const bytes = elementBytes === undefined ? end - begin : elementBytes * product(shape);
    if (end - begin !== bytes) {
      throw new InputError(`"${name}" expected ${bytes} bytes (${dtype} ${shapeText(shape)}), got data_offsets [${begin}, ${end}]`);
    }
    spans.push({ name, begin, end });
    tensors.set(name, { dtype, shape, data: data.subarray(begin, end) });
  }

  // Tensors must tile the data: no hole, no overlap, nothing after the last.
  spans.sort((a, b) => a.begin - b.begin || a.end - b.end);
  let tiled = 0;
  for (const { name, begin, end } of spans) {
    if (begin !== tiled) throw new InputError(`"${name}" expected data_offsets to begin at ${tiled}, got [${begin}, ${end}]`);
    tiled = end;
  }
  if (tiled !== data.length) {
    throw new InputError(
      `file expected ${8 + headerBytes + tiled} bytes (8 + header ${headerBytes} + tensors ${tiled}), got ${file.length}`
    );
  }
  return { metadata, tensors };
}

/** A tensor's elements as f32. */
export function readFloats(name: string, tensor: Tensor): Float32Array {
  const view = new DataView(tensor.data.buffer, tensor.data.byteOffset, tensor.data.byteLength);
  const out = new Float32Array(product(tensor.shape));
  switch (tensor.dtype) {
    case 'F32':
      for (let i = 0; i < out.length; i++) out[i] = view.getFloat32(4 * i, true);
      return out;
    case 'F16':
      for (let i = 0; i < out.length; i++) {
        const bits = view.getUint16(2 * i, true);
        // fromHalf() leaves the exponent of infinity and NaN to its caller.
        out[i] = (bits & 0x7c00) !== 0x7c00 ? fromHalf(bits) : bits & 0x3ff ? NaN : bits & 0x8000 ? -Infinity : Infinity;
      }
      return out;
    case 'BF16': {
      // bfloat16 is the upper half of an f32.
      const bits = new Uint32Array(out.buffer);
      for (let i = 0; i < out.length; i++) bits[i] = view.getUint16(2 * i, true) << 16;
      return out;
    }
    default:
      throw new InputError(`"${name}" expected dtype F16, BF16 or F32, got ${tensor.dtype}`);
  }
}

export function shapeText(shape: readonly number[]): string {
  return `[${shape.join(', ')}]`;
}

function parseHeader(bytes: Uint8Array): Record<string, unknown> {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch {
    throw new InputError(`file expected safetensors, a JSON header of ${bytes.length} bytes, got something else`);
  }
  if (!isObject(header)) throw new InputError('file expected safetensors, a JSON object as header, got another JSON value');
  return header;
}

function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function isSizes(value: unknown): value is number[] {
  return Array.isArray(value) && value.every(size => Number.isSafeInteger(size) && size >= 0);
}

function product(sizes: readonly number[]): number {
  return sizes.reduce((a, b) => a * b, 1);
}
