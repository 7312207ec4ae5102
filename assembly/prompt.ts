// Prompts: many rows over the same coded pages. A page is decoded once for all of them, into integers of 16 bits, which are
// multiplied and added in pairs: half the instructions of f32, and no look-up tables for every four rows. In the SIMD binaries
// alone, whose vectors hold four query rows: one lane at a time, decoding took 1.0 to 1.6 times as long as looking codes up.
//
// Integers are 32,766 times what they stand for over the L2 norm of their vector (a key's channels, a query's, a value channel's
// tokens, a row's weights in a window), so that no sum of products exceeds 2³⁰ (Cauchy and Schwarz). A value channel's norm is over
// all of the window's tokens: a row that does not see them all mixes the page in f32, or tokens hidden from it would coarsen it.
// Pages that were sealed before their tokens were asked about have such rows, and pages that the edge of a sliding window cuts.
//
// Raced, ns per key of 64 channels and four rows, AMD EPYC: f32 by four rows 20.5 and by eight 17.0; integers 11.4 and 8.8; eight
// keys by four rows 13.6, as a sum is spilled.

import { IntLanes, Lanes, VECTOR_BYTES, vabs, vadd, vbits, vdiv, vdotPairs, vfromInt, vintAdd, vintSplat, vmadd, vmax, vmul,
  vpair, vpairSplatAt, vpairSplatAt4, vpairSplatAt8, vpairSplatAt12, vsplat, vsplatAt, vsplatAt4, vsplatAt8, vsplatAt12, vsqrt,
  vsub } from "lanes";
import { LANE_ROW, Item, Shape, TILE_ROW, WINDOW } from "./abi";
import { decode } from "./decode";
import { biased, maskScores } from "./mask";
import { headBlocks, orderOf, pagePosition } from "./page";
import { rawWeights } from "./raw";
import { KEEPS, KEY_SCALES, SCORES_BYTES, STRANDS, TOPS, UNITS, VALUE_SCALES, WEIGHTS, WINDOW_SCORES } from "./scratch";
import { EXP, exp2, MASKED } from "./softmax";
import { dOf, integersOf, mOf, oOf, qOf, raise, scaleOf, seesAll, seesSome, stateBytes } from "./state";

const LARGEST: f32 = 32766;
/** Added to a number of at most 2²², it leaves the nearest integer in the low bits. */
const MAGIC: f32 = 12582912;

/** Bytes of a state's weights in integers: i16 [32, LANES, 2]. */
const WEIGHTS_BYTES: usize = SCORES_BYTES / 2;
/** Bytes of one channel of values in integers: i16 [32, 2]. */
const VALUE_BYTES: usize = TILE_ROW / 2;

/**
 * The coded pages of an item for the states from `states` to `end`.
 *
 * Specification: `attend` in src/reference/reference.ts, over decoded pages.
 */
export function decodedPages(shape: Shape, item: Item, head: usize, states: usize, end: usize): void {
  const headDim = shape.keys.headDim, valueDim = shape.values.headDim, window = shape.window;
  const scratch = shape.scratch, scores = scratch + WINDOW_SCORES, bytes = stateBytes(headDim, valueDim);
  const order = orderOf(item.orders, head, headDim);
  const tile = shape.tile, keys = tile + max<usize>(headDim, valueDim) * TILE_ROW, values = keys + headDim * (TILE_ROW >> 1);

  for (let state = states; state < end; state += bytes) {
    columnPairs(qOf(state, valueDim), headDim, LANE_ROW, integersOf(state, headDim, valueDim), scaleOf(state));
  }
  // Two states pass over a page together: one that is left gets a twin, whose result nobody reads. There is room for it, as there is
  // for an even number of states.
  if (((end - states) / bytes) & 1) {
    memory.copy(end, end - bytes, bytes);
    end += bytes;
  }

  for (let n: usize = 0; n < item.pageCount; n++) {
    const position = pagePosition(item, n), after = position + <f32>WINDOW;
    if (!seesSome(states, end - bytes, position, after, window)) continue;
    const block = headBlocks(shape, item, n, head);
    decode(shape, shape.keys, order, block, tile, true);
    columnPairs(tile, headDim, TILE_ROW, keys, scratch + KEY_SCALES);
    decode(shape, shape.values, 0, block + shape.keys.bytes, tile, false);
    tokenPairs(tile, valueDim, values, scratch + VALUE_SCALES, scratch + STRANDS);
    for (let state = states; state < end; state += 2 * bytes) {
      const twin = state + bytes;
      if (!seesSome(state, twin, position, after, window)) continue;
      integerScores(state, twin, keys, headDim, valueDim, scores, scratch);
      if (!seesAll(state, twin, position, after, window)) {
        mixVisible(shape, state, scores, position, tile);
        mixVisible(shape, twin, scores + SCORES_BYTES, position, tile);
        continue;
      }
      if (biased(shape)) {
        for (let lane: usize = 0; lane < 2 * LANE_ROW; lane += 4) store<f32>(scratch + TOPS + lane, MASKED);
        maskScores(shape, state, scores, WINDOW, position, window, scratch + TOPS);
        maskScores(shape, twin, scores + SCORES_BYTES, WINDOW, position, window, scratch + TOPS + LANE_ROW);
      }
      integerWeights(state, scores, scratch, scratch + WEIGHTS);
      integerWeights(twin, scores + SCORES_BYTES, scratch + LANE_ROW, scratch + WEIGHTS + WEIGHTS_BYTES);
      integerMix(oOf(state), oOf(twin), values, valueDim, scratch);
    }
  }
}

/**
 * Columns in integers, rows 2i and 2i + 1 as pairs: x[2i + n, c] ≈ pairs[i, c, n] · scales[c].
 *
 *   x       f32 [rows, rowBytes / 4]
 *   pairs   i16 [rows / 2, rowBytes / 4, 2]
 *   scales  f32 [rowBytes / 4]
 */
function columnPairs(x: usize, rows: usize, rowBytes: usize, pairs: usize, scales: usize): void {
  const magic = vsplat(MAGIC);
  for (let c: usize = 0; c < rowBytes; c += VECTOR_BYTES) {
    const from = x + c, end = from + rows * rowBytes;
    let most = vsplat(1e-30);       // queries may be of any size: squares of what is at most 1 stay within f32
    for (let p = from; p < end; p += rowBytes) most = vmax(most, vabs(load<Lanes>(p)));
    const inverse = vdiv(vsplat(1), most);
    let sum = vsplat(0);
    for (let p = from; p < end; p += rowBytes) {
      const v = vmul(load<Lanes>(p), inverse);
      sum = vadd(sum, vmul(v, v));
    }
    const norm = vsqrt(vmax(sum, vsplat(1)));
    const unit = vmul(inverse, vdiv(vsplat(LARGEST), norm));
    store<Lanes>(scales + c, vmul(vmul(most, norm), vsplat(1 / LARGEST)));
    for (let p = from, to = pairs + c; p < end; p += 2 * rowBytes, to += rowBytes) {
      const first = vadd(vmul(load<Lanes>(p), unit), magic), second = vadd(vmul(load<Lanes>(p + rowBytes), unit), magic);
      store<IntLanes>(to, vpair(vbits(first), vbits(second)));
    }
  }
}

/**
 * Rows of a tile in integers, tokens t and t + 32 as pairs: x[i, t + 32n] ≈ pairs[i, t, n] · scales[i].
 *
 *   x        f32 [headDim, 64]
 *   pairs    i16 [headDim, 32, 2]
 *   scales   f32 [headDim]
 *   strands  f32 [LANES]           scratch
 */
function tokenPairs(x: usize, headDim: usize, pairs: usize, scales: usize, strands: usize): void {
  const magic = vsplat(MAGIC);
  for (const end = x + headDim * TILE_ROW; x < end; x += TILE_ROW, scales += 4) {
    let squares = vsplat(0);
    for (let t: usize = 0; t < TILE_ROW; t += VECTOR_BYTES) {
      const v = load<Lanes>(x + t);
      squares = vadd(squares, vmul(v, v));
    }
    store<Lanes>(strands, squares);
    const norm = sqrt<f32>(max<f32>(load<f32>(strands) + load<f32>(strands, 4) + load<f32>(strands, 8) + load<f32>(strands, 12), 1e-30));
    store<f32>(scales, norm / LARGEST);
    const unit = vsplat(LARGEST / norm);
    for (let t: usize = 0; t < TILE_ROW / 2; t += VECTOR_BYTES, pairs += VECTOR_BYTES) {
      const first = vadd(vmul(load<Lanes>(x + t), unit), magic), second = vadd(vmul(load<Lanes>(x + t, TILE_ROW / 2), unit), magic);
      store<IntLanes>(pairs, vpair(vbits(first), vbits(second)));
    }
  }
}

/** Logits of two states' rows against the 64 keys of a page: out, f32 [2, 64, LANES]; the largest of them: TOPS. */
function integerScores(a: usize, b: usize, keys: usize, headDim: usize, valueDim: usize, out: usize, scratch: usize): void {
  const scaleA = load<Lanes>(scaleOf(a)), scaleB = load<Lanes>(scaleOf(b));
  const begin = integersOf(a, headDim, valueDim), end = begin + headDim * LANE_ROW / 2, apart = b - a;
  let topA = vsplat(MASKED), topB = topA;
  for (let t: usize = 0; t < TILE_ROW; t += 16, out += 64) {
    let a0 = vintSplat(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    let k = keys + t;
    for (let p = begin; p < end; p += LANE_ROW, k += TILE_ROW) {
      const qa = load<IntLanes>(p), qb = load<IntLanes>(p + apart);
      const k0 = vpairSplatAt(k), k1 = vpairSplatAt4(k), k2 = vpairSplatAt8(k), k3 = vpairSplatAt12(k);
      a0 = vintAdd(a0, vdotPairs(qa, k0));
      b0 = vintAdd(b0, vdotPairs(qb, k0));
      a1 = vintAdd(a1, vdotPairs(qa, k1));
      b1 = vintAdd(b1, vdotPairs(qb, k1));
      a2 = vintAdd(a2, vdotPairs(qa, k2));
      b2 = vintAdd(b2, vdotPairs(qb, k2));
      a3 = vintAdd(a3, vdotPairs(qa, k3));
      b3 = vintAdd(b3, vdotPairs(qb, k3));
    }
    const scales = scratch + KEY_SCALES + t;
    const s0 = vsplatAt(scales), s1 = vsplatAt4(scales), s2 = vsplatAt8(scales), s3 = vsplatAt12(scales);
    topA = vmax(topA, logit(out, a0, s0, scaleA));
    topA = vmax(topA, logit(out + 16, a1, s1, scaleA));
    topA = vmax(topA, logit(out + 32, a2, s2, scaleA));
    topA = vmax(topA, logit(out + 48, a3, s3, scaleA));
    topB = vmax(topB, logit(out + SCORES_BYTES, b0, s0, scaleB));
    topB = vmax(topB, logit(out + SCORES_BYTES + 16, b1, s1, scaleB));
    topB = vmax(topB, logit(out + SCORES_BYTES + 32, b2, s2, scaleB));
    topB = vmax(topB, logit(out + SCORES_BYTES + 48, b3, s3, scaleB));
  }
  store<Lanes>(scratch + TOPS, topA);
  store<Lanes>(scratch + TOPS, topB, LANE_ROW);
}

@inline function logit(to: usize, sum: IntLanes, keyScale: Lanes, queryScale: Lanes): Lanes {
  const x = vmul(vfromInt(sum), vmul(keyScale, queryScale));
  store<Lanes>(to, x);
  return x;
}

/**
 * Weights of a state's tokens in integers, under the largest logit of the window; the running maximum and sum move on.
 *
 *   scores  f32 [64, LANES]       destroyed
 *   scratch  in: TOPS; out: KEEPS, UNITS; all of this state
 *   to      i16 [32, LANES, 2]
 */
function integerWeights(state: usize, scores: usize, scratch: usize, to: usize): void {
  const low = vsplatAt(EXP), magic = vsplatAt(EXP + 4), c0 = vsplatAt(EXP + 8), c1 = vsplatAt(EXP + 12);
  const c2 = vsplatAt(EXP + 16), c3 = vsplatAt(EXP + 20), c4 = vsplatAt(EXP + 24), c5 = vsplatAt(EXP + 28);
  const top = load<Lanes>(scratch + TOPS), before = load<Lanes>(mOf(state)), most = vmax(before, top);
  let sum = vsplat(0);
  for (let p = scores, end = scores + SCORES_BYTES; p < end; p += LANE_ROW) {
    const e = exp2(vsub(load<Lanes>(p), top), low, magic, c0, c1, c2, c3, c4, c5);
    sum = vadd(sum, e);
    store<Lanes>(p, e);
  }
  // No weight exceeds 1: their L2 norm is at most the root of their sum. What is summed is what is mixed, so that rounding
  // weights does not change what they come to.
  const unit = vdiv(vsplat(LARGEST), vsqrt(sum));
  let total = vsplat(0);
  for (let p = scores, end = scores + SCORES_BYTES / 2; p < end; p += LANE_ROW, to += LANE_ROW) {
    const first = vadd(vmul(load<Lanes>(p), unit), magic), second = vadd(vmul(load<Lanes>(p, SCORES_BYTES / 2), unit), magic);
    total = vadd(total, vadd(vsub(first, magic), vsub(second, magic)));
    store<IntLanes>(to, vpair(vbits(first), vbits(second)));
  }
  const keep = exp2(vsub(before, most), low, magic, c0, c1, c2, c3, c4, c5);
  const worth = vdiv(exp2(vsub(top, most), low, magic, c0, c1, c2, c3, c4, c5), unit);
  store<Lanes>(scratch + KEEPS, keep);
  store<Lanes>(scratch + UNITS, worth);
  store<Lanes>(mOf(state), most);
  store<Lanes>(dOf(state), vmadd(total, worth, vmul(load<Lanes>(dOf(state)), keep)));
}

/**
 * One state and a page that begins at `position`, of which some rows see less than all: weighed and mixed in f32.
 *
 *   scores  f32 [64, LANES]       destroyed
 *   tile    f32 [valueDim, 64]    values
 */
function mixVisible(shape: Shape, state: usize, scores: usize, position: f32, tile: usize): void {
  const valueDim = shape.values.headDim, scratch = shape.scratch;
  memory.copy(scratch + TOPS, mOf(state), LANE_ROW);
  maskScores(shape, state, scores, WINDOW, position, shape.window, scratch + TOPS);
  raise(state, scratch + TOPS, scratch + KEEPS, oOf(state), valueDim);
  rawWeights(scores, WINDOW, mOf(state), dOf(state));
  for (let out = oOf(state), end = out + valueDim * LANE_ROW; out < end; out += 2 * LANE_ROW, tile += 2 * TILE_ROW) {
    let a = load<Lanes>(out), b = load<Lanes>(out, LANE_ROW);
    for (let p = scores, v = tile, last = scores + SCORES_BYTES; p < last; p += LANE_ROW, v += 4) {
      const weight = load<Lanes>(p);
      a = vmadd(weight, vsplatAt(v), a);
      b = vmadd(weight, vsplatAt(v + TILE_ROW), b);
    }
    store<Lanes>(out, a);
    store<Lanes>(out, b, LANE_ROW);
  }
}

/** out ← out · keep + weights · V for two states, f32 [valueDim, LANES] each. Four channels at a time. */
function integerMix(a: usize, b: usize, values: usize, valueDim: usize, scratch: usize): void {
  const keepA = load<Lanes>(scratch + KEEPS), keepB = load<Lanes>(scratch + KEEPS, LANE_ROW);
  const unitA = load<Lanes>(scratch + UNITS), unitB = load<Lanes>(scratch + UNITS, LANE_ROW);
  const weights = scratch + WEIGHTS;
  let scales = scratch + VALUE_SCALES;
  for (const end = a + valueDim * LANE_ROW; a < end; a += 64, b += 64, scales += 16, values += 4 * VALUE_BYTES) {
    let a0 = vintSplat(0), a1 = a0, a2 = a0, a3 = a0, b0 = a0, b1 = a0, b2 = a0, b3 = a0;
    for (let p = weights, v = values, last = weights + WEIGHTS_BYTES; p < last; p += LANE_ROW, v += 4) {
      const wa = load<IntLanes>(p), wb = load<IntLanes>(p, WEIGHTS_BYTES);
      const v0 = vpairSplatAt(v), v1 = vpairSplatAt(v + VALUE_BYTES);
      const v2 = vpairSplatAt(v + 2 * VALUE_BYTES), v3 = vpairSplatAt(v + 3 * VALUE_BYTES);
      a0 = vintAdd(a0, vdotPairs(wa, v0));
      b0 = vintAdd(b0, vdotPairs(wb, v0));
      a1 = vintAdd(a1, vdotPairs(wa, v1));
      b1 = vintAdd(b1, vdotPairs(wb, v1));
      a2 = vintAdd(a2, vdotPairs(wa, v2));
      b2 = vintAdd(b2, vdotPairs(wb, v2));
      a3 = vintAdd(a3, vdotPairs(wa, v3));
      b3 = vintAdd(b3, vdotPairs(wb, v3));
    }
    const s0 = vsplatAt(scales), s1 = vsplatAt4(scales), s2 = vsplatAt8(scales), s3 = vsplatAt12(scales);
    add(a, keepA, a0, vmul(s0, unitA));
    add(a + 16, keepA, a1, vmul(s1, unitA));
    add(a + 32, keepA, a2, vmul(s2, unitA));
    add(a + 48, keepA, a3, vmul(s3, unitA));
    add(b, keepB, b0, vmul(s0, unitB));
    add(b + 16, keepB, b1, vmul(s1, unitB));
    add(b + 32, keepB, b2, vmul(s2, unitB));
    add(b + 48, keepB, b3, vmul(s3, unitB));
  }
}

@inline function add(out: usize, keep: Lanes, sum: IntLanes, scale: Lanes): void {
  store<Lanes>(out, vmadd(vfromInt(sum), scale, vmul(load<Lanes>(out), keep)));
}
