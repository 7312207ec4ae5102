// The binary interface: what the binaries export, and the structs that they read (assembly/abi.ts). A field's name and place are
// written once on either side; test/abi.node.test.ts holds the two together.

/** Exports of assembly/index.ts; addresses are numbers. */
export interface Kernels extends Record<string, unknown> {
  addKeyEnergies(shape: number, raw: number, energies: number): void;
  addMean(shape: number, x: number, headDim: number, o: number, sign: number, rotate: boolean): void;
  addQueryEnergies(shape: number, queries: number, tokens: number, energies: number): void;
  attend(shape: number, items: number, count: number, scale: number): void;
  buildGrid(book: number, channels: number, cells: number, reach: number, grid: number, build: number): number;
  copyRows(
    from: number,
    fromHalf: boolean,
    fromToken: number,
    fromHead: number,
    to: number,
    toHalf: boolean,
    toToken: number,
    toHead: number,
    tokens: number,
    heads: number,
    channels: number
  ): void;
  encodePage(shape: number, orders: number, raw: number, page: number): void;
  decode(shape: number, side: number, order: number, block: number, x: number, rotate: boolean): void;
  decodePage(shape: number, orders: number, page: number, keys: number, values: number): void;
  divide(x: number, headDim: number, norms: number): void;
  encode(shape: number, side: number, order: number, x: number, block: number, rotate: boolean): void;
  hadamard(x: number, rows: number, rowBytes: number): void;
  mean(shape: number, x: number, headDim: number, o: number, codes: number, scales: number, bits: number, rotate: boolean): void;
  mix(shape: number, side: number, order: number, weights: number, block: number, out: number): void;
  norms(x: number, headDim: number, norms: number): void;
  quantize(book: number, y: number, channels: number, codes: number, rowBytes: number, yc: number): void;
  rowsFromTile(tile: number, tokens: number, rowBytes: number, headDim: number, rows: number): void;
  rtn(x: number, count: number, codes: number, scales: number, bits: number, keep: boolean): void;
  scores(shape: number, side: number, order: number, q: number, block: number, out: number): void;
  tileFromRows(rows: number, tokens: number, rowBytes: number, headDim: number, tile: number): void;
  // Where the binaries' own data end, where tables begin, and where they end for such rows of codes; sizes in bytes, of what the host
  // sets aside and of a struct.
  staticEnd(): number;
  tablesBegin(): number;
  bucketsBegin(): number;
  tablesEnd(rowBytes: number): number;
  tileBytes(headDim: number): number;
  scratchBytes(headDim: number, valueDim: number, basisPairs: number, keySegments: number): number;
  statesBytes(headDim: number, valueDim: number): number;
  shapeBytes(): number;
  itemBytes(): number;
  rawBytes(): number;
  /** Query rows that pass over pages together. */
  callRows(): number;
}

type Fields = Readonly<Record<string, 'usize' | 'i32' | 'f32'>>;

/** 256 codewords, and the tables by which the nearest is found. */
export const CODEBOOK = {
  channels: 'usize',
  words: 'usize',
  halfNorms: 'usize',
  rounded: 'usize',
  margin: 'f32',
  grid: 'usize',
  gridCells: 'i32',
  gridScale: 'f32'
} as const satisfies Fields;

/** Codes of one codebook over all channels of a segment. */
export const STAGE = {
  book: 'usize',
  scale: 'f32',
  words: 'usize',
  column: 'usize',
  columns: 'usize'
} as const satisfies Fields;

/** Channels that have a Hadamard transform, a second norm and stages of their own. */
export const SEGMENT = {
  channel: 'usize',
  channels: 'usize',
  stages: 'usize',
  stageCount: 'usize'
} as const satisfies Fields;

/** One side (keys or values) of a page. */
export const SIDE = {
  headDim: 'usize',
  segments: 'usize',
  segmentCount: 'usize',
  pairNorms: 'usize',
  meanBits: 'usize',
  rowBytes: 'usize',
  s2: 'usize',
  s1: 'usize',
  o: 'usize',
  scales: 'usize',
  exponents: 'usize',
  bytes: 'usize'
} as const satisfies Fields;

/** A layer of a cache. */
export const SHAPE = {
  kvHeads: 'usize',
  queryHeadsPerKvHead: 'usize',
  pairs: 'usize',
  pairStep: 'usize',
  pairOffset: 'usize',
  cos: 'usize',
  sin: 'usize',
  trigPairs: 'usize',
  tier2: 'usize',
  tier3: 'usize',
  powers: 'usize',
  basisPairs: 'usize',
  basis: 'usize',
  keys: 'usize',
  values: 'usize',
  window: 'f32',
  softcap: 'f32',
  slopes: 'usize',
  sinkLogits: 'usize',
  tile: 'usize',
  scratch: 'usize',
  states: 'usize'
} as const satisfies Fields;

/** One sequence of a call of attend, or some of its query tokens. */
export const ITEM = {
  queries: 'usize',
  out: 'usize',
  denominators: 'usize',
  tokens: 'usize',
  position: 'usize',
  pages: 'usize',
  positions: 'usize',
  pageCount: 'usize',
  orders: 'usize',
  raws: 'usize',
  rawCount: 'usize',
  decoded: 'usize'
} as const satisfies Fields;

/** A run of raw tokens. */
export const RAW = {
  addresses: 'usize',
  capacity: 'usize',
  tokens: 'usize',
  position: 'usize',
  kept: 'usize'
} as const satisfies Fields;

/** Writes a struct into memory, given as words and as floats, from word `at`. */
export function writeStruct<F extends Fields>(
  { u32, f32 }: { readonly u32: Uint32Array; readonly f32: Float32Array },
  at: number,
  fields: F,
  values: { readonly [name in keyof F]: number }
): void {
  for (const name in fields) {
    if (fields[name] === 'f32') f32[at++] = values[name];
    else u32[at++] = values[name];
  }
}

/** The words of a struct. */
export function struct<F extends Fields>(fields: F, values: { readonly [name in keyof F]: number }): Uint32Array {
  const u32 = new Uint32Array(Object.keys(fields).length);
  writeStruct({ u32, f32: new Float32Array(u32.buffer) }, 0, fields, values);
  return u32;
}
