// ONNX models as bytes: the few protobuf messages that a graph needs, written by hand. Knows nothing of language models.
// Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).

/** Bytes in pieces, so that weights are copied once, into the finished model. */
type Pieces = Uint8Array[];

export type Attribute = number | readonly number[] | { readonly float: number };

export interface Node {
  readonly op: string;
  readonly inputs: readonly string[];
  /** Empty names for outputs that nobody needs. */
  readonly outputs: readonly string[];
  readonly attributes?: Readonly<Record<string, Attribute>>;
  /** `com.microsoft` for ONNX Runtime's own operators. */
  readonly domain?: string;
}

export interface Constant {
  readonly name: string;
  readonly shape: readonly number[];
  readonly data: Float32Array | BigInt64Array | Uint8Array;
}

export interface Port {
  readonly name: string;
  /** Numbers, or names of sizes that are known when the graph runs. */
  readonly shape: readonly (number | string)[];
}

export interface Graph {
  readonly name: string;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  readonly constants: readonly Constant[];
  readonly nodes: readonly Node[];
}

const FLOAT = 1;
const UINT8 = 2;
const INT64 = 7;
const IR_VERSION = 9;
const OPSET = 18;

/** The bytes that `InferenceSession.create` takes. All inputs and outputs are f32. */
export function encodeModel(graph: Graph): Uint8Array {
  const opset = (domain: string, version: number): Pieces => message(8, [...text(1, domain), ...integer(2, version)]);
  return join([...integer(1, IR_VERSION), ...message(7, encodeGraph(graph)), ...opset('', OPSET), ...opset('com.microsoft', 1)]);
}

function encodeGraph({ name, inputs, outputs, constants, nodes }: Graph): Pieces {
  return [
    ...nodes.flatMap(node => message(1, encodeNode(node))),
    ...text(2, name),
    ...constants.flatMap(constant => message(5, encodeTensor(constant))),
    ...inputs.flatMap(port => message(11, encodePort(port))),
    ...outputs.flatMap(port => message(12, encodePort(port)))
  ];
}

function encodeNode({ op, inputs, outputs, attributes = {}, domain = '' }: Node): Pieces {
  return [
    ...inputs.flatMap(input => text(1, input)),
    ...outputs.flatMap(output => text(2, output)),
    ...text(4, op),
    ...Object.entries(attributes).flatMap(([name, value]) => message(5, [...text(1, name), ...encodeAttribute(value)])),
    ...text(7, domain)
  ];
}

function encodeAttribute(value: Attribute): Pieces {
  if (typeof value === 'number') return [...integer(3, value), ...integer(20, 2)];
  if ('float' in value) {
    const bytes = new Uint8Array(4);
    new DataView(bytes.buffer).setFloat32(0, value.float, true);
    return [tag(2, 5), bytes, ...integer(20, 1)];
  }
  return [...value.flatMap(item => integer(8, item)), ...integer(20, 7)];
}

function encodeTensor({ name, shape, data }: Constant): Pieces {
  const bytes = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
  return [
    ...shape.flatMap(size => integer(1, size)),
    ...integer(2, data instanceof Float32Array ? FLOAT : data instanceof Uint8Array ? UINT8 : INT64),
    ...text(8, name),
    ...message(9, [bytes])
  ];
}

function encodePort({ name, shape }: Port): Pieces {
  const sizes = shape.flatMap(size => message(1, typeof size === 'number' ? integer(1, size) : text(2, size)));
  return [...text(1, name), ...message(2, message(1, [...integer(1, FLOAT), ...message(2, sizes)]))];
}

function tag(field: number, wireType: 0 | 2 | 5): Uint8Array {
  return varint(field * 8 + wireType);
}

function integer(field: number, value: number): Pieces {
  return [tag(field, 0), varint(value)];
}

function text(field: number, value: string): Pieces {
  return message(field, [new TextEncoder().encode(value)]);
}

/** A nested message, a string or bytes: all are a length and what follows. */
function message(field: number, pieces: Pieces): Pieces {
  return [tag(field, 2), varint(pieces.reduce((sum, piece) => sum + piece.length, 0)), ...pieces];
}

/** Seven bits a byte, lowest first; a negative number as its 64-bit two's complement. */
function varint(value: number): Uint8Array {
  const bytes: number[] = [];
  let rest = BigInt.asUintN(64, BigInt(value));
  do {
    const low = Number(rest & 127n);
    rest >>= 7n;
    bytes.push(rest > 0n ? low | 128 : low);
  } while (rest > 0n);
  return Uint8Array.from(bytes);
}

function join(pieces: Pieces): Uint8Array {
  const bytes = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    bytes.set(piece, at);
    at += piece.length;
  }
  return bytes;
}
