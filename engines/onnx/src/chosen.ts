// Tables of rotations of which a graph takes one up to some length and another beyond it, by an If: LongRoPE, as in Phi-3. The two become
// one, and every token takes its row where the length of its own sequence says.

import { type Surroundings, title } from './attention.ts';
import { type Graph, givenBy, type Node, numbersIn, type Tensor } from './graph.ts';
import type { Run } from './mask.ts';

/** A table that is one of two. */
export interface Chosen {
  /** The If, for messages. */
  readonly title: string;
  /** Value by which a call takes the second. */
  readonly condition: string;
  /** Of one type, [positions, pairs]. */
  readonly tables: readonly [Tensor, Tensor];
}

/** When one table takes over. */
export interface Turn {
  /** The first length of a sequence, with the call's tokens, that takes the later table. */
  readonly length: number;
  /** Rows before the earlier and before the later, where the second is put behind the first. */
  readonly starts: readonly [number, number];
  /** Up to which length the tables reach. */
  readonly positions: number;
}

/** The input with the row of every token in a table that is chosen, i64 [tokens]. */
export function positionsIn(table: string): string {
  return `nsnquant.positions in ${table}`;
}

const COMPARISONS = new Set(['Greater', 'GreaterOrEqual', 'Less', 'LessOrEqual']);

/** Values of a graph that comparisons choose of two constants, by the inputs of their positions. */
export function chosenTables({ nodes, tensors }: Graph, producers: ReadonlyMap<string, Node>): ReadonlyMap<string, Chosen> {
  const chosen = new Map<string, Chosen>();
  for (const node of nodes) {
    const [condition = ''] = node.inputs;
    if (node.op !== 'If' || !COMPARISONS.has(producers.get(condition)?.op ?? '')) continue;
    const branches = ['else_branch', 'then_branch'].map(name => {
      const graph = node.attributes.get(name);
      return graph instanceof Uint8Array ? givenBy(graph) : [];
    });
    for (const [n, output] of node.outputs.entries()) {
      const [first, second] = branches.map((given, branch) => {
        const table = given[n];
        return typeof table === 'string' ? tensors.get(table) : table && renamed(table, `nsnquant.${output} of branch ${branch}`);
      });
      const alike = first && second && first.type === second.type && [first, second].every(({ shape }) => shape.length === 2);
      if (!alike || first.shape[1] !== second.shape[1]) continue;
      chosen.set(positionsIn(output), { title: title(node), condition, tables: [first, second] });
    }
  }
  return chosen;
}

/** Branches may name their tensors alike. A large one is not to be copied into a message with its name. */
function renamed(tensor: Tensor, name: string): Tensor {
  if (!tensor.bytes) return { ...tensor, name };
  const numbers = numbersIn(tensor);
  const file = { name, size: numbers.length, read: async (from: number, to: number) => numbers.subarray(from, to) };
  return { ...tensor, name, bytes: undefined, place: { file, from: 0, to: numbers.length } };
}

/**
 * A table of a rotation, or the first of two that are chosen, which are alike; undefined where nodes compute it.
 *
 * @throws {RangeError} if it is chosen in another way: that might take one table for all rows of a batch
 */
export function tableOf(node: Node, name: string, { graph, producers, chosen }: Surroundings): Tensor | undefined {
  const table = chosen.get(positionsIn(name))?.tables[0] ?? graph.tensors.get(name);
  const maker = producers.get(name);
  if (table || maker?.op !== 'If') return table;
  throw new RangeError(
    `"${title(node)}" expected one table of cosines and one of sines, or an If of two constants by length, got ${title(maker)}`
  );
}

/**
 * Finds when one table takes over by trying the condition.
 *
 * @throws {RangeError} if it never does, or asks for something else than the sum of past and tokens
 */
export async function turnOf({ title, tables }: Chosen, condition: Run): Promise<Turn> {
  const holds = async (past: number, tokens: number) => ((await condition(past, tokens)).data as Uint8Array)[0] === 1;
  const [first, second] = tables.map(({ shape }) => shape[0]!) as [number, number];
  let [below, length] = [1, Math.max(first, second)];
  const beyond = await holds(length - 1, 1);
  if ((await holds(0, 1)) === beyond) throw new RangeError(`"${title}" expected to choose two tables up to ${length} tokens, got one`);
  while (length - below > 1) {
    const middle = (below + length) >> 1;
    if ((await holds(middle - 1, 1)) === beyond) length = middle;
    else below = middle;
  }
  for (const total of [below, length]) {
    for (const past of [0, total >> 1]) {
      if ((await holds(past, total - past)) === (beyond === (total === length))) continue;
      throw new RangeError(
        `"${title}" expected to choose by the sum of past and tokens, got another choice for ${past} and ${total - past}`
      );
    }
  }
  const [earlier, later] = beyond ? [first, second] : [second, first];
  return { length, starts: beyond ? [0, first] : [first, 0], positions: earlier < length - 1 ? earlier : later };
}
