// Write: tokens of keys and values into raw slots, rounded to f16. One thread per two channels, a token's keys before its values; jobs
// along y, KV heads along z. Specification: `write` in src/reference/store.ts.
//
//   keys    f32, or f16 two to a word [tokens, KV heads, HEAD_DIM], or heads first
//   values  f32, or f16 two to a word [tokens, KV heads, VALUE_DIM], or heads first
//   jobs    a run of tokens each
//   slots   of every KV head keys f16 [tokens it holds, HEAD_DIM], then values f16 [tokens it holds, VALUE_DIM]

override HEAD_DIM: u32;
override VALUE_DIM: u32;

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
  tokenRows: u32,      // rows from a token to the next, and from a head to the next
  headRows: u32,
}

@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<WriteJob>;
@group(0) @binding(3) var<storage, read_write> slots: array<u32>;

@compute @workgroup_size(64)
fn write(@builtin(global_invocation_id) thread: vec3u) {
  let job = jobs[thread.y];
  let keyPairs = HEAD_DIM / 2;
  let valuePairs = VALUE_DIM / 2;
  let pair = thread.x % (keyPairs + valuePairs);
  let token = thread.x / (keyPairs + valuePairs);
  let head = thread.z;
  if (token >= job.tokens) { return; }

  let row = token * job.tokenRows + head * job.headRows;
  let slot = job.slot + head * job.capacity * (keyPairs + valuePairs);
  let at = job.firstToken + token;
  if (pair < keyPairs) {
    let source = row * keyPairs + pair;   // in pairs
    var key: u32;
    if (job.halfKeys == 1) {
      key = keys[job.keys + source];
    } else {
      key = toHalf(keys[job.keys + 2 * source]) | (toHalf(keys[job.keys + 2 * source + 1]) << 16);
    }
    slots[slot + at * keyPairs + pair] = key;
  } else {
    let source = row * valuePairs + pair - keyPairs;
    var value: u32;
    if (job.halfValues == 1) {
      value = values[job.values + source];
    } else {
      value = toHalf(values[job.values + 2 * source]) | (toHalf(values[job.values + 2 * source + 1]) << 16);
    }
    slots[slot + job.capacity * keyPairs + at * valuePairs + pair - keyPairs] = value;
  }
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
