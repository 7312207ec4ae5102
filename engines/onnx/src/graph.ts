// The messages of an ONNX file that a graph needs. Field numbers are those of onnx.proto3
// (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3). Weights stay where they are until a session takes them.

import { type Field, type File, fields, integer, join, message, type Pieces, packed, places, text } from './protobuf.ts';

/** Numbers of types in TensorProto. */
export const FLOAT = 1;
export const UINT8 = 2;
export const INT8 = 3;
export const INT32 = 6;
export const INT64 = 7;
export const FLOAT16 = 10;

/** Numbers, text, or a tensor or graph as the bytes of its message. */
export type Attribute = number | string | readonly number[] | Uint8Array;

export interface Node {
  readonly op: string;
  /** Empty for the standard's operators. */
  readonly domain: string;
  readonly name: string;
  /** Empty names where an input is left out. */
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: ReadonlyMap<string, Attribute>;
  /** Values that its graphs take from around it. */
  readonly captured: readonly string[];
  /** Operators of its graphs, and of theirs. */
  readonly nested: readonly string[];
  /** Its message, as it goes into another file. */
  readonly bytes: Uint8Array;
}

/** A weight, or any other constant. */
export interface Tensor {
  readonly name: string;
  /** Number of its type in TensorProto. */
  readonly type: number;
  readonly shape: readonly number[];
  /** Its whole message, where it is small or has its numbers in fields of their own. */
  readonly bytes: Uint8Array | undefined;
  /** Where its bytes are otherwise. */
  readonly place: { readonly file: File | string; readonly from: number; readonly to: number | undefined } | undefined;
}

/** Reads bytes of a tensor's numbers: all, or from one up to another. */
export type Read = (tensor: Tensor, from?: number, to?: number) => Promise<Uint8Array>;

/** An input or an output. */
export interface Port {
  readonly name: string;
  /** Number of its type in TensorProto; 0 where the file says none. */
  readonly type: number;
  /** Numbers, names of sizes that are known when the graph runs, or null for sizes without a name; undefined: unknown. */
  readonly shape: readonly (number | string | null)[] | undefined;
}

export interface Graph {
  readonly nodes: readonly Node[];
  readonly tensors: ReadonlyMap<string, Tensor>;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
}

export interface Model extends Graph {
  readonly irVersion: number;
  /** By domain. */
  readonly opsets: ReadonlyMap<string, number>;
  /** Functions of the file, as their messages. */
  readonly functions: Pieces;
}

const utf8 = new TextDecoder();

/** Reads the graph of a file; of weights no more than where they are. */
export async function readModel(file: File): Promise<Model> {
  let irVersion = 0;
  const opsets = new Map<string, number>();
  const functions: Uint8Array[] = [];
  const graph = { nodes: [] as Node[], tensors: new Map<string, Tensor>(), inputs: [] as Port[], outputs: [] as Port[] };
  let found = false;
  for await (const place of places(file, 0, file.size)) {
    const { number, value, from, to } = place;
    if (number === 1) irVersion = value;
    else if (number === 7) {
      found = true;
      await readGraph(file, from, to, graph);
    } else if (number === 8) {
      const opset = await bytesOf(file, place);
      opsets.set(textField(opset, 1), integerField(opset, 2));
    } else if (number === 25) functions.push(await bytesOf(file, place));
  }
  if (!found) throw new RangeError(`"${file.name}" expected an ONNX model, got a file without a graph`);
  return { irVersion, opsets, functions, ...graph };
}

interface GraphParts {
  readonly nodes: Node[];
  readonly tensors: Map<string, Tensor>;
  readonly inputs: Port[];
  readonly outputs: Port[];
}

async function readGraph(file: File, from: number, to: number, { nodes, tensors, inputs, outputs }: GraphParts): Promise<void> {
  for await (const place of places(file, from, to)) {
    if (place.number === 1) nodes.push(node(await bytesOf(file, place)));
    else if (place.number === 5) {
      const tensor = place.bytes ? smallTensor(place.bytes) : await largeTensor(file, place.from, place.to);
      tensors.set(tensor.name, tensor);
    } else if (place.number === 11) inputs.push(port(await bytesOf(file, place)));
    else if (place.number === 12) outputs.push(port(await bytesOf(file, place)));
    else if (place.number === 15) throw new RangeError(`"${file.name}" expected dense initializers, got a sparse one`);
  }
}

function bytesOf(file: File, { bytes, from, to }: { bytes: Uint8Array | undefined; from: number; to: number }) {
  return bytes ? Promise.resolve(bytes.slice()) : file.read(from, to); // a view would keep its whole chunk
}

/** The numbers of a tensor whose message is at hand, as bytes. */
export function numbersIn({ name, type, bytes }: Tensor): Uint8Array {
  for (const { number, bytes: numbers } of fields(bytes!)) if (number === 9 || (number === 4 && type === FLOAT)) return numbers;
  throw new RangeError(`"${name}" expected raw numbers, got numbers of type ${type} in a field of their own`);
}

function node(bytes: Uint8Array): Node {
  const parts = { op: '', domain: '', name: '', inputs: [] as string[], outputs: [] as string[] };
  const attributes = new Map<string, Attribute>();
  const captured: string[] = [];
  const nested: string[] = [];
  for (const { number, bytes: field } of fields(bytes)) {
    if (number === 1) parts.inputs.push(utf8.decode(field));
    else if (number === 2) parts.outputs.push(utf8.decode(field));
    else if (number === 3) parts.name = utf8.decode(field);
    else if (number === 4) parts.op = utf8.decode(field);
    else if (number === 7) parts.domain = utf8.decode(field).replace(/^ai\.onnx$/, '');
    else if (number === 5) {
      const { name, value, graphs } = attribute(field);
      attributes.set(name, value);
      for (const graph of graphs) {
        const { free, operators } = readNested(graph);
        captured.push(...free);
        nested.push(...operators);
      }
    }
  }
  return { ...parts, attributes, captured, nested, bytes };
}

function attribute(bytes: Uint8Array): { readonly name: string; readonly value: Attribute; readonly graphs: readonly Uint8Array[] } {
  let name = '';
  let value: Attribute = [];
  const list: number[] = [];
  const graphs: Uint8Array[] = [];
  for (const field of fields(bytes)) {
    if (field.number === 1) name = utf8.decode(field.bytes);
    else if (field.number === 2) value = floats(field.bytes)[0]!;
    else if (field.number === 3) value = field.value;
    else if (field.number === 4) value = utf8.decode(field.bytes);
    else if (field.number === 5) value = field.bytes;
    else if (field.number === 6 || field.number === 11) graphs.push(field.bytes);
    else if (field.number === 7) list.push(...floats(field.bytes));
    else if (field.number === 8) list.push(...integers(field));
  }
  return { name, value: list.length > 0 ? list : (graphs[0] ?? value), graphs };
}

/** What nodes of a nested graph read and none of them, nor an input or a tensor of it, gives; and what operators they are. */
function readNested(graph: Uint8Array): { readonly free: readonly string[]; readonly operators: readonly string[] } {
  const own = new Set<string>();
  const used: string[] = [];
  const operators: string[] = [];
  for (const { number, bytes } of fields(graph)) {
    if (number === 5) own.add(textField(bytes, 8));
    else if (number === 11) own.add(textField(bytes, 1));
    else if (number === 12) used.push(textField(bytes, 1));
    else if (number === 1) {
      const { op, inputs, outputs, captured, nested } = node(bytes);
      operators.push(op, ...nested);
      used.push(...inputs, ...captured);
      for (const output of outputs) own.add(output);
    }
  }
  return { free: [...new Set(used)].filter(name => name !== '' && !own.has(name)), operators };
}

/** What a nested graph gives, output by output: a tensor, or the name of a value around it; undefined where it computes one. */
export function givenBy(graph: Uint8Array): (Tensor | string | undefined)[] {
  const outputs: string[] = [];
  const makers = new Map<string, Node>();
  const tensors = new Map<string, Tensor>();
  for (const { number, bytes } of fields(graph)) {
    if (number === 1) {
      const maker = node(bytes);
      for (const output of maker.outputs) makers.set(output, maker);
    } else if (number === 5) tensors.set(textField(bytes, 8), smallTensor(bytes));
    else if (number === 12) outputs.push(textField(bytes, 1));
  }
  const given = (name: string): Tensor | string | undefined => {
    const maker = makers.get(name);
    if (!maker) return tensors.get(name) ?? name;
    if (maker.op === 'Identity') return given(maker.inputs[0]!);
    const value = maker.op === 'Constant' ? maker.attributes.get('value') : undefined;
    return value instanceof Uint8Array ? smallTensor(value) : undefined;
  };
  return outputs.map(given);
}

function smallTensor(message: Uint8Array): Tensor {
  const bytes = message.slice();
  const head = tensorHead();
  for (const field of fields(bytes)) head.take(field);
  return head.external ? { ...head.named(), bytes: undefined, place: head.external } : { ...head.named(), bytes, place: undefined };
}

async function largeTensor(file: File, from: number, to: number): Promise<Tensor> {
  const head = tensorHead();
  let place: Tensor['place'];
  for await (const { number, value, bytes, from: first, to: last } of places(file, from, to)) {
    if (number === 9) place = { file, from: first, to: last };
    else if (bytes) head.take({ number, value, bytes });
  }
  place ??= head.external;
  return place ? { ...head.named(), bytes: undefined, place } : { ...head.named(), bytes: await file.read(from, to), place };
}

/** What a tensor's message says beside its numbers. */
function tensorHead() {
  let name = '';
  let type = 0;
  const shape: number[] = [];
  const entries = new Map<string, string>();
  return {
    take(field: Field): void {
      if (field.number === 1) shape.push(...integers(field));
      else if (field.number === 2) type = field.value;
      else if (field.number === 8) name = utf8.decode(field.bytes);
      else if (field.number === 13) entries.set(textField(field.bytes, 1), textField(field.bytes, 2));
    },
    named: () => ({ name, type, shape }),
    get external(): NonNullable<Tensor['place']> | undefined {
      const location = entries.get('location');
      if (location === undefined) return undefined;
      const from = Number(entries.get('offset') ?? 0);
      const length = entries.get('length');
      return { file: location, from, to: length === undefined ? undefined : from + Number(length) };
    }
  };
}

function port(bytes: Uint8Array): Port {
  const tensor = child(child(bytes, 2), 1);
  let shape: (number | string | null)[] | undefined;
  for (const field of fields(tensor)) {
    if (field.number !== 2) continue;
    shape = [];
    for (const { number, bytes: size } of fields(field.bytes)) {
      if (number !== 1) continue;
      const [first] = fields(size);
      shape.push(first === undefined ? null : first.number === 1 ? first.value : utf8.decode(first.bytes));
    }
  }
  return { name: textField(bytes, 1), type: integerField(tensor, 1), shape };
}

function child(bytes: Uint8Array, number: number): Uint8Array {
  for (const field of fields(bytes)) if (field.number === number) return field.bytes;
  return new Uint8Array();
}

function textField(bytes: Uint8Array, number: number): string {
  return utf8.decode(child(bytes, number));
}

function integerField(bytes: Uint8Array, number: number): number {
  for (const field of fields(bytes)) if (field.number === number) return field.value;
  return 0;
}

/** Lists of integers come packed or one by one. */
function integers({ value, bytes }: Field): number[] {
  return bytes.length > 0 ? packed(bytes) : [value];
}

function floats(bytes: Uint8Array): number[] {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Array.from({ length: bytes.length / 4 }, (_, i) => view.getFloat32(4 * i, true));
}

/** A node of our own. */
export function makeNode(
  op: string,
  inputs: readonly string[],
  outputs: readonly string[],
  attributes: Readonly<Record<string, number | readonly number[]>> = {},
  domain = ''
): Node {
  const encode = (name: string, value: number | readonly number[]): Pieces =>
    message(5, [
      ...text(1, name),
      ...(typeof value === 'number' ? integer(3, value) : value.flatMap(item => integer(8, item))),
      ...integer(20, typeof value === 'number' ? 2 : 7)
    ]);
  const bytes = join([
    ...inputs.flatMap(input => text(1, input)),
    ...outputs.flatMap(output => text(2, output)),
    ...text(4, op),
    ...Object.entries(attributes).flatMap(([name, value]) => encode(name, value)),
    ...text(7, domain)
  ]);
  return {
    op,
    domain,
    name: outputs[0]!,
    inputs,
    outputs,
    attributes: new Map(Object.entries(attributes)),
    captured: [],
    nested: [],
    bytes
  };
}

/** A node with other inputs. All fields of its message have a length. */
export function withInputs(node: Node, inputs: readonly string[]): Node {
  const others = [...fields(node.bytes)].filter(({ number }) => number !== 1);
  const bytes = join([...inputs.flatMap(input => text(1, input)), ...others.flatMap(field => message(field.number, [field.bytes]))]);
  return { ...node, inputs, bytes };
}

/** A tensor of our own: a list of int64. */
export function makeIntegers(name: string, values: readonly number[]): Tensor {
  const data = new Uint8Array(BigInt64Array.from(values, BigInt).buffer);
  const bytes = join([...integer(1, values.length), ...integer(2, INT64), ...text(8, name), ...message(9, [data])]);
  return { name, type: INT64, shape: [values.length], bytes, place: undefined };
}

/** The message of a model of these parts. Weights of `external` are found under the locations that it gives. */
export function encodeModel(
  { irVersion, opsets, functions }: Pick<Model, 'irVersion' | 'opsets' | 'functions'>,
  {
    nodes,
    tensors,
    inputs,
    outputs
  }: { nodes: readonly Node[]; tensors: readonly Tensor[]; inputs: readonly Port[]; outputs: readonly Port[] },
  external: ReadonlyMap<string, string>
): Uint8Array {
  const opset = ([domain, version]: [string, number]): Pieces => message(8, [...text(1, domain), ...integer(2, version)]);
  const graph = [
    ...nodes.flatMap(({ bytes }) => message(1, [bytes])),
    ...text(2, 'segment'),
    ...tensors.flatMap(tensor => message(5, tensor.bytes ? [tensor.bytes] : externalTensor(tensor, external.get(tensor.name)!))),
    ...inputs.flatMap(port => message(11, encodePort(port))),
    ...outputs.flatMap(port => message(12, encodePort(port)))
  ];
  return join([
    ...integer(1, irVersion),
    ...message(7, graph),
    ...[...opsets].flatMap(opset),
    ...functions.flatMap(bytes => message(25, [bytes]))
  ]);
}

function externalTensor({ name, type, shape, place }: Tensor, location: string): Pieces {
  const entry = (key: string, value: string): Pieces => message(13, [...text(1, key), ...text(2, value)]);
  const length = place?.to === undefined ? [] : entry('length', String(place.to - place.from));
  return [
    ...shape.flatMap(size => integer(1, size)),
    ...integer(2, type),
    ...text(8, name),
    ...entry('location', location),
    ...entry('offset', '0'),
    ...length,
    ...integer(14, 1)
  ];
}

function encodePort({ name, type, shape }: Port): Pieces {
  if (type === 0) return text(1, name);
  const sizes = (shape ?? []).flatMap(size => message(1, typeof size === 'number' ? integer(1, size) : size === null ? [] : text(2, size)));
  return [...text(1, name), ...message(2, message(1, [...integer(1, type), ...(shape ? message(2, sizes) : [])]))];
}
