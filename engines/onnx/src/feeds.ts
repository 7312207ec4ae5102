// What a graph is fed with: tokens, positions, and what it asks about the past.

import type { Tensor } from 'onnxruntime-common';
import type { Cut } from './cut.ts';
import { FLOAT, FLOAT16, INT32, INT64, type Port, type Read, UINT8, type Tensor as Weight } from './graph.ts';
import type { OnnxRuntime } from './runtime.ts';
import { KEPT, NUMBERS, POSITIONS, ROW_BYTES } from './sharing.ts';

/** Tokens of a call in one row, each with its position. */
export interface Row {
  readonly ids: readonly number[];
  readonly positions: readonly number[];
  /** Numbers of the tokens that logits are wanted of. */
  readonly kept: readonly number[];
  /** Tokens before, of the only sequence of the row; no matter where the row is of several. */
  readonly past: number;
  /** Of every token the length of its sequence, with the call's tokens. */
  readonly lengths: readonly number[];
}

const KNOWN = ['input_ids', 'position_ids', 'attention_mask', 'num_logits_to_keep'];
/** Inputs that say one thing of every token: what they lead to is the same for tokens of several sequences in one row. */
const TOKENWISE = new Set(['input_ids', 'position_ids', 'num_logits_to_keep', POSITIONS, NUMBERS, KEPT]);

/** @throws {RangeError} if an input is none of those that are known */
export function checkFeeds({ feeds, pastShapes, rows, chosen }: Cut): void {
  for (const { name, type, shape } of feeds.values()) {
    if (pastShapes.has(name) || rows.has(name) || chosen.has(name) || name === POSITIONS || name === NUMBERS) continue;
    if (!KNOWN.includes(name))
      throw new RangeError(`"${name}" expected ${KNOWN.join(', ')} or the past of an attention, got another input`);
    if (type !== INT32 && type !== INT64) throw new RangeError(`"${name}" expected int64 or int32, got type ${type} of ONNX`);
    if (name !== 'num_logits_to_keep' && shape && shape.length !== 2) {
      throw new RangeError(`"${name}" expected shape [batch, tokens], got [${shape}]`);
    }
  }
}

/** Whether a row may have tokens of several sequences: nothing but attention mixes tokens, unless a graph looks at the past itself. */
export function takesBatches({ rows, turns, mixes }: Cut, inputs: Iterable<string>): boolean {
  return !mixes && [...inputs].every(name => TOKENWISE.has(name) || rows.has(name) || turns.has(name));
}

/**
 * Tensors for these inputs.
 *
 * @param read  bytes of a tensor of the file, from one of them up to another; needed where rows are looked up
 */
export async function feedsOf(
  { Tensor }: OnnxRuntime,
  cut: Cut,
  names: Iterable<string>,
  { ids, positions, kept, past, lengths }: Row,
  read: Read | undefined
): Promise<Map<string, Tensor>> {
  const integers = ({ type }: Port, list: readonly number[], shape: readonly number[]): Tensor =>
    type === INT32 ? new Tensor('int32', Int32Array.from(list), shape) : new Tensor('int64', BigInt64Array.from(list, BigInt), shape);
  const feeds = new Map<string, Tensor>();
  for (const name of names) {
    const port = cut.feeds.get(name);
    if (!port) continue;
    const pastShape = cut.pastShapes.get(name);
    const table = cut.rows.get(name);
    const turn = cut.turns.get(name);
    if (table) feeds.set(name, await rowsOf(Tensor, table, ids, read!));
    else if (turn) {
      const rows = positions.map((position, n) => position + turn.starts[lengths[n]! < turn.length ? 0 : 1]);
      feeds.set(name, integers(port, rows, [rows.length]));
    } else if (pastShape) {
      const { kvHeads, headDim } = cut.attentions[pastShape.layer]!;
      const sizes = [1, kvHeads, past, headDim].slice(pastShape.from, pastShape.to);
      feeds.set(name, integers(port, sizes, [sizes.length]));
    } else if (name === 'input_ids') feeds.set(name, integers(port, ids, [1, ids.length]));
    else if (name === 'attention_mask') feeds.set(name, integers(port, new Array(past + ids.length).fill(1), [1, past + ids.length]));
    else if (name === 'num_logits_to_keep')
      feeds.set(name, integers(port, [0], port.shape?.length === 0 ? [] : [1])); // all
    else if (name === KEPT) feeds.set(name, integers(port, kept, [kept.length]));
    else if (name === NUMBERS) feeds.set(name, integers(port, [...ids.keys()], [1, ids.length]));
    else feeds.set(name, integers(port, positions, name === POSITIONS ? [ids.length] : [1, ids.length]));
  }
  return feeds;
}

/** The rows of a table that tokens look up, one after another. */
async function rowsOf(Tensor: OnnxRuntime['Tensor'], table: Weight, ids: readonly number[], read: Read): Promise<Tensor> {
  const [, ...sizes] = table.shape;
  const width = sizes.reduce((product, size) => product * size, ROW_BYTES[table.type]!);
  const rows = new Uint8Array(ids.length * width);
  await Promise.all(ids.map(async (id, n) => rows.set(await read(table, id * width, (id + 1) * width), n * width)));
  const dims = [ids.length, ...sizes];
  if (table.type === FLOAT) return new Tensor('float32', new Float32Array(rows.buffer), dims);
  if (table.type === FLOAT16) return new Tensor('float16', new Uint16Array(rows.buffer), dims);
  return table.type === UINT8 ? new Tensor('uint8', rows, dims) : new Tensor('int8', new Int8Array(rows.buffer), dims);
}
