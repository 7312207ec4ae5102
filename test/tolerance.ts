// Every number that a test forgives, with its reason. A test that needs another one adds it here.

/**
 * A kernel's largest error against f64, over an output row, may be this many times that of the naive f32 implementation
 * (brute.ts): the order of additions is the kernel's own, and a largest of hundreds of errors varies by about that much.
 */
export const NAIVE_ERRORS = 2;

/**
 * To which comes this share of the row's largest magnitude: where the naive sum happens to be exact, a kernel that divides by
 * a reciprocal (1.5 ulp), dequantizes s1 or o (1.5) and rounds its result (0.5) is still right. 8 ulps of f32.
 */
export const ATOL = 2 ** -20;

/**
 * A code that is not the f64 search's is right where its distance exceeds the least by this share at most: f32 scores of two
 * codewords cannot be told apart below it (the score's own rounding is 1e-7 of it, and distances are roots of differences).
 */
export const NEAR_TIE = 1e-5;

/**
 * The mean's part of a logit, ⟨q, RoPEᵤ(o)⟩, is summed in i16: each of up to headDim + 8 coefficients is off by half a 32,766th
 * of their sum at most, in random directions, and the powers that stand for slow pairs by 1e-4. This share of Σ|A| + |B|.
 */
export const MEAN_TERM = 5e-4;

/** What a 4-bit rounding in f32 may take for the other side of a tie: 8 ulps of the largest number in the group. */
export const RTN_TIE = 2 ** -21;

/** s2 adjusted is a quotient of two sums of headDim products each, rounded to f16: where it is this near a tie either side will do. */
export const scaleTie = (headDim: number) => headDim * 2 ** -23;

/** Two ways to the same f64 number: sums of up to a few thousand products in different orders. */
export const F64 = 1e-12;

/**
 * Largest mean squared error of a codebook on standard normal numbers, a channel: 0.3235, 0.0973 and 0.0081 over millions of
 * draws, and what the 128,000, 64,000 and 32,000 of the test scatter by.
 */
export const GAUSSIAN_MSE = { nsn1: 0.3265, nsn2: 0.0985, nsn4: 0.0083 } as const;
