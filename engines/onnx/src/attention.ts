// What an attention of a graph is to a cache, and what its operators have in common.

import type { LayerOptions } from 'nsnquant';
import type { Chosen } from './chosen.ts';
import type { Attribute, Graph, Node, Port, Tensor } from './graph.ts';

/** An attention of a graph, as the cache does it. Queries, keys, values and results are [1, tokens, heads · channels], or the heads apart. */
export interface Attention {
  /** Operator and name, for messages. */
  readonly title: string;
  readonly query: string;
  readonly key: string;
  readonly value: string;
  readonly output: string;
  readonly kvHeads: number;
  /** 0 where only the shape of the queries says it. */
  readonly queryHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** Whether queries, keys, values and results are [1, tokens, heads, channels]. */
  readonly apart: boolean;
  /** What multiplies ⟨q, k⟩; undefined: 1/√headDim. */
  readonly scale: number | undefined;
  readonly window: number | undefined;
  readonly softcap: number | undefined;
  /** A sink of logit 0 in every head, or the constant with all of them. */
  readonly sinks: 'zero' | { readonly name: string } | undefined;
  /** The tables that keys were rotated by, where that is known. */
  readonly rotary: Rotary | undefined;
  /** Whether the operator itself hides later tokens. */
  readonly causal: boolean;
  /** A mask that is added: it must turn out to hide later tokens, or what is behind a window, and nothing else. */
  readonly mask: string | undefined;
  /** Inputs of the graph that were the past. */
  readonly pasts: readonly string[];
  /** Nodes and constants that are put in around it. */
  readonly before: readonly Node[];
  readonly after: readonly Node[];
  readonly tensors: readonly Tensor[];
}

export interface Rotary {
  readonly cos: string;
  readonly sin: string;
  readonly interleaved: boolean;
}

/** The graph around an attention. */
export interface Surroundings {
  readonly graph: Graph;
  readonly producers: ReadonlyMap<string, Node>;
  readonly ports: ReadonlyMap<string, Port>;
  /** Tables that the graph chooses by length, by the inputs of their positions. */
  readonly chosen: ReadonlyMap<string, Chosen>;
}

/** One operator: what it may be told, and how it is read. */
export interface Operator {
  /** Its inputs in their order; one in brackets must be absent. */
  readonly inputs: readonly string[];
  /** Attributes, and the one value that each may have; null for any. */
  readonly attributes: Readonly<Record<string, Attribute | null>>;
  readonly read: (node: Node, around: Surroundings) => Attention;
}

export function title({ op, name }: Node): string {
  return name === '' ? op : `${op} ${name}`;
}

/** Names for what is put in around an attention. */
export function namesOf({ outputs }: Node): (name: string) => string {
  return name => `nsnquant.${outputs[0]}.${name}`;
}

export function numberOf(node: Node, name: string, otherwise?: number): number {
  const value = node.attributes.get(name) ?? otherwise;
  if (typeof value !== 'number') throw new RangeError(`"${title(node)}" expected a number as ${name}, got ${value}`);
  return value;
}

/** Heads and channels of a past, by its shape [batch, heads, tokens, channels]. */
export function pastSizes(node: Node, { ports }: Surroundings, name: string, past: string): { heads: number; channels: number } {
  const port = ports.get(past);
  if (!port) throw new RangeError(`"${title(node)}" expected an input of the graph as ${name}, got ${past || 'none'}`);
  const [, heads, , channels] = port.shape ?? [];
  if (port.shape?.length === 4 && typeof heads === 'number' && typeof channels === 'number') return { heads, channels };
  throw new RangeError(`"${past}" expected shape [batch, heads, tokens, channels] with numbers of heads and channels, got [${port.shape}]`);
}

const PASSING = new Set(['Reshape', 'Transpose', 'Identity', 'Cast', 'Squeeze', 'Unsqueeze']);

/** The value whose numbers another has, looked for behind nodes that leave them as they are. */
export function sourceOf(value: string, around: Surroundings): string {
  const node = around.producers.get(value);
  return node && PASSING.has(node.op) ? sourceOf(node.inputs[0]!, around) : value;
}

/** The tables of the node that rotates a value. */
export function rotaryOf(value: string, around: Surroundings): Rotary | undefined {
  const node = around.producers.get(sourceOf(value, around));
  if (node?.op !== 'RotaryEmbedding') return undefined;
  const [cos, sin] = node.domain === '' ? node.inputs.slice(1, 3) : node.inputs.slice(2, 4);
  return { cos: cos!, sin: sin!, interleaved: numberOf(node, 'interleaved', 0) === 1 };
}

export function checkKnown(node: Node, { inputs, attributes }: Operator): void {
  node.inputs.forEach((input, n) => {
    const name = inputs[n];
    if (input === '' || (name !== undefined && !name.startsWith('['))) return;
    throw new RangeError(`"${title(node)}" expected no input ${name?.slice(1, -1) ?? n}, got ${input}`);
  });
  for (const [name, value] of node.attributes) {
    const only = Object.hasOwn(attributes, name) ? attributes[name] : undefined;
    if (only === null || only === value) continue;
    throw new RangeError(`"${title(node)}" expected ${only === undefined ? `no attribute ${name}` : `${name} ${only}`}, got ${value}`);
  }
}

/** What a cache must be told of it, but for what stands in constants. */
export function layerOf({ kvHeads, queryHeads, headDim, valueDim, window, softcap }: Attention): LayerOptions {
  return {
    kvHeads,
    queryHeads,
    headDim,
    valueDim,
    ...(window === undefined ? {} : { window }),
    ...(softcap === undefined ? {} : { softcap })
  };
}
