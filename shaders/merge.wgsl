// The second half of attend: partial results of a row tile's splits into its output rows. One workgroup per row tile and KV head.
//
//   schedule   as attend.wgsl reads it
//   constants  what src/webgpu/constants.ts draws
//   partials   f32 × 4 rows [splits, KV heads, quads, 2 + VALUE_DIM]: m, d and o of the online softmax
//   output     f32, or f16 two to a word: of every request [tokens, KV heads · QUERY_HEADS_PER_KV_HEAD, VALUE_DIM], or heads first
//   lse        f32 a row of output, as bits: natural logarithm of the softmax's denominator

override VALUE_DIM: u32;
override QUERY_HEADS_PER_KV_HEAD: u32;
override SINK_LOGITS: u32;   // 1 where query heads have sink logits, whose exp is part of the denominator

// Words, by what src/webgpu/structs.ts names alike. Structs of a list lie in an entry each, whose last words they may leave.
struct Schedule {
  scale: f32,            // query scale · log₂ e
  splitsAt: u32,
  tiles: u32,            // workgroups of merge, for every KV head
  tilesAt: u32,
  requestsAt: u32,
  rawWindowsAt: u32,
  pagesAt: u32,          // where pages lie, four to an entry: the word offset in their chunk, with SECOND where that is a pair's second
  windowsAt: u32,        // window numbers of the same pages: a page's first position is sinks + 64 · its window
  quads: u32,            // of a row tile
  sinks: u32,            // position of the first coded token
  slidingWindow: u32,    // positions that a row sees, its own among them, where there is such a limit
  kept: u32,             // first positions, which it sees however far behind
  softcap: f32,          // times log₂ e, where there is one
  slopesAt: u32,         // word offsets in constants of f32 [query heads], times log₂ e
  sinkLogitsAt: u32,
  headsFirst: u32,       // 1 where queries and output are [query heads, tokens], 0 where they are [tokens, query heads]
  halfQueries: u32,      // 1 where queries are f16, two to a word
  halfOutput: u32,
  entries: array<vec4u>,
}
// Query tokens of one sequence: the first in queries and output, its position in the sequence, the word offset of its order of channels in
// constants.
struct Request { firstToken: u32, tokens: u32, position: u32, order: u32 }
// Rows of a request that share a workgroup, and the partial results of their splits.
struct Tile { request: u32, firstRow: u32, firstPart: u32, parts: u32 }

@group(0) @binding(0) var<storage, read> schedule: Schedule;
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read> constants: array<u32>;
@group(0) @binding(3) var<storage, read_write> output: array<u32>;
@group(0) @binding(4) var<storage, read_write> lse: array<u32>;

const WG = 64u;
const LN2 = 0.69314718f;
const MINUS_INFINITY = 0xff800000u;   // WGSL has no f32 for it
override PARTIAL: u32 = 2 + VALUE_DIM;

@compute @workgroup_size(WG)
fn merge(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let index = group.x + group.y * groups.x;
  if (index >= schedule.tiles) { return; }
  let head = group.z;
  let kvHeads = groups.z;
  let perKvHead = QUERY_HEADS_PER_KV_HEAD;
  let tile = tileOf(index);
  let request = requestOf(tile.request);
  let quads = schedule.quads;
  let begin = tile.firstPart;
  let end = begin + tile.parts;

  for (var quad = 0u; quad < quads; quad++) {
    let first = tile.firstRow + 4 * quad;
    if (first >= request.tokens * perKvHead) { break; }
    var m = vec4f(-3e38);
    if (SINK_LOGITS == 1) {
      for (var r = 0u; r < 4; r++) {
        m[r] = bitcast<f32>(constants[schedule.sinkLogitsAt + head * perKvHead + (first + r) % perKvHead]);
      }
    }
    let sink = m;
    for (var part = begin; part < end; part++) { m = max(m, partials[partialAt(part * kvHeads + head, quad, quads)]); }
    var d = vec4f();
    if (SINK_LOGITS == 1) { d = exp2(sink - m); }
    for (var part = begin; part < end; part++) {
      let at = partialAt(part * kvHeads + head, quad, quads);
      d += partials[at + 1] * exp2(partials[at] - m);
    }
    let rows = min(request.tokens * perKvHead - first, 4);
    let perWord = 1 + schedule.halfOutput;
    for (var word = thread; word < VALUE_DIM / perWord; word += WG) {
      var words = vec4u();
      for (var n = 0u; n < perWord; n++) {
        var o = vec4f();
        for (var part = begin; part < end; part++) {
          let at = partialAt(part * kvHeads + head, quad, quads);
          o += partials[at + 2 + word * perWord + n] * exp2(partials[at] - m);
        }
        let out = bitcast<vec4u>(o / select(d, vec4f(1), d == vec4f()));   // 0 where nothing is seen
        if (perWord == 1) {
          words = out;
        } else {
          words |= vec4u(toHalf(out.x), toHalf(out.y), toHalf(out.z), toHalf(out.w)) << vec4u(16 * n);
        }
      }
      for (var r = 0u; r < rows; r++) { output[rowOf(request, head, kvHeads, first + r) * (VALUE_DIM / perWord) + word] = words[r]; }
    }
    if (thread < rows) {
      let sum = bitcast<u32>((m[thread] + log2(d[thread])) * LN2);
      lse[rowOf(request, head, kvHeads, first + thread)] = select(sum, MINUS_INFINITY, d[thread] == 0);
    }
  }
}

// The number of a row of a request among all rows of queries, and of output.
fn rowOf(request: Request, head: u32, kvHeads: u32, row: u32) -> u32 {
  let perKvHead = QUERY_HEADS_PER_KV_HEAD;
  let heads = kvHeads * perKvHead;
  let token = row / perKvHead;
  let queryHead = head * perKvHead + row % perKvHead;
  if (schedule.headsFirst == 1) { return request.firstToken * heads + queryHead * request.tokens + token; }
  return (request.firstToken + token) * heads + queryHead;
}

fn partialAt(part: u32, quad: u32, quads: u32) -> u32 {
  return (part * quads + quad) * PARTIAL;
}

fn requestOf(n: u32) -> Request {
  let words = schedule.entries[schedule.requestsAt + n];
  return Request(words.x, words.y, words.z, words.w);
}

fn tileOf(n: u32) -> Tile {
  let words = schedule.entries[schedule.tilesAt + n];
  return Tile(words.x, words.y, words.z, words.w);
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
