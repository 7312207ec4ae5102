// Attend: softmax(q·K)·V for a batch of sequences over their page tables, windows looped inside; one call per layer and step.
// Heads in lanes: up to four rows (query heads, or query tokens, that share a KV head) pass over a page together.

import { Lanes, VECTOR_BYTES, vadd } from "lanes";
import { columnsOf, LANES, LANE_ROW, Item, Raw, segmentOf, Shape, Side, TILE_ROW, WINDOW } from "./abi";
import { unpackMean, unpackS1, unpackS2 } from "./decode";
import { hadamard } from "./hadamard";
import { biased, maskScores } from "./mask";
import { clearBuckets, scatterAdd, reduceBuckets, mixMean, rescaleBuckets, softmaxWeights } from "./mix";
import { headBlocks, orderOf, pagePosition, rawKeys } from "./page";
import { decodedPages } from "./prompt";
import { rawMix, rawScores, rawWeights, widen } from "./raw";
import { buildTable, gather, gatherScaled } from "./scores";
import { combine, meanCoefficients } from "./rope";
import { callRows, CHUNK, coefPairsOf, coefsOf, FACTOR, hqOf, keyS2Of, MEAN_OUT, O, S1, S2, SCALE, SCORES_BYTES, SHARE, TOP,
  TOUCH_SUM, UNMASKED_TOP, WINDOW_SCORES } from "./scratch";
import { HEADROOM, MASKED } from "./softmax";
import { dOf, init, mOf, normalize, oOf, positionOf, qOf, raise, seesAll, seesSome, slopeOf, stateBytes } from "./state";

/**
 * Windows whose blocks are touched together before they are read: their lines come side by side, not each when it is needed. −5 % out
 * of cache, +1 % in it (one window at a time, four ahead, −2.5 %; a whole chunk as four, but it may exceed L2).
 */
const TOUCHED: usize = 4;

/**
 *   items  Item [count]
 *   scale  query scale · log2 e
 *
 * Specification: `attend` in src/reference/reference.ts, over decoded pages.
 */
export function attend(shape: Shape, items: usize, count: usize, scale: f32): void {
  for (let n: usize = 0; n < count; n++) {
    const item = changetype<Item>(items + n * offsetof<Item>());
    const rows = item.tokens * shape.queryHeadsPerKvHead;
    for (let head: usize = 0; head < shape.kvHeads; head++) {
      for (let first: usize = 0; first < rows; first += callRows()) {
        attendRows(shape, item, head, first, min<usize>(rows - first, callRows()), scale);
      }
    }
  }
}

/** Up to callRows() query rows of one KV head: over the coded pages, then over every raw window, widened once for them all. */
function attendRows(shape: Shape, item: Item, head: usize, first: usize, rows: usize, scale: f32): void {
  const headDim = shape.keys.headDim, valueDim = shape.values.headDim;
  const bytes = stateBytes(headDim, valueDim);
  const end = shape.states + (rows + LANES - 1) / LANES * bytes;
  for (let state = shape.states, row = first; state < end; state += bytes, row += LANES) {
    loadQueries(shape, item, head, row, min<usize>(first + rows - row, LANES), scale, state);
  }
  if (item.pageCount > 0) {
    if (VECTOR_BYTES == LANE_ROW && item.decoded) decodedPages(shape, item, head, shape.states, end);
    else for (let state = shape.states; state < end; state += bytes) codedPages(shape, item, head, state);
  }

  const keys = shape.tile, values = keys + headDim * TILE_ROW;
  for (let n: usize = 0; n < item.rawCount; n++) {
    const raw = changetype<Raw>(item.raws + n * offsetof<Raw>());
    const position = <f32>(<i32>raw.position - <i32>item.position);
    const window = raw.kept ? <f32>Infinity : shape.window;
    if (!seesSome(shape.states, end - bytes, position, position + <f32>raw.tokens, window)) continue;
    for (let piece: usize = 0, t: usize = 0; t < raw.tokens; piece++, t += raw.capacity) {
      const tokens = min<usize>(raw.tokens - t, raw.capacity);
      const rows = rawKeys(shape, raw.addresses, piece, raw.capacity, head);
      widen(rows, tokens * headDim, keys + (t * headDim << 2));
      widen(rows + (raw.capacity * headDim << 1), tokens * valueDim, values + (t * valueDim << 2));
    }
    for (let state = shape.states; state < end; state += bytes) {
      rawWindow(shape, position, raw.tokens, window, keys, values, state);
    }
  }

  for (let state = shape.states, row = first; state < end; state += bytes, row += LANES) {
    storeOutputs(shape, item, head, row, min<usize>(first + rows - row, LANES), state);
  }
}

/** Number of row `row` among [tokens, queryHeads]: row = query token · queryHeadsPerKvHead + query head within the KV head. */
@inline function rowNumber(shape: Shape, head: usize, row: usize): usize {
  const perHead = shape.queryHeadsPerKvHead;
  return row / perHead * shape.kvHeads * perHead + headNumber(shape, head, row);
}

/** Number of a row's query head. */
@inline function headNumber(shape: Shape, head: usize, row: usize): usize {
  return head * shape.queryHeadsPerKvHead + row % shape.queryHeadsPerKvHead;
}

/** Up to four rows' queries into the lanes of a state. Lanes without a row get q = 0, and nobody reads what they come to. */
function loadQueries(shape: Shape, item: Item, head: usize, row: usize, lanes: usize, scale: f32, state: usize): void {
  const headDim = shape.keys.headDim, valueDim = shape.values.headDim, q = qOf(state, valueDim);
  init(state, headDim, valueDim);
  for (let lane: usize = 0; lane < LANES; lane++) {
    const at = lane << 2;
    store<f32>(positionOf(state) + at, <f32>((row + min<usize>(lane, lanes - 1)) / shape.queryHeadsPerKvHead));
    if (lane >= lanes) continue;
    const number = headNumber(shape, head, row + lane) << 2;
    if (shape.slopes) store<f32>(slopeOf(state) + at, load<f32>(shape.slopes + number));
    if (shape.sinkLogits) {
      store<f32>(mOf(state) + at, load<f32>(shape.sinkLogits + number));
      store<f32>(dOf(state) + at, 1);
    }
    const from = item.queries + rowNumber(shape, head, row + lane) * (headDim << 2);
    for (let i: usize = 0; i < headDim; i++) store<f32>(q + (i << 4) + at, load<f32>(from + (i << 2)) * scale);
  }
}

function storeOutputs(shape: Shape, item: Item, head: usize, row: usize, lanes: usize, state: usize): void {
  for (let lane: usize = 0; lane < lanes; lane++) {
    const number = rowNumber(shape, head, row + lane), valueDim = shape.values.headDim;
    normalize(state, lane << 2, valueDim, item.out + number * (valueDim << 2), item.denominators + (number << 3));
  }
}

/** One state over the coded pages that its rows see, CHUNK windows at a time: codes are looked up, nothing is decoded. */
function codedPages(shape: Shape, item: Item, head: usize, state: usize): void {
  const keys = shape.keys, values = shape.values, headDim = keys.headDim, valueDim = values.headDim, window = shape.window;
  let begin: usize = 0, end = item.pageCount;
  while (begin < end && !seesPage(item, begin, state, window)) begin++;
  while (begin < end && !seesPage(item, end - 1, state, window)) end--;
  if (begin == end) return;
  const whole = !biased(shape) && seesAll(state, state, pagePosition(item, begin), pagePosition(item, end - 1) + <f32>WINDOW, window);

  const scratch = shape.scratch, q = qOf(state, valueDim);
  const s1 = scratch + S1, o = scratch + O, s2Bytes = keys.segmentCount * TILE_ROW, apart = keys.segmentCount > 1;
  const chunkScores = shape.tile, keyS2 = keyS2Of(shape);

  buildTable(keys, orderOf(item.orders, head, headDim), q, headDim, hqOf(shape));
  memory.fill(scratch + MEAN_OUT, 0, valueDim * LANE_ROW);

  for (let from = begin; from < end; from += CHUNK) {
    const chunk = min<usize>(CHUNK, end - from);
    for (let column: usize = 0; column < keys.rowBytes; column += 8) {
      const pairs = keys.pairNorms + (column << 1);
      for (let n: usize = 0; n < chunk; n++) {
        if (column == 0 && n % TOUCHED == 0) {
          for (let next = n; next < min<usize>(n + TOUCHED, chunk); next++) {
            touch(headBlocks(shape, item, from + next, head), keys.bytes + values.bytes, scratch + TOUCH_SUM);
          }
        }
        const page = headBlocks(shape, item, from + n, head), scores = chunkScores + n * SCORES_BYTES;
        if (apart) {
          const s2 = keyS2 + n * s2Bytes;
          if (column == 0) unpackS2(keys, page, s2);
          gatherScaled(page, keys.rowBytes, column, pairs, s2, scores);
        } else {
          gather(page, keys.rowBytes, column, scores);
        }
      }
    }

    for (let lane: usize = 0; lane < LANE_ROW; lane += 4) store<f32>(scratch + TOP + lane, MASKED);
    for (let n: usize = 0; n < chunk; n++) {
      const page = headBlocks(shape, item, from + n, head);
      const scores = chunkScores + n * SCORES_BYTES;
      const position = pagePosition(item, from + n);
      const masked = !whole && (biased(shape) || !seesAll(state, state, position, position + <f32>WINDOW, window));
      // Where some are hidden the mask raises TOP: the largest logit may be one of theirs.
      scoreWindow(shape, keys, q, page, scores, masked ? scratch + UNMASKED_TOP : scratch + TOP);
      if (masked) maskScores(shape, state, scores, WINDOW, position, window, scratch + TOP);
    }

    const far = exceeds(scratch + TOP, mOf(state));
    if (far || from == begin) {
      raiseTop(scratch + TOP, mOf(state));
      raise(state, scratch + TOP, scratch + FACTOR, scratch + MEAN_OUT, valueDim);
      if (from > begin) rescaleBuckets(values.rowBytes, scratch + FACTOR);   // at first they are empty
    }

    for (let n: usize = 0; n < chunk; n++) {
      const page = headBlocks(shape, item, from + n, head) + keys.bytes;
      unpackS1(values, page, s1);
      unpackS2(values, page, scratch + S2);
      unpackMean(values, page, valueDim, o);
      softmaxWeights(chunkScores + n * SCORES_BYTES, s1, mOf(state), dOf(state), scratch + SHARE, page, values.rowBytes);
      mixMean(scratch + SHARE, o, valueDim, scratch + MEAN_OUT);
    }
    for (let column: usize = 8; column < values.rowBytes; column += 8) {
      for (let n: usize = 0; n < chunk; n++) {
        scatterAdd(headBlocks(shape, item, from + n, head) + keys.bytes, values.rowBytes, column, chunkScores + n * SCORES_BYTES);
      }
    }
  }

  const out = oOf(state);
  reduceBuckets(segmentOf(values, 0), out);
  clearBuckets(values, columnsOf(values));   // columns of padding were filled too
  hadamard(out, valueDim, LANE_ROW);
  addRows(out, scratch + MEAN_OUT, valueDim * LANE_ROW);
}

/** Whether a row of the state sees a token of page `n`. */
@inline function seesPage(item: Item, n: usize, state: usize, window: f32): bool {
  const position = pagePosition(item, n);
  return seesSome(state, state, position, position + <f32>WINDOW, window);
}

/** Reads a word of every cache line. */
function touch(block: usize, bytes: usize, sum: usize): void {
  let x = load<u32>(sum);
  for (const end = block + bytes; block < end; block += 64) x += load<u32>(block);
  store<u32>(sum, x);
}

/**
 * Table sums to logits, for one block of keys, with the running maximum of up to four heads. The norms of a single segment enter here,
 * once for all columns; of several they did when the table was read.
 */
export function scoreWindow(shape: Shape, keys: Side, q: usize, block: usize, scores: usize, top: usize): void {
  const scratch = shape.scratch, s2 = keys.segmentCount == 1 ? scratch + S2 : 0;
  unpackS1(keys, block, scratch + S1);
  if (s2) unpackS2(keys, block, s2);
  unpackMean(keys, block, keys.headDim, scratch + O);
  meanCoefficients(shape, q, scratch + O, coefsOf(shape), coefPairsOf(shape), scratch + SCALE);
  combine(shape, coefPairsOf(shape), scratch + SCALE, scratch + S1, s2, scores, top);
}

/** Whether any lane's new maximum is out of the old one's headroom. */
function exceeds(top: usize, m: usize): bool {
  let far = false;
  for (let lane: usize = 0; lane < LANE_ROW; lane += 4) far = far || load<f32>(top + lane) > load<f32>(m + lane) + HEADROOM;
  return far;
}

/** Every lane of top takes the larger of the two. */
function raiseTop(top: usize, m: usize): void {
  for (let lane: usize = 0; lane < LANE_ROW; lane += 4) {
    store<f32>(top + lane, max<f32>(load<f32>(top + lane), load<f32>(m + lane)));
  }
}

/** One state over raw tokens, widened: keys f32 [tokens, headDim], values f32 [tokens, valueDim]. */
function rawWindow(shape: Shape, position: f32, tokens: usize, window: f32, keys: usize, values: usize, state: usize): void {
  const valueDim = shape.values.headDim, scratch = shape.scratch, scores = scratch + WINDOW_SCORES, out = oOf(state), after = position + <f32>tokens;
  if (!seesSome(state, state, position, after, window)) return;
  const masked = biased(shape) || !seesAll(state, state, position, after, window);
  memory.copy(scratch + TOP, mOf(state), LANE_ROW);
  rawScores(qOf(state, valueDim), keys, tokens, shape.keys.headDim, scores, masked ? scratch + UNMASKED_TOP : scratch + TOP);
  if (masked) maskScores(shape, state, scores, tokens, position, window, scratch + TOP);
  raise(state, scratch + TOP, scratch + FACTOR, out, valueDim);
  rawWeights(scores, tokens, mOf(state), dOf(state));
  rawMix(scores, values, tokens, valueDim, out);
}

function addRows(x: usize, y: usize, bytes: usize): void {
  for (const end = x + bytes; x < end; x += VECTOR_BYTES, y += VECTOR_BYTES) {
    store<Lanes>(x, vadd(load<Lanes>(x), load<Lanes>(y)));
  }
}
