// Learn: the order of a head's channels, from the energies of its first windows of keys (encode.wgsl) and of queries (energies.wgsl).
// One workgroup per KV head. Specification: `learn` in src/reference/reference.ts, and src/format/balance.ts.
//
//   keys       f32 [HEAD_DIM / 2] of every window and head
//   queries    f32 [KV heads, HEAD_DIM / 2] from word job.energies on
//   jobs       one
//   constants  what src/webgpu/constants.ts draws; the order is written

override HEAD_DIM: u32;
override THRESHOLDS: u32;    // word offset in constants
override PAIRS: u32;         // RoPE pairs; the rest are neighbors
override PAIR_STEP: u32;     // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;

// Words, by what src/webgpu/structs.ts names alike.
struct LearnJob {
  windows: u32,        // of keys
  windowWords: u32,    // from a window's energies to the next window's
  headWords: u32,      // from a head's to the next head's
  energies: u32,       // word offset of queries' energies of head 0
  order: u32,          // word offset of head 0's order of channels in constants
}

@group(0) @binding(0) var<storage, read> keys: array<f32>;
@group(0) @binding(1) var<storage, read> queries: array<f32>;
@group(0) @binding(2) var<storage, read> jobs: array<LearnJob>;
@group(0) @binding(3) var<storage, read_write> constants: array<u32>;

const WG = 64u;
const LEVELS = 16u;

var<workgroup> energies: array<vec2f, HEAD_DIM / 2>;   // of keys and of queries
var<workgroup> levels: array<vec2u, HEAD_DIM / 2>;

@compute @workgroup_size(WG)
fn learn(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) thread: u32) {
  let head = group.x;
  let job = jobs[0];
  for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
    var energy = vec2f(0, queries[job.energies + head * (HEAD_DIM / 2) + pair]);
    for (var window = 0u; window < job.windows; window++) {
      energy.x += keys[window * job.windowWords + head * job.headWords + pair];
    }
    energies[pair] = energy;
  }
  workgroupBarrier();

  // Half octaves below the largest.
  var most = vec2f();
  for (var pair = 0u; pair < HEAD_DIM / 2; pair++) { most = max(most, energies[pair]); }
  for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
    var level = vec2u();
    for (var n = 0u; n < LEVELS - 1; n++) {
      level += select(vec2u(), vec2u(1), energies[pair] < most * bitcast<f32>(constants[THRESHOLDS + n]));
    }
    levels[pair] = level;
  }
  workgroupBarrier();

  // Pairs by the sum of their levels, the first among equals: a pair's place is how many come before it.
  for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
    let level = levels[pair];
    var place = 0u;
    for (var other = 0u; other < HEAD_DIM / 2; other++) {
      let sum = levels[other].x + levels[other].y;
      place += select(0u, 1u, sum < level.x + level.y || (sum == level.x + level.y && other < pair));
    }
    let channels = pairOf(pair);
    let at = job.order + head * HEAD_DIM + 2 * place;
    let balance = level.x | (level.y << 4);
    constants[at] = channels.x | (balance << 16);
    constants[at + 1] = channels.y | (balance << 16);
  }
}

// The two channels that share an energy.
fn pairOf(pair: u32) -> vec2u {
  if (pair >= PAIRS) { return vec2u(2 * pair, 2 * pair + 1); }
  return vec2u(pair * PAIR_STEP, pair * PAIR_STEP + PAIR_OFFSET);
}
