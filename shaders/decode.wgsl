// Decode: one side of pages back to tokens, k̂ = s1·(A⁻¹·H·(s2·C[c]) + RoPEᵤ(o)), A the order and scales of channels, H and s2 by
// segment. One workgroup per KV head, TILE tokens and page. Specification: `decode` in src/reference/reference.ts;
// src/format/layout.ts draws the block.
//
//   pages      pages, this side's blocks of each from word job.block on, the job.window-th window of rows
//   jobs       a page each
//   constants  what src/webgpu/constants.ts draws
//   rows       f32 [windows, 64, KV heads, DIM]

override DIM: u32;         // channels of this side
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
override PAIRS: u32;         // RoPE pairs of this side; 0 where there is none
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;
override TILE: u32;          // tokens; a power of two up to 64, TILE · DIM ≤ 2048

// Words, by what src/webgpu/structs.ts names alike.
struct DecodeJob {
  block: u32,          // word offset of this side's block of head 0
  headWords: u32,      // from a head's block to the next head's
  window: u32,         // of rows
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

@group(0) @binding(0) var<storage, read> pages: array<u32>;
@group(0) @binding(1) var<storage, read> constants: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<DecodeJob>;
@group(0) @binding(3) var<storage, read_write> rows: array<f32>;

const WG = 64u;
const WINDOW = 64u;

var<workgroup> tile: array<f32, TILE * DIM>;    // 0 at first: channels beyond the last segment were dropped

@compute @workgroup_size(WG)
fn decode(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let head = group.x;
  let first = group.y * TILE;
  let job = jobs[group.z];
  let block = job.block + head * job.headWords;

  for (var n = 0u; n < STAGES; ) {
    // 1. Codewords times s2. The stages of a segment give a thread the same channels.
    let segment = stageOf(STAGES_AT, n).segment;
    let channel = stageOf(STAGES_AT, n).channel;
    let channels = stageOf(STAGES_AT, n).channels;
    for (; n < STAGES; n++) {
      let stage = stageOf(STAGES_AT, n);
      if (stage.segment != segment) { break; }
      for (var i = thread; i < TILE * channels / 2; i += WG) {
        let t = i / (channels / 2);
        let k = 2 * (i % (channels / 2));
        let column = stage.column + k / stage.width;
        let code = (pages[block + (first + t) * ROW_WORDS + column / 4] >> (8 * (column & 3))) & 255;
        // Codeword c + 128 is the negation of c. No codeword is subnormal: unpack2x16float is exact.
        let two = unpack2x16float(constants[stage.book + ((code & 127) * stage.width + k % stage.width) / 2] ^ ((code >> 7) * 0x80008000));
        let factor = secondNorm(block, segment, first + t) * stage.scale * hadamardScale(k, channels);
        tile[t * DIM + channel + k] += two.x * factor;
        tile[t * DIM + channel + k + 1] += two.y * factor;
      }
    }

    // 2. Hadamard. Butterfly, stride h = 1, 2, 4 …:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
    for (var h = 1u; 2 * h <= channels; h <<= 1) {
      workgroupBarrier();
      let pairs = (channels & ~(2 * h - 1)) / 2;   // of blocks wider than h
      for (var i = thread; i < TILE * pairs; i += WG) {
        let pair = i % pairs;
        let j = i / pairs * DIM + channel + (pair & ~(h - 1)) * 2 + (pair & (h - 1));   // insert a zero at bit log2(h)
        let a = tile[j];
        let b = tile[j + h];
        tile[j] = a + b;
        tile[j + h] = a - b;
      }
    }
  }
  workgroupBarrier();

  // 3. Add the rotated mean, and multiply by s1.
  let norms = pages[block + SCALES];
  for (var i = thread; i < TILE * DIM; i += WG) {
    let t = first + i / DIM;
    var channel = i % DIM;
    var scale = 1.0;
    if (ORDERED == 1) {
      let place = constants[job.order + head * DIM + channel];
      channel = place & 0xffff;
      scale = power(place >> 20, (place >> 16) & 15);
    }
    let s1 = f32((pages[block + S1 + t / 8] >> (4 * (t & 7))) & 15) * fromHalf(norms) + fromHalf(norms >> 16);
    rows[((job.window * WINDOW + t) * groups.x + head) * DIM + channel] = s1 * (tile[i] * scale + rotatedMean(block, t, channel));
  }
}

// s2 of one token: a small float under its segment's exponent.
fn secondNorm(block: u32, segment: u32, token: u32) -> f32 {
  let exponent = (pages[block + EXPONENTS] >> (8 * segment)) & 255;
  let code = (pages[block + S2 + (segment * WINDOW + token) / 4] >> (8 * (token & 3))) & 255;
  return select(bitcast<f32>((32 * exponent + code) << 18), 0, code == 0);
}

// o of one channel.
fn mean(block: u32, channel: u32) -> f32 {
  let group = pages[block + SCALES + 1 + channel / 32];
  let bit = channel * MEAN_BITS;
  let code = (pages[block + O + bit / 32] >> (bit & 31)) & ((1u << MEAN_BITS) - 1);
  return f32(code) * fromHalf(group) + fromHalf(group >> 16);
}

// RoPEᵤ(o) of one channel.
fn rotatedMean(block: u32, token: u32, channel: u32) -> f32 {
  if (channel >= 2 * PAIRS) { return mean(block, channel); }
  var pair = channel / 2;
  var second = (channel & 1) == 1;
  if (PAIR_STEP == 1) {
    second = channel >= PAIRS;
    pair = select(channel, channel - PAIRS, second);
  }
  let a = mean(block, pair * PAIR_STEP);
  let b = mean(block, pair * PAIR_STEP + PAIR_OFFSET);
  let at = ANGLES + pair * WINDOW + token;
  let cosine = bitcast<f32>(constants[at]);
  let sine = bitcast<f32>(constants[at + PAIRS * WINDOW]);
  return select(a * cosine - b * sine, b * cosine + a * sine, second);
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

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
