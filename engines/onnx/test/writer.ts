// Nodes and weights of a file that a test exports, while they are gathered: protobuf of https://github.com/onnx/onnx.
import { random } from '../../../tools/numbers.ts';
import { float, integer, message, type Pieces, text } from '../src/protobuf.ts';

/** A number is an integer; floats are told apart. */
export type Value = number | readonly number[] | string | { readonly float: number } | { readonly graph: Pieces };

export interface WriterOptions {
  readonly biases?: boolean;
  readonly half?: boolean;
  /** MatMulNBits of so many bits. */
  readonly bits?: 4 | 8;
  /** The name of a file for weights. */
  readonly external?: string;
  /** Where weights begin in it. */
  readonly externalFrom?: number;
}

export const FLOAT = 1;
export const UINT8 = 2;
export const INT64 = 7;
export const BOOL = 9;
export const FLOAT16 = 10;
export const MICROSOFT = 'com.microsoft';

/** Nodes and weights while they are gathered. */
export class Writer {
  readonly nodes: Pieces[] = [];
  readonly initializers: Pieces[] = [];
  readonly external: Uint8Array[] = [];
  #seed = 1;
  #externalBytes: number;
  readonly #options: WriterOptions;

  constructor(options: WriterOptions) {
    this.#options = options;
    this.#externalBytes = options.externalFrom ?? 0;
  }

  node(
    op: string,
    inputs: readonly string[],
    outputs: readonly string[],
    attributes: Readonly<Record<string, Value>> = {},
    domain = ''
  ): string {
    this.nodes.push([
      ...inputs.flatMap(input => text(1, input)),
      ...outputs.flatMap(output => text(2, output)),
      ...text(3, `/${outputs[0]}/${op}`),
      ...text(4, op),
      ...Object.entries(attributes).flatMap(([name, value]) => message(5, [...text(1, name), ...attribute(value)])),
      ...text(7, domain)
    ]);
    return outputs[0]!;
  }

  /** Floats of the model's type. */
  floats(name: string, shape: readonly number[], data: Float32Array): string {
    return this.tensor(name, this.#options.half ? FLOAT16 : FLOAT, shape, this.#bytes(data));
  }

  /** The same as the message of a tensor, for a nested graph. */
  message(name: string, shape: readonly number[], data: Float32Array): Pieces {
    return [...headOf(name, this.#options.half ? FLOAT16 : FLOAT, shape), ...message(9, [this.#bytes(data)])];
  }

  #bytes(data: Float32Array): Uint8Array {
    return this.#options.half ? new Uint8Array(Uint16Array.from(data, toHalf).buffer) : new Uint8Array(data.buffer);
  }

  random(name: string, shape: readonly number[], scale: number, mean = 0): string {
    const length = shape.reduce((product, size) => product * size, 1);
    return this.floats(
      name,
      shape,
      normals(length, this.#seed++).map(value => mean + scale * value)
    );
  }

  tensor(name: string, type: number, shape: readonly number[], bytes: Uint8Array): string {
    const { external } = this.#options;
    const head = headOf(name, type, shape);
    if (external && bytes.length > 1024) {
      const entry = (key: string, value: string) => message(13, [...text(1, key), ...text(2, value)]);
      const place = [
        ...entry('location', external),
        ...entry('offset', String(this.#externalBytes)),
        ...entry('length', String(bytes.length))
      ];
      this.initializers.push([...head, ...place, ...integer(14, 1)]);
      this.external.push(bytes);
      this.#externalBytes += bytes.length;
    } else this.initializers.push([...head, ...message(9, [bytes])]);
    return name;
  }

  integers(name: string, values: readonly number[]): string {
    return this.tensor(name, INT64, [values.length], new Uint8Array(BigInt64Array.from(values, BigInt).buffer));
  }

  /** x · w (+ b), of f32, f16 or a few bits. */
  linear(name: string, input: string, from: number, to: number, bias = this.#options.biases): string {
    const product = this.#options.bits ? this.#few(name, input, from, to, this.#options.bits) : this.#product(name, input, from, to);
    return bias ? this.node('Add', [product, this.random(`${name}.bias`, [to], 0.5)], [`${name}.biased`]) : product;
  }

  #product(name: string, input: string, from: number, to: number): string {
    return this.node('MatMul', [input, this.random(`${name}.weight`, [from, to], 1 / Math.sqrt(from))], [name]);
  }

  #few(name: string, input: string, from: number, to: number, bits: 4 | 8): string {
    const block = 32;
    const blocks = from / block;
    const codes = Uint8Array.from(normals(to * blocks * ((block * bits) / 8), this.#seed++), (value: number) => 128 + 40 * value);
    const weight = this.tensor(`${name}.codes`, UINT8, [to, blocks, (block * bits) / 8], codes);
    const scales = this.random(`${name}.scales`, [to * blocks], 0, 1 / (2 ** (bits - 3) * Math.sqrt(from)));
    return this.node('MatMulNBits', [input, weight, scales], [name], { K: from, N: to, bits, block_size: block }, MICROSOFT);
  }
}

function headOf(name: string, type: number, shape: readonly number[]): Pieces {
  return [...shape.flatMap(size => integer(1, size)), ...integer(2, type), ...text(8, name)];
}

function normals(length: number, seed: number): Float32Array {
  const next = random(seed);
  return Float32Array.from({ length }, () => Math.sqrt(-2 * Math.log(next() + 2 ** -33)) * Math.cos(2 * Math.PI * next()));
}

function attribute(value: Value): Pieces {
  if (typeof value === 'number') return [...integer(3, value), ...integer(20, 2)];
  if (typeof value === 'string') return [...text(4, value), ...integer(20, 3)];
  if ('graph' in value) return [...message(6, value.graph), ...integer(20, 5)];
  if ('float' in value) return [...float(2, value.float), ...integer(20, 1)];
  return [...value.flatMap(item => integer(8, item)), ...integer(20, 7)];
}

/** The nearest f16 of normal numbers and 0, ties away from zero: weights, which need no more. */
function toHalf(value: number): number {
  const magnitude = Math.abs(value);
  if (magnitude < 2 ** -14) return 0;
  const exponent = Math.floor(Math.log2(magnitude));
  return (value < 0 ? 0x8000 : 0) + ((exponent + 15) << 10) + Math.round((magnitude / 2 ** exponent - 1) * 1024);
}
