// Cuts a graph at its attentions into segments: what can be computed before the first, between each two, and after the last.

import { type Attention, POSITIONS, readAttention, title } from './attention.ts';
import type { Graph, Node, Port, Tensor } from './graph.ts';

/** A part of the graph that one session runs. */
export interface Segment {
  readonly nodes: readonly Node[];
  readonly tensors: readonly Tensor[];
  /** Values from outside: feeds, what attentions gave, what earlier segments did. */
  readonly inputs: readonly string[];
  /** Values that attentions, later segments or the caller take. */
  readonly outputs: readonly string[];
  /** Attentions that run after it, by their layer. */
  readonly attentions: readonly number[];
}

/** What stands for Shape(past): a slice of [batch, kvHeads, tokens, headDim] of a layer, whose tokens only the call knows. */
export interface PastShape {
  readonly layer: number;
  readonly from: number;
  readonly to: number;
}

export interface Cut {
  readonly segments: readonly Segment[];
  readonly attentions: readonly Attention[];
  /** Inputs that are left, by name. */
  readonly feeds: ReadonlyMap<string, Port>;
  /** Inputs that take the place of shapes of the past. */
  readonly pastShapes: ReadonlyMap<string, PastShape>;
  readonly logits: string;
}

const INT64 = 7;

export function cutGraph(graph: Graph): Cut {
  const { attentions, nodes, tensors, pastShapes } = withoutAttentions(graph);
  const ports = new Map(graph.inputs.map(port => [port.name, port]));
  ports.set(POSITIONS, { name: POSITIONS, type: INT64, shape: [1, 'tokens'] });
  for (const name of pastShapes.keys()) ports.set(name, { name, type: INT64, shape: undefined });
  for (const name of tensors.keys()) ports.delete(name); // an initializer may be listed as an input, too
  const logits = logitsOf(graph);

  const levels = new Map<string, number>([...ports.keys()].map(name => [name, 0]));
  const makers = new Map<string, Node>();
  const constant = new Set(tensors.keys());
  // After how many attentions a value is known; undefined for constants.
  const levelOf = (values: readonly string[], of: string): number | undefined => {
    let level: number | undefined;
    for (const value of values) {
      if (value === '' || constant.has(value)) continue;
      const known = levels.get(value);
      if (known === undefined) throw new RangeError(`"${of}" expected values of earlier nodes, got ${value}`);
      level = Math.max(level ?? 0, known);
    }
    return level;
  };
  const sites: number[] = []; // of every attention the segment that it runs after
  for (const step of nodes) {
    if (typeof step === 'number') {
      const { title, query, key, value, output } = attentions[step]!;
      const level = levelOf([query, key, value], title) ?? 0;
      sites.push(level);
      levels.set(output, level + 1);
      continue;
    }
    const level = levelOf(uses(step), title(step));
    for (const output of step.outputs) {
      makers.set(output, step);
      if (level === undefined) constant.add(output);
      else levels.set(output, level);
    }
  }

  const parts = Array.from({ length: Math.max(...sites) + 2 }, () => new Part());
  const needed = [logits, ...attentions.flatMap(({ query, key, value }) => [query, key, value])];
  const feeds = new Map<string, Port>();
  // What one segment makes and another takes.
  const crossing = new Set(needed);
  const take = (value: string, part: Part, level: number): void => {
    if (value === '' || part.known.has(value)) return;
    part.known.add(value);
    const maker = makers.get(value);
    if (constant.has(value) || (maker && levels.get(value) === level)) {
      if (!maker) {
        part.tensors.push(tensors.get(value)!);
        return;
      }
      for (const output of maker.outputs) part.known.add(output);
      for (const used of uses(maker)) take(used, part, level);
      part.nodes.push(maker);
      return;
    }
    part.inputs.push(value);
    const port = ports.get(value);
    if (port) feeds.set(value, port);
    else crossing.add(value);
  };
  for (let level = parts.length - 1; level >= 0; level--) {
    for (const value of crossing) if (makers.has(value) && levels.get(value) === level) take(value, parts[level]!, level);
  }
  const segments = parts.map(({ nodes, tensors, inputs, known }, level) => ({
    nodes,
    tensors,
    inputs,
    outputs: [...crossing].filter(value => makers.has(value) && levels.get(value) === level && known.has(value)),
    attentions: sites.flatMap((site, layer) => (site === level ? [layer] : []))
  }));
  return { segments, attentions, feeds, pastShapes, logits };
}

/** A segment while it is gathered. Nodes come after those whose values they use. */
class Part {
  readonly nodes: Node[] = [];
  readonly tensors: Tensor[] = [];
  readonly inputs: string[] = [];
  readonly known = new Set<string>();
}

function uses({ inputs, captured }: Node): readonly string[] {
  return captured.length > 0 ? [...inputs, ...captured] : inputs;
}

/** The graph's nodes in their order, with the number of an attention where it was, and what it needs around it. */
function withoutAttentions(graph: Graph) {
  const producers = new Map(graph.nodes.flatMap(node => node.outputs.map(output => [output, node] as const)));
  const ports = new Map(graph.inputs.map(port => [port.name, port]));
  const attentions: Attention[] = [];
  const tensors = new Map(graph.tensors);
  const nodes: (Node | number)[] = [];
  const shapes: Node[] = [];
  for (const node of graph.nodes) {
    const attention = readAttention(node, { graph, producers, ports });
    if (!attention) {
      if (node.op === 'Shape' && ports.has(node.inputs[0]!)) shapes.push(node);
      nodes.push(node);
      continue;
    }
    nodes.push(...attention.before, attentions.length, ...attention.after);
    attentions.push(attention);
    for (const tensor of attention.tensors) tensors.set(tensor.name, tensor);
  }
  if (attentions.length === 0) {
    const found = graph.nodes.find(({ op }) => op === 'If' || op === 'Loop');
    const got = found ? `the nested graphs of ${title(found)}` : `${graph.nodes.length} nodes without one`;
    throw new RangeError(`"model" expected GroupQueryAttention, MultiHeadAttention or Attention in its graph, got ${got}`);
  }
  const pastShapes = new Map<string, PastShape>();
  const layers = new Map(attentions.flatMap(({ pasts }, layer) => pasts.map(past => [past, layer] as const)));
  for (const shape of shapes) {
    const layer = layers.get(shape.inputs[0]!);
    if (layer === undefined) continue;
    const { start = 0, end = 4 } = Object.fromEntries(shape.attributes) as { start?: number; end?: number };
    pastShapes.set(shape.outputs[0]!, { layer, from: start, to: end });
    nodes.splice(nodes.indexOf(shape), 1);
  }
  return { attentions, nodes, tensors, pastShapes };
}

/** The output that is no present. */
function logitsOf({ outputs }: Graph): string {
  const named = outputs.find(({ name }) => name === 'logits') ?? (outputs.length === 1 ? outputs[0] : undefined);
  if (named) return named.name;
  throw new RangeError(`"model" expected an output logits, got ${outputs.map(({ name }) => name).join(', ')}`);
}
