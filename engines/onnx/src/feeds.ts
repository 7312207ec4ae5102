// What a graph is fed with: tokens, positions, and what it asks about the past.

import type { Tensor } from 'onnxruntime-common';
import { POSITIONS } from './attention.ts';
import type { Cut } from './cut.ts';
import { INT32, INT64, type Port } from './graph.ts';
import type { OnnxRuntime } from './runtime.ts';

/** Tokens of a call in one row, each with its position. */
export interface Row {
  readonly ids: readonly number[];
  readonly positions: readonly number[];
  /** Tokens before, of the only sequence of the row; no matter where the row is of several. */
  readonly past: number;
}

const KNOWN = ['input_ids', 'position_ids', 'attention_mask', 'num_logits_to_keep'];
/** Inputs that say one thing of every token: what they lead to is the same for tokens of several sequences in one row. */
const TOKENWISE = new Set(['input_ids', 'position_ids', 'num_logits_to_keep', POSITIONS]);

/** @throws {RangeError} if an input is none of those that are known */
export function checkFeeds({ feeds, pastShapes }: Cut): void {
  for (const { name, type, shape } of feeds.values()) {
    if (pastShapes.has(name) || name === POSITIONS) continue;
    if (!KNOWN.includes(name))
      throw new RangeError(`"${name}" expected ${KNOWN.join(', ')} or the past of an attention, got another input`);
    if (type !== INT32 && type !== INT64) throw new RangeError(`"${name}" expected int64 or int32, got type ${type} of ONNX`);
    if (name !== 'num_logits_to_keep' && shape && shape.length !== 2) {
      throw new RangeError(`"${name}" expected shape [batch, tokens], got [${shape}]`);
    }
  }
}

/** Whether a row may have tokens of several sequences: nothing but attention mixes tokens, unless a graph looks at the past itself. */
export function takesBatches(inputs: Iterable<string>): boolean {
  return [...inputs].every(name => TOKENWISE.has(name));
}

/** Tensors for these inputs. */
export function feedsOf({ Tensor }: OnnxRuntime, cut: Cut, names: Iterable<string>, { ids, positions, past }: Row): Map<string, Tensor> {
  const integers = ({ type }: Port, list: readonly number[], shape: readonly number[]): Tensor =>
    type === INT32 ? new Tensor('int32', Int32Array.from(list), shape) : new Tensor('int64', BigInt64Array.from(list, BigInt), shape);
  const feeds = new Map<string, Tensor>();
  for (const name of names) {
    const port = cut.feeds.get(name);
    if (!port) continue;
    const pastShape = cut.pastShapes.get(name);
    if (pastShape) {
      const { kvHeads, headDim } = cut.attentions[pastShape.layer]!;
      const sizes = [1, kvHeads, past, headDim].slice(pastShape.from, pastShape.to);
      feeds.set(name, integers(port, sizes, [sizes.length]));
    } else if (name === 'input_ids') feeds.set(name, integers(port, ids, [1, ids.length]));
    else if (name === 'attention_mask') feeds.set(name, integers(port, new Array(past + ids.length).fill(1), [1, past + ids.length]));
    else if (name === 'num_logits_to_keep')
      feeds.set(name, integers(port, [0], port.shape?.length === 0 ? [] : [1])); // all
    else feeds.set(name, integers(port, positions, [1, ids.length]));
  }
  return feeds;
}
