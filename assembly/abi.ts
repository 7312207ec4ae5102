// The binary interface: plain structs that the host writes and kernels read. src/wasm/abi.ts names the same fields in this order;
// test/abi.node.test.ts holds the two together.

/** Tokens in a window. */
export const WINDOW: usize = 64;
/** Tokens in a quarter of a raw window: those whose rows lie together. */
export const QUARTER: usize = 16;
/** Query rows (query heads, or query tokens, that share a KV head) of one pass over a page: the lanes of one f32x4. */
export const LANES: usize = 4;
/** Bytes of one row of LANES f32. */
export const LANE_ROW: usize = 16;
/** Bytes of one row of a tile: f32 [WINDOW]. */
export const TILE_ROW: usize = 256;
/** Channels of o that share a scale and minimum. */
export const MEAN_GROUP: usize = 32;

/** 256 codewords, and the tables by which the nearest is found (quantize.ts). Codeword c + 128 is the negation of codeword c. */
@unmanaged
export class Codebook {
  channels: usize;      // D: 8, 4 or 2
  words: usize;         // f32 [256, D]
  halfNorms: usize;     // f32 [256]: ‖C‖²/2
  rounded: usize;       // D = 8: codewords and half norms in integers
  margin: f32;          // D = 8: ‖C‖₁ of any codeword, and ½ for the rounding of f32
  grid: usize;          // D = 2 and 4: candidate lists
  gridCells: i32;       // cells along one channel
  gridScale: f32;       // cells per unit
}

/** Codes of one codebook over all channels of a segment; what a segment's stages say is added up. */
@unmanaged
export class Stage {
  book: Codebook;
  scale: f32;           // what its codewords are multiplied by
  words: usize;         // f32 [256, D]: codewords · scale
  column: usize;        // its first byte of a row of codes
  columns: usize;       // its bytes
}

/** Channels that have a Hadamard transform, a second norm and stages of their own. */
@unmanaged
export class Segment {
  channel: usize;       // its first, in the order of the side's channels
  channels: usize;
  stages: usize;        // Stage [stageCount]
  stageCount: usize;
}

/** One side (keys or values) of a page: what its channels are cut into, and the offsets of a block's sections. */
@unmanaged
export class Side {
  headDim: usize;       // channels of a token
  segments: usize;      // Segment [segmentCount]; channels beyond the last are dropped
  segmentCount: usize;  // 1 to 3; of values 1
  pairNorms: usize;     // u32 [rowBytes / 2]: of every two columns of codes, bytes to their segment's row of s2, f32 [segments, 64]
  meanBits: usize;      // of a channel of o: 8 or 4
  rowBytes: usize;
  s2: usize;
  s1: usize;
  o: usize;
  scales: usize;
  exponents: usize;
  bytes: usize;
}

@inline export function segmentOf(side: Side, n: usize): Segment {
  return changetype<Segment>(side.segments + n * offsetof<Segment>());
}

@inline export function stageOf(segment: Segment, n: usize): Stage {
  return changetype<Stage>(segment.stages + n * offsetof<Stage>());
}

/** Bytes of a row that are codes; the rest is padding. */
export function columnsOf(side: Side): usize {
  const segment = segmentOf(side, side.segmentCount - 1), last = stageOf(segment, segment.stageCount - 1);
  return last.column + last.columns;
}

@unmanaged
export class Shape {
  kvHeads: usize;
  queryHeadsPerKvHead: usize;   // query heads per KV head
  pairs: usize;         // rotated pairs; 0 without RoPE
  pairStep: usize;      // bytes from one pair's first channel to the next pair's
  pairOffset: usize;    // bytes from a pair's first channel to its second
  cos: usize;           // f32 [pairs, WINDOW]
  sin: usize;
  trigPairs: usize;     // pairs with basis functions of their own; the rest share powers of u
  tier2: usize;         // first pair that needs 2 + 2 powers, not 4 + 4
  tier3: usize;         // first pair that needs 1 + 1
  powers: usize;        // f32 [pairs, 8]: coefficients of 1, u², u⁴, u⁶, then u, u³, u⁵, u⁷
  basisPairs: usize;    // (trigPairs + 4) / 2, rounded up
  basis: usize;         // i16 [8, 2 (even, odd), basisPairs, 4, 2]
  keys: Side;
  values: Side;
  window: f32;          // newest tokens that a row sees; Infinity: all
  softcap: f32;         // c · log2 e: logits become c·tanh(logit / c); 0: they do not
  slopes: usize;        // f32 [queryHeads]: what a logit loses with a token's distance · log2 e; 0: nothing
  sinkLogits: usize;    // f32 [queryHeads]: logits that denominators count too · log2 e; 0: none
  tile: usize;          // f32 [the larger of both head dimensions, WINDOW], twice; or f32 [CHUNK · WINDOW, LANES] (scratch.ts)
  scratch: usize;       // a window's small things (scratch.ts)
  states: usize;        // records of state.ts, each of LANES query rows
}

/** One sequence of a batch: its queries and where its tokens lie. */
@unmanaged
export class Item {
  queries: usize;       // f32 [tokens, queryHeads, headDim]
  out: usize;           // f32 [tokens, queryHeads, valueDim]
  denominators: usize;  // f32 [tokens, queryHeads, 2]: m and d, whose log2 added up is that of the softmax's denominator
  tokens: usize;        // query tokens: the newest of the sequence, or a run of them
  position: usize;      // of the first query token
  pages: usize;         // u32 [pageCount]: addresses of pages, oldest first
  positions: usize;     // u32 [pageCount]: of every page's first token, ascending
  pageCount: usize;
  orders: usize;        // of the sequence's balanced keys, head by head (order.ts); 0 where keys are not balanced
  raws: usize;          // Raw [rawCount]
  rawCount: usize;
  decoded: usize;       // 1: its rows are so many that pages are decoded for them (prompt.ts); 0: they look codes up
}

/** A run of raw tokens: the quarters of a window, or sinks. */
@unmanaged
export class Raw {
  addresses: usize;     // u32 [⌈tokens / capacity⌉]; at each [kvHeads]: keys f16 [capacity, headDim], then values f16 [capacity, valueDim]
  capacity: usize;
  tokens: usize;
  position: usize;
  kept: usize;          // 1: rows see these tokens however far behind; 0: within the layer's window
}
