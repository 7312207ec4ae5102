// Dense attention, the baseline of the benchmark: the query heads of one KV head over a span of its tokens, f32 or f16. Writes
// partial results that densemerge.wgsl combines. Never part of the package.
//
//   queries   f32 [sequences, KV_HEADS · GROUP, HEAD_DIM], scaled by log₂ e / √HEAD_DIM
//   keys      f32 or f16 [sequences of this chunk, KV_HEADS, tokens, HEAD_DIM], read 16 bytes at a time
//   values    as keys
//   partials  f32 × 4 [sequences, KV_HEADS, spans, 2 + HEAD_DIM]: largest logit and Σ p of four heads, then Σ p·v of each head
//
// One workgroup per span, KV head and sequence. What makes it fast:
//
//   * Keys and values are read once for all query heads of their KV head, whole cache lines at a time: a row of keys by LANES
//     neighboring threads, a row of values by ROW of them, 16 bytes each.
//   * A thread keeps its 16 channels of four queries in four matrices, and its sums over values in one or two: registers, no arrays
//     that a compiler might put into memory. One product of a vec4f and a matrix is 16 multiplications for 16 bytes of keys.
//   * Every thread has the loads of TILE · LANES / WG tokens to wait for at once; f16 needs no shader-f16, unpack2x16float is exact.
//   * A tile of 64 tokens costs four barriers; values are summed over the threads of a column once a span, not once a tile.
//   * 5 to 9 KiB of workgroup memory, so that several workgroups share a core and hide each other's barriers.
//   * No optional feature, as nsnquant's own shaders have none.

override HEAD_DIM: u32;              // 64 or 128
override KV_HEADS: u32;
override GROUP: u32;                 // query heads that share a KV head, 1 to 4
override HALF: bool;                 // f16 rather than f32
override WG: u32 = 128;              // threads: 64, 128 or 256, at least ROW

override LANES: u32 = HEAD_DIM / 16;                                // threads that share a row of keys
override ROW: u32 = HEAD_DIM / 4 - u32(HALF) * (HEAD_DIM / 8);      // 16-byte words of a row
override SLOTS: u32 = WG / ROW;                                     // rows of values read side by side
override SCRATCH: u32 = max(LANES * STRIDE, 2 * WG);

struct Params {
  tokens: u32,
  spanTiles: u32,                    // tiles of one span
  firstSequence: u32,                // of this chunk
}

@group(0) @binding(0) var<storage, read> queries: array<vec4f>;
@group(0) @binding(1) var<storage, read> keys: array<vec4u>;
@group(0) @binding(2) var<storage, read> values: array<vec4u>;
@group(0) @binding(3) var<storage, read_write> partials: array<vec4f>;
@group(0) @binding(4) var<uniform> params: Params;

const TILE = 64u;                    // tokens
const STRIDE = 65u;                  // odd, so that neither writing nor reading a lane's sums meets a bank twice
const LOWEST = -3e38;

var<workgroup> scratch: array<vec4f, SCRATCH>;   // sums of a tile's lanes; at the end sums over values
var<workgroup> weights: array<vec4f, TILE>;      // logits, then p, of four heads
var<workgroup> peaks: array<vec4f, 8>;

@compute @workgroup_size(WG)
fn dense(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let span = group.x;
  let head = group.y;
  let sequence = params.firstSequence + group.z;
  let rows = (group.z * KV_HEADS + head) * params.tokens * ROW;
  let begin = span * params.spanTiles * TILE;
  let end = min(begin + params.spanTiles * TILE, params.tokens);

  let lane = thread % LANES;
  let query = (sequence * KV_HEADS + head) * GROUP * (HEAD_DIM / 4);
  let q0 = fragment(query, channelsOf(lane, 0));
  let q1 = fragment(query, channelsOf(lane, 1));
  let q2 = fragment(query, channelsOf(lane, 2));
  let q3 = fragment(query, channelsOf(lane, 3));

  let column = thread % ROW;
  let slot = thread / ROW;
  var mixed0 = mat4x4f();            // a head in each column: f32 four channels, f16 eight in two matrices
  var mixed1 = mat4x4f();
  var largest = vec4f(LOWEST);
  var sum = vec4f();                 // this thread's token of each tile

  for (var tile = begin; tile < end; tile += TILE) {
    let count = min(TILE, end - tile);

    for (var t = thread / LANES; t < TILE; t += WG / LANES) {
      let at = rows + (tile + min(t, count - 1)) * ROW + lane;
      var dots: vec4f;
      if (HALF) {
        let a = keys[at];
        let b = keys[at + LANES];
        dots = halves(a.xy) * q0 + halves(a.zw) * q1 + halves(b.xy) * q2 + halves(b.zw) * q3;
      } else {
        dots = bitcast<vec4f>(keys[at]) * q0 + bitcast<vec4f>(keys[at + LANES]) * q1
          + bitcast<vec4f>(keys[at + 2 * LANES]) * q2 + bitcast<vec4f>(keys[at + 3 * LANES]) * q3;
      }
      scratch[lane * STRIDE + t] = dots;
    }
    workgroupBarrier();

    // Online softmax.
    var logit = vec4f(LOWEST);
    if (thread < TILE) {
      if (thread < count) {
        logit = vec4f();
        for (var i = 0u; i < LANES; i++) { logit += scratch[i * STRIDE + thread]; }
      }
      weights[thread] = logit;
    }
    workgroupBarrier();
    if (thread < 8) {
      var peak = weights[thread];
      for (var i = 8u; i < TILE; i += 8) { peak = max(peak, weights[thread + i]); }
      peaks[thread] = peak;
    }
    workgroupBarrier();
    var peak = largest;
    for (var i = 0u; i < 8; i++) { peak = max(peak, peaks[i]); }
    let fade = exp2(largest - peak);
    largest = peak;
    if (thread < TILE) {
      let p = exp2(logit - peak);
      sum = sum * fade + p;
      weights[thread] = p;
    }
    workgroupBarrier();

    mixed0 = faded(mixed0, fade);
    if (HALF) { mixed1 = faded(mixed1, fade); }
    for (var t = slot; t < count; t += SLOTS) {
      let p = weights[t];
      let v = values[rows + (tile + t) * ROW + column];
      if (HALF) {
        mixed0 += product(halves(v.xy), p);
        mixed1 += product(halves(v.zw), p);
      } else {
        mixed0 += product(bitcast<vec4f>(v), p);
      }
    }
  }

  // Sums of the rows that were read side by side, half of them into the other half at a time.
  for (var half = SLOTS / 2; half > 0; half >>= 1) {
    workgroupBarrier();
    if (slot >= half && slot < 2 * half) { store(thread - half * ROW, mixed0); }
    workgroupBarrier();
    if (slot < half) { mixed0 += load(thread); }
    if (HALF) {
      workgroupBarrier();
      if (slot >= half && slot < 2 * half) { store(thread - half * ROW, mixed1); }
      workgroupBarrier();
      if (slot < half) { mixed1 += load(thread); }
    }
  }

  workgroupBarrier();
  if (thread < TILE) { weights[thread] = sum; }
  workgroupBarrier();
  let at = ((sequence * KV_HEADS + head) * groups.x + span) * (2 + HEAD_DIM);
  if (thread == 0) {
    var total = vec4f();
    for (var t = 0u; t < TILE; t++) { total += weights[t]; }
    partials[at] = largest;
    partials[at + 1] = total;
  }
  if (slot == 0) {
    for (var h = 0u; h < 4; h++) {
      let row = at + 2 + h * (HEAD_DIM / 4);
      if (HALF) {
        partials[row + 2 * column] = mixed0[h];
        partials[row + 2 * column + 1] = mixed1[h];
      } else {
        partials[row + column] = mixed0[h];
      }
    }
  }
}

// First of the four channels that a lane's nth matrix holds, as its loads of keys bring them.
fn channelsOf(lane: u32, n: u32) -> u32 {
  if (HALF) { return 8 * (lane + LANES * (n / 2)) + 4 * (n % 2); }
  return 4 * (lane + LANES * n);
}

// Four channels of four heads, a head in each column; zero beyond the last.
fn fragment(query: u32, channel: u32) -> mat4x4f {
  var q = mat4x4f();
  for (var h = 0u; h < GROUP; h++) { q[h] = queries[query + h * (HEAD_DIM / 4) + channel / 4]; }
  return q;
}

fn halves(words: vec2u) -> vec4f {
  return vec4f(unpack2x16float(words.x), unpack2x16float(words.y));
}

fn product(v: vec4f, p: vec4f) -> mat4x4f {
  return mat4x4f(v * p.x, v * p.y, v * p.z, v * p.w);
}

fn faded(m: mat4x4f, fade: vec4f) -> mat4x4f {
  return mat4x4f(m[0] * fade.x, m[1] * fade.y, m[2] * fade.z, m[3] * fade.w);
}

fn store(i: u32, m: mat4x4f) {
  for (var h = 0u; h < 4; h++) { scratch[h * (WG / 2) + i] = m[h]; }
}

fn load(i: u32) -> mat4x4f {
  return mat4x4f(scratch[i], scratch[WG / 2 + i], scratch[WG + i], scratch[WG / 2 * 3 + i]);
}
