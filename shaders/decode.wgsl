// Decode: one side of pages back to tokens, k̂ = s1·(H·(s2·C[c]) + RoPEᵤ(o)). One workgroup per KV head, TILE tokens and page.
// Specification: `decode` in src/reference/reference.ts; src/format/layout.ts draws the block.
//
//   pages      pages, this side's blocks of each from word job.block on, the job.window-th window of rows
//   jobs       a page each
//   constants  codebook f16 [128, CHANNELS] · cos, sin f32 [PAIRS, 64] of ω·(t − 31.5)
//   rows       f32 [windows, 64, KV heads, HEAD_DIM]

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
struct DecodeJob {
  block: u32,          // word offset of this side's block of head 0
  headWords: u32,      // from a head's block to the next head's
  window: u32,         // of rows
}

@group(0) @binding(0) var<storage, read> pages: array<u32>;
@group(0) @binding(1) var<storage, read> constants: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<DecodeJob>;
@group(0) @binding(3) var<storage, read_write> rows: array<f32>;

const WG = 64u;
const WINDOW = 64u;

var<workgroup> tile: array<f32, TILE * HEAD_DIM>;

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

  // 1. Codewords times s2.
  for (var i = thread; i < TILE * HEAD_DIM / 2; i += WG) {
    let t = i / (HEAD_DIM / 2);
    let channel = 2 * (i % (HEAD_DIM / 2));
    let j = channel / CHANNELS;
    let code = (pages[block + (first + t) * ROW_WORDS + j / 4] >> (8 * (j & 3))) & 255;
    // Codeword c + 128 is the negation of c. No codeword is subnormal: unpack2x16float is exact.
    let two = unpack2x16float(constants[BOOK + ((code & 127) * CHANNELS + channel % CHANNELS) / 2] ^ ((code >> 7) * 0x80008000));
    let s2 = fromHalf(pages[block + S2 + (first + t) / 2] >> (16 * (t & 1)));
    tile[2 * i] = two.x * s2;
    tile[2 * i + 1] = two.y * s2;
  }

  // 2. Hadamard. Butterfly, stride h = 1, 2, 4 … N/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
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

  // 3. Add the rotated mean, and multiply by s1.
  let norms = pages[block + SCALES];
  for (var i = thread; i < TILE * HEAD_DIM; i += WG) {
    let t = first + i / HEAD_DIM;
    let channel = i % HEAD_DIM;
    let s1 = f32((pages[block + S1 + t / 8] >> (4 * (t & 7))) & 15) * fromHalf(norms) + fromHalf(norms >> 16);
    rows[((job.window * WINDOW + t) * groups.x + head) * HEAD_DIM + channel] = s1 * (tile[i] * SCALE + rotatedMean(block, t, channel));
  }
}

// o of one channel.
fn mean(block: u32, channel: u32) -> f32 {
  let group = pages[block + SCALES + 1 + channel / 32];
  return f32((pages[block + O + channel / 8] >> (4 * (channel & 7))) & 15) * fromHalf(group) + fromHalf(group >> 16);
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
  let at = TABLES + pair * WINDOW + token;
  let cosine = bitcast<f32>(constants[at]);
  let sine = bitcast<f32>(constants[at + PAIRS * WINDOW]);
  return select(a * cosine - b * sine, b * cosine + a * sine, second);
}

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
