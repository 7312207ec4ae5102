// Attend: 4 · QUADS query rows of one KV head over one split of a sequence's windows, coded or raw, read without decoding them
// (split-KV). Writes partial results that merge.wgsl combines. Specification: `scores`, `mix` and `attend` in
// src/reference/reference.ts.
//
//   pages0, pages1  two chunks of a layer's pages;  raw0, raw1  two chunks of raw slots
//   constants       what src/webgpu/constants.ts draws
//   schedule        what src/webgpu/schedule.ts draws: which rows attend to which windows
//   queries         f32, or f16 two to a word: of every request [tokens, KV heads · QUERY_HEADS_PER_KV_HEAD, HEAD_DIM], or heads first
//   partials        f32 × 4 rows [splits, KV heads, QUADS, 2 + VALUE_DIM]: m, d and o of the online softmax
//
// A row is a query token and a query head of the KV head. A quad is four rows, in the lanes of a vec4f; a row tile is the quads of a
// workgroup. A code is looked up once for all rows of a tile, into registers: one quad serves decoding, several a prompt or many query
// heads. For scores a thread is a token; for values it is two channels of every SPLIT-th token. Logits are in base 2: the scale
// brings log₂ e.

override HEAD_DIM: u32;
override VALUE_DIM: u32;
override ROW_DIM: u32;           // the larger of the two
override QUERY_HEADS_PER_KV_HEAD: u32;
override QUADS: u32;             // 1 to 4: what workgroup memory and `o` hold
override SLIDING_WINDOW: u32;    // 1 where rows see no more than a number of positions
override SOFTCAP: u32;           // 1 where logits are capped
override SLOPES: u32;            // 1 where the distance to a key is added to logits (ALiBi)
override HEAD_WORDS: u32;        // from head to head in a page
override VALUE_BLOCK: u32;       // word offset of values in a head's blocks; keys are at 0
override KEY_ROW_WORDS: u32;
override KEY_S2: u32;
override KEY_S1: u32;
override KEY_O: u32;
override KEY_SCALES: u32;
override KEY_EXPONENTS: u32;
override KEY_MEAN_BITS: u32;
override KEY_STAGES: u32;
override KEY_STAGES_AT: u32;     // word offset in constants
override ORDERED: u32;           // 1 where channels of keys are ordered and scaled
override VALUE_ROW_WORDS: u32;
override VALUE_S2: u32;
override VALUE_S1: u32;
override VALUE_O: u32;
override VALUE_SCALES: u32;
override VALUE_EXPONENTS: u32;
override VALUE_MEAN_BITS: u32;
override VALUE_STAGES: u32;
override VALUE_STAGES_AT: u32;
override ANGLES: u32;            // word offsets in constants
override POWERS: u32;
override PAIRS: u32;             // RoPE pairs; 0 where there is none
override PAIR_STEP: u32;         // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;
override BOOKS: u32;             // word offset in constants of the codebooks that keys or values choose from
override BOOK_WORDS: u32;
override COLUMNS: u32;           // threads side by side over a value's pairs of channels: min(64, VALUE_DIM / 2)
override SPLIT: u32;             // threads that share a pair's tokens: ⌊64 / COLUMNS⌋

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
// What is dispatched over a pair of chunks: its splits, first those of coded windows.
struct ChunkPair { firstSplit: u32, coded: u32, splits: u32 }
// Windows that a workgroup passes over, of those that some row of the tile sees: in the list of coded windows or in that of raw ones.
struct Split { tile: u32, firstWindow: u32, endWindow: u32, part: u32 }
// Where it lies, as of pages, and position of the first token: one below `sinks` is theirs.
struct RawWindow { place: u32, tokens: u32, position: u32 }
// Codes of one codebook over the channels of a segment. Stages of a segment follow one another, and add up.
struct Stage {
  segment: u32,
  channel: u32,        // the segment's first, in their order
  channels: u32,       // of the segment
  column: u32,         // first byte of its codes in a row
  columns: u32,
  width: u32,          // channels of a codeword: 8, 4 or 2
  book: u32,           // word offset of codewords in constants: f16 [128, width]; codeword c + 128 is the negation of c
  halfNorms: u32,      // word offset of ‖C‖²/2 in constants: f32 [128]
  scale: f32,          // what codewords are multiplied by
}
// Chunks 2·chunkPair and 2·chunkPair + 1 are bound.
struct Params { chunkPair: u32 }

@group(0) @binding(0) var<storage, read> pages0: array<u32>;
@group(0) @binding(1) var<storage, read> pages1: array<u32>;
@group(0) @binding(2) var<storage, read> raw0: array<u32>;
@group(0) @binding(3) var<storage, read> raw1: array<u32>;
@group(0) @binding(4) var<storage, read> constants: array<u32>;
@group(0) @binding(5) var<storage, read> schedule: Schedule;
@group(0) @binding(6) var<storage, read> queries: array<u32>;
@group(0) @binding(7) var<storage, read_write> partials: array<vec4f>;
@group(0) @binding(8) var<uniform> params: Params;

const WG = 64u;
const WINDOW = 64u;
const LOWEST = -3e38;
const SECOND = 0x80000000u;
override SUMS: u32 = 2 * QUADS * ((VALUE_DIM / 2 + COLUMNS - 1) / COLUMNS);   // of `o` in use

// 16 KiB at most, which src/webgpu/programs.ts counts to choose QUADS.
var<workgroup> queryAt: array<vec4u, QUADS>;            // where a quad's queries begin, in elements
var<workgroup> causalEnd: array<vec4u, QUADS>;          // causal mask: rows see the positions below; a row beyond the last sees none
var<workgroup> rows: array<vec4f, ROW_DIM * QUADS>;     // [channel, quad]: q, or H·A⁻¹·q where windows are coded; o at the end
var<workgroup> book: array<u32, BOOK_WORDS>;            // f16 pairs; codeword c + 128 is the negation of c
var<workgroup> coefs: array<vec4f, WINDOW * QUADS>;     // of cos and of sin for 32 pairs; then p·s1
var<workgroup> logits: array<vec4f, WINDOW * QUADS>;    // [quad, token]; then weights: p, or p·s1·s2 where windows are coded
var<workgroup> eighths: array<vec4f, 8 * QUADS>;        // a maximum or a sum over eight tokens each

// One function in one file: what a thread keeps between phases is in registers, which functions would have to hand about; a barrier in
// a function that is called in a loop has been miscompiled (naga: Deno, Firefox); and a file for coded windows beside one for raw ones
// would repeat what they share, about 150 lines.
@compute @workgroup_size(WG)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let chunks = chunkPairOf(params.chunkPair);
  let index = group.x + group.y * groups.x;
  if (index >= chunks.splits) { return; }
  let head = group.z;
  let kvHeads = groups.z;
  let perKvHead = QUERY_HEADS_PER_KV_HEAD;
  let split = splitOf(chunks.firstSplit + index);
  let tile = tileOf(split.tile);
  let request = requestOf(tile.request);
  let coded = index < chunks.coded;
  let scale = schedule.scale;

  // 1. Load queries, and H·A⁻¹·q where windows are coded: A the order and scales of channels, H by segment.
  if (thread < QUADS) {
    var begins: vec4u;
    var ends: vec4u;
    for (var r = 0u; r < 4; r++) {
      let row = tile.firstRow + 4 * thread + r;
      let last = min(row, request.tokens * perKvHead - 1);
      begins[r] = rowOf(request, head, kvHeads, last) * HEAD_DIM;
      ends[r] = select(0, request.position + row / perKvHead + 1, row < request.tokens * perKvHead);
    }
    queryAt[thread] = begins;
    causalEnd[thread] = ends;
  }
  workgroupBarrier();
  for (var i = thread; i < HEAD_DIM * QUADS; i += WG) {
    var channel = i / QUADS;
    var factor = scale;
    if (ORDERED == 1 && coded) {
      let place = constants[request.order + head * HEAD_DIM + channel];
      channel = place & 0xffff;
      factor *= power(place >> 20, (place >> 16) & 15);
    }
    rows[i] = queryChannel(queryAt[i % QUADS], channel) * factor;
  }
  if (coded) {
    for (var i = thread; i < BOOK_WORDS; i += WG) { book[i] = constants[BOOKS + i]; }
    workgroupBarrier();
    hadamardRows(thread, KEY_STAGES_AT, KEY_STAGES);
    workgroupBarrier();
  }

  // Online softmax: m the largest logit, d the sum of p, o that of p·v, [pair of this thread, 2 channels, quad]. Where windows are coded
  // o is in the Hadamard domain, and what the windows' means add is apart.
  var m: array<vec4f, 4>;
  var d: array<vec4f, 4>;     // of this thread's tokens only
  var o: array<vec4f, 10>;
  var oMean: array<vec4f, 10>;
  for (var quad = 0u; quad < QUADS; quad++) { m[quad] = vec4f(LOWEST); }
  var slopes: array<vec4f, 4>;
  if (SLOPES == 1) {
    for (var quad = 0u; quad < QUADS; quad++) {
      var four: vec4f;
      for (var r = 0u; r < 4; r++) {
        four[r] = bitcast<f32>(constants[schedule.slopesAt + head * perKvHead + (tile.firstRow + 4 * quad + r) % perKvHead]);
      }
      slopes[quad] = four;
    }
  }
  let column = thread % COLUMNS;
  let part = thread / COLUMNS;

  for (var window = split.firstWindow; window < split.endWindow; window++) {
    var logit = array<vec4f, 4>();   // written out: without it SwiftShader kept the values of the window before
    var place = 0u;
    var first = 0u;    // position of the window's first token
    var count = WINDOW;
    var capacity = WINDOW;
    if (coded) {
      place = listed(schedule.pagesAt, window);
      first = schedule.sinks + listed(schedule.windowsAt, window) * WINDOW;
    } else {
      let raw = rawWindowOf(window);
      place = raw.place;
      first = raw.position;
      count = raw.tokens;
      capacity = select(WINDOW, schedule.sinks, first < schedule.sinks);
    }
    let odd = (place & SECOND) != 0;
    let keys = (place & ~SECOND) + head * select(capacity * ((HEAD_DIM + VALUE_DIM) / 2), HEAD_WORDS, coded);   // word offsets
    let values = keys + select(capacity * (HEAD_DIM / 2), VALUE_BLOCK, coded);
    workgroupBarrier();   // the window before has been read

    // 2. Scores: logit = s1·(Σ over segments s2·Σⱼ ⟨q′ⱼ, C[cⱼ]⟩ + ⟨q, RoPEᵤ(o)⟩), or ⟨q, k⟩ of a raw window.
    if (coded) {
      // ⟨q, RoPEᵤ(o)⟩ = Σ over pairs of A·cos ωu + B·sin ωu; A and B are the window's. Tokens t and 63 − t are u apart from the
      // window's center on either side: one of them mine the cosines, which are even, the other the sines, which are odd.
      for (var pair = 0u; pair < PAIRS; pair += 32) {
        if (pair > 0) { workgroupBarrier(); }
        for (var i = thread; i < 32 * QUADS; i += WG) {
          if (pair + i / QUADS < PAIRS) {
            let a = (pair + i / QUADS) * PAIR_STEP;
            let b = a + PAIR_OFFSET;
            let at = queryAt[i % QUADS];
            let qa = queryChannel(at, a) * scale;
            let qb = queryChannel(at, b) * scale;
            let oa = mean(odd, keys + KEY_SCALES, keys + KEY_O, KEY_MEAN_BITS, a);
            let ob = mean(odd, keys + KEY_SCALES, keys + KEY_O, KEY_MEAN_BITS, b);
            coefs[i] = qa * oa + qb * ob;
            coefs[32 * QUADS + i] = qb * oa - qa * ob;
          }
        }
        workgroupBarrier();
        let sines = thread / 32;
        for (var i = 0u; i < min(32, PAIRS - pair); i++) {
          let table = bitcast<f32>(constants[ANGLES + (sines * PAIRS + pair + i) * WINDOW + thread]);
          for (var quad = 0u; quad < QUADS; quad++) { logit[quad] += coefs[(sines * 32 + i) * QUADS + quad] * table; }
        }
      }
      if (PAIRS > 0) {
        for (var quad = 0u; quad < QUADS; quad++) { logits[quad * WINDOW + thread] = logit[quad]; }
        workgroupBarrier();
        for (var quad = 0u; quad < QUADS; quad++) {
          let other = logits[quad * WINDOW + 63 - thread];
          logit[quad] = select(logit[quad] - other, logit[quad] + other, thread >= 32);
        }
        workgroupBarrier();
      }
      if (2 * PAIRS < HEAD_DIM) {
        // Channels that RoPE leaves alone: one number for the window.
        for (var quad = 0u; quad < QUADS; quad++) {
          var unrotated = vec4f();
          for (var i = 2 * PAIRS + thread; i < HEAD_DIM; i += WG) {
            unrotated += queryChannel(queryAt[quad], i) * scale * mean(odd, keys + KEY_SCALES, keys + KEY_O, KEY_MEAN_BITS, i);
          }
          coefs[quad * WINDOW + thread] = unrotated;
        }
        workgroupBarrier();
        sumEighths(thread);
        workgroupBarrier();
        for (var quad = 0u; quad < QUADS; quad++) {
          for (var i = 0u; i < 8; i++) { logit[quad] += eighths[quad * 8 + i]; }
        }
        workgroupBarrier();
      }
      for (var n = 0u; n < KEY_STAGES; n++) {
        let stage = stageOf(KEY_STAGES_AT, n);
        var sums = array<vec4f, 4>();
        var word = 0u;
        for (var j = 0u; j < stage.columns; j++) {
          let column = stage.column + j;
          if (j == 0 || (column & 3) == 0) { word = pageWord(odd, keys + thread * KEY_ROW_WORDS + column / 4); }
          let code = (word >> (8 * (column & 3))) & 255;
          let flip = (code >> 7) * 0x80008000;
          let at = stage.book - BOOKS + (code & 127) * stage.width / 2;
          let channel = stage.channel + j * stage.width;
          for (var k = 0u; k < stage.width; k += 2) {
            // No codeword is subnormal: unpack2x16float is exact.
            let two = unpack2x16float(book[at + k / 2] ^ flip);
            for (var quad = 0u; quad < QUADS; quad++) {
              sums[quad] += two.x * rows[(channel + k) * QUADS + quad] + two.y * rows[(channel + k + 1) * QUADS + quad];
            }
          }
        }
        let factor = stage.scale * secondNorm(odd, keys + KEY_S2, keys + KEY_EXPONENTS, stage.segment, thread);
        for (var quad = 0u; quad < QUADS; quad++) { logit[quad] += factor * sums[quad]; }
      }
      let s1 = norm(odd, keys + KEY_SCALES, keys + KEY_S1, thread);
      for (var quad = 0u; quad < QUADS; quad++) { logit[quad] *= s1; }
    } else if (thread < count) {
      for (var i = 0u; i < HEAD_DIM / 2; i++) {
        let two = halves(rawWord(odd, keys + thread * (HEAD_DIM / 2) + i));
        for (var quad = 0u; quad < QUADS; quad++) {
          logit[quad] += two.x * rows[2 * i * QUADS + quad] + two.y * rows[(2 * i + 1) * QUADS + quad];
        }
      }
    }

    // 3. Online softmax: cap, slope and mask of logits, then m, p and d.
    let position = first + thread;
    for (var quad = 0u; quad < QUADS; quad++) {
      if (SOFTCAP == 1) { logit[quad] = schedule.softcap * hyperbolicTangent(logit[quad] / schedule.softcap); }
      if (SLOPES == 1) { logit[quad] += slopes[quad] * vec4f(vec4i(i32(position + 1)) - vec4i(causalEnd[quad])); }
      var seen = (vec4u(position) < causalEnd[quad]) & vec4<bool>(thread < count);
      if (SLIDING_WINDOW == 1) {
        seen &= (vec4u(position + schedule.slidingWindow) >= causalEnd[quad]) | vec4<bool>(position < schedule.kept);
      }
      logit[quad] = select(vec4f(LOWEST), logit[quad], seen);
      logits[quad * WINDOW + thread] = logit[quad];
    }
    workgroupBarrier();
    if (thread < 8 * QUADS) {
      var eight = logits[thread * 8];
      for (var i = 1u; i < 8; i++) { eight = max(eight, logits[thread * 8 + i]); }
      eighths[thread] = eight;
    }
    workgroupBarrier();
    var s1 = 1.0;
    var s2 = 1.0;
    if (coded) {
      s1 = norm(odd, values + VALUE_SCALES, values + VALUE_S1, thread);
      s2 = secondNorm(odd, values + VALUE_S2, values + VALUE_EXPONENTS, 0, thread);   // values are one segment
    }
    for (var quad = 0u; quad < QUADS; quad++) {
      var next = m[quad];
      for (var i = 0u; i < 8; i++) { next = max(next, eighths[quad * 8 + i]); }
      let fade = exp2(m[quad] - next);
      m[quad] = next;
      let p = select(vec4f(), exp2(logit[quad] - next), logit[quad] > vec4f(LOWEST));
      d[quad] = d[quad] * fade + p;
      coefs[quad * WINDOW + thread] = p * s1;
      logits[quad * WINDOW + thread] = p * s1 * s2;
      for (var i = quad; i < SUMS; i += QUADS) {
        o[i] *= fade;
        oMean[i] *= fade;
      }
    }
    workgroupBarrier();

    // 4. Mix: o += Σ weight·v, and what the window's mean adds.
    if (part < SPLIT) {
      for (var n = 0u; n < select(1, VALUE_STAGES, coded); n++) {
        let stage = stageOf(VALUE_STAGES_AT, n);
        let factor = select(1.0, stage.scale, coded);
        var mine = 0u;    // where this thread holds a pair's sums
        for (var pair = column; pair < VALUE_DIM / 2; pair += COLUMNS) {
          let at = stage.column + 2 * pair / stage.width;
          let within = 2 * pair % stage.width;
          for (var t = part; t < count; t += SPLIT) {
            var two: vec2f;
            if (coded) {
              let code = (pageWord(odd, values + t * VALUE_ROW_WORDS + at / 4) >> (8 * (at & 3))) & 255;
              two = unpack2x16float(book[stage.book - BOOKS + ((code & 127) * stage.width + within) / 2] ^ ((code >> 7) * 0x80008000));
            } else {
              two = halves(rawWord(odd, values + t * (VALUE_DIM / 2) + pair));
            }
            for (var quad = 0u; quad < QUADS; quad++) {
              let weight = logits[quad * WINDOW + t] * factor;
              o[mine + quad] += weight * two.x;
              o[mine + QUADS + quad] += weight * two.y;
            }
          }
          mine += 2 * QUADS;
        }
      }
    }
    if (coded) {
      sumEighths(thread);
      workgroupBarrier();
      if (part == 0) {
        for (var quad = 0u; quad < QUADS; quad++) {
          var total = vec4f();
          for (var i = 0u; i < 8; i++) { total += eighths[quad * 8 + i]; }
          var mine = quad;
          for (var pair = column; pair < VALUE_DIM / 2; pair += COLUMNS) {
            oMean[mine] += total * mean(odd, values + VALUE_SCALES, values + VALUE_O, VALUE_MEAN_BITS, 2 * pair);
            oMean[mine + QUADS] += total * mean(odd, values + VALUE_SCALES, values + VALUE_O, VALUE_MEAN_BITS, 2 * pair + 1);
            mine += 2 * QUADS;
          }
        }
      }
    }
  }

  // 5. Store partial results. The threads that share a pair of channels add up, one after another; then H, once for the whole split.
  workgroupBarrier();
  for (var quad = 0u; quad < QUADS; quad++) { logits[quad * WINDOW + thread] = d[quad]; }
  for (var sharer = 0u; sharer < SPLIT; sharer++) {
    if (part == sharer) {
      var mine = 0u;
      for (var pair = column; pair < VALUE_DIM / 2; pair += COLUMNS) {
        for (var i = 0u; i < 2 * QUADS; i++) {
          let before = select(rows[2 * pair * QUADS + i], vec4f(), sharer == 0);
          rows[2 * pair * QUADS + i] = before + o[mine + i];
        }
        mine += 2 * QUADS;
      }
    }
    workgroupBarrier();
  }
  if (coded) {
    hadamardRows(thread, VALUE_STAGES_AT, VALUE_STAGES);
    workgroupBarrier();
  }
  let at = (split.part * kvHeads + head) * QUADS * (2 + VALUE_DIM);
  if (thread < QUADS) {
    var total = vec4f();
    for (var t = 0u; t < WG; t++) { total += logits[thread * WINDOW + t]; }
    partials[at + thread * (2 + VALUE_DIM) + 1] = total;
  }
  if (part == 0) {
    for (var quad = 0u; quad < QUADS; quad++) {
      let to = at + quad * (2 + VALUE_DIM);
      if (thread == 0) { partials[to] = m[quad]; }
      var mine = quad;
      for (var pair = column; pair < VALUE_DIM / 2; pair += COLUMNS) {
        partials[to + 2 + 2 * pair] = rows[2 * pair * QUADS + quad] + oMean[mine];
        partials[to + 3 + 2 * pair] = rows[(2 * pair + 1) * QUADS + quad] + oMean[mine + QUADS];
        mine += 2 * QUADS;
      }
    }
  }
}

// H of every segment. Butterfly, stride h = 1, 2, 4 …:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h]). The caller waits.
fn hadamardRows(thread: u32, stagesAt: u32, stages: u32) {
  for (var n = 0u; n < stages; n++) {
    let stage = stageOf(stagesAt, n);
    if (n > 0 && stage.segment == stageOf(stagesAt, n - 1).segment) { continue; }
    let first = stage.channel * QUADS;
    for (var i = thread; i < stage.channels * QUADS; i += WG) { rows[first + i] *= hadamardScale(i / QUADS, stage.channels); }
    for (var h = 1u; 2 * h <= stage.channels; h <<= 1) {
      workgroupBarrier();
      let pairs = (stage.channels & ~(2 * h - 1)) / 2;   // of blocks wider than h
      for (var i = thread; i < pairs * QUADS; i += WG) {
        let pair = i / QUADS;
        let j = first + ((pair & ~(h - 1)) * 2 + (pair & (h - 1))) * QUADS + i % QUADS;   // insert a zero at bit log2(h)
        let a = rows[j];
        let b = rows[j + h * QUADS];
        rows[j] = a + b;
        rows[j + h * QUADS] = a - b;
      }
    }
  }
}

// Sums over eight tokens each. The caller waits.
fn sumEighths(thread: u32) {
  if (thread >= 8 * QUADS) { return; }
  var eight = vec4f();
  for (var i = 0u; i < 8; i++) { eight += coefs[thread * 8 + i]; }
  eighths[thread] = eight;
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

fn chunkPairOf(n: u32) -> ChunkPair {
  let words = schedule.entries[n];
  return ChunkPair(words.x, words.y, words.z);
}

fn requestOf(n: u32) -> Request {
  let words = schedule.entries[schedule.requestsAt + n];
  return Request(words.x, words.y, words.z, words.w);
}

fn tileOf(n: u32) -> Tile {
  let words = schedule.entries[schedule.tilesAt + n];
  return Tile(words.x, words.y, words.z, words.w);
}

fn splitOf(n: u32) -> Split {
  let words = schedule.entries[schedule.splitsAt + n];
  return Split(words.x, words.y, words.z, words.w);
}

fn rawWindowOf(n: u32) -> RawWindow {
  let words = schedule.entries[schedule.rawWindowsAt + n];
  return RawWindow(words.x, words.y, words.z);
}

// The nth of numbers that lie four to an entry.
fn listed(at: u32, n: u32) -> u32 {
  return schedule.entries[at + n / 4][n & 3];
}

fn queryChannel(at: vec4u, channel: u32) -> vec4f {
  let i = at + channel;
  if (schedule.halfQueries == 1) {
    let words = vec4u(queries[i.x / 2], queries[i.y / 2], queries[i.z / 2], queries[i.w / 2]) >> vec4u(16 * (channel & 1));
    return vec4f(fromHalf(words.x), fromHalf(words.y), fromHalf(words.z), fromHalf(words.w));
  }
  return bitcast<vec4f>(vec4u(queries[i.x], queries[i.y], queries[i.z], queries[i.w]));
}

fn pageWord(odd: bool, word: u32) -> u32 {
  if (odd) { return pages1[word]; }
  return pages0[word];
}

fn rawWord(odd: bool, word: u32) -> u32 {
  if (odd) { return raw1[word]; }
  return raw0[word];
}

// s1 of one token.
fn norm(odd: bool, scales: u32, s1: u32, token: u32) -> f32 {
  let group = halves(pageWord(odd, scales));
  return f32((pageWord(odd, s1 + token / 8) >> (4 * (token & 7))) & 15) * group.x + group.y;
}

// s2 of one token: a small float under its segment's exponent.
fn secondNorm(odd: bool, s2: u32, exponents: u32, segment: u32, token: u32) -> f32 {
  let exponent = (pageWord(odd, exponents) >> (8 * segment)) & 255;
  let code = (pageWord(odd, s2 + (segment * WINDOW + token) / 4) >> (8 * (token & 3))) & 255;
  return select(bitcast<f32>((32 * exponent + code) << 18), 0, code == 0);
}

// o of one channel.
fn mean(odd: bool, scales: u32, o: u32, bits: u32, channel: u32) -> f32 {
  let group = halves(pageWord(odd, scales + 1 + channel / 32));
  let bit = channel * bits;
  let code = (pageWord(odd, o + bit / 32) >> (bit & 31)) & ((1u << bits) - 1);
  return f32(code) * group.x + group.y;
}

fn halves(word: u32) -> vec2f {
  return vec2f(fromHalf(word), fromHalf(word >> 16));
}

// The nth stage of the list at a word of constants.
fn stageOf(list: u32, n: u32) -> Stage {
  let at = list + 9 * n;
  return Stage(
    constants[at], constants[at + 1], constants[at + 2], constants[at + 3], constants[at + 4], constants[at + 5], constants[at + 6],
    constants[at + 7], bitcast<f32>(constants[at + 8])
  );
}

// 1/√n of the block that a channel of a segment is in: the highest bit in which its number differs from theirs is n.
fn hadamardScale(channel: u32, channels: u32) -> f32 {
  let log = firstLeadingBit(channel ^ channels);
  return ldexp(select(1.0, 0.70710678, (log & 1) == 1), -i32(log / 2));
}

// 2^((up − down) / 8): of levels of keys and queries the scale of their channels.
fn power(up: u32, down: u32) -> f32 {
  return bitcast<f32>(constants[POWERS + 15 + up - down]);
}

// To 7 ulps, near 0 too, where WGSL promises less than logits need: a quotient of polynomials, as others' libraries have it; beyond 7.9
// it is 1.
fn hyperbolicTangent(logits: vec4f) -> vec4f {
  let x = clamp(logits, vec4f(-7.9053111), vec4f(7.9053111));
  let s = x * x;
  var p = 2.00018790482477e-13 - 2.76076847742355e-16 * s;
  p = p * s - 8.60467152213735e-11;
  p = p * s + 5.12229709037114e-8;
  p = p * s + 1.48572235717979e-5;
  p = p * s + 6.37261928875436e-4;
  p = p * s + 4.89352455891786e-3;
  var q = 1.18534705686654e-4 + 1.19825839466702e-6 * s;
  q = q * s + 2.26843463243900e-3;
  q = q * s + 4.89352518554385e-3;
  return x * p / q;
}

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
