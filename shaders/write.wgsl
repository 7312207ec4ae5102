// Write: tokens of keys and values into raw places, rounded to f16. One thread per two channels; jobs along y, KV heads
// along z. Specification: `write` in src/reference/store.ts.
//
//   keys, values  f32, or f16 two to a word [tokens, KV_HEADS, HEAD_DIM]
//   jobs          two to each: word offsets of its tokens in keys and in values, word offset of the place, tokens
//                            · first token in the place, tokens that the place holds, 1 for f16 keys + 2 for f16 values
//   places        f16 [KV_HEADS, 2 (keys, values), tokens it holds, HEAD_DIM] each

override HEAD_DIM: u32;
override KV_HEADS: u32;

@group(0) @binding(0) var<storage, read> keys: array<u32>;
@group(0) @binding(1) var<storage, read> values: array<u32>;
@group(0) @binding(2) var<storage, read> jobs: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> places: array<u32>;

@compute @workgroup_size(64)
fn write(@builtin(global_invocation_id) thread: vec3u) {
  let source = jobs[2 * thread.y];
  let place = jobs[2 * thread.y + 1];
  let pair = thread.x % (HEAD_DIM / 2);
  let token = thread.x / (HEAD_DIM / 2);
  let head = thread.z;
  if (token >= source.w) { return; }

  let row = (token * KV_HEADS + head) * HEAD_DIM / 2 + pair;   // in pairs
  let to = source.z + (head * 2 * place.y + place.x + token) * (HEAD_DIM / 2) + pair;
  var key: u32;
  if ((place.z & 1) != 0) {
    key = keys[source.x + row];
  } else {
    key = toHalf(keys[source.x + 2 * row]) | (toHalf(keys[source.x + 2 * row + 1]) << 16);
  }
  places[to] = key;
  var value: u32;
  if ((place.z & 2) != 0) {
    value = values[source.y + row];
  } else {
    value = toHalf(values[source.y + 2 * row]) | (toHalf(values[source.y + 2 * row + 1]) << 16);
  }
  places[to + place.y * (HEAD_DIM / 2)] = value;
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
