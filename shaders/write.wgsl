// Tokens of keys and values into a raw place, rounded to f16. One thread per two channels. Specification: `write` in
// src/reference-backend.ts.
//
//   keys, values  f32, or f16 two to a word [tokens, KV_HEADS, HEAD_DIM]
//   places        f16 [KV_HEADS, 2 (keys, values), capacity, HEAD_DIM], from word `place` on

override HEAD_DIM: u32;
override KV_HEADS: u32;
override HALF: bool;       // the input is f16 already
override FIRST_SIDE: u32;  // 0 to write keys and values, 1 for values alone

struct Params {
  tokens: u32,
  place: u32,      // word offset
  at: u32,         // first token in the place
  capacity: u32,   // tokens of the place
}

@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read_write> places: array<u32>;
@group(0) @binding(3) var<uniform> params: Params;

@compute @workgroup_size(64)
fn write(@builtin(global_invocation_id) thread: vec3u, @builtin(num_workgroups) groups: vec3u) {
  let word = thread.x + thread.y * groups.x * 64;
  let pair = word % (HEAD_DIM / 2);
  let head = word / (HEAD_DIM / 2) % KV_HEADS;
  let token = word / (HEAD_DIM / 2 * KV_HEADS) % params.tokens;
  let side = word / (HEAD_DIM / 2 * KV_HEADS * params.tokens);
  if (side > 1 || side < FIRST_SIDE) { return; }

  let source = (token * KV_HEADS + head) * HEAD_DIM + 2 * pair;
  var halves: u32;
  if (HALF) {
    halves = input(side, source / 2);
  } else {
    halves = toHalf(input(side, source)) | (toHalf(input(side, source + 1)) << 16);
  }
  places[params.place + ((head * 2 + side) * params.capacity + params.at + token) * (HEAD_DIM / 2) + pair] = halves;
}

fn input(side: u32, word: u32) -> u32 {
  if (side == 0) { return keys[word]; }
  return values[word];
}

// As src/half.ts, in integers alone: WGSL promises neither a rounding mode nor subnormals. Beyond f16's range: its end.
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
