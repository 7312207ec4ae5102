// Attention nodes, read: what they compute, and which values go into a cache instead. What is not understood is refused by its name.

import type { LayerOptions } from 'nsnquant';
import { type Attribute, type Graph, makeIntegers, makeNode, type Node, type Port, type Tensor } from './graph.ts';

/** The input that forward() feeds with the position of every token, i64 [1, tokens]. */
export const POSITIONS = 'nsnquant.positions';

/** An attention of a graph, as the cache does it. Values are [1, tokens, heads · channels], or the same with heads apart. */
export interface Attention {
  /** Operator and name, for messages. */
  readonly title: string;
  readonly query: string;
  readonly key: string;
  readonly value: string;
  readonly output: string;
  readonly kvHeads: number;
  readonly queryHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** What multiplies ⟨q, k⟩; undefined: 1/√headDim. */
  readonly scale: number | undefined;
  readonly window: number | undefined;
  readonly softcap: number | undefined;
  /** `ones` for a sink of logit 0 in every head, or the name of a constant with all of them. */
  readonly sinks: 'zero' | { readonly name: string } | undefined;
  /** The tables that keys were rotated by, where that is known. */
  readonly rotary: Rotary | undefined;
  /** A mask that is added, and must turn out to be causal. */
  readonly mask: string | undefined;
  /** Inputs of the graph that were the past, and outputs that were the present. */
  readonly pasts: readonly string[];
  readonly before: readonly Node[];
  readonly after: readonly Node[];
  readonly tensors: readonly Tensor[];
}

export interface Rotary {
  readonly cos: string;
  readonly sin: string;
  readonly interleaved: boolean;
}

/** What an attention reads of the graph around it. */
export interface Surroundings {
  readonly graph: Graph;
  readonly producers: ReadonlyMap<string, Node>;
  readonly ports: ReadonlyMap<string, Port>;
}

/** The attention that a node is; undefined for any other node. */
export function readAttention(node: Node, around: Surroundings): Attention | undefined {
  const kind = kinds[`${node.domain}:${node.op}`];
  if (!kind) return undefined;
  checkKnown(node, kind);
  return kind.read(node, around);
}

/** One operator: what it may be told, and how it is read. */
export interface Kind {
  /** Inputs in their order; one in brackets must be absent. */
  readonly inputs: readonly string[];
  /** Attributes, and the one value that each may have; null for any. */
  readonly attributes: Readonly<Record<string, Attribute | null>>;
  /** Outputs that something may read; later ones are the present, or must be unused. */
  readonly read: (node: Node, around: Surroundings) => Attention;
}

const groupQuery: Kind = {
  inputs: [
    'query',
    'key',
    'value',
    'past_key',
    'past_value',
    'seqlens_k',
    'total_sequence_length',
    'cos_cache',
    'sin_cache',
    'position_ids',
    '[attention_bias]',
    'head_sink'
  ],
  attributes: {
    num_heads: null,
    kv_num_heads: null,
    scale: null,
    softcap: null,
    local_window_size: null,
    do_rotary: null,
    rotary_interleaved: null,
    smooth_softmax: null,
    causal: 1,
    qk_output: 0,
    sliding_window_cache: 0,
    kv_cache_bit_width: 0,
    k_quant_type: 'NONE',
    v_quant_type: 'NONE'
  },
  read(node, around) {
    const [query = '', key = '', value = '', pastKey = '', pastValue = '', , , cos = '', sin = '', , , headSink = ''] = node.inputs;
    const queryHeads = number(node, 'num_heads');
    const kvHeads = number(node, 'kv_num_heads');
    const headDim = pastChannels(node, around, 'past_key', pastKey, kvHeads);
    const rotates = number(node, 'do_rotary', 0) === 1;
    const interleaved = number(node, 'rotary_interleaved', 0) === 1;
    const window = number(node, 'local_window_size', -1);
    const output = node.outputs[0]!;
    const names = part(output);
    const before: Node[] = [];
    const tensors: Tensor[] = [];
    let parts: readonly [string, string, string] = [query, key, value];
    if (key === '') {
      tensors.push(makeIntegers(names('sizes'), [queryHeads * headDim, kvHeads * headDim, kvHeads * headDim]));
      parts = [names('query'), names('key'), names('value')];
      before.push(makeNode('Split', [query, names('sizes')], parts, { axis: -1 }));
    }
    if (rotates) {
      const channels = 2 * constantWidth(node, around, 'cos_cache', cos);
      const rotate = (input: string, to: string, heads: number): string => {
        const partial = channels < headDim ? { rotary_embedding_dim: channels } : {};
        const attributes = { interleaved: interleaved ? 1 : 0, num_heads: heads, ...partial };
        before.push(makeNode('RotaryEmbedding', [input, POSITIONS, cos, sin], [to], attributes, 'com.microsoft'));
        return to;
      };
      parts = [rotate(parts[0], names('rotated query'), queryHeads), rotate(parts[1], names('rotated key'), kvHeads), parts[2]];
    }
    return {
      title: title(node),
      query: parts[0],
      key: parts[1],
      value: parts[2],
      output,
      kvHeads,
      queryHeads,
      headDim,
      valueDim: headDim,
      scale: number(node, 'scale', 0) || undefined,
      window: window > 0 ? window : undefined,
      softcap: number(node, 'softcap', 0) || undefined,
      sinks: headSink ? { name: headSink } : number(node, 'smooth_softmax', 0) === 1 ? 'zero' : undefined,
      rotary: rotates ? { cos, sin, interleaved } : undefined,
      mask: undefined,
      pasts: [pastKey, pastValue],
      before,
      after: [],
      tensors
    };
  }
};

const kinds: Readonly<Record<string, Kind>> = { 'com.microsoft:GroupQueryAttention': groupQuery };

export function title({ op, name }: Node): string {
  return name === '' ? op : `${op} ${name}`;
}

/** Names for what is put in around an attention. */
export function part(output: string): (name: string) => string {
  return name => `nsnquant.${output}.${name}`;
}

export function number(node: Node, name: string, otherwise?: number): number {
  const value = node.attributes.get(name) ?? otherwise;
  if (typeof value !== 'number') throw new RangeError(`"${title(node)}" expected a number as ${name}, got ${value}`);
  return value;
}

/** Channels of a head, by the shape [batch, kvHeads, tokens, channels] of a past. */
function pastChannels(node: Node, { ports }: Surroundings, name: string, past: string, kvHeads: number): number {
  const port = ports.get(past);
  if (!port) throw new RangeError(`"${title(node)}" expected an input of the graph as ${name}, got ${past || 'none'}`);
  const channels = port.shape?.[3];
  if (port.shape?.length !== 4 || typeof channels !== 'number' || (typeof port.shape[1] === 'number' && port.shape[1] !== kvHeads)) {
    throw new RangeError(`"${past}" expected shape [batch, ${kvHeads}, tokens, channels], got [${port.shape}]`);
  }
  return channels;
}

function constantWidth(node: Node, { graph, producers }: Surroundings, name: string, value: string): number {
  const tensor = graph.tensors.get(value);
  const width = tensor?.shape[1];
  if (width !== undefined) return width;
  throw new RangeError(`"${title(node)}" expected a constant as ${name}, got ${producers.get(value)?.op ?? (value || 'none')}`);
}

function checkKnown(node: Node, { inputs, attributes }: Kind): void {
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

/** What a cache must be told of it. `rope` and sink logits are in other places of the file. */
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
