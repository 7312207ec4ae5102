// Extract: tokens out of raw slots, or out of windows that decode.wgsl left, as rows of f32 or of f16. One thread per two channels; jobs
// along y, KV heads along z. Specification: `read` in src/reference/store.ts.
//
//   tokens  raw slots, f16 two to a word, or f32
//   jobs    tokens of a slot or window each
//   rows    f32, or f16 two to a word [tokens, KV heads, DIM], or heads first

override DIM: u32;           // channels of this side

// Words, by what src/webgpu/structs.ts names alike.
struct ExtractJob {
  begin: u32,          // word offset of the first token of head 0
  half: u32,           // 1 where tokens are f16
  tokenPairs: u32,     // pairs of channels from a token to the next, and from a head to the next
  headPairs: u32,
  tokens: u32,
  row: u32,            // the first token's of head 0
  tokenRows: u32,      // rows from a token to the next, and from a head to the next
  headRows: u32,
  halfRows: u32,       // 1 where rows are f16
}

@group(0) @binding(0) var<storage, read> tokens: array<u32>;
@group(0) @binding(1) var<storage, read> jobs: array<ExtractJob>;
@group(0) @binding(2) var<storage, read_write> rows: array<u32>;

@compute @workgroup_size(64)
fn extract(@builtin(global_invocation_id) thread: vec3u) {
  let job = jobs[thread.y];
  let pair = thread.x % (DIM / 2);
  let token = thread.x / (DIM / 2);
  let head = thread.z;
  if (token >= job.tokens) { return; }

  let source = token * job.tokenPairs + head * job.headPairs + pair;
  let to = (job.row + token * job.tokenRows + head * job.headRows) * (DIM / 2) + pair;
  if (job.half == 1) {
    let word = tokens[job.begin + source];
    if (job.halfRows == 1) {
      rows[to] = word;
    } else {
      rows[2 * to] = bitcast<u32>(fromHalf(word));
      rows[2 * to + 1] = bitcast<u32>(fromHalf(word >> 16));
    }
  } else {
    let first = tokens[job.begin + 2 * source];
    let second = tokens[job.begin + 2 * source + 1];
    if (job.halfRows == 1) {
      rows[to] = toHalf(first) | (toHalf(second) << 16);
    } else {
      rows[2 * to] = first;
      rows[2 * to + 1] = second;
    }
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

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
