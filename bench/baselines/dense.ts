// The baselines of the benchmark: attention over dense keys and values in f32, f16 and int8, as fast as WebAssembly SIMD was made to go.
// Kernels: dense/index.ts. Never part of the package.
//
// Each kind comes in several forms, because none is the best in every shape, in cache and out of it: time them all and take the least.

import { toHalf } from '../../src/format/half.ts';
import { relativeL2 } from '../../tools/numbers.ts';
import { exactAttention, normals } from '../data.ts';

export type Kind = 'f32' | 'f16' | 'int8';

/**
 * Forms of each kind. Values are summed by `stream` (rows in order, sums in cache) or `tile` (sums in registers); `Lines` and `Pages`
 * load the cache lines ahead, in order or in four pages side by side.
 */
export const forms = {
  f32: ['stream', 'streamLines', 'streamPages', 'tile', 'tilePages'],
  f16: ['stream', 'streamLines', 'streamPages', 'tile', 'tilePages'],
  int8: ['tile', 'tileLines', 'tilePages']
} as const satisfies Record<Kind, readonly string[]>;

export interface DenseShape {
  kind: Kind;
  headDim: number;
  /** Query heads that share a KV head. */
  groups: number;
  tokens: number;
  /** KV heads, each with keys and values of its own. */
  heads: number;
}

type Kernel = (q: number, k: number, v: number, work: number, out: number, tokens: number, heads: number) => void;
type Kernels = Record<string, Kernel> & { read(p: number, bytes: number): void };

const ELEMENT_BYTES = { f32: 4, f16: 2, int8: 1 };
/** Kernels read this far past what is theirs. */
const SLACK_BYTES = 65536;

export class Dense {
  readonly relaxed: boolean;
  readonly #modules: Map<number, WebAssembly.Module>;

  constructor(relaxed: boolean, modules: Map<number, WebAssembly.Module>) {
    this.relaxed = relaxed;
    this.#modules = modules;
  }

  get headDims(): number[] {
    return [...this.#modules.keys()];
  }

  /** Allocates the keys and values of `heads` KV heads, zero until filled. */
  cell(shape: DenseShape): DenseCell {
    const module = this.#modules.get(shape.headDim);
    if (!module) throw new RangeError(`"headDim" expected ${this.headDims.join(' or ')}, got ${shape.headDim}`);
    return new DenseCell(module, shape);
  }
}

/**
 * The memory of one kind and shape:
 *
 *     [ static data | q, out | work | keys of each head | values of each head | slack ]
 *
 * A head's keys are rows [tokens, headDim]; int8 rows are followed by f32 scales, and int8 values hold two tokens side by side.
 */
export class DenseCell {
  readonly shape: Readonly<DenseShape>;
  readonly forms: readonly string[];
  /** Bytes of keys and values that one `attend` reads. */
  readonly headBytes: number;
  readonly #kernels: Kernels;
  readonly #attend = new Map<string, Kernel>();
  readonly #memory: WebAssembly.Memory;
  readonly #q: Float32Array;
  readonly #out: Float32Array;
  readonly #work: number;
  readonly #keys: number;
  readonly #values: number;
  readonly #stride: number;

  constructor(module: WebAssembly.Module, shape: DenseShape) {
    const { kind, headDim, groups, tokens, heads } = shape;
    this.shape = { ...shape };
    this.forms = forms[kind];
    const rows = kind === 'int8' ? tokens + (tokens & 1) : tokens;
    this.headBytes = 2 * (tokens * headDim * ELEMENT_BYTES[kind] + (kind === 'int8' ? tokens * 4 : 0));
    this.#stride = rows * headDim * ELEMENT_BYTES[kind] + (kind === 'int8' ? roundUp(tokens * 4, 16) : 0);

    const queryBytes = groups * headDim * 4;
    const q = 4096;
    const out = q + queryBytes;
    this.#work = out + queryBytes;
    const workBytes = Math.ceil(groups / 4) * (48 + (tokens + 12) * 16) + 27 * headDim * 4; // see dense/index.ts
    this.#keys = roundUp(this.#work + workBytes, 16384);
    this.#values = roundUp(this.#keys + heads * this.#stride, 16384);
    const pages = Math.ceil((this.#values + heads * this.#stride + SLACK_BYTES) / 65536);
    if (pages > 65536) throw new RangeError(`"shape" expected at most 4 GiB of keys and values, got ${pages * 65536} bytes`);

    this.#memory = new WebAssembly.Memory({ initial: pages, maximum: pages });
    this.#q = new Float32Array(this.#memory.buffer, q, groups * headDim); // the memory never grows: views may be kept
    this.#out = new Float32Array(this.#memory.buffer, out, groups * headDim);
    const abort = (): never => {
      throw new Error('bench/baselines/dense aborted');
    };
    this.#kernels = new WebAssembly.Instance(module, { env: { memory: this.#memory, abort } }).exports as unknown as Kernels;
    for (const form of this.forms) this.#attend.set(form, this.#kernels[kind + form[0]!.toUpperCase() + form.slice(1)]!);
  }

  /** @param keys, values  f32 [tokens, headDim] of one KV head, converted to the cell's kind */
  fill(head: number, keys: Float32Array, values: Float32Array): void {
    const { kind, headDim, tokens } = this.shape;
    const buffer = this.#memory.buffer;
    const k = this.#keys + head * this.#stride;
    const v = this.#values + head * this.#stride;
    const count = tokens * headDim;
    if (kind === 'f32') {
      new Float32Array(buffer, k, count).set(keys);
      new Float32Array(buffer, v, count).set(values);
    } else if (kind === 'f16') {
      storeHalves(new Uint16Array(buffer, k, count), keys);
      storeHalves(new Uint16Array(buffer, v, count), values);
    } else {
      const valueRows = tokens + (tokens & 1);
      storeInt8(keys, headDim, new Int8Array(buffer, k, count), new Float32Array(buffer, k + count, tokens), false);
      const pairs = new Int8Array(buffer, v, valueRows * headDim);
      storeInt8(values, headDim, pairs, new Float32Array(buffer, v + valueRows * headDim, tokens), true);
    }
  }

  /**
   * Attention of one token: one call into WebAssembly, nothing allocated.
   *
   * @param q    f32 [groups, headDim]
   * @param out  f32 [groups, headDim]
   */
  attend(head: number, q: Float32Array, out: Float32Array, form: string = this.forms[0]!): void {
    const kernel = this.#attend.get(form);
    if (!kernel) throw new RangeError(`"form" expected ${this.forms.join(', ')}, got ${form}`);
    this.#q.set(q);
    kernel(
      this.#q.byteOffset,
      this.#keys + head * this.#stride,
      this.#values + head * this.#stride,
      this.#work,
      this.#out.byteOffset,
      this.shape.tokens,
      this.shape.groups
    );
    out.set(this.#out);
  }

  /** Only reads a head's keys and values: the floor under `attend` out of cache. */
  read(head: number): void {
    this.#kernels.read(this.#keys + head * this.#stride, this.headBytes / 2);
    this.#kernels.read(this.#values + head * this.#stride, this.headBytes / 2);
  }
}

function roundUp(x: number, multiple: number): number {
  return Math.ceil(x / multiple) * multiple;
}

/** f16 subnormals (below 6.1e-5) become zero: the kernels would read them as f32 subnormals, which are slow. */
function storeHalves(to: Uint16Array, from: Float32Array): void {
  for (let i = 0; i < to.length; i++) {
    const bits = toHalf(from[i]!);
    to[i] = (bits & 0x7c00) === 0 ? 0 : bits;
  }
}

/** Each row's greatest becomes ±127. `paired`: [tokens / 2, headDim, 2] instead of rows. */
function storeInt8(from: Float32Array, headDim: number, to: Int8Array, scales: Float32Array, paired: boolean): void {
  for (let t = 0; t < scales.length; t++) {
    let max = 0;
    for (let i = 0; i < headDim; i++) max = Math.max(max, Math.abs(from[t * headDim + i]!));
    scales[t] = max / 127;
    const factor = max === 0 ? 0 : 127 / max;
    for (let i = 0; i < headDim; i++) {
      const at = paired ? (t & ~1) * headDim + i * 2 + (t & 1) : t * headDim + i;
      to[at] = Math.round(from[t * headDim + i]! * factor);
    }
  }
}

/**
 * Greatest relative L2 error against f64 attention, for standard normal queries, keys and values.
 *
 *   f32   f32 rounding of up to 4,096 summands, 2e-6 seen
 *   f16   storage rounds each number by up to 2⁻¹¹, 3e-4 on average; the queries stay f32
 *   int8  a row's greatest of about 3σ becomes 127: steps of 0.024σ, an error of 0.7 % in the values and as much again through the scores
 */
export const TOLERANCE: Readonly<Record<Kind, number>> = { f32: 1e-5, f16: 1e-3, int8: 2e-2 };

/** Holds every form against f64 attention, at the edges of tiles and blocks; throws if one is wrong. Returns each kind's greatest error. */
export function verify(dense: Dense): Record<Kind, number> {
  const worst: Record<Kind, number> = { f32: 0, f16: 0, int8: 0 };
  const normal = normals(1);
  for (const headDim of dense.headDims) {
    for (const tokens of [1, 3, 63, 64, 65, 1000, 4096]) {
      const random = (rows: number): Float32Array => Float32Array.from({ length: rows * headDim }, normal);
      const keys = [random(tokens), random(tokens)];
      const values = [random(tokens), random(tokens)];
      for (const groups of [1, 2, 3, 4, 5, 7, 8]) {
        const q = random(groups);
        const out = new Float32Array(groups * headDim);
        const expected = keys.map((k, head) => exactAttention(q, { keys: k, values: values[head]! }, headDim));
        for (const kind of Object.keys(forms) as Kind[]) {
          const cell = dense.cell({ kind, headDim, groups, tokens, heads: 2 });
          for (const head of [0, 1]) cell.fill(head, keys[head]!, values[head]!);
          for (const head of [0, 1]) {
            for (const form of cell.forms) {
              out.fill(0);
              cell.attend(head, q, out, form);
              const error = relativeL2(out, expected[head]!);
              worst[kind] = Math.max(worst[kind], error);
              if (!(error <= TOLERANCE[kind])) {
                throw new Error(
                  `${kind} ${form} expected error <= ${TOLERANCE[kind]}, got ${error} (${headDim} × ${tokens} tokens × ${groups} query heads)`
                );
              }
            }
          }
        }
      }
    }
  }
  return worst;
}
