// Softmax of scores f32 [tokens, slot] for one to four heads: slot is 1, 2 or 4, so that a vector holds 4, 2 or 1 tokens.
// Scores are exponents of 2: the queries carried log₂e.

import { madd } from "./vectors";

/**
 * The least exponent, 1.5 · 2²³, and 2ˣ for |x| ≤ ½ as a polynomial (relative error 2.2e-7 in f32). Weights below 2⁻⁶⁴ vanish in any
 * f32 sum, and subnormal numbers are slow. In memory, because V8 builds a constant anew in every iteration.
 */
const EXP2 = memory.data<f32>([
  -64, 12582912, 1.0000001192092896, 0.693146944046020508, 0.240221217274665833,
  0.0555074252188205719, 0.00967545993626117706, 0.00132669706363230944,
], 16);

/** max(start, scores) in each lane; `bytes` are rounded up to 16. */
export function greatest(scores: usize, bytes: usize, start: v128): v128 {
  for (const end = scores + bytes; scores < end; scores += 16) start = f32x4.pmax(start, v128.load(scores));
  return start;
}

/** scores ← 2^(scores − max + lift), in place; `bytes` are rounded up to 16, lift is an integer. Returns sum + Σ scores in each lane. */
export function weigh(scores: usize, bytes: usize, max: v128, lift: f32, sum: v128): v128 {
  const least = v128.load32_splat(EXP2), round = f32x4.add(v128.load32_splat(EXP2, 4), f32x4.splat(lift));
  const c0 = v128.load32_splat(EXP2, 8), c1 = v128.load32_splat(EXP2, 12), c2 = v128.load32_splat(EXP2, 16);
  const c3 = v128.load32_splat(EXP2, 20), c4 = v128.load32_splat(EXP2, 24), c5 = v128.load32_splat(EXP2, 28);
  for (const end = scores + bytes; scores < end; scores += 16) {
    const x = f32x4.pmax(f32x4.sub(v128.load(scores), max), least);
    const integer = f32x4.add(x, round); // round(x) + lift in its low bits
    const fraction = f32x4.sub(x, f32x4.sub(integer, round));
    let power = madd(c5, fraction, c4);
    power = madd(power, fraction, c3);
    power = madd(power, fraction, c2);
    power = madd(power, fraction, c1);
    power = madd(power, fraction, c0);
    power = i32x4.add(power, i32x4.shl(integer, 23));
    sum = f32x4.add(sum, power);
    v128.store(scores, power);
  }
  return sum;
}
