// Cuts a graph at its attentions into segments: what can be computed before the first, between each two, and after the last.

import { type Attention, title } from './attention.ts';
import { type Chosen, chosenTables, positionsIn, type Turn } from './chosen.ts';
import { type Graph, INT64, type Node, type Port, type Tensor } from './graph.ts';
import { readAttention } from './operators.ts';
import { lookupOf, NUMBERS, POSITIONS, TOKENS, withRows } from './sharing.ts';

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
  readonly to: number | undefined;
}

export interface Cut {
  readonly segments: readonly Segment[];
  readonly attentions: readonly Attention[];
  /** What is tried as the model is opened: what gives masks, and conditions by which tables are chosen, by name. */
  readonly tried: ReadonlyMap<string, Segment>;
  /** Inputs that are left, by name. */
  readonly feeds: ReadonlyMap<string, Port>;
  /** Those of them that take the place of shapes of the past. */
  readonly pastShapes: ReadonlyMap<string, PastShape>;
  /** Those of them that take rows of large tables, and of which. */
  readonly rows: ReadonlyMap<string, Tensor>;
  /** Those of them with positions in tables that are chosen by length, and in which. */
  readonly chosen: ReadonlyMap<string, Chosen>;
  /** When which table is chosen, by the same names; known once it was tried. */
  readonly turns: ReadonlyMap<string, Turn>;
  /** Whether a node beside attentions takes tokens together: LongRoPE without an If asks for the highest position of a call. */
  readonly mixes: boolean;
  readonly logits: string;
}

export function cutGraph(graph: Graph): Cut {
  const { attentions, nodes, tensors, pastShapes, rows, chosen } = withoutAttentions(graph);
  const ports = new Map(graph.inputs.map(port => [port.name, port]));
  ports.set(POSITIONS, { name: POSITIONS, type: INT64, shape: [TOKENS] });
  ports.set(NUMBERS, { name: NUMBERS, type: INT64, shape: [1, TOKENS] });
  for (const [name, { type, shape }] of rows) ports.set(name, { name, type, shape: [TOKENS, ...shape.slice(1)] });
  for (const name of chosen.keys()) ports.set(name, { name, type: INT64, shape: [TOKENS] });
  for (const name of pastShapes.keys()) ports.set(name, { name, type: INT64, shape: undefined });
  for (const name of tensors.keys()) ports.delete(name); // an initializer may be listed as an input, too
  const { levels, makers, sites } = levelsOf(nodes, attentions, tensors, ports);

  const logits = logitsOf(graph);
  // What one segment makes and another, an attention or the caller takes.
  const crossing = new Set([logits, ...attentions.flatMap(({ query, key, value }) => [query, key, value])]);
  const gather = (values: Iterable<string>, level: number): Segment => {
    const part = { nodes: [] as Node[], tensors: [] as Tensor[], inputs: [] as string[], outputs: [] as string[] };
    const known = new Set<string>();
    const take = (value: string): void => {
      if (value === '' || known.has(value)) return;
      known.add(value);
      const maker = makers.get(value);
      const own = levels.get(value) ?? level; // constants are every segment's own
      if (maker && own === level) {
        for (const output of maker.outputs) known.add(output);
        for (const used of uses(maker)) take(used);
        part.nodes.push(maker);
      } else if (levels.has(value)) part.inputs.push(value);
      else part.tensors.push(tensors.get(value)!);
    };
    for (const value of values) {
      if (!makers.has(value) || levels.get(value) !== level) continue;
      take(value);
      part.outputs.push(value);
    }
    return { ...part, attentions: sites.flatMap((site, layer) => (site === level ? [layer] : [])) };
  };
  const segments: Segment[] = [];
  for (let level = Math.max(...sites) + 1; level >= 0; level--) {
    const segment = gather(crossing, level);
    for (const input of segment.inputs) if (makers.has(input)) crossing.add(input);
    segments.unshift(segment);
  }
  const used = new Set(segments.flatMap(({ inputs }) => inputs));
  const turning = new Set(attentions.flatMap(({ rotary }) => (rotary ? [rotary.cos, rotary.sin].map(positionsIn) : [])));
  const choices = new Map([...chosen].filter(([name]) => used.has(name) || turning.has(name)));
  const tried = new Map<string, Segment>();
  const tryOut = (name: string, title: string, what: string): void => {
    if (tried.has(name)) return;
    if (levels.get(name) !== 0 || !makers.has(name)) throw new RangeError(`"${title}" expected ${what} of lengths alone, got ${name}`);
    tried.set(name, gather([name], 0));
  };
  for (const { mask, title } of attentions) if (mask !== undefined) tryOut(mask, title, 'a mask');
  for (const { condition, title } of choices.values()) tryOut(condition, title, 'a condition');
  for (const { inputs } of tried.values()) for (const name of inputs) used.add(name);
  const feeds = new Map([...ports].filter(([name]) => used.has(name)));
  const mixes = segments.some(({ nodes }) => nodes.some(({ op }) => op === 'ReduceMax'));
  return { segments, attentions, tried, feeds, pastShapes, rows, chosen: choices, turns: new Map(), mixes, logits };
}

/** After how many attentions every value is known that is no constant; which node makes it; and of every attention its own level. */
function levelsOf(
  nodes: readonly (Node | number)[],
  attentions: readonly Attention[],
  tensors: ReadonlyMap<string, Tensor>,
  ports: ReadonlyMap<string, Port>
) {
  const levels = new Map<string, number>([...ports.keys()].map(name => [name, 0]));
  const makers = new Map<string, Node>();
  const sites: number[] = [];
  const levelOf = (values: readonly string[], of: string): number | undefined => {
    let level: number | undefined;
    for (const value of values) {
      if (value === '') continue;
      const known = levels.get(value);
      if (known !== undefined) level = Math.max(level ?? 0, known);
      else if (!tensors.has(value) && !makers.has(value)) throw new RangeError(`"${of}" expected values of earlier nodes, got ${value}`);
    }
    return level;
  };
  for (const step of nodes) {
    if (typeof step === 'number') {
      const { title, query, key, value, output } = attentions[step]!;
      const level = levelOf([query, key, value], title) ?? 0;
      sites.push(level);
      levels.set(output, level + 1);
    } else {
      const level = levelOf(uses(step), title(step));
      for (const output of step.outputs) {
        makers.set(output, step);
        if (level !== undefined) levels.set(output, level);
      }
    }
  }
  return { levels, makers, sites };
}

function uses({ inputs, captured }: Node): readonly string[] {
  return captured.length > 0 ? [...inputs, ...captured] : inputs;
}

/** The graph's nodes in their order, with the number of an attention where it was, and what it needs around it. */
function withoutAttentions(graph: Graph) {
  const producers = new Map(graph.nodes.flatMap(node => node.outputs.map(output => [output, node] as const)));
  const ports = new Map(graph.inputs.map(port => [port.name, port]));
  const chosen = chosenTables(graph, producers);
  const around = { graph, producers, ports, chosen };
  const attentions: Attention[] = [];
  const tensors = new Map(graph.tensors);
  for (const table of [...chosen.values()].flatMap(({ tables }) => tables)) tensors.set(table.name, table);
  const nodes: (Node | number)[] = [];
  const shapes: Node[] = [];
  const rows = new Map<string, Tensor>();
  const counts = new Map<string, number>();
  if (ports.has('use_cache_branch')) {
    throw new RangeError('"model" expected a decoder with a past, got one merged with one without a past, by the input use_cache_branch');
  }
  for (const name of graph.nodes.flatMap(uses)) counts.set(name, (counts.get(name) ?? 0) + 1);
  const added = new Set<string>();
  // Rows of a table are taken once, however many attentions ask for them.
  const add = (node: Node): void => {
    if (added.has(node.outputs[0]!)) return;
    added.add(node.outputs[0]!);
    nodes.push(node);
  };
  for (const node of graph.nodes) {
    const attention = readAttention(node, around);
    if (attention) {
      for (const before of attention.before) add(before);
      nodes.push(attentions.length, ...attention.after);
      attentions.push(attention);
      for (const tensor of attention.tensors) tensors.set(tensor.name, tensor);
    } else {
      if (node.op === 'Shape' && ports.has(node.inputs[0]!)) shapes.push(node);
      const lookup = lookupOf(node, graph, name => (counts.get(name) ?? 0) > 1);
      for (const [name, tensor] of lookup?.rows ?? []) rows.set(name, tensor);
      for (const part of lookup ? [lookup.node] : withRows(node, around)) add(part);
    }
  }
  if (attentions.length === 0) {
    const got = `${graph.nodes.length} nodes without one`;
    throw new RangeError(`"model" expected GroupQueryAttention, MultiHeadAttention or Attention in its graph, got ${got}`);
  }
  const layers = new Map(attentions.flatMap(({ pasts }, layer) => pasts.map(past => [past, layer] as const)));
  const pastShapes = new Map<string, PastShape>();
  for (const shape of shapes) {
    const layer = layers.get(shape.inputs[0]!);
    if (layer === undefined) continue;
    const { start = 0, end } = Object.fromEntries(shape.attributes) as { start?: number; end?: number };
    pastShapes.set(shape.outputs[0]!, { layer, from: start, to: end });
  }
  return {
    attentions,
    nodes: nodes.filter(step => typeof step === 'number' || !pastShapes.has(step.outputs[0]!)),
    tensors,
    pastShapes,
    rows,
    chosen
  };
}

/** The output that is no present. */
function logitsOf({ outputs }: Graph): string {
  const named = outputs.find(({ name }) => name === 'logits') ?? (outputs.length === 1 ? outputs[0] : undefined);
  if (named) return named.name;
  throw new RangeError(`"model" expected an output logits, got ${outputs.map(({ name }) => name).join(', ')}`);
}
