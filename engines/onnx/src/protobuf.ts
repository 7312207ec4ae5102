// Protobuf's wire format: tags, lengths and numbers. Reads views of bytes and never copies them; knows nothing of ONNX.

/** A file that is read in parts: a Blob, a path in Node, or bytes that are there already. */
export interface File {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  /** Bytes from `from` up to `to`. */
  read(from: number, to: number): Promise<Uint8Array>;
}

export interface Field {
  readonly number: number;
  /** A varint as a signed 64-bit integer; 0 for other wire types. */
  readonly value: number;
  /** What has a length, or four or eight bytes of a fixed number; empty for varints. */
  readonly bytes: Uint8Array;
}

/** A field of a message that is read in parts. */
export interface Place {
  readonly number: number;
  readonly value: number;
  /** Where its bytes are in the file. */
  readonly from: number;
  readonly to: number;
  /** Its bytes, where they are few; else it is read by these numbers. */
  readonly bytes: Uint8Array | undefined;
}

/** Bytes of a message in pieces, so that what it holds is copied once. */
export type Pieces = readonly Uint8Array[];

const EMPTY: Uint8Array = new Uint8Array();
/** The tag and the length of a field have at most ten bytes each. */
const HEADER = 20;
const CHUNK = 1 << 16;
/** Fields up to here are read whole. */
const FEW = 1 << 16;

interface Header {
  readonly number: number;
  readonly value: number;
  /** Where the bytes of the field begin and end; a varint's are none. */
  readonly from: number;
  readonly to: number;
}

/** The fields of a message. */
export function* fields(bytes: Uint8Array): Generator<Field> {
  for (let at = 0; at < bytes.length; ) {
    const { number, value, from, to } = header(bytes, at);
    if (to > bytes.length) throw new RangeError(`"model" expected ${to} bytes of a message, got ${bytes.length}`);
    yield { number, value, bytes: from === to ? EMPTY : bytes.subarray(from, to) };
    at = to;
  }
}

/** The fields of a message from `from` up to `to` of a file, reading no more than their headers and what is small. */
export async function* places(file: File, from: number, to: number): AsyncGenerator<Place> {
  let start = from;
  let chunk = EMPTY;
  const within = async (at: number, end: number): Promise<void> => {
    if (at >= start && end <= start + chunk.length) return;
    start = at;
    chunk = await file.read(at, Math.min(to, Math.max(at + CHUNK, end)));
  };
  for (let at = from; at < to; ) {
    await within(at, Math.min(to, at + HEADER));
    const shift = start;
    const field = header(chunk, at - start);
    const place = { number: field.number, value: field.value, from: field.from + shift, to: field.to + shift };
    if (place.to > to) throw new RangeError(`"${file.name}" expected at least ${place.to} bytes, got ${to}`);
    const few = place.to - place.from <= FEW;
    if (few) await within(place.from, place.to);
    yield { ...place, bytes: few ? chunk.subarray(place.from - start, place.to - start) : undefined };
    at = place.to;
  }
}

function header(bytes: Uint8Array, at: number): Header {
  const tag = varint(bytes, at);
  const number = tag.value >>> 3;
  switch (tag.value & 7) {
    case 0: {
      const { value, end } = varint(bytes, tag.end);
      return { number, value, from: end, to: end };
    }
    case 1:
      return { number, value: 0, from: tag.end, to: tag.end + 8 };
    case 2: {
      const { value, end } = varint(bytes, tag.end);
      return { number, value: 0, from: end, to: end + value };
    }
    case 5:
      return { number, value: 0, from: tag.end, to: tag.end + 4 };
    default:
      throw new RangeError(`"model" expected a message of protobuf, got wire type ${tag.value & 7}`);
  }
}

/** Seven bits a byte, lowest first: a signed integer of 64 bits, exact up to 2⁵³. */
function varint(bytes: Uint8Array, at: number): { readonly value: number; readonly end: number } {
  let value = 0;
  for (let n = 0; n < 10; n++) {
    const byte = bytes[at + n];
    if (byte === undefined) break;
    // The tenth byte holds the sign alone: a negative number is its two's complement of 64 bits.
    if (n === 9) return { value: signed(bytes, at), end: at + 10 };
    value += (byte & 127) * 2 ** (7 * n);
    if (byte < 128) return { value, end: at + n + 1 };
  }
  throw new RangeError('"model" expected a message of protobuf, got one that ends within a number');
}

function signed(bytes: Uint8Array, at: number): number {
  let value = 0n;
  for (let n = 0; n < 10; n++) value |= BigInt(bytes[at + n]! & 127) << BigInt(7 * n);
  return Number(BigInt.asIntN(64, value));
}

/** All varints of a packed list. */
export function packed(bytes: Uint8Array): number[] {
  const values: number[] = [];
  for (let at = 0; at < bytes.length; ) {
    const { value, end } = varint(bytes, at);
    values.push(value);
    at = end;
  }
  return values;
}

export function integer(number: number, value: number): Pieces {
  return [encoded(number * 8), encoded(value)];
}

export function float(number: number, value: number): Pieces {
  const bytes = new Uint8Array(4);
  new DataView(bytes.buffer).setFloat32(0, value, true);
  return [encoded(number * 8 + 5), bytes];
}

export function text(number: number, value: string): Pieces {
  return message(number, [new TextEncoder().encode(value)]);
}

/** A nested message, a string or bytes: all are a length and what follows. */
export function message(number: number, pieces: Pieces): Pieces {
  return [encoded(number * 8 + 2), encoded(pieces.reduce((sum, piece) => sum + piece.length, 0)), ...pieces];
}

function encoded(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  do {
    const low = Number(rest & 127n);
    rest >>= 7n;
    bytes.push(rest > 0n ? low | 128 : low);
  } while (rest > 0n);
  return Uint8Array.from(bytes);
}

export function join(pieces: Pieces): Uint8Array {
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
