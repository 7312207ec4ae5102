// Constants that several segments would hold each for itself: tables of rotations, and an embedding that is the head, too. Every call
// takes the rows that it needs instead, once.

import { type Surroundings, sourceOf } from './attention.ts';
import { positionsIn, tableOf } from './chosen.ts';
import type { Segment } from './cut.ts';
import { FLOAT, FLOAT16, type Graph, INT8, makeNode, type Node, type Port, type Tensor, UINT8, withInputs } from './graph.ts';

/** The input with the position of every token, i64 [tokens]. */
export const POSITIONS = 'nsnquant.positions';
/** The input with the number of every token within its call, i64 [1, tokens]. */
export const NUMBERS = 'nsnquant.numbers';

/** The input with the numbers of those tokens that logits are wanted of, i64 [kept]. */
export const KEPT = 'nsnquant.kept';

/** The size of a call, in shapes: no name of a graph's own, which may mean another size. */
export const TOKENS = 'nsnquant.tokens';

const MICROSOFT = 'com.microsoft';

/** Nodes that rotate by rows of these tables, at the tokens' positions. */
export function rotation(
  input: string,
  output: string,
  [cos, sin]: readonly [string, string],
  attributes: Readonly<Record<string, number>>,
  chosen: Surroundings['chosen']
): readonly Node[] {
  const rows = [cos, sin].flatMap(table => lookingUp(table, chosen));
  return [...rows, makeNode('RotaryEmbedding', [input, NUMBERS, rowsOf(cos), rowsOf(sin)], [output], attributes, MICROSOFT)];
}

/** The rows of a table that this call's tokens take, [tokens, pairs]. */
function rowsOf(table: string): string {
  return `nsnquant.rows of ${table}`;
}

/** What gives them; of two tables, as one. */
function lookingUp(table: string, chosen: Surroundings['chosen']): readonly Node[] {
  const positions = positionsIn(table);
  const tables = chosen.get(positions)?.tables;
  if (!tables) return [makeNode('Gather', [table, POSITIONS], [rowsOf(table)], { axis: 0 })];
  // ONNX Runtime puts constants together as it opens a session: a call takes 0.014 ms with 135,168 positions, as of one constant.
  const both = `nsnquant.both of ${table}`;
  const names = tables.map(({ name }) => name);
  return [makeNode('Concat', names, [both], { axis: 0 }), makeNode('Gather', [both, positions], [rowsOf(table)], { axis: 0 })];
}

/** A rotation of the graph by whole tables becomes one by rows of them. Any other node is left as it is. */
export function withRows(node: Node, around: Surroundings): readonly Node[] {
  if (node.op !== 'RotaryEmbedding') return [node];
  const [input = '', ...others] = node.inputs;
  const [positions = '', cos = '', sin = ''] = node.domain === '' ? [others[2], others[0], others[1]] : others;
  // Tables of three dimensions have rows of their own for every token already.
  const flat = [cos, sin].map(table => tableOf(node, table, around)?.shape.length === 2);
  if (sourceOf(positions, around) !== 'position_ids' || flat.includes(false)) return [node];
  const rows = [cos, sin].flatMap(table => lookingUp(table, around.chosen));
  const [cosines, sines] = [rowsOf(cos), rowsOf(sin)];
  return [...rows, withInputs(node, node.domain === '' ? [input, cosines, sines, NUMBERS] : [input, NUMBERS, cosines, sines])];
}

/** A look-up in tables that others need whole: its rows are read from the file, call by call. */
export interface Lookup {
  readonly node: Node;
  /** Inputs of the node with the rows of the call's tokens, and of which tensor they are. */
  readonly rows: ReadonlyMap<string, Tensor>;
}

/** The look-up of tokens that a node is, if what it looks up is large, and used by others too. */
export function lookupOf(node: Node, { tensors }: Graph, usedOften: (name: string) => boolean): Lookup | undefined {
  if (node.op !== 'Gather' && node.op !== 'GatherBlockQuantized') return undefined;
  const [table = '', ids, ...others] = node.inputs;
  const axis = node.attributes.get(node.op === 'Gather' ? 'axis' : 'gather_axis') ?? 0;
  if (ids !== 'input_ids' || axis !== 0 || !usedOften(table)) return undefined;
  const rows = new Map<string, Tensor>();
  const rowsIn = (name: string): string => {
    if (name === '') return name;
    rows.set(`nsnquant.rows of ${name}`, tensors.get(name)!);
    return `nsnquant.rows of ${name}`;
  };
  const parts = [table, ...others].filter(name => name !== '');
  // Small ones are copied; types of less than a byte have no rows that can be told apart.
  const rowed = ({ type, shape }: Tensor): boolean => type in ROW_BYTES && shape[0] === tensors.get(table)!.shape[0];
  if (!tensors.get(table)?.place || !parts.every(name => tensors.has(name) && rowed(tensors.get(name)!))) return undefined;
  return { node: withInputs(node, [rowsIn(table), NUMBERS, ...others.map(rowsIn)]), rows };
}

/** Bytes of a number, by the types of TensorProto that rows are read of. */
export const ROW_BYTES: Readonly<Record<number, number>> = { [FLOAT]: 4, [UINT8]: 1, [INT8]: 1, [FLOAT16]: 2 };

/**
 * The last segment for some tokens of a call alone: of a prompt one row of logits instead of thousands.
 *
 * @param ports  what is known of its inputs
 * @returns undefined where an input is none of floats [1, tokens, channels], but for how many logits to keep
 */
export function keepingRows(segment: Segment, ports: ReadonlyMap<string, Port>): Segment | undefined {
  const { nodes, inputs } = segment;
  const rows = inputs.filter(name => name !== 'num_logits_to_keep');
  const floats = rows.every(name => {
    const { type = 0, shape = [] } = ports.get(name) ?? {};
    return (type === FLOAT || type === FLOAT16) && shape.length >= 3;
  });
  if (!floats || nodes.some(({ captured }) => captured.some(name => rows.includes(name)))) return undefined;
  const kept = (name: string): string => (rows.includes(name) ? `nsnquant.kept of ${name}` : name);
  const gathers = rows.map(name => makeNode('Gather', [name, KEPT], [kept(name)], { axis: 1 }));
  const others = nodes.map(node => withInputs(node, node.inputs.map(kept)));
  return { ...segment, nodes: [...gathers, ...others], inputs: [...inputs, KEPT] };
}
