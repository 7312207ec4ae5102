// Write: tokens of keys and values into raw slots, rounded to f16. One thread per two channels; jobs along y, KV heads along z.
// Specification: `write` in src/reference/store.ts.
//
//   keys, values  f32, or f16 two to a word [tokens, KV heads, HEAD_DIM]
//   jobs          a run of tokens each
//   slots         f16 [KV heads, 2 (keys, values), tokens it holds, HEAD_DIM] each

override HEAD_DIM: u32;

// Words, by what src/webgpu/structs.ts names alike.
struct WriteJob {
  keys: u32,           // word offset of its tokens
  values: u32,
  slot: u32,           // word offset of the slot
  tokens: u32,
  firstToken: u32,     // in the slot
  capacity: u32,       // tokens that the slot holds
  halfKeys: u32,       // 1 where keys are f16
  halfValues: u32,
}

@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<WriteJob>;
@group(0) @binding(3) var<storage, read_write> slots: array<u32>;

@compute @workgroup_size(64)
fn write(@builtin(global_invocation_id) thread: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let job = jobs[thread.y];
  let pair = thread.x % (HEAD_DIM / 2);
  let token = thread.x / (HEAD_DIM / 2);
  let head = thread.z;
  if (token >= job.tokens) { return; }

  let row = (token * groups.z + head) * HEAD_DIM / 2 + pair;   // in pairs
  let to = job.slot + (head * 2 * job.capacity + job.firstToken + token) * (HEAD_DIM / 2) + pair;
  var key: u32;
  if (job.halfKeys == 1) {
    key = keys[job.keys + row];
  } else {
    key = toHalf(keys[job.keys + 2 * row]) | (toHalf(keys[job.keys + 2 * row + 1]) << 16);
  }
  slots[to] = key;
  var value: u32;
  if (job.halfValues == 1) {
    value = values[job.values + row];
  } else {
    value = toHalf(values[job.values + 2 * row]) | (toHalf(values[job.values + 2 * row + 1]) << 16);
  }
  slots[to + job.capacity * (HEAD_DIM / 2)] = value;
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
