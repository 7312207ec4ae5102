// Every number that a test forgives, with its reason. A test that needs another one adds it here.

import type { CacheShape } from 'nsnquant';

/**
 * A kernel's largest error against f64, over an output row, may be this many times that of the naive f32 implementation
 * (brute.ts): the order of additions is the kernel's own, and a largest of hundreds of errors varies by about that much.
 */
export const NAIVE_ERRORS = 2;

/**
 * To which comes this share of the row's largest magnitude, 16 ulps of f32: where the naive sum happens to be exact, a kernel
 * is still right that divides by a reciprocal (1.5 ulp), dequantizes s1 and o (1.5 each), and gathers 64 weights of one sign
 * in one bucket before the codeword enters (12 measured, on tokens that all have the same codes).
 */
export const ATOL = 2 ** -19;

/**
 * Values are mixed from two sums, of codes and of means, which cancel where a token is small beside its window's norms: either is off
 * by ATOL of itself, and what codes come to is as large as what means do. A share of (Σ p·s1)·|o|, window by window, forgiven on a
 * GPU alone. Measured there, over tokens of a millionth of their window's largest: 1.08e-7 where the float rule gives 8.8e-8.
 */
export const CANCELLED = 2 * ATOL;

/** 16 ulps of what a row adds up, for mix: of Hadamard-transformed tokens, where an outlier that cancels is in every channel. */
export const ADDED_UP = ATOL;

/**
 * One ulp of what a logit of balanced keys adds up: scales that have nothing to do with the keys make its parts larger than it is.
 * Measured 0.23 of it beyond the float rule, on tokens of alternating signs, whose logits all cancel.
 */
export const BALANCED_ADDED_UP = 2 ** -23;

/**
 * One ulp of what a logit adds up at most, as a share of the product of the lengths of query and key. Where one token has nearly all of
 * the weight, all of a row is off by what its logit is, and so is the log-sum-exp, whatever the parts cancel to: a naive sum that is right
 * by chance, in one of some hundred thousand rows, forgives nothing. Measured 0.1 of it beyond the float rule.
 */
export const LOGIT_ADDED_UP = 2 ** -23;

/**
 * A code that is not the f64 search's is right where its distance exceeds the least by this share at most: f32 scores of two
 * codewords cannot be told apart below it (the score's own rounding is 1e-7 of it, and distances are roots of differences).
 */
export const NEAR_TIE = 1e-5;

/** The share of codes that may be such near ties. Of those of WebAssembly 6 in 800,000 are; a search by another rule differs far more often. */
export const NEAR_TIES = 1e-3;

/**
 * The mean's part of a logit, ⟨q, RoPEᵤ(o)⟩, is summed in i16: each of its coefficients is off by half a 32,766th of their sum
 * at most, in random directions, so that the sum's error grows with the root of their number; the powers that stand for slow
 * pairs are off by 1e-4. A share of Σ|A| + |B| (brute.ts); measured 5.04e-4 at headDim 512 with every pair fast.
 */
export const meanTermShare = (headDim: number) => 5e-4 * Math.sqrt(Math.max(1, headDim / 128));

/**
 * Rows (query tokens × query heads per KV head) from which src/wasm/store.ts may decode pages instead of looking codes up.
 */
export const DECODED_ROWS = 96;

/**
 * Of decoded pages, keys, queries, values and weights are integers: each is off by half a 32,766th of its vector's norm at most,
 * 0.29 of one in the root mean square, in random directions. A product of two such vectors is off by √2 · 0.29 of one; five of
 * these deviations.
 */
export const INTEGER_SHARE = (5 * Math.SQRT2 * 0.29) / 32766;

/**
 * What attention on a GPU may differ by, as a share of the largest number, when the same context is split and added up otherwise:
 * 16 ulps of f32, as ATOL, once for either order.
 */
export const REORDERED = 2 * ATOL;

/** What a 4-bit rounding in f32 may take for the other side of a tie: 8 ulps of the largest number in the group. */
export const RTN_TIE = 2 ** -21;

/** No token is divided by less than this share of its norm: a code of the norm that is worth less gives way to the next. */
export const LEAST_SHARE = 0.7;

/**
 * Root mean square error of a token in any window, as a share of its norm and one step of the window's norms together. Measured + 10 % over
 * 2,000 windows: 0.81, 0.46, 0.28 and 0.23 of `uneven` tokens, and 1.46, 0.60, 0.45 and 0.22 of tokens that Hadamard makes one hot, which
 * codewords of eight channels fit worst.
 */
export const TOKEN_ERROR = { nsn1: 1.6, nsn2: 0.66, nsn3: 0.5, nsn4: 0.25 } as const;

/**
 * The same of keys under a balance that has nothing to do with them: scales from 0.27 to 3.7 enlarge what their channels err by. Measured
 * 2.26, 1.27, 1.07 and 1.06.
 */
export const BALANCED_TOKEN_ERROR = { nsn1: 2.5, nsn2: 1.4, nsn3: 1.2, nsn4: 1.2 } as const;

/** A norm below this is 0 in f32: the squares of its token underflow. */
export const UNDERFLOW = 2 ** -63;

/** s2 adjusted is a quotient of two sums of as many products as a segment has channels: where it is this near a tie either side will do. */
export const scaleTie = (channels: number) => channels * 2 ** -23;

/**
 * Energies within this share of the edge between two levels may take either: sums of up to thousands of squares in f32, of tokens of which
 * one may have had its norm, or a mean its code, on the other side of a tie.
 */
export const LEVEL_TIE = 2e-3;

/**
 * The share of itself that a sum of a few hundred squares in f32 may be off by: half an ulp for every addition, in random directions.
 * Measured 6.7e-7 over 300.
 */
export const ENERGIES = 2e-6;

/** The share of levels that may be so near an edge and differ. */
export const NEAR_LEVELS = 1e-3;

/**
 * What differs by roundings to f16 alone: each is off by 2⁻¹¹ of itself, 4.9e-4, and two factors of a product are by twice that.
 * Measured 3.4e-4 for attention over keys and values that stay raw.
 */
export const HALVES = 1e-3;

/** Two ways to the same f64 number: sums of up to a few thousand products in different orders. */
export const F64 = 1e-12;

/**
 * Largest mean squared error of a codec's stages on standard normal numbers, a channel. Measured over four draws of a quarter of a million
 * channels: 0.3143 to 0.3180, 0.0958 to 0.0969, 0.0311 to 0.0317, 0.0077 to 0.0078; the margin is what a test's smaller draw may scatter.
 * The paper's 2-bit code: 0.0951.
 */
export const GAUSSIAN_MSE = { nsn1: 0.32, nsn2: 0.0978, nsn3: 0.032, nsn4: 0.0081 } as const;

/**
 * Relative error (L2) of attention over 580 tokens, keys and values of one codec, against exact attention; seeds are in
 * quality.test.ts. Measured + 10 %: the same numbers on every engine but for log and cos, and nothing here is random. Where all channels
 * weigh the same, coding some more finely than others gains nothing at two and three bits; of `falling` tokens, as of models' keys, few
 * weigh.
 */
export const QUALITY = {
  // logits of deviation 1 and more; measured 0.867, 0.547, 0.292, 0.121 and plain 1.215, 0.463, 0.250, 0.121
  normal: { learn: { nsn1: 0.954, nsn2: 0.602, nsn3: 0.321, nsn4: 0.134 }, off: { nsn1: 1.34, nsn2: 0.51, nsn3: 0.275, nsn4: 0.133 } },
  // 0.0517, 0.0322, 0.0158, 0.0065 and plain 0.0628, 0.0248, 0.0138, 0.0064
  'key-like': {
    learn: { nsn1: 0.0569, nsn2: 0.0355, nsn3: 0.0174, nsn4: 0.0072 },
    off: { nsn1: 0.0691, nsn2: 0.0273, nsn3: 0.0152, nsn4: 0.0071 }
  },
  // 0.0401, 0.0208, 0.0109, 0.0061 and plain 0.0927, 0.0268, 0.0121, 0.0059
  falling: {
    learn: { nsn1: 0.0442, nsn2: 0.0229, nsn3: 0.012, nsn4: 0.0068 },
    off: { nsn1: 0.102, nsn2: 0.0295, nsn3: 0.0134, nsn4: 0.0065 }
  }
} as const;

/**
 * How many times the error without it a constant of keys may cost: their mean has 8 bits. Measured 1.049 at most, of nsn4; in 4 bits it
 * cost nsn4 4 to 12 times the error.
 */
export const KEY_BIAS = 1.06;

/** What lowers an error must lower it to this share at most: measured, and some more for other draws and for near ties. */
export const LOWERED = {
  /** Of keys at four bits, balanced, and of values at four and at two, against one bit: 0.142, 0.127 and 0.472. */
  keys4: 0.16,
  values4: 0.14,
  values2: 0.52,
  /** RoPE that is known, of attention over a cache: 0.619. */
  ropeKnown: 0.68,
  /** And of tokens: 0.346 to 0.851, most where few pairs turn. */
  meanBeforeRope: 0.9,
  /** 64 sinks and four recent windows of 580 tokens: 0.838. */
  raw: 0.9,
  /** Balanced keys, of logits of queries that weigh every eighth of the channels half as much as the one before: 0.352 to 0.600. */
  balance: { nsn1: 0.39, nsn2: 0.51, nsn3: 0.43, nsn4: 0.66 },
  /** Any one step of the algorithm: 0.441 to 0.877, most of Normalize. */
  step: 0.91
} as const;

/**
 * What balancing keys must lower the KL divergence of attention to, where one pair of channels in 16 carries the logits (recording.ts): a
 * share of that of plain keys. Measured 0.026, 0.050, 0.058 and 0.168, and a fifth more for near ties.
 */
export const FEW_PAIRS = { nsn1: 0.031, nsn2: 0.06, nsn3: 0.07, nsn4: 0.2 } as const;

/**
 * Relative error of tokens that are all alike: what rounding leaves of their mean is coded in turn. Measured + 10 %, 8 bits a channel of
 * keys (most under a balance that has nothing to do with them) and 4 of values.
 */
export const EQUAL_TOKENS = {
  keys: { nsn1: 0.0043, nsn2: 0.0031, nsn3: 0.0025, nsn4: 0.00077 },
  values: { nsn1: 0.068, nsn2: 0.0342, nsn3: 0.0191, nsn4: 0.0095 }
} as const;

/**
 * A codec's mean squared error m on normal numbers makes m / (1 − m) of a token's square, for what is coded is lengthened to the token's
 * own length. The squared error of coded tokens differs from that by this share at most: the mean takes a 64th of them, and GAUSSIAN_MSE
 * is not the least. Measured 0.036 to 0.107, most at four bits.
 */
export const CODED_NORMAL = 0.12;

/** Relative error of a key-like token in four bits. Measured 0.121 at most; another token is off by half or more. */
export const NEARLY = 0.2;

/**
 * How far attention of a scale near 0 may be from the mean of up to 170 values of deviation 1: f32 sums, and integers of 16 bits
 * where pages are decoded. Measured 8.1e-6 in WebAssembly.
 */
export const ALIKE = 2e-5;

/** Attention to one token, as a share of its value and 1: weighted and divided by the weight, 8 roundings of f32. */
export const ONE_TOKEN = 1e-6;

/** Where near ties fell otherwise, a few in a thousand codes, an error over one query moves by less than this share of itself. */
export const OTHER_TIES = 0.02;

/**
 * Bytes that WebAssembly may take beyond plan(): 512 KiB for the engine, codebooks, grids and scratch of one size; a channel's
 * tables of logits (4 KiB at four bits), two windows in f32 and partial sums (2 KiB), sums, queries and their integers of
 * 256 rows (40 bytes a channel for every four), 256 rows of every KV head (or one token of every sequence) in and out, and two
 * windows of all KV heads coming in; page numbers and raw runs; for every sequence and layer the order of channels, with its scales and
 * their inverses.
 */
export function memoryBound({ layers, capacity, sequences }: CacheShape): number {
  const { headDim, kvHeads, queryHeads } = layers[0]!; // all are alike
  const tokens = Math.max((256 * kvHeads) / queryHeads, sequences);
  const orders = sequences * layers.length * (12 * kvHeads * headDim + 16);
  return (
    2 ** 19 + headDim * (6144 + 40 * 64 + 8 * tokens * queryHeads + 512 * kvHeads) + 16 * sequences * Math.ceil(capacity / 64) + orders
  );
}

/**
 * Bytes that WebGPU may take beyond plan(): 8 MiB in which a call's keys and values are staged, or one window where that is more;
 * 64 KiB for jobs, codebooks and small things; a pair's angles; 128 query tokens (or one for every sequence) in and out; partial
 * results, of these tokens' blocks of four rows and a quarter more one for every pair of chunks, and of 1024 workgroups besides; for
 * every layer the list of such work, raw runs and pages. Chunks of pages and raw slots double: in pairs there are half as many as
 * pages are doublings of eight, and slots of a layer's.
 */
export function gpuMemoryBound({ layers, capacity, sequences, rawSlots }: CacheShape): number {
  const { headDim, kvHeads, queryHeads } = layers[0]!; // all are alike
  const tokens = Math.max(128, sequences);
  const pairs = (doublings: number): number => Math.ceil((1 + Math.max(0, Math.ceil(Math.log2(doublings)))) / 2);
  const pieces = pairs(capacity / 64 / 8) + pairs(rawSlots / layers.length);
  const splits = 1.25 * pieces * tokens * Math.ceil(queryHeads / kvHeads / 4) + 1024 / kvHeads + 2;
  const windows = sequences * Math.ceil(capacity / 64);
  return (
    2 ** 23 +
    2 ** 16 +
    headDim * (256 + 8 * tokens * queryHeads + 512 * kvHeads) +
    16 * splits * kvHeads * (2 + headDim) +
    layers.length * 16 * (3 + tokens + 1.5 * splits + 3 * windows)
  );
}

/**
 * How far a token of the random histories may be from itself after codes of four bits, as a share of its length (L2): 0.167
 * measured over 640,000 of them. No two tokens' values are nearer than 0.71 to each other, nor their keys than 0.28.
 */
export const CODED_ROW = 0.25;

/** Shares of attention are differences of exponentials of f32 logarithms up to 2⁴: half an ulp of either is 2⁻²⁰; and keys are as decoded. */
export const MASS = 1e-5;

/** Bytes of a cache of small heads before its first token: tables of logits, codebooks, grids, and scratch of a call of one token. */
export const FIRST_BYTES = 0.5 * 2 ** 20;

/**
 * Bits that 1,000 tokens of 30 layers with three heads of 64 take of all memory. Of WebAssembly: 3.02 of coded pages, 1.15 of sinks,
 * learned balances and the last window of every layer, which is raw, as they are when it is complete; 0.22 of tables and scratch; and what
 * lies between. On a GPU 3.24, of which each layer has 15 pages, 1.09, and 0.16.
 */
export const THOUSAND_TOKENS_BITS = 4.5;

/**
 * A cut model's logits against the whole one's: each is an engine's f32 noise over three layers, whose fusions differ where the graph was
 * cut. Measured 1.7e-6 at most, of the logits' norm, with weights of 4 bits.
 */
export const CUT_F32 = 1e-5;

/** The same of f16 graphs, which round every value that crosses a cut, and many between: about one step of f16. Measured 6.2e-4. */
export const CUT_F16 = 2e-3;

/** Logits over keys and values that a cache keeps as f16, against those over what came: a step of f16 or two. Measured 4.5e-4. */
export const RAW_F16 = 2e-3;

/** The same once 128 of 150 tokens are coded, of a model with random weights, whose attention looks at all of them. Measured 0.07. */
export const CODED_LOGITS = 0.2;
