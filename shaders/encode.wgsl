// Encode: one side of raw slots of 64 tokens into the blocks of pages. One workgroup per KV head and window. Specification:
// `encode` in src/reference/reference.ts; src/format/layout.ts draws the block. Where LEARNS is 1, what keys have to say of a balance
// instead: a window's energies, Σ x² of every pair of channels of its normal tokens, f32 [DIM / 2] in the place of its codes.
//
//   raw        f16 [64, DIM] of every KV head, RAW_WORDS apart, from word job.rows on
//   constants  what src/webgpu/constants.ts draws
//   jobs       a window each
//   pages      pages, this side's blocks of each from word job.block on
//
// Tokens pass through workgroup memory TILE at a time, and there segment by segment. A thread owns whole words of the page.

override DIM: u32;         // channels of this side
override RAW_WORDS: u32;     // of a head in a raw slot, both sides
override ROW_WORDS: u32;     // of codes, for one token
override S2: u32;            // word offsets in a block; codes are at 0
override S1: u32;
override O: u32;
override SCALES: u32;
override EXPONENTS: u32;
override MEAN_BITS: u32;     // of a channel of the mean: 8 or 4
override STAGES: u32;        // how channels are coded
override STAGES_AT: u32;     // word offsets in constants
override ANGLES: u32;
override POWERS: u32;
override ORDERED: u32;       // 1 where channels are ordered and scaled
override LEARNS: u32;
override PAIRS: u32;         // RoPE pairs of this side; 0 where there is none
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;
override TILE: u32;          // tokens; a power of two up to 64, TILE · DIM ≤ 2048

// Words, by what src/webgpu/structs.ts names alike.
struct EncodeJob {
  rows: u32,           // word offset of this side's rows of head 0
  block: u32,          // word offset of this side's block of head 0
  headWords: u32,      // from a head's block to the next head's
  order: u32,          // word offset of head 0's order of channels in constants, where there is one
}
// Codes of one codebook over the channels of a segment. Stages of a segment follow one another, and add up.
struct Stage {
  segment: u32,
  channel: u32,        // the segment's first, in their order
  channels: u32,       // of the segment
  column: u32,         // first byte of its codes in a row
  columns: u32,
  width: u32,          // channels of a codeword: 8, 4 or 2
  book: u32,           // word offset of codewords in constants: f16 [128, width]; codeword c + 128 is the negation of c
  halfNorms: u32,      // word offset of ‖C‖²/2 in constants: f32 [128]
  scale: f32,          // what codewords are multiplied by
}

@group(0) @binding(0) var<storage, read> raw: array<u32>;
@group(0) @binding(1) var<storage, read> constants: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<EncodeJob>;
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;

const WG = 128u;
const WINDOW = 64u;
const MEAN_GROUP = 32u;
const MAX_SEGMENTS = 3u;

var<workgroup> tile: array<f32, TILE * DIM>;
var<workgroup> codes: array<atomic<u32>, TILE * ROW_WORDS>;
var<workgroup> o: array<f32, DIM>;
var<workgroup> inverse: array<f32, WINDOW>;           // norms, then 1/s1
var<workgroup> s2: array<f32, MAX_SEGMENTS * WINDOW>;
var<workgroup> factor: array<f32, WINDOW>;            // 1/s2 of the tile's tokens, before the adjustment
var<workgroup> sums: array<f32, WG>;
var<workgroup> scales: array<f32, 19>;                // of s1, then of every 32 channels of o
var<workgroup> minima: array<f32, 19>;

// One function: every phase works on what the one before left in workgroup memory.
@compute @workgroup_size(WG)
fn encode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let head = group.x;
  let job = jobs[group.y];
  let rows = job.rows + head * RAW_WORDS;
  let block = job.block + head * job.headWords;

  // 1. Normalize: two threads per token.
  var sum = 0.0;
  for (var i = thread & 1; i < DIM; i += 2) {
    let x = rawAt(rows, thread / 2, i);
    sum += x * x;
  }
  sums[thread] = sum;
  workgroupBarrier();
  if (thread < WINDOW) { inverse[thread] = sqrt((sums[2 * thread] + sums[2 * thread + 1]) / f32(DIM)); }
  workgroupBarrier();
  if (thread == 0) {
    var low = inverse[0];
    var high = low;
    for (var t = 1u; t < WINDOW; t++) {
      low = min(low, inverse[t]);
      high = max(high, inverse[t]);
    }
    pages[block + SCALES] = rtnScale(0, low, high, 15);
  }
  workgroupBarrier();
  if (thread < WINDOW / 8) {
    var word = 0u;
    for (var k = 0u; k < 8; k++) {
      let t = thread * 8 + k;
      var code = rtnCode(0, inverse[t], 15);
      // A code worth less than 0.7 of its token's norm gives way to the next: divided by a far smaller number, one token would make
      // up all of the window's mean.
      if (f32(code) * scales[0] + minima[0] < 0.7 * inverse[t]) { code++; }
      word |= code << (4 * k);
      let s1 = f32(code) * scales[0] + minima[0];
      var reciprocal = 0.0;
      if (s1 > 0) { reciprocal = 1 / s1; }
      inverse[t] = reciprocal;
    }
    pages[block + S1 + thread] = word;
  }
  workgroupBarrier();

  // 2. Shift: the mean before RoPE, in the frame of the window's center.
  for (var pair = thread; pair < PAIRS; pair += WG) {
    let a = pair * PAIR_STEP;
    let b = a + PAIR_OFFSET;
    var sumA = 0.0;
    var sumB = 0.0;
    for (var t = 0u; t < WINDOW; t++) {
      let xa = rawAt(rows, t, a) * inverse[t];
      let xb = rawAt(rows, t, b) * inverse[t];
      let rotation = angle(pair, t);
      sumA += xa * rotation.x + xb * rotation.y;
      sumB += xb * rotation.x - xa * rotation.y;
    }
    o[a] = sumA / f32(WINDOW);
    o[b] = sumB / f32(WINDOW);
  }
  for (var i = 2 * PAIRS + thread; i < DIM; i += WG) {
    var total = 0.0;
    for (var t = 0u; t < WINDOW; t++) { total += rawAt(rows, t, i) * inverse[t]; }
    o[i] = total / f32(WINDOW);
  }
  workgroupBarrier();
  let most = f32((1u << MEAN_BITS) - 1);
  if (thread < (DIM + MEAN_GROUP - 1) / MEAN_GROUP) {
    let first = thread * MEAN_GROUP;
    var low = o[first];
    var high = low;
    for (var i = first; i < min(first + MEAN_GROUP, DIM); i++) {
      low = min(low, o[i]);
      high = max(high, o[i]);
    }
    pages[block + SCALES + 1 + thread] = rtnScale(1 + thread, low, high, most);
  }
  workgroupBarrier();
  let perWord = 32 / MEAN_BITS;
  for (var n = thread; n < DIM / perWord; n += WG) {
    var word = 0u;
    for (var k = 0u; k < perWord; k++) {
      let i = n * perWord + k;
      let g = 1 + i / MEAN_GROUP;
      let code = rtnCode(g, o[i], most);
      word |= code << (MEAN_BITS * k);
      o[i] = f32(code) * scales[g] + minima[g];
    }
    pages[block + O + n] = word;
  }

  for (var first = 0u; first < WINDOW; first += TILE) {
    workgroupBarrier();
    for (var i = thread; i < TILE * DIM; i += WG) {
      let t = first + i / DIM;
      var channel = i % DIM;
      var scale = 1.0;
      if (ORDERED == 1) {
        let place = constants[job.order + head * DIM + channel];
        channel = place & 0xffff;
        scale = power(((place >> 16) & 15), place >> 20);
      }
      tile[i] = (rawAt(rows, t, channel) * inverse[t] - rotatedMean(t, channel)) * scale;
    }
    for (var i = thread; i < TILE * ROW_WORDS; i += WG) { atomicStore(&codes[i], 0); }

    for (var n = 0u; n < STAGES; ) {
      let segment = stageOf(STAGES_AT, n).segment;
      let channel = stageOf(STAGES_AT, n).channel;
      let channels = stageOf(STAGES_AT, n).channels;
      let firstStage = n;
      var unit = 0u;    // channels of the widest codeword: a thread's
      for (; n < STAGES; n++) {
        if (stageOf(STAGES_AT, n).segment != segment) { break; }
        unit = max(unit, stageOf(STAGES_AT, n).width);
      }
      workgroupBarrier();

      // 3. Normalize again: WG / TILE threads per token. The division waits for the Hadamard transform, which is linear.
      let lanes = WG / TILE;
      var squares = 0.0;
      for (var i = thread % lanes; i < channels; i += lanes) {
        let x = tile[thread / lanes * DIM + channel + i];
        squares += x * x;
      }
      sums[thread] = squares;
      workgroupBarrier();
      if (thread < TILE) {
        var total = 0.0;
        for (var lane = 0u; lane < lanes; lane++) { total += sums[thread * lanes + lane]; }
        let norm = sqrt(total / f32(channels));
        s2[segment * WINDOW + first + thread] = norm;
        var reciprocal = 0.0;
        if (norm > 0) { reciprocal = 1 / norm; }
        factor[thread] = reciprocal;
      }
      if (LEARNS == 1) {
        workgroupBarrier();
        for (var pair = thread; pair < DIM / 2; pair += WG) {
          let both = pairOf(pair);
          var energy = 0.0;
          if (first > 0) { energy = bitcast<f32>(pages[block + pair]); }
          for (var t = 0u; t < TILE; t++) {
            let xa = tile[t * DIM + both.x] * factor[t];
            let xb = tile[t * DIM + both.y] * factor[t];
            energy += xa * xa + xb * xb;
          }
          pages[block + pair] = bitcast<u32>(energy);
        }
        continue;
      }

      // 4. Hadamard. Butterfly, stride h = 1, 2, 4 …:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
      // Blocks are the powers of two that the segment's channels are the sum of, largest first: those wider than h end where the bits
      // of `channels` above h say.
      for (var h = 1u; 2 * h <= channels; h <<= 1) {
        workgroupBarrier();
        let pairs = (channels & ~(2 * h - 1)) / 2;
        for (var i = thread; i < TILE * pairs; i += WG) {
          let pair = i % pairs;
          let j = i / pairs * DIM + channel + (pair & ~(h - 1)) * 2 + (pair & (h - 1));   // insert a zero at bit log2(h)
          let a = tile[j];
          let b = tile[j + h];
          tile[j] = a + b;
          tile[j + h] = a - b;
        }
      }
      workgroupBarrier();

      // 5. Quantize: argmax(y·C − ‖C‖²/2), then the rest of y by the next stage. Where the channels of a unit lay in the tile are then
      // ⟨y, y⟩ and ⟨y, coded⟩.
      let units = channels / unit;
      for (var i = thread; i < TILE * units; i += WG) {
        let t = i / units;
        let at = t * DIM + channel + i % units * unit;
        let scale = factor[t] * hadamardScale(i % units * unit, channels);
        var y = mat2x4f(vec4f(tile[at], tile[at + 1], 0, 0), vec4f());
        if (unit > 2) { y[0] = vec4f(y[0].xy, tile[at + 2], tile[at + 3]); }
        if (unit > 4) { y[1] = vec4f(tile[at + 4], tile[at + 5], tile[at + 6], tile[at + 7]); }
        y *= scale;
        var coded = mat2x4f();
        for (var m = firstStage; m < n; m++) {
          let stage = stageOf(STAGES_AT, m);
          // A unit of eight channels is one codeword or two of four.
          for (var part = 0u; part < unit / stage.width; part++) {
            var rest = (y - coded) * (1 / stage.scale);
            if (part == 1) { rest[0] = rest[1]; }
            let code = nearest(stage, rest);
            let found = codeword(stage, code) * stage.scale;
            if (part == 1) { coded[1] += found[0]; } else { coded += found; }
            let column = stage.column + i % units * (unit / stage.width) + part;
            atomicOr(&codes[t * ROW_WORDS + column / 4], code << (8 * (column & 3)));
          }
        }
        tile[at] = dot(y[0], y[0]) + dot(y[1], y[1]);
        tile[at + 1] = dot(y[0], coded[0]) + dot(y[1], coded[1]);
      }
      workgroupBarrier();

      // 6. Adjust s2 by ⟨y, y⟩/⟨y, coded⟩.
      if (thread < TILE) {
        var yy = 0.0;
        var yc = 0.0;
        for (var i = 0u; i < channels; i += unit) {
          yy += tile[thread * DIM + channel + i];
          yc += tile[thread * DIM + channel + i + 1];
        }
        let at = segment * WINDOW + first + thread;
        var adjusted = 0.0;
        if (yc > 0) { adjusted = s2[at] * yy / yc; }
        s2[at] = adjusted;
      }
    }
    workgroupBarrier();
    if (LEARNS == 1) { continue; }
    for (var i = thread; i < TILE * ROW_WORDS; i += WG) { pages[block + first * ROW_WORDS + i] = atomicLoad(&codes[i]); }
  }

  // 7. s2 as small floats under an exponent for each segment, in integers.
  var exponents = 0u;
  for (var segment = 0u; segment <= stageOf(STAGES_AT, STAGES - 1).segment; segment++) {
    let at = segment * WINDOW;
    var largest = 255u;
    for (var t = 0u; t < WINDOW; t++) { largest = max(largest, shortened(s2[at + t])); }
    let exponent = max(1, (largest - 255 + 31) / 32);
    exponents |= exponent << (8 * segment);
    if (thread < WINDOW / 4) {
      var word = 0u;
      for (var k = 0u; k < 4; k++) {
        let number = shortened(s2[at + 4 * thread + k]);
        word |= (number - min(number, 32 * exponent)) << (8 * k);
      }
      pages[block + S2 + at / 4 + thread] = word;
    }
  }
  if (thread == 0) { pages[block + EXPONENTS] = exponents; }
}

// The code whose codeword is nearest to the first channels of y.
fn nearest(stage: Stage, y: mat2x4f) -> u32 {
  var best = -1e30;
  var code = 0u;
  for (var c = 0u; c < 128; c++) {
    let at = stage.book + c * stage.width / 2;
    var product = dot(y[0].xy, two(at));
    if (stage.width > 2) { product += dot(y[0].zw, two(at + 1)); }
    if (stage.width > 4) { product += dot(y[1].xy, two(at + 2)) + dot(y[1].zw, two(at + 3)); }
    let score = abs(product) - bitcast<f32>(constants[stage.halfNorms + c]);
    if (score > best) {
      best = score;
      code = select(c, c + 128, product < 0);
    }
  }
  return code;
}

// A codeword; 0 in the channels that it does not have.
fn codeword(stage: Stage, code: u32) -> mat2x4f {
  let at = stage.book + (code & 127) * stage.width / 2;
  var found = mat2x4f(vec4f(two(at), 0, 0), vec4f());
  if (stage.width > 2) { found[0] = vec4f(found[0].xy, two(at + 1)); }
  if (stage.width > 4) { found[1] = vec4f(two(at + 2), two(at + 3)); }
  return found * select(1.0, -1.0, code >= 128);
}

// Two channels of a codeword. None is subnormal: unpack2x16float is exact.
fn two(word: u32) -> vec2f {
  return unpack2x16float(constants[word]);
}

// An f32 above 0 without its last 18 bits, to nearest: 8 bits of exponent, 5 of mantissa.
fn shortened(x: f32) -> u32 {
  return (bitcast<u32>(x) + 0x20000) >> 18;
}

// The nth stage of the list at a word of constants.
fn stageOf(list: u32, n: u32) -> Stage {
  let at = list + 9 * n;
  return Stage(
    constants[at], constants[at + 1], constants[at + 2], constants[at + 3], constants[at + 4], constants[at + 5], constants[at + 6],
    constants[at + 7], bitcast<f32>(constants[at + 8])
  );
}

// 1/√n of the block that a channel of a segment is in: the highest bit in which its number differs from theirs is n.
fn hadamardScale(channel: u32, channels: u32) -> f32 {
  let log = firstLeadingBit(channel ^ channels);
  return ldexp(select(1.0, 0.70710678, (log & 1) == 1), -i32(log / 2));
}

// 2^((up − down) / 8): of levels of keys and queries the scale of their channels.
fn power(up: u32, down: u32) -> f32 {
  return bitcast<f32>(constants[POWERS + 15 + up - down]);
}

// The two channels that share an energy.
fn pairOf(pair: u32) -> vec2u {
  if (pair >= PAIRS) { return vec2u(2 * pair, 2 * pair + 1); }
  return vec2u(pair * PAIR_STEP, pair * PAIR_STEP + PAIR_OFFSET);
}

fn rawAt(rows: u32, token: u32, channel: u32) -> f32 {
  return fromHalf(raw[rows + (token * DIM + channel) / 2] >> (16 * (channel & 1)));
}

// cos and sin of a pair's angle at a token.
fn angle(pair: u32, token: u32) -> vec2f {
  let at = ANGLES + pair * WINDOW + token;
  return vec2f(bitcast<f32>(constants[at]), bitcast<f32>(constants[at + PAIRS * WINDOW]));
}

// RoPEᵤ(o) of one channel.
fn rotatedMean(token: u32, channel: u32) -> f32 {
  if (channel >= 2 * PAIRS) { return o[channel]; }
  var pair = channel / 2;
  var second = (channel & 1) == 1;
  if (PAIR_STEP == 1) {
    second = channel >= PAIRS;
    pair = select(channel, channel - PAIRS, second);
  }
  let a = o[pair * PAIR_STEP];
  let b = o[pair * PAIR_STEP + PAIR_OFFSET];
  let rotation = angle(pair, token);
  return select(a * rotation.x - b * rotation.y, b * rotation.x + a * rotation.y, second);
}

// Rounding to 0 … most: scale and minimum of group g as f16 keeps them, two to a word.
fn rtnScale(g: u32, low: f32, high: f32, most: f32) -> u32 {
  let scale = toHalf(bitcast<u32>(max((high - low) / most, 1e-5)));
  let minimum = toHalf(bitcast<u32>(low));
  scales[g] = fromHalf(scale);
  minima[g] = fromHalf(minimum);
  return scale | (minimum << 16);
}

fn rtnCode(g: u32, x: f32, most: f32) -> u32 {
  return u32(round(clamp((x - minima[g]) / scales[g], 0, most)));
}

// The half nearest to an f32, both as bits, ties to even; beyond f16's range its end. In integers: WGSL promises neither a rounding
// mode nor subnormals.
fn toHalf(bits: u32) -> u32 {
  let sign = (bits >> 16) & 0x8000;
  let magnitude = min(bits & 0x7fffffff, 0x477fe000);
  if (magnitude >= 0x38800000) {
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13);
  }
  // Below 2⁻¹⁴ halves are multiples of 2⁻²⁴.
  let shift = 126 - (magnitude >> 23);
  if (shift > 24) { return sign; }
  let mantissa = (magnitude & 0x7fffff) | 0x800000;
  let low = mantissa >> shift;
  let rest = mantissa & ((1u << shift) - 1);
  let middle = 1u << (shift - 1);
  return sign | (low + select(0u, 1u, rest > middle || (rest == middle && (low & 1) == 1)));
}

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
