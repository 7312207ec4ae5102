// Decoders as exporters write them, tiny and of seeded weights: their nodes, names and types, and what a real file has around them.
import { integer, join, message, type Pieces, text } from '../src/protobuf.ts';
import { BOOL, FLOAT, FLOAT16, INT64, MICROSOFT, UINT8, type Value, Writer, type WriterOptions } from './writer.ts';

export interface DecoderOptions extends WriterOptions {
  readonly layers?: number;
  readonly attention?: 'GroupQueryAttention' | 'MultiHeadAttention' | 'Attention';
  /** Of the attention node, beside heads; a function of the layer where they differ. */
  readonly attributes?: (layer: number) => Readonly<Record<string, Value>>;
  /** Base of RoPE in a layer. */
  readonly base?: (layer: number) => number;
  /** A mask that nodes compute from the shapes of tokens and past: what it hides. */
  readonly mask?: 'later' | 'later or behind 6' | 'the first' | 'later, by degrees';
  /** Of Attention: heads apart, and the past put before new tokens by nodes of its own. */
  readonly apart?: 'past inside' | 'past outside';
  /** Queries, keys and values in one input. */
  readonly packed?: boolean;
  /** Norms of queries and keys by head, as Qwen 3 has them; rotation then stands in nodes before the attention. */
  readonly headNorms?: boolean;
  readonly sinks?: boolean;
  /** Pairs of channels that are rotated; the others are not. */
  readonly pairs?: number;
  /** The graph is told how many rows of logits to keep. */
  readonly keeps?: boolean;
  /** An operator before the head that takes tokens together. */
  readonly mixing?: string;
  /** The head is the embedding. */
  readonly tied?: boolean;
  /** In branches of an If: the whole decoder, or which tables rotate. */
  readonly branches?: 'decoder' | 'merged decoder' | 'tables';
  /** Tables that an If chooses by length, as for Phi-3. */
  readonly longRope?: LongRope;
}

interface LongRope {
  /** The longest sequence that takes the table for short ones, which has as many positions. */
  readonly original: number;
  /** What it is compared with: the size of the mask, the highest position, or sizes of past and tokens; or no If, but positions moved. */
  readonly by: 'attention_mask' | 'position_ids' | 'shapes' | 'moving';
  /** The If computes its tables. */
  readonly computes?: boolean;
}

export interface Exported {
  readonly model: Uint8Array;
  /** What lies in the file `external`. */
  readonly weights: Uint8Array;
  readonly layers: number;
  readonly kvHeads: number;
  readonly half: boolean;
}

export const VOCABULARY = 211;
export const QUERY_HEADS = 4;
export const KV_HEADS = 2;
export const HEAD_DIM = 32;
const HIDDEN = 96;
const FEED_FORWARD = 128;
export const POSITIONS = 512;

/** A file, and what a decoder's caller must know of it. */
export function exportDecoder(options: DecoderOptions = {}): Exported {
  const { layers = 3, attention = 'GroupQueryAttention', half = false } = options;
  const type = half ? FLOAT16 : FLOAT;
  const writer = new Writer(options);
  let hidden = embedding(writer, options);
  if (attention === 'GroupQueryAttention') lengths(writer);
  if (options.longRope) longRope(writer, options.longRope, options);
  if (options.mask) maskOf(writer, options);
  let normed = norm(writer, 'layers.0.input_norm', hidden);
  for (let layer = 0; layer < layers; layer++) {
    const name = `layers.${layer}`;
    const attended = attentionOf(writer, layer, normed, options);
    const output = writer.linear(`${name}.o_proj`, attended, QUERY_HEADS * HEAD_DIM, HIDDEN);
    [normed, hidden] = skipNorm(writer, `${name}.post_norm`, hidden, output);
    const gate = writer.linear(`${name}.gate_proj`, normed, HIDDEN, FEED_FORWARD);
    const up = writer.linear(`${name}.up_proj`, normed, HIDDEN, FEED_FORWARD);
    const sigmoid = writer.node('Sigmoid', [gate], [`${name}.sigmoid`]);
    const silu = writer.node('Mul', [gate, sigmoid], [`${name}.silu`]);
    const down = writer.linear(`${name}.down_proj`, writer.node('Mul', [silu, up], [`${name}.gated`]), FEED_FORWARD, HIDDEN);
    [normed, hidden] = skipNorm(writer, `layers.${layer + 1}.input_norm`, hidden, down);
  }
  if (options.mixing) normed = writer.node(options.mixing, [normed, normed], ['mixed']);
  head(writer, options.keeps ? kept(writer, normed) : normed, options);
  const pasts = Array.from({ length: layers }, (_, n) => ['key', 'value'].map(side => `${n}.${side}`)).flat();
  const past = (tokens: string) => ['batch_size', kvHeadsOf(options), tokens, HEAD_DIM];
  const outputs = [
    ...port(12, 'logits', type, ['batch_size', 'tokens', VOCABULARY]),
    ...pasts.flatMap(name => port(12, `present.${name}`, type, past('total')))
  ];
  if (options.branches?.endsWith('decoder')) {
    const branch = [...writer.nodes.splice(0).flatMap(node => message(1, node)), ...text(2, 'branch'), ...outputs];
    branchesOf(writer, branch, ['logits', ...pasts.map(name => `present.${name}`)], options);
  }
  const graph = [
    ...writer.nodes.flatMap(node => message(1, node)),
    ...text(2, 'decoder'),
    ...writer.initializers.flatMap(tensor => message(5, tensor)),
    ...(options.branches ? port(11, options.branches === 'merged decoder' ? 'use_cache_branch' : 'chosen', BOOL, [1]) : []),
    ...port(11, 'input_ids', INT64, ['batch_size', 'tokens']),
    ...(options.keeps ? port(11, 'num_logits_to_keep', INT64, []) : []),
    ...port(11, 'attention_mask', INT64, ['batch_size', 'total']),
    ...(rotatesBefore(options) || positionsOf(options) ? port(11, 'position_ids', INT64, ['batch_size', 'tokens']) : []),
    ...pasts.flatMap(name => port(11, `past_key_values.${name}`, type, past('past'))),
    ...outputs
  ];
  const opset = (domain: string, version: number) => message(8, [...text(1, domain), ...integer(2, version)]);
  const standard = attention === 'Attention' ? 23 : 18;
  const model = join([
    ...integer(1, attention === 'Attention' ? 11 : 9),
    ...message(7, graph),
    ...opset('', standard),
    ...opset(MICROSOFT, 1)
  ]);
  return { model, weights: join(writer.external), layers, kvHeads: kvHeadsOf(options), half };
}

/** An If of two branches that are the same. */
function branchesOf(writer: Writer, branch: Pieces, outputs: readonly string[], { branches }: DecoderOptions): void {
  const chosen = branches === 'merged decoder' ? 'use_cache_branch' : 'chosen';
  writer.node('If', [chosen], outputs, { then_branch: { graph: branch }, else_branch: { graph: branch } });
}

/** MultiHeadAttention has as many heads of keys and values as of queries. */
function kvHeadsOf({ attention }: DecoderOptions): number {
  return attention === 'MultiHeadAttention' ? QUERY_HEADS : KV_HEADS;
}

function rotatesBefore({ headNorms, attention }: DecoderOptions): boolean {
  return headNorms === true || (attention !== undefined && attention !== 'GroupQueryAttention');
}

/** Positions that nodes make of those of the graph. */
function positionsOf({ longRope }: DecoderOptions): string {
  return longRope?.by === 'moving' ? 'moved' : longRope?.by === 'position_ids' ? 'reshaped' : '';
}

const BLOCKS = HIDDEN / 32;

function embedding(writer: Writer, { tied, bits }: DecoderOptions): string {
  if (!tied || !bits) return writer.node('Gather', [writer.random('embed_tokens', [VOCABULARY, HIDDEN], 1), 'input_ids'], ['hidden']);
  const codes = Uint8Array.from({ length: VOCABULARY * HIDDEN }, (_, i) => 64 + ((i * i * 31) % 128));
  const inputs = [
    writer.tensor('codes', UINT8, [VOCABULARY, HIDDEN], codes),
    'input_ids',
    writer.random('scales', [VOCABULARY, BLOCKS], 0, 0.03)
  ];
  return writer.node('GatherBlockQuantized', inputs, ['hidden'], { bits: 8, block_size: 32, gather_axis: 0, quantize_axis: 1 }, MICROSOFT);
}

/** The last rows alone; all where the number is 0. */
function kept(writer: Writer, input: string): string {
  const first = writer.node(
    'Unsqueeze',
    [writer.node('Neg', ['num_logits_to_keep'], ['keep.from']), writer.integers('keep.axis', [0])],
    ['keep.first']
  );
  return writer.node('Slice', [input, first, writer.integers('keep.end', [2 ** 31]), writer.integers('keep.axes', [1])], ['keep']);
}

function head(writer: Writer, input: string, { tied, bits }: DecoderOptions): void {
  if (!tied) writer.node('Identity', [writer.linear('lm_head', input, HIDDEN, VOCABULARY, false)], ['logits']);
  else if (!bits) writer.node('MatMul', [input, writer.node('Transpose', ['embed_tokens'], ['turned'], { perm: [1, 0] })], ['logits']);
  else {
    const codes = writer.node('Reshape', ['codes', writer.integers('codes.shape', [VOCABULARY, BLOCKS, 32])], ['codes.blocks']);
    const scales = writer.node('Reshape', ['scales', writer.integers('scales.shape', [-1])], ['scales.list']);
    writer.node('MatMulNBits', [input, codes, scales], ['logits'], { K: HIDDEN, N: VOCABULARY, bits: 8, block_size: 32 }, MICROSOFT);
  }
}

/** What GroupQueryAttention is told of lengths, of the mask. */
function lengths(writer: Writer): void {
  const sum = writer.node('ReduceSum', ['attention_mask', writer.integers('one', [1])], ['tokens of each'], { keepdims: 0 });
  const last = writer.node('Sub', [sum, 'one'], ['last of each']);
  writer.node('Cast', [last], ['seqlens_k'], { to: 6 });
  const shape = writer.node('Shape', ['attention_mask'], ['mask shape']);
  const total = writer.node(
    'Gather',
    [shape, writer.tensor('axis 1', INT64, [], new Uint8Array(BigInt64Array.of(1n).buffer))],
    ['total of all'],
    { axis: 0 }
  );
  writer.node('Cast', [total], ['total_sequence_length'], { to: 6 });
}

function attentionOf(writer: Writer, layer: number, input: string, options: DecoderOptions): string {
  const { attention = 'GroupQueryAttention', packed, headNorms, sinks, attributes = () => ({}), base = () => 10_000 } = options;
  const name = `layers.${layer}`;
  const kvHeads = kvHeadsOf(options);
  const widths = { q: QUERY_HEADS * HEAD_DIM, k: kvHeads * HEAD_DIM, v: kvHeads * HEAD_DIM };
  const constants = options.longRope ? LONG_ROPE : rotation(writer, base(layer), options.pairs);
  const tables = options.branches === 'tables' ? chosenTables(writer, name, constants, options) : constants;
  let parts: string[];
  if (packed) parts = [writer.linear(`${name}.qkv_proj`, input, HIDDEN, widths.q + widths.k + widths.v), '', ''];
  else
    parts = (['q', 'k', 'v'] as const).map(side =>
      writer.linear(`${name}.${side}_proj`, input, HIDDEN, widths[side], attention === 'MultiHeadAttention' ? false : options.biases)
    );
  const before = rotatesBefore(options);
  if (before) {
    for (const [n, side] of (['q', 'k'] as const).entries()) {
      const heads = n === 0 ? QUERY_HEADS : kvHeads;
      const normed = headNorms ? headNorm(writer, `${name}.${side}_norm`, parts[n]!, heads) : parts[n]!;
      parts[n] = writer.node(
        'RotaryEmbedding',
        [normed, positionsOf(options) || 'position_ids', ...tables],
        [`${name}.${side}_rotated`],
        { num_heads: heads },
        MICROSOFT
      );
    }
  }
  const pasts = [`past_key_values.${layer}.key`, `past_key_values.${layer}.value`];
  const outputs = [`${name}.attention`, `present.${layer}.key`, `present.${layer}.value`];
  const own = attributes(layer);
  if (attention === 'GroupQueryAttention') {
    const sink = sinks ? writer.random(`${name}.sinks`, [QUERY_HEADS], 1) : '';
    const inputs = [
      ...parts,
      ...pasts,
      'seqlens_k',
      'total_sequence_length',
      ...(before ? ['', ''] : tables),
      ...(sink || positionsOf(options) ? [before ? '' : positionsOf(options), '', sink] : [])
    ];
    const heads = { num_heads: QUERY_HEADS, kv_num_heads: KV_HEADS, do_rotary: before ? 0 : 1 };
    return writer.node(attention, inputs, outputs, { ...heads, ...own }, MICROSOFT);
  }
  const mask = options.mask ? 'mask' : '';
  if (attention === 'MultiHeadAttention') {
    const bias = options.biases ? writer.random(`${name}.bias`, [3 * QUERY_HEADS * HEAD_DIM], 0.5) : '';
    return writer.node(attention, [...parts, bias, '', mask, ...pasts], outputs, { num_heads: QUERY_HEADS, ...own }, MICROSOFT);
  }
  if (!options.apart)
    return writer.node(attention, [...parts, mask, ...pasts], outputs, { q_num_heads: QUERY_HEADS, kv_num_heads: KV_HEADS, ...own });
  const apart = parts.map((part, n) => {
    const shape = writer.integers(`${part}.shape`, [0, 0, n === 0 ? QUERY_HEADS : KV_HEADS, HEAD_DIM]);
    return writer.node('Transpose', [writer.node('Reshape', [part, shape], [`${part}.heads`])], [`${part}.heads first`], {
      perm: [0, 2, 1, 3]
    });
  });
  const heads = [`${name}.heads`, ...outputs.slice(1)];
  if (options.apart === 'past inside') writer.node(attention, [...apart, mask, ...pasts], heads, own);
  else {
    const all = [1, 2].map(n => writer.node('Concat', [pasts[n - 1]!, apart[n]!], [outputs[n]!], { axis: -2 }));
    writer.node(attention, [apart[0]!, ...all, mask], [heads[0]!], own);
  }
  const back = writer.node('Transpose', [heads[0]!], [`${name}.tokens first`], { perm: [0, 2, 1, 3] });
  return writer.node('Reshape', [back, writer.integers(`${name}.together`, [0, 0, -1])], [outputs[0]!]);
}

/** The mask [1, 1, tokens, past + tokens], as graphs compute it that have no GroupQueryAttention. */
function maskOf(writer: Writer, { mask, half }: DecoderOptions): void {
  const scalar = (name: string, value: number) => writer.tensor(name, INT64, [], new Uint8Array(BigInt64Array.of(BigInt(value)).buffer));
  const number = (name: string, value: number) => writer.floats(name, [1], Float32Array.of(value));
  const [zero, one, two] = [scalar('mask.0', 0), scalar('mask.1', 1), scalar('mask.2', 2)];
  const past = writer.node('Gather', [writer.node('Shape', ['past_key_values.0.key'], ['mask.past shape']), two], ['mask.past']);
  const tokens = writer.node('Gather', [writer.node('Shape', ['input_ids'], ['mask.ids shape']), one], ['mask.tokens']);
  const total = writer.node('Add', [past, tokens], ['mask.total']);
  const rows = writer.node(
    'Unsqueeze',
    [writer.node('Range', [past, total, one], ['mask.positions']), writer.integers('mask.axis', [1])],
    ['mask.rows']
  );
  const columns = writer.node('Range', [zero, total, one], ['mask.columns']);
  const behind = writer.node('Sub', [rows, columns], ['mask.behind']);
  let hidden = writer.node('Less', [behind, zero], ['mask.later']);
  if (mask === 'later or behind 6')
    hidden = writer.node('Or', [hidden, writer.node('Greater', [behind, scalar('mask.5', 5)], ['mask.far'])], ['mask.hidden']);
  if (mask === 'the first') hidden = writer.node('Or', [hidden, writer.node('Equal', [columns, zero], ['mask.first'])], ['mask.hidden']);
  const least = number('mask.least', mask === 'later, by degrees' ? -3 : half ? -60_000 : -1e30);
  const added = writer.node('Where', [hidden, least, number('mask.none', 0)], ['mask.added']);
  writer.node('Unsqueeze', [added, writer.integers('mask.axes', [0, 1])], ['mask']);
}

const cached = new WeakMap<Writer, Map<number, readonly [string, string]>>();

/** Tables of cosines and sines, one pair for a base. */
function rotation(writer: Writer, base: number, pairs = HEAD_DIM / 2): readonly [string, string] {
  const of = cached.get(writer) ?? new Map<number, readonly [string, string]>();
  cached.set(writer, of);
  let tables = of.get(base);
  if (!tables) {
    const table = (turn: (angle: number) => number) =>
      Float32Array.from({ length: POSITIONS * pairs }, (_, i) => turn(Math.floor(i / pairs) * base ** (-(i % pairs) / pairs)));
    const shape = [POSITIONS, pairs];
    tables = [writer.floats(`cos_cache.${base}`, shape, table(Math.cos)), writer.floats(`sin_cache.${base}`, shape, table(Math.sin))];
    of.set(base, tables);
  }
  return tables;
}

/** What an If chooses of tables. */
function chosenTables(writer: Writer, name: string, tables: readonly string[], options: DecoderOptions): readonly string[] {
  const names = tables.map(table => `${name}.${table}`);
  const nodes = tables.flatMap((table, n) => message(1, [...text(1, table), ...text(2, names[n]!), ...text(4, 'Identity')]));
  const outputs = names.flatMap(name => port(12, name, options.half ? FLOAT16 : FLOAT, ['positions', 'pairs']));
  branchesOf(writer, [...nodes, ...text(2, 'branch'), ...outputs], names, options);
  return names;
}

const LONG_ROPE = ['cos_cache', 'sin_cache'] as const;

/** Tables for short sequences and for long ones, which turn by other angles and are scaled, and the If: in forms that exporters have. */
function longRope(writer: Writer, { original, by, computes }: LongRope, { half }: DecoderOptions): void {
  const pairs = HEAD_DIM / 2;
  const numbers = (turn: (angle: number) => number, positions: number, stretch: number): Float32Array => {
    const angle = (i: number) => Math.floor(i / pairs) / (10_000 ** ((i % pairs) / pairs) * (1 + (i % pairs) * stretch));
    return Float32Array.from({ length: positions * pairs }, (_, i) => (1 + stretch) * turn(angle(i)));
  };
  const branch = (title: string, positions: number, stretch: number): Pieces => {
    const shape = [positions, pairs];
    const parts = [Math.cos, Math.sin].flatMap((turn, n) => {
      const name = `${LONG_ROPE[n]}_${title}`;
      const data = numbers(turn, positions, stretch);
      const output = port(12, name, half ? FLOAT16 : FLOAT, shape);
      if (by === 'position_ids') return [...message(5, writer.message(name, shape, data)), ...output];
      const value = message(5, [...text(1, 'value'), ...message(5, writer.message('', shape, data)), ...integer(20, 4)]);
      if (by === 'attention_mask') return [...message(1, [...text(2, name), ...text(4, 'Constant'), ...value]), ...output];
      const outer = text(1, writer.floats(`${name}.outer`, shape, data));
      return [...message(1, [...outer, ...text(2, name), ...text(4, computes ? 'Abs' : 'Identity')]), ...output];
    });
    return [...parts, ...text(2, title)];
  };
  const scalar = (name: string, value: number) => writer.tensor(name, INT64, [], new Uint8Array(BigInt64Array.of(BigInt(value)).buffer));
  const size = (of: string, axis: number) =>
    writer.node('Gather', [writer.node('Shape', [of], [`${of}.shape`]), scalar(`${of}.axis`, axis)], [`${of}.size`]);
  const limit = scalar('original', original);
  if (by === 'moving') {
    const longer = writer.node(
      'GreaterOrEqual',
      [writer.node('ReduceMax', ['position_ids'], ['last'], { keepdims: 0 }), limit],
      ['longer']
    );
    const by = writer.node('Mul', [writer.node('Cast', [longer], ['longer as number'], { to: 7 }), limit], ['moved by']);
    writer.node('Add', ['position_ids', by], ['moved']);
    for (const [n, turn] of [Math.cos, Math.sin].entries()) {
      const both = [...numbers(turn, original, 0), ...numbers(turn, POSITIONS, 0.2)];
      writer.floats(LONG_ROPE[n]!, [original + POSITIONS, pairs], Float32Array.from(both));
    }
    return;
  }
  const branches = { then_branch: { graph: branch('large', POSITIONS, 0.2) }, else_branch: { graph: branch('small', original, 0) } };
  if (by === 'attention_mask') {
    writer.node('If', [writer.node('Greater', [size('attention_mask', 1), limit], ['longer'])], LONG_ROPE, branches);
  } else if (by === 'position_ids') {
    writer.node('Reshape', ['position_ids', writer.integers('reshaped.shape', [0, -1])], ['reshaped']);
    const last = writer.node('ReduceMax', ['reshaped'], ['last'], { keepdims: 0 });
    writer.node('If', [writer.node('GreaterOrEqual', [last, limit], ['longer'])], LONG_ROPE, branches);
  } else {
    const total = writer.node('Add', [size('past_key_values.0.key', 2), size('input_ids', 1)], ['total']);
    const turned = { then_branch: branches.else_branch, else_branch: branches.then_branch };
    writer.node('If', [writer.node('LessOrEqual', [total, limit], ['shorter'])], LONG_ROPE, turned);
  }
}

function norm(writer: Writer, name: string, input: string): string {
  const weight = writer.random(`${name}.weight`, [HIDDEN], 0.1, 1);
  return writer.node('SimplifiedLayerNormalization', [input, weight], [name], { axis: -1, epsilon: { float: 1e-6 }, stash_type: 1 });
}

/** Norm of the sum, and the sum. */
function skipNorm(writer: Writer, name: string, skip: string, input: string): [normed: string, sum: string] {
  const weight = writer.random(`${name}.weight`, [HIDDEN], 0.1, 1);
  const outputs = [name, '', '', `${name}.sum`];
  writer.node('SkipSimplifiedLayerNormalization', [skip, input, weight], outputs, { epsilon: { float: 1e-6 } }, MICROSOFT);
  return [name, `${name}.sum`];
}

function headNorm(writer: Writer, name: string, input: string, heads: number): string {
  const shapes = [`${name}.apart`, `${name}.together`];
  writer.integers(shapes[0]!, [0, 0, heads, HEAD_DIM]);
  writer.integers(shapes[1]!, [0, 0, heads * HEAD_DIM]);
  const apart = writer.node('Reshape', [input, shapes[0]!], [`${name}.heads`]);
  const weight = writer.random(`${name}.weight`, [HEAD_DIM], 0.1, 1);
  const normed = writer.node('SimplifiedLayerNormalization', [apart, weight], [`${name}.normed`], { axis: -1, epsilon: { float: 1e-6 } });
  return writer.node('Reshape', [normed, shapes[1]!], [name]);
}

function port(number: number, name: string, type: number, shape: readonly (number | string)[]): Pieces {
  const sizes = shape.flatMap(size => message(1, typeof size === 'number' ? integer(1, size) : text(2, size)));
  return message(number, [...text(1, name), ...message(2, message(1, [...integer(1, type), ...message(2, sizes)]))]);
}
