// What becomes of logits before the softmax: capped, biased by distance, hidden from rows that do not see their tokens.

import { Lanes, VECTOR_BYTES, vadd, vdiv, vgt, vmadd, vmax, vmin, vmul, vselect, vsplat, vsplatAt, vsub } from "lanes";
import { LANE_ROW, Shape } from "./abi";
import { MASKED } from "./softmax";
import { positionOf, slopeOf } from "./state";

/** Whether logits are more than products: they must pass `maskScores` even where rows see all of their tokens. */
@inline export function biased(shape: Shape): bool {
  return shape.softcap > 0 || shape.slopes != 0;
}

/**
 * Caps logits, adds slope · (token's position − row's), and gives tokens that a row does not see no probability: scores ← MASKED. A row
 * sees tokens up to its own, `window` of them. The largest of what is left raises `top`.
 *
 *   scores    f32 [tokens, LANES]
 *   position  of the first token, in the state's count
 *   top       f32 [LANES]
 *
 * Where every window passes (slopes), attention takes 4 to 8 % longer: 2 ns a token and four rows.
 *
 * Specification: `attend` in src/reference/attention.ts.
 */
export function maskScores(shape: Shape, state: usize, scores: usize, tokens: usize, position: f32, window: f32, top: usize): void {
  if (shape.softcap > 0) capScores(scores, tokens, shape.softcap);
  for (let lane: usize = 0; lane < LANE_ROW; lane += VECTOR_BYTES) {
    const own = load<Lanes>(positionOf(state) + lane), slope = load<Lanes>(slopeOf(state) + lane);
    const hidden = vsub(own, vsplat(window)), masked = vsplat(MASKED), one = vsplat(1);
    let at = vsplat(position), max = load<Lanes>(top + lane);
    for (let p = scores + lane, end = p + (tokens << 4); p < end; p += LANE_ROW) {
      const score = vmadd(slope, vsub(at, own), load<Lanes>(p));
      const seen = vselect(masked, vselect(score, masked, vgt(at, hidden)), vgt(at, own));
      max = vmax(max, seen);
      store<Lanes>(p, seen);
      at = vadd(at, one);
    }
    store<Lanes>(top + lane, max);
  }
}

/**
 * tanh x = x · P(x²) / Q(x²), of degrees 6 and 3, within ±9: powers of P from the highest, then of Q (Eigen's ptanh). Off by 5.4 ulps of
 * the result at most; by 2^x, as 1 − 2 / (1 + e^2x), it is off by 2e-7 of c whatever the logit, which is 25,000 ulps of small ones.
 * Caps cost 7 ns a token and four rows with their pass over the mask: 26 % of attention at nsn3 and headDim 64, 15 % at 128.
 */
const TANH: usize = memory.data<f32>([
  -2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-8, 1.48572235717979e-5, 6.37261928875436e-4,
  4.89352455891786e-3, 1.19825839466702e-6, 1.18534705686654e-4, 2.268434632439e-3, 4.89352518554385e-3, 9, -9
], 16);

/** scores ← c · tanh(scores / c) */
function capScores(scores: usize, tokens: usize, c: f32): void {
  const cap = vsplat(c), inverse = vsplat(1 / c);
  for (const end = scores + (tokens << 4); scores < end; scores += VECTOR_BYTES) {
    const x = vmax(vmin(vmul(load<Lanes>(scores), inverse), vsplatAt(TANH + 44)), vsplatAt(TANH + 48));
    const z = vmul(x, x);
    let p = vmadd(vsplatAt(TANH), z, vsplatAt(TANH + 4)), q = vmadd(vsplatAt(TANH + 28), z, vsplatAt(TANH + 32));
    p = vmadd(p, z, vsplatAt(TANH + 8));
    q = vmadd(q, z, vsplatAt(TANH + 36));
    p = vmadd(p, z, vsplatAt(TANH + 12));
    q = vmadd(q, z, vsplatAt(TANH + 40));
    p = vmadd(p, z, vsplatAt(TANH + 16));
    p = vmadd(p, z, vsplatAt(TANH + 20));
    p = vmadd(p, z, vsplatAt(TANH + 24));
    store<Lanes>(scores, vmul(vdiv(vmul(p, x), q), cap));
  }
}
