// What append, attend and decode take: arrays, or ranges of GPUBuffers; and the checks of them at the public edge.

import { checkInteger, checkLength, checkObject, checkOneOf, checkOptions, kind, plural } from './check.ts';
import { type Data, HALF_MAX, isFiniteHalf, isFloat32Array, isHalf, typedArrayName } from './format/half.ts';

/** A GPUBuffer, by what is asked of it here: nobody needs the types of browsers. */
export interface GpuBuffer {
  /** Bytes. */
  readonly size: number;
  /** What it may be used for. */
  readonly usage: number;
  /** Never called: it stays the engine's. */
  destroy(): void;
}

/** Of numbers in a GPUBuffer. */
type Format = 'f32' | 'f16';

const FORMATS = ['f32', 'f16'] as const satisfies readonly Format[];

/**
 * Tokens in a GPUBuffer of the webgpu backend's device, made with usage COPY_SRC: [tokens, heads, headDim]. Copied on the GPU
 * when the call returns, in the order of the queue; nothing passes through JavaScript, and nothing checks that numbers are finite.
 *
 * @example
 * chat.append(layer, { buffer: keys, tokens: 1, format: 'f16' }, { buffer: values, tokens: 1, format: 'f16' });
 */
export interface GpuTokens {
  /** Made with usage COPY_SRC. */
  readonly buffer: GpuBuffer;
  /** How many there are. */
  readonly tokens: number;
  /** Bytes, a multiple of 4. Default 0. */
  readonly offset?: number;
  /** Default `f32`. */
  readonly format?: 'f32' | 'f16';
}

const GPU_TOKENS = ['buffer', 'tokens', 'offset', 'format'] as const satisfies readonly (keyof GpuTokens)[];

/**
 * Where results go in a GPUBuffer of the webgpu backend's device, made with usage COPY_DST.
 *
 * @example
 * chat.attend(layer, query, { out: { buffer: attention, offset: 1024, format: 'f16' } });
 */
export interface GpuTarget {
  /** Made with usage COPY_DST, and COPY_SRC if the results are read(). */
  readonly buffer: GpuBuffer;
  /** Bytes, a multiple of 4. Default 0. */
  readonly offset?: number;
  /** Default `f32`. */
  readonly format?: 'f32' | 'f16';
}

const GPU_TARGET = ['buffer', 'offset', 'format'] as const satisfies readonly (keyof GpuTarget)[];

/** Keys, values or queries: an array, or tokens in a GPUBuffer. */
export type Input = Data | GpuTokens;

/**
 * Where results go: an array, or a range of a GPUBuffer. As f16 they are rounded to nearest, ties to even; what is beyond f16's range
 * becomes ±65,504.
 */
export type Target = Data | GpuTarget;

/** What is read of results: the array that they went to; of a GPUBuffer a copy, f16 as bits. */
export type Results<Out extends Target> = Out extends GpuTarget & Record<'format', 'f16'>
  ? Uint16Array
  : Out extends GpuTarget & Partial<Record<'format', 'f32'>>
    ? Float32Array
    : Out extends GpuTarget
      ? Float32Array | Uint16Array
      : Out;

/** @internal */
export function isGpuTokens(input: Input): input is GpuTokens {
  return !ArrayBuffer.isView(input);
}

/** @internal */
export function isGpuTarget(out: Target): out is GpuTarget {
  return !ArrayBuffer.isView(out);
}

/** @internal Whether these are f16. */
export function isF16(data: Input | Target): boolean {
  return ArrayBuffer.isView(data) ? isHalf(data as Data) : (data as GpuTokens | GpuTarget).format === 'f16';
}

/** @internal Tokens of `perToken` elements in an input. */
export function tokensOf(input: Input, perToken: number): number {
  return isGpuTokens(input) ? input.tokens : input.length / perToken;
}

/** A range of a GPUBuffer, from its looks: what it holds is still to be checked. Arrays have a `buffer` too, even as a Proxy. */
function looksLikeBuffer(value: unknown): value is GpuTarget {
  if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return false;
  return 'buffer' in value && !('byteLength' in value);
}

/** Kind and finiteness of keys, values or queries; the length is the caller's to check. */
function checkData(name: string, data: unknown): asserts data is Data {
  checkArrayKind(name, data);
  if (typedArrayName(data) === 'Uint16Array') checkFiniteHalves(name, data as Uint16Array);
  else checkFinite(name, data);
}

function checkArrayKind(name: string, data: unknown): asserts data is Data {
  if (isFloat32Array(data) || typedArrayName(data) === 'Uint16Array' || typedArrayName(data) === 'Float16Array') return;
  throw new TypeError(`"${name}" expected Float32Array, Uint16Array or Float16Array, got ${kind(data)}`);
}

/** @internal A Float32Array of `length` elements of f16's range. */
export function checkFloats(name: string, data: unknown, length: number, arithmetic: string): asserts data is Float32Array {
  checkFloat32Array(name, data);
  checkLength(name, data.length, length, arithmetic);
  checkFinite(name, data);
}

/** @internal */
export function checkFloat32Array(name: string, data: unknown): asserts data is Float32Array {
  if (!isFloat32Array(data)) throw new TypeError(`"${name}" expected Float32Array, got ${kind(data)}`);
}

const COPY_SRC = 4;
const COPY_DST = 8;

/**
 * @internal Kind and finiteness of keys, values or queries, and the number of their elements.
 *
 * @param takesBuffers  whether the backend takes GPUBuffers
 */
export function checkInput(name: string, input: unknown, takesBuffers: boolean, perToken: number): number {
  if (looksLikeBuffer(input)) return perToken * checkGpuTokens(name, input, takesBuffers, perToken);
  checkData(name, input);
  return input.length;
}

/** @internal Kind, finiteness and length of queries, and the number of their tokens. */
export function checkQuery(name: string, query: unknown, takesBuffers: boolean, heads: number, headDim: number): number {
  return wholeTokens(name, checkInput(name, query, takesBuffers, heads * headDim), heads, headDim);
}

/** @internal Where `length` results go. */
export function checkTarget(
  name: string,
  out: unknown,
  takesBuffers: boolean,
  length: number,
  arithmetic: string,
  formats: readonly Format[] = FORMATS
): asserts out is Target {
  if (looksLikeBuffer(out)) {
    checkOptions(name, out, GPU_TARGET);
    const { format = 'f32' } = out;
    checkOneOf(`${name}.format`, format, formats);
    checkBuffer(name, out, takesBuffers, length * (format === 'f16' ? 2 : 4), COPY_DST);
  } else {
    if (formats === FORMATS) checkArrayKind(name, out);
    else checkFloat32Array(name, out);
    checkLength(name, out.length, length, arithmetic);
  }
}

/** @internal Elements that a caller handed in, or wants written: so many, from the first on. */
export interface Place {
  readonly name: string;
  readonly data: Input | Target;
  readonly length: number;
}

/** @internal Refuses results over others, or over what is still to be read. */
export function checkApart(place: Place, others: readonly Place[]): void {
  const other = others.find(other => overlap(place, other));
  if (other) throw new RangeError(`"${place.name}" expected none of the bytes of "${other.name}", got some of them`);
}

/** @internal Refuses a result over queries that are not in its place: it is written in parts, over some that are still to be read. */
export function checkPlaces(out: Place, valueDim: number, queries: readonly Place[], headDim: number): void {
  const rowBytes = valueDim * elementBytes(out.data);
  let at = offsetOf(out.data);
  for (const query of queries) {
    const inPlace = offsetOf(query.data) === at && headDim * elementBytes(query.data) === rowBytes;
    at += (query.length / headDim) * rowBytes;
    if (inPlace || !overlap(out, query)) continue;
    throw new RangeError(`"out" expected the place of "${query.name}", rows of as many bytes, or none of its bytes, got some of them`);
  }
}

function overlap(a: Place, b: Place): boolean {
  const endOf = ({ data, length }: Place): number => offsetOf(data) + length * elementBytes(data);
  return a.data.buffer === b.data.buffer && offsetOf(a.data) < endOf(b) && offsetOf(b.data) < endOf(a);
}

/** In bytes, from the beginning of the buffer. */
function offsetOf(data: Input | Target): number {
  return ArrayBuffer.isView(data) ? data.byteOffset : ((data as GpuTarget).offset ?? 0);
}

function elementBytes(data: Input | Target): number {
  return isF16(data) ? 2 : 4;
}

/** The number of tokens. */
function checkGpuTokens(name: string, input: object, takesBuffers: boolean, perToken: number): number {
  checkOptions(name, input, GPU_TOKENS);
  const { format = 'f32', tokens } = input as GpuTokens;
  checkInteger(`${name}.tokens`, tokens, 1, 2 ** 24);
  checkOneOf(`${name}.format`, format, FORMATS);
  checkBuffer(name, input as GpuTokens, takesBuffers, tokens * perToken * (format === 'f16' ? 2 : 4), COPY_SRC);
  return tokens;
}

/** A range of a GPUBuffer that holds `bytes` bytes and may be copied from or to. */
function checkBuffer(name: string, { buffer, offset = 0 }: GpuTarget, takesBuffers: boolean, bytes: number, usage: 4 | 8): void {
  if (!takesBuffers) throw new TypeError(`"${name}" expected an array (GPUBuffers are for the webgpu backend), got GPUBuffer`);
  checkObject(`${name}.buffer`, buffer);
  if (typeof buffer.size !== 'number' || typeof buffer.usage !== 'number') {
    throw new TypeError(`"${name}.buffer" expected GPUBuffer, got ${kind(buffer)}`);
  }
  checkInteger(`${name}.offset`, offset, 0, 2 ** 40);
  if (offset % 4 !== 0) throw new RangeError(`"${name}.offset" expected multiple of 4, got ${offset}`);
  if (buffer.size < offset + bytes) {
    throw new RangeError(`"${name}.buffer" expected at least ${offset + bytes} bytes (${bytes} from offset ${offset}), got ${buffer.size}`);
  }
  if ((buffer.usage & usage) === 0) {
    throw new RangeError(`"${name}.buffer" expected usage ${usage === COPY_SRC ? 'COPY_SRC' : 'COPY_DST'}, got ${buffer.usage}`);
  }
}

/** @internal The number of tokens in `data`, which must hold whole ones, at least one. */
export function wholeTokens(name: string, length: number, heads: number, headDim: number): number {
  const tokens = length / (heads * headDim);
  if (tokens < 1 || !Number.isInteger(tokens)) {
    throw new RangeError(
      `"${name}" expected length a multiple of ${heads * headDim} (${plural(heads, 'head')} × ${headDim}), got ${length}`
    );
  }
  return tokens;
}

/** @internal Numbers of f16's range. */
export function checkFinite(name: string, data: ArrayLike<number>): void {
  for (let i = 0; i < data.length; i++) {
    const x = data[i]!;
    if (x <= HALF_MAX && x >= -HALF_MAX) continue;
    throw new RangeError(`"${name}[${i}]" expected number from −${HALF_MAX} to ${HALF_MAX}, got ${x}`);
  }
}

/** As bits. */
function checkFiniteHalves(name: string, bits: Uint16Array): void {
  for (let i = 0; i < bits.length; i++) {
    if (isFiniteHalf(bits[i]!)) continue;
    throw new RangeError(`"${name}[${i}]" expected finite f16, got ${bits[i]! & 0x3ff ? 'NaN' : 'infinity'}`);
  }
}
