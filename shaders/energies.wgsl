// Energies: adds what queries weigh, Σ q² of every pair of a KV head's channels over its query heads. A thread a pair and KV head adds
// token by token and head by head, so that it does not matter how calls are split. Specification: `learn` in
// src/reference/reference.ts.
//
//   queries   f32 [tokens, KV heads · QUERY_HEADS_PER_KV_HEAD, HEAD_DIM]
//   jobs      one
//   energies  f32 [KV heads, HEAD_DIM / 2] from word job.energies on

override HEAD_DIM: u32;
override QUERY_HEADS_PER_KV_HEAD: u32;
override PAIRS: u32;         // RoPE pairs; the rest are neighbors
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;

// Words, by what src/webgpu/structs.ts names alike.
struct EnergiesJob { energies: u32, tokens: u32 }

@group(0) @binding(0) var<storage, read> queries: array<f32>;
@group(0) @binding(1) var<storage, read> jobs: array<EnergiesJob>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;

@compute @workgroup_size(64)
fn energies(@builtin(global_invocation_id) thread: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let pair = thread.x;
  let head = thread.y;
  if (pair >= HEAD_DIM / 2) { return; }
  let job = jobs[0];
  let channels = pairOf(pair);
  let at = job.energies + head * (HEAD_DIM / 2) + pair;
  var sum = sums[at];
  for (var token = 0u; token < job.tokens; token++) {
    for (var h = 0u; h < QUERY_HEADS_PER_KV_HEAD; h++) {
      let row = ((token * groups.y + head) * QUERY_HEADS_PER_KV_HEAD + h) * HEAD_DIM;
      let a = queries[row + channels.x];
      let b = queries[row + channels.y];
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
