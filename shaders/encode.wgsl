// Encode: one side of raw slots of 64 tokens into the blocks of pages. One workgroup per KV head and window. Specification:
// `encode` in src/reference/reference.ts; src/format/layout.ts draws the block.
//
//   raw        f16 [KV heads, 2 (keys, values), 64, HEAD_DIM], this side's from word job.rows on
//   constants  codebook f16 [128, CHANNELS] · cos, sin f32 [PAIRS, 64] of ω·(t − 31.5) · page header
//   jobs       a window each
//   pages      pages, each from word job.page on, their blocks from word job.block on
//
// Tokens pass through workgroup memory TILE at a time. A thread owns whole words of the page: no atomics.

override HEAD_DIM: u32;
override CHANNELS: u32;      // per code: 8, 4 or 2
override ROW_WORDS: u32;     // of codes, for one token
override S2: u32;            // word offsets in a block; codes are at 0
override S1: u32;
override SCALES: u32;
override O: u32;
override BOOK: u32;          // word offsets in constants
override TABLES: u32;
override PAIRS: u32;         // RoPE pairs of this side; 0 where there is none
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;
override N: u32;             // Hadamard block: the largest power of two dividing HEAD_DIM
override SCALE: f32;         // 1/√N
override TILE: u32;          // tokens; a power of two up to 64, TILE · HEAD_DIM ≤ 2048

// Words, by what src/webgpu/structs.ts names alike.
struct EncodeJob {
  rows: u32,           // word offset of this side's rows of head 0
  page: u32,           // word offset of the page
  block: u32,          // word offset of this side's block of head 0
  headWords: u32,      // from a head's block to the next head's
  header: u32,         // word offset of the page header in constants
}

@group(0) @binding(0) var<storage, read> raw: array<u32>;
@group(0) @binding(1) var<storage, read> constants: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<EncodeJob>;
@group(0) @binding(3) var<storage, read_write> pages: array<u32>;

const WG = 128u;
const WINDOW = 64u;
const MEAN_GROUP = 32u;

var<workgroup> tile: array<f32, TILE * HEAD_DIM>;
var<workgroup> book: array<f32, 128 * CHANNELS>;      // codeword c + 128 is the negation of c
var<workgroup> halfNorms: array<f32, 128>;
var<workgroup> o: array<f32, HEAD_DIM>;
var<workgroup> inverse: array<f32, WINDOW>;           // norms, then 1/s1
var<workgroup> s2: array<f32, WINDOW>;
var<workgroup> factor: array<f32, WINDOW>;            // SCALE/s2 of the tile's tokens
var<workgroup> sums: array<f32, WG>;
var<workgroup> scales: array<f32, 17>;                // of s1, then of every 32 channels of o
var<workgroup> minima: array<f32, 17>;

// One function: every phase works on what the one before left in workgroup memory.
@compute @workgroup_size(WG)
fn encode(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let head = group.x;
  let job = jobs[group.y];
  let rows = job.rows + head * 2 * WINDOW * (HEAD_DIM / 2);
  let block = job.block + head * job.headWords;

  // Keys and values write the same.
  if (head == 0 && thread < 4) { pages[job.page + thread] = constants[job.header + thread]; }

  // ‖C‖²/2 of every codeword: a thread each. No codeword is subnormal: unpack2x16float is exact.
  var halfNorm = 0.0;
  for (var k = 0u; k < CHANNELS; k += 2) {
    let two = unpack2x16float(constants[BOOK + (thread * CHANNELS + k) / 2]);
    book[thread * CHANNELS + k] = two.x;
    book[thread * CHANNELS + k + 1] = two.y;
    halfNorm += 0.5 * dot(two, two);
  }
  halfNorms[thread] = halfNorm;

  // 1. Normalize: two threads per token.
  var sum = 0.0;
  for (var i = thread & 1; i < HEAD_DIM; i += 2) {
    let x = rawAt(rows, thread / 2, i);
    sum += x * x;
  }
  sums[thread] = sum;
  workgroupBarrier();
  if (thread < WINDOW) { inverse[thread] = sqrt((sums[2 * thread] + sums[2 * thread + 1]) / f32(HEAD_DIM)); }
  workgroupBarrier();
  if (thread == 0) {
    var low = inverse[0];
    var high = low;
    for (var t = 1u; t < WINDOW; t++) {
      low = min(low, inverse[t]);
      high = max(high, inverse[t]);
    }
    pages[block + SCALES] = rtnScale(0, low, high);
  }
  workgroupBarrier();
  if (thread < WINDOW / 8) {
    var word = 0u;
    for (var k = 0u; k < 8; k++) {
      let t = thread * 8 + k;
      var code = rtnCode(0, inverse[t]);
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
  for (var i = 2 * PAIRS + thread; i < HEAD_DIM; i += WG) {
    var total = 0.0;
    for (var t = 0u; t < WINDOW; t++) { total += rawAt(rows, t, i) * inverse[t]; }
    o[i] = total / f32(WINDOW);
  }
  workgroupBarrier();
  if (thread < (HEAD_DIM + MEAN_GROUP - 1) / MEAN_GROUP) {
    let first = thread * MEAN_GROUP;
    var low = o[first];
    var high = low;
    for (var i = first; i < min(first + MEAN_GROUP, HEAD_DIM); i++) {
      low = min(low, o[i]);
      high = max(high, o[i]);
    }
    pages[block + SCALES + 1 + thread] = rtnScale(1 + thread, low, high);
  }
  workgroupBarrier();
  if (thread < HEAD_DIM / 8) {
    var word = 0u;
    for (var k = 0u; k < 8; k++) {
      let i = thread * 8 + k;
      let g = 1 + i / MEAN_GROUP;
      let code = rtnCode(g, o[i]);
      word |= code << (4 * k);
      o[i] = f32(code) * scales[g] + minima[g];
    }
    pages[block + O + thread] = word;
  }

  for (var first = 0u; first < WINDOW; first += TILE) {
    workgroupBarrier();
    for (var i = thread; i < TILE * HEAD_DIM; i += WG) {
      let t = first + i / HEAD_DIM;
      tile[i] = rawAt(rows, t, i % HEAD_DIM) * inverse[t] - rotatedMean(t, i % HEAD_DIM);
    }
    workgroupBarrier();

    // 3. Normalize again: WG / TILE threads per token. The division waits for the Hadamard transform, which is linear.
    let lanes = WG / TILE;
    var squares = 0.0;
    for (var i = thread % lanes; i < HEAD_DIM; i += lanes) {
      let x = tile[thread / lanes * HEAD_DIM + i];
      squares += x * x;
    }
    sums[thread] = squares;
    workgroupBarrier();
    if (thread < TILE) {
      var total = 0.0;
      for (var lane = 0u; lane < lanes; lane++) { total += sums[thread * lanes + lane]; }
      let norm = sqrt(total / f32(HEAD_DIM));
      s2[first + thread] = norm;
      var reciprocal = 0.0;
      if (norm > 0) { reciprocal = SCALE / norm; }
      factor[thread] = reciprocal;
    }

    // 4. Hadamard. Butterfly, stride h = 1, 2, 4 … N/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
    for (var h = 1u; h < N; h <<= 1) {
      workgroupBarrier();
      for (var i = thread; i < TILE * HEAD_DIM / 2; i += WG) {
        let j = (i & ~(h - 1)) * 2 + (i & (h - 1));   // i-th pair: insert a zero at bit log2(h)
        let a = tile[j];
        let b = tile[j + h];
        tile[j] = a + b;
        tile[j + h] = a - b;
      }
    }
    workgroupBarrier();

    // 5. Quantize and pack: argmax(y·C − ‖C‖²/2), a thread per word of codes. Where a group of channels lay in the tile are then
    // ⟨y, y⟩ and ⟨y, C[c]⟩.
    for (var i = thread; i < TILE * ROW_WORDS; i += WG) {
      let t = i / ROW_WORDS;
      var word = 0u;
      for (var n = 0u; n < 4; n++) {
        let channel = ((i % ROW_WORDS) * 4 + n) * CHANNELS;
        if (channel >= HEAD_DIM) { break; }
        let at = t * HEAD_DIM + channel;
        var y: array<f32, 8>;
        var yy = 0.0;
        for (var k = 0u; k < CHANNELS; k++) {
          y[k] = tile[at + k] * factor[t];
          yy += y[k] * y[k];
        }
        var best = -1e30;
        var code = 0u;
        var yc = 0.0;
        for (var c = 0u; c < 128; c++) {
          var product = 0.0;
          for (var k = 0u; k < CHANNELS; k++) { product += y[k] * book[c * CHANNELS + k]; }
          let score = abs(product) - halfNorms[c];
          if (score > best) {
            best = score;
            code = select(c, c + 128, product < 0);
            yc = abs(product);
          }
        }
        word |= code << (8 * n);
        tile[at] = yy;
        tile[at + 1] = yc;
      }
      pages[block + first * ROW_WORDS + i] = word;
    }
    workgroupBarrier();
    // 6. Adjust s2 by ⟨y, y⟩/⟨y, C[c]⟩.
    if (thread < TILE) {
      var yy = 0.0;
      var yc = 0.0;
      for (var i = thread * HEAD_DIM; i < (thread + 1) * HEAD_DIM; i += CHANNELS) {
        yy += tile[i];
        yc += tile[i + 1];
      }
      var adjusted = 0.0;
      if (yc > 0) { adjusted = s2[first + thread] * yy / yc; }
      s2[first + thread] = adjusted;
    }
  }
  workgroupBarrier();
  if (thread < WINDOW / 2) {
    pages[block + S2 + thread] = toHalf(bitcast<u32>(s2[2 * thread])) | (toHalf(bitcast<u32>(s2[2 * thread + 1])) << 16);
  }
}

fn rawAt(rows: u32, token: u32, channel: u32) -> f32 {
  return fromHalf(raw[rows + (token * HEAD_DIM + channel) / 2] >> (16 * (channel & 1)));
}

// cos and sin of a pair's angle at a token.
fn angle(pair: u32, token: u32) -> vec2f {
  let at = TABLES + pair * WINDOW + token;
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

// RTN4: scale and minimum of group g as f16 keeps them, two to a word.
fn rtnScale(g: u32, low: f32, high: f32) -> u32 {
  let scale = toHalf(bitcast<u32>(max((high - low) / 15, 1e-5)));
  let minimum = toHalf(bitcast<u32>(low));
  scales[g] = fromHalf(scale);
  minima[g] = fromHalf(minimum);
  return scale | (minimum << 16);
}

fn rtnCode(g: u32, x: f32) -> u32 {
  return u32(round(clamp((x - minima[g]) / scales[g], 0, 15)));
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
