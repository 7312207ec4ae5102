// The binary interface: what the binaries export, and the structs that they read (assembly/abi.ts). A field's name and place are
// written once on either side; test/abi.node.test.ts holds the two together.

/** Exports of assembly/index.ts; addresses are numbers. */
export interface Kernels extends Record<string, unknown> {
  addMean(shape: number, x: number, o: number, sign: number, rotate: boolean): void;
  attend(shape: number, items: number, count: number, scale: number): void;
  buildGrid(book: number, channels: number, cells: number, reach: number, grid: number, build: number): number;
  encodePage(shape: number, raw: number, page: number): void;
  decode(shape: number, side: number, block: number, x: number, rotate: boolean): void;
  decodePage(shape: number, page: number, keys: number, values: number): void;
  divide(x: number, headDim: number, norms: number): void;
  encode(shape: number, side: number, x: number, block: number, rotate: boolean): void;
  hadamard(x: number, rows: number, rowBytes: number, n: number, scale: number): void;
  mean(shape: number, x: number, o: number, nibbles: number, scales: number, rotate: boolean): void;
  mix(shape: number, weights: number, block: number, out: number): void;
  norms(x: number, headDim: number, norms: number): void;
  quantize(side: number, y: number, headDim: number, codes: number, yy: number, yc: number): void;
  rowsFromTile(tile: number, tokens: number, rowBytes: number, headDim: number, rows: number): void;
  rtn4(x: number, count: number, nibbles: number, scales: number, keep: boolean): void;
  scores(shape: number, q: number, block: number, out: number): void;
  tileFromRows(rows: number, tokens: number, rowBytes: number, headDim: number, tile: number): void;
  writeRows(rows: number, half: boolean, tokens: number, kvHeads: number, headDim: number, to: number, capacity: number): void;
  readRows(from: number, capacity: number, tokens: number, kvHeads: number, headDim: number, rows: number): void;
  // Sizes in bytes, of what the host sets aside and of a struct; where the tables of a codec with such rows of codes end.
  tablesEnd(rowBytes: number): number;
  tileBytes(headDim: number): number;
  scratchBytes(): number;
  scoresBytes(): number;
  statesBytes(headDim: number): number;
  shapeBytes(): number;
  itemBytes(): number;
  rawBytes(): number;
  /** Query rows that pass over pages together. */
  callRows(): number;
}

type Fields = Readonly<Record<string, 'usize' | 'i32' | 'f32'>>;

/** One side (keys or values) of a page. */
export const SIDE = {
  channels: 'usize',
  rowBytes: 'usize',
  s2: 'usize',
  s1: 'usize',
  scales: 'usize',
  o: 'usize',
  book: 'usize',
  halfNorms: 'usize',
  rounded: 'usize',
  margin: 'f32',
  grid: 'usize',
  gridCells: 'i32',
  gridScale: 'f32'
} as const satisfies Fields;

/** A layer of a cache. */
export const SHAPE = {
  headDim: 'usize',
  kvHeads: 'usize',
  queryHeadsPerKvHead: 'usize',
  hadamardSize: 'usize',
  hadamardScale: 'f32',
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
  pageBytes: 'usize',
  pages: 'usize',
  tile: 'usize',
  scratch: 'usize',
  scores: 'usize',
  states: 'usize'
} as const satisfies Fields;

/** One sequence of a call of attend, or some of its query tokens. */
export const ITEM = {
  queries: 'usize',
  out: 'usize',
  tokens: 'usize',
  position: 'usize',
  pages: 'usize',
  pageCount: 'usize',
  pagePosition: 'usize',
  raws: 'usize',
  rawCount: 'usize',
  decoded: 'usize'
} as const satisfies Fields;

/** A run of raw tokens. */
export const RAW = {
  address: 'usize',
  capacity: 'usize',
  tokens: 'usize',
  position: 'usize'
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
