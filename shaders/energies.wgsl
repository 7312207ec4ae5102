// Energies: adds what queries weigh, Σ q² of every pair of a KV head's channels over its query heads. A thread a pair and KV head adds
// token by token and head by head, so that it does not matter how calls are split. Specification: `learn` in
// src/reference/reference.ts.
//
//   queries   f32, or f16 two to a word [tokens, KV heads · QUERY_HEADS_PER_KV_HEAD, HEAD_DIM], or heads first
//   jobs      one
//   energies  f32 [KV heads, HEAD_DIM / 2] from word job.energies on

override HEAD_DIM: u32;
override QUERY_HEADS_PER_KV_HEAD: u32;
override PAIRS: u32;         // RoPE pairs; the rest are neighbors
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;

// Words, by what src/webgpu/structs.ts names alike.
struct EnergiesJob { energies: u32, tokens: u32, half: u32, tokenRows: u32, headRows: u32 }

@group(0) @binding(0) var<storage, read> queries: array<u32>;
@group(0) @binding(1) var<storage, read> jobs: array<EnergiesJob>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(64)
fn energies(@builtin(global_invocation_id) thread: vec3u) {
  let pair = thread.x;
  let head = thread.y;
  if (pair >= HEAD_DIM / 2) { return; }
  let job = jobs[0];
  let channels = pairOf(pair);
  let at = job.energies + head * (HEAD_DIM / 2) + pair;
  var sum = sums[at];
  for (var token = 0u; token < job.tokens; token++) {
    for (var h = 0u; h < QUERY_HEADS_PER_KV_HEAD; h++) {
      let row = (token * job.tokenRows + (head * QUERY_HEADS_PER_KV_HEAD + h) * job.headRows) * HEAD_DIM;
      let a = queryAt(job.half, row + channels.x);
      let b = queryAt(job.half, row + channels.y);
      sum += a * a + b * b;
    }
  }
  sums[at] = sum;
}

// The two channels that share an energy.
fn pairOf(pair: u32) -> vec2u {
  if (pair >= PAIRS) { return vec2u(2 * pair, 2 * pair + 1); }
  return vec2u(pair * PAIR_STEP, pair * PAIR_STEP + PAIR_OFFSET);
}

fn queryAt(half: u32, i: u32) -> f32 {
  if (half == 1) { return fromHalf(queries[i / 2] >> (16 * (i & 1))); }
  return bitcast<f32>(queries[i]);
}

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
