// Attend: 4 · BLOCKS query rows of one KV head over a span of a sequence's windows, coded or raw, read without decoding them.
// Writes partial results that merge.wgsl combines. Specification: `scores`, `mix` and `attend` in src/reference/reference.ts.
//
//   pages0, pages1  two chunks of a layer's pages;  raw0, raw1  two chunks of raw places
//   constants       codebooks f16 [128, channels] · cos, sin f32 [PAIRS, 64] of ω·(t − 31.5)
//   work            what src/webgpu/schedule.ts draws: header · items · blocks · spans · raw windows · page numbers, four to a vec4u
//   queries         f32 [tokens, KV_HEADS · GROUP, HEAD_DIM]
//   partials        f32 × 4 rows [spans, chunk groups, KV_HEADS, BLOCKS, 2 + HEAD_DIM]: largest logit, sum of p, Σ p·v
//
// A row is a query token and a head of the group; a block is four rows, in the lanes of a vec4f. A code is looked up once for
// all rows of a workgroup, into registers: one block serves decoding, several a prompt or a large group. For scores a thread is
// a token; for values it is two channels of every SPLIT-th token. Logits are in base 2: the scale brings log₂ e.

override HEAD_DIM: u32;
override KV_HEADS: u32;
override GROUP: u32;             // query heads that share a KV head
override BLOCKS: u32;            // 1 to 4, and BLOCKS · HEAD_DIM ≤ 512, rounded up to 128
override SINKS: u32;             // position of the first coded token
override PAGE_WORDS: u32;
override HEAD_WORDS: u32;        // from head to head in a page
override KEY_BLOCK: u32;         // word offset of head 0's block in a page
override KEY_CHANNELS: u32;
override KEY_ROW_WORDS: u32;
override KEY_S2: u32;
override KEY_S1: u32;
override KEY_SCALES: u32;
override KEY_O: u32;
override KEY_BOOK: u32;          // word offset in constants
override VALUE_BLOCK: u32;
override VALUE_CHANNELS: u32;
override VALUE_ROW_WORDS: u32;
override VALUE_S2: u32;
override VALUE_S1: u32;
override VALUE_SCALES: u32;
override VALUE_O: u32;
override VALUE_BOOK: u32;
override TABLES: u32;            // word offset in constants
override PAIRS: u32;             // RoPE pairs; 0 where there is none
override PAIR_STEP: u32;         // pair p is channels p · PAIR_STEP and p · PAIR_STEP + PAIR_OFFSET
override PAIR_OFFSET: u32;
override N: u32;                 // Hadamard block: the largest power of two dividing HEAD_DIM
override SCALE: f32;             // 1/√N
override PADDED: u32;            // KEY_ROW_WORDS · 4 · KEY_CHANNELS: a row of codes with its padding
override BOOK_WORDS: u32;        // both codebooks, or the one that keys and values share
override VALUE_START: u32;       // where values' codebook begins among them
override COLUMNS: u32;           // threads side by side over a value's pairs of channels: min(64, HEAD_DIM / 2)
override SPLIT: u32;             // threads that share a pair's tokens: ⌊64 / COLUMNS⌋

struct Params {
  group: u32,                    // chunks 2·group and 2·group + 1 are bound
}

@group(0) @binding(0) var<storage, read> pages0: array<u32>;
@group(0) @binding(1) var<storage, read> pages1: array<u32>;
@group(0) @binding(2) var<storage, read> raw0: array<u32>;
@group(0) @binding(3) var<storage, read> raw1: array<u32>;
@group(0) @binding(4) var<storage, read> constants: array<u32>;
@group(0) @binding(5) var<storage, read> work: array<vec4u>;
@group(0) @binding(6) var<storage, read> queries: array<f32>;
@group(0) @binding(7) var<storage, read_write> partials: array<vec4f>;
@group(0) @binding(8) var<uniform> params: Params;

const WG = 64u;
const WINDOW = 64u;
const LOWEST = -3e38;

// 16 KiB at most, which src/webgpu/store.ts counts to choose BLOCKS.
var<workgroup> queryAt: array<vec4u, BLOCKS>;           // where a block's queries begin
var<workgroup> visible: array<vec4u, BLOCKS>;           // how many tokens they see; a row beyond the last sees none
var<workgroup> rows: array<vec4f, PADDED * BLOCKS>;     // [channel, block]: q, or H·q where windows are coded; outputs at the end
var<workgroup> book: array<u32, BOOK_WORDS>;            // f16 pairs, none subnormal: unpack2x16float is exact; codeword c + 128 is the negation of c
var<workgroup> turn: array<vec4f, WINDOW * BLOCKS>;     // coefficients of cos and of sin for 32 pairs; then p·s1
var<workgroup> logits: array<vec4f, WINDOW * BLOCKS>;   // [block, token]; then p, or p·s1·s2 where windows are coded
var<workgroup> eighths: array<vec4f, 8 * BLOCKS>;       // a maximum or a sum over eight tokens each

@compute @workgroup_size(WG)
fn attend(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let spanIndex = group.x + group.y * groups.x;
  if (spanIndex >= work[0].y) { return; }
  let head = group.z;
  let span = work[work[0].z + spanIndex];             // item, first row, from, to and whether coded
  let item = work[work[0].w + span.x];                // first token of queries, tokens, position, first page number
  let chunkGroups = work[2].x;
  let pagesPerChunk = work[2].y;
  let coded = (span.w >> 31) == 1;
  let to = span.w & 0x7fffffff;
  let scale = bitcast<f32>(work[0].x);

  if (thread < BLOCKS) {
    var begins: vec4u;
    var sees: vec4u;
    for (var r = 0u; r < 4; r++) {
      let row = span.y + 4 * thread + r;
      let last = min(row, item.y * GROUP - 1);
      begins[r] = (((item.x + last / GROUP) * KV_HEADS + head) * GROUP + last % GROUP) * HEAD_DIM;
      sees[r] = select(0, item.z + row / GROUP + 1, row < item.y * GROUP);
    }
    queryAt[thread] = begins;
    visible[thread] = sees;
  }
  workgroupBarrier();
  for (var i = thread; i < PADDED * BLOCKS; i += WG) {
    var q = vec4f();
    if (i / BLOCKS < HEAD_DIM) { q = queryChannel(queryAt[i % BLOCKS], i / BLOCKS) * scale; }
    rows[i] = q;
  }
  if (coded) {
    for (var i = thread; i < 64 * KEY_CHANNELS; i += WG) { book[i] = constants[KEY_BOOK + i]; }
    for (var i = thread; i < 64 * VALUE_CHANNELS; i += WG) { book[VALUE_START + i] = constants[VALUE_BOOK + i]; }
    // Hadamard. Butterfly, stride h = 1, 2, 4 … N/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
    for (var h = 1u; h < N; h <<= 1) {
      workgroupBarrier();
      for (var i = thread; i < HEAD_DIM / 2 * BLOCKS; i += WG) {
        let pair = i / BLOCKS;
        let j = ((pair & ~(h - 1)) * 2 + (pair & (h - 1))) * BLOCKS + i % BLOCKS;   // insert a zero at bit log2(h)
        let a = rows[j];
        let b = rows[j + h * BLOCKS];
        rows[j] = a + b;
        rows[j + h * BLOCKS] = a - b;
      }
    }
    workgroupBarrier();
    for (var i = thread; i < HEAD_DIM * BLOCKS; i += WG) { rows[i] *= SCALE; }
  }

  // Sums over values, [slot, 2 channels, block]: `mixed` in the Hadamard domain where windows are coded, `means` never.
  var mixed: array<vec4f, 8>;
  var means: array<vec4f, 8>;
  var largest: array<vec4f, 4>;
  var sum: array<vec4f, 4>;   // this thread's tokens only
  for (var b = 0u; b < BLOCKS; b++) { largest[b] = vec4f(LOWEST); }
  let column = thread % COLUMNS;
  let part = thread / COLUMNS;

  for (var window = span.z; window < to; window++) {
    var logit = array<vec4f, 4>();   // written out: without it SwiftShader kept the values of the window before
    var chunk = 0u;
    var first = 0u;    // position of the window's first token
    var count = WINDOW;
    var keys = 0u;     // word offsets
    var values = 0u;
    if (coded) {
      let number = item.w + window;
      let page = work[work[1].w + number / 4][number & 3];
      chunk = page / pagesPerChunk;
      first = SINKS + window * WINDOW;
      keys = page % pagesPerChunk * PAGE_WORDS + KEY_BLOCK + head * HEAD_WORDS;
      values = keys - KEY_BLOCK + VALUE_BLOCK;
    } else {
      let raw = work[work[1].z + window];             // word offset, chunk, capacity · 65536 + count, position
      chunk = raw.y;
      first = raw.w;
      count = raw.z & 0xffff;
      keys = raw.x + head * 2 * (raw.z >> 16) * (HEAD_DIM / 2);
      values = keys + (raw.z >> 16) * (HEAD_DIM / 2);
    }
    if (chunk / 2 != params.group) { continue; }
    let odd = (chunk & 1) == 1;
    workgroupBarrier();   // the window before has been read

    if (coded) {
      // ⟨q, RoPEᵤ(o)⟩ = Σ over pairs of A·cos ωu + B·sin ωu; A and B are the window's. Tokens t and 63 − t are u apart from the
      // window's center on either side: one of them sums the cosines, which are even, the other the sines, which are odd.
      for (var pair = 0u; pair < PAIRS; pair += 32) {
        if (pair > 0) { workgroupBarrier(); }
        for (var i = thread; i < 32 * BLOCKS; i += WG) {
          if (pair + i / BLOCKS < PAIRS) {
            let a = (pair + i / BLOCKS) * PAIR_STEP;
            let b = a + PAIR_OFFSET;
            let at = queryAt[i % BLOCKS];
            let qa = queryChannel(at, a) * scale;
            let qb = queryChannel(at, b) * scale;
            let oa = mean(odd, keys + KEY_SCALES, keys + KEY_O, a);
            let ob = mean(odd, keys + KEY_SCALES, keys + KEY_O, b);
            turn[i] = qa * oa + qb * ob;
            turn[32 * BLOCKS + i] = qb * oa - qa * ob;
          }
        }
        workgroupBarrier();
        let sines = thread / 32;
        for (var i = 0u; i < min(32, PAIRS - pair); i++) {
          let table = bitcast<f32>(constants[TABLES + (sines * PAIRS + pair + i) * WINDOW + thread]);
          for (var b = 0u; b < BLOCKS; b++) { logit[b] += turn[(sines * 32 + i) * BLOCKS + b] * table; }
        }
      }
      if (PAIRS > 0) {
        for (var b = 0u; b < BLOCKS; b++) { logits[b * WINDOW + thread] = logit[b]; }
        workgroupBarrier();
        for (var b = 0u; b < BLOCKS; b++) {
          let other = logits[b * WINDOW + 63 - thread];
          logit[b] = select(logit[b] - other, logit[b] + other, thread >= 32);
        }
        workgroupBarrier();
      }
      if (2 * PAIRS < HEAD_DIM) {
        // Channels that do not turn: one number for the window.
        for (var b = 0u; b < BLOCKS; b++) {
          var still = vec4f();
          for (var i = 2 * PAIRS + thread; i < HEAD_DIM; i += WG) {
            still += queryChannel(queryAt[b], i) * scale * mean(odd, keys + KEY_SCALES, keys + KEY_O, i);
          }
          turn[b * WINDOW + thread] = still;
        }
        workgroupBarrier();
        if (thread < 8 * BLOCKS) {
          var eight = vec4f();
          for (var i = 0u; i < 8; i++) { eight += turn[thread * 8 + i]; }
          eighths[thread] = eight;
        }
        workgroupBarrier();
        for (var b = 0u; b < BLOCKS; b++) {
          for (var i = 0u; i < 8; i++) { logit[b] += eighths[b * 8 + i]; }
        }
        workgroupBarrier();
      }
      var inCodes = array<vec4f, 4>();
      for (var w = 0u; w < KEY_ROW_WORDS; w++) {
        let word = pageWord(odd, keys + thread * KEY_ROW_WORDS + w);
        for (var n = 0u; n < 4; n++) {
          let code = (word >> (8 * n)) & 255;
          let flip = (code >> 7) * 0x80008000;
          let channel = (w * 4 + n) * KEY_CHANNELS;
          for (var k = 0u; k < KEY_CHANNELS; k += 2) {
            let two = unpack2x16float(book[((code & 127) * KEY_CHANNELS + k) / 2] ^ flip);
            for (var b = 0u; b < BLOCKS; b++) {
              inCodes[b] += two.x * rows[(channel + k) * BLOCKS + b] + two.y * rows[(channel + k + 1) * BLOCKS + b];
            }
          }
        }
      }
      let s1 = norm(odd, keys + KEY_SCALES, keys + KEY_S1, thread);
      let s2 = secondNorm(odd, keys + KEY_S2, thread);
      for (var b = 0u; b < BLOCKS; b++) { logit[b] = s1 * (s2 * inCodes[b] + logit[b]); }
    } else if (thread < count) {
      for (var i = 0u; i < HEAD_DIM / 2; i++) {
        let two = halves(rawWord(odd, keys + thread * (HEAD_DIM / 2) + i));
        for (var b = 0u; b < BLOCKS; b++) { logit[b] += two.x * rows[2 * i * BLOCKS + b] + two.y * rows[(2 * i + 1) * BLOCKS + b]; }
      }
    }

    // Online softmax.
    for (var b = 0u; b < BLOCKS; b++) {
      let seen = (vec4u(first + thread) < visible[b]) & vec4<bool>(thread < count);
      logit[b] = select(vec4f(LOWEST), logit[b], seen);
      logits[b * WINDOW + thread] = logit[b];
    }
    workgroupBarrier();
    if (thread < 8 * BLOCKS) {
      var eight = logits[thread * 8];
      for (var i = 1u; i < 8; i++) { eight = max(eight, logits[thread * 8 + i]); }
      eighths[thread] = eight;
    }
    workgroupBarrier();
    var s1 = 1.0;
    var s2 = 1.0;
    if (coded) {
      s1 = norm(odd, values + VALUE_SCALES, values + VALUE_S1, thread);
      s2 = secondNorm(odd, values + VALUE_S2, thread);
    }
    for (var b = 0u; b < BLOCKS; b++) {
      var peak = largest[b];
      for (var i = 0u; i < 8; i++) { peak = max(peak, eighths[b * 8 + i]); }
      let fade = exp2(largest[b] - peak);
      largest[b] = peak;
      let p = select(vec4f(), exp2(logit[b] - peak), logit[b] > vec4f(LOWEST));
      sum[b] = sum[b] * fade + p;
      turn[b * WINDOW + thread] = p * s1;
      logits[b * WINDOW + thread] = p * s1 * s2;
      for (var i = b; i < 8; i += BLOCKS) {
        mixed[i] *= fade;
        means[i] *= fade;
      }
    }
    workgroupBarrier();

    if (part < SPLIT) {
      var slot = 0u;
      for (var pair = column; pair < HEAD_DIM / 2; pair += COLUMNS) {
        let at = 2 * pair / VALUE_CHANNELS;
        let within = 2 * pair % VALUE_CHANNELS;
        for (var t = part; t < count; t += SPLIT) {
          var two: vec2f;
          if (coded) {
            let code = (pageWord(odd, values + t * VALUE_ROW_WORDS + at / 4) >> (8 * (at & 3))) & 255;
            two = unpack2x16float(book[VALUE_START + ((code & 127) * VALUE_CHANNELS + within) / 2] ^ ((code >> 7) * 0x80008000));
          } else {
            two = halves(rawWord(odd, values + t * (HEAD_DIM / 2) + pair));
          }
          for (var b = 0u; b < BLOCKS; b++) {
            let weight = logits[b * WINDOW + t];
            mixed[slot + b] += weight * two.x;
            mixed[slot + BLOCKS + b] += weight * two.y;
          }
        }
        slot += 2 * BLOCKS;
      }
    }
    if (coded) {
      if (thread < 8 * BLOCKS) {
        var eight = vec4f();
        for (var i = 0u; i < 8; i++) { eight += turn[thread * 8 + i]; }
        eighths[thread] = eight;
      }
      workgroupBarrier();
      if (part == 0) {
        for (var b = 0u; b < BLOCKS; b++) {
          var total = vec4f();
          for (var i = 0u; i < 8; i++) { total += eighths[b * 8 + i]; }
          var slot = b;
          for (var pair = column; pair < HEAD_DIM / 2; pair += COLUMNS) {
            means[slot] += total * mean(odd, values + VALUE_SCALES, values + VALUE_O, 2 * pair);
            means[slot + BLOCKS] += total * mean(odd, values + VALUE_SCALES, values + VALUE_O, 2 * pair + 1);
            slot += 2 * BLOCKS;
          }
        }
      }
    }
  }

  // The threads that share a pair add up, one after another; then H, once for the whole span.
  workgroupBarrier();
  for (var b = 0u; b < BLOCKS; b++) { logits[b * WINDOW + thread] = sum[b]; }
  for (var turnOf = 0u; turnOf < SPLIT; turnOf++) {
    if (part == turnOf) {
      var slot = 0u;
      for (var pair = column; pair < HEAD_DIM / 2; pair += COLUMNS) {
        for (var i = 0u; i < 2 * BLOCKS; i++) {
          let before = select(rows[2 * pair * BLOCKS + i], vec4f(), turnOf == 0);
          rows[2 * pair * BLOCKS + i] = before + mixed[slot + i];
        }
        slot += 2 * BLOCKS;
      }
    }
    workgroupBarrier();
  }
  if (coded) {
    for (var h = 1u; h < N; h <<= 1) {
      workgroupBarrier();
      for (var i = thread; i < HEAD_DIM / 2 * BLOCKS; i += WG) {
        let pair = i / BLOCKS;
        let j = ((pair & ~(h - 1)) * 2 + (pair & (h - 1))) * BLOCKS + i % BLOCKS;
        let a = rows[j];
        let b = rows[j + h * BLOCKS];
        rows[j] = a + b;
        rows[j + h * BLOCKS] = a - b;
      }
    }
    workgroupBarrier();
  }
  let at = ((spanIndex * chunkGroups + params.group) * KV_HEADS + head) * BLOCKS * (2 + HEAD_DIM);
  if (thread < BLOCKS) {
    var total = vec4f();
    for (var t = 0u; t < WG; t++) { total += logits[thread * WINDOW + t]; }
    partials[at + thread * (2 + HEAD_DIM) + 1] = total;
  }
  let factor = select(1.0, SCALE, coded);
  if (part == 0) {
    for (var b = 0u; b < BLOCKS; b++) {
      let to = at + b * (2 + HEAD_DIM);
      if (thread == 0) { partials[to] = largest[b]; }
      var slot = b;
      for (var pair = column; pair < HEAD_DIM / 2; pair += COLUMNS) {
        partials[to + 2 + 2 * pair] = rows[2 * pair * BLOCKS + b] * factor + means[slot];
        partials[to + 3 + 2 * pair] = rows[(2 * pair + 1) * BLOCKS + b] * factor + means[slot + BLOCKS];
        slot += 2 * BLOCKS;
      }
    }
  }
}

fn queryChannel(at: vec4u, channel: u32) -> vec4f {
  return vec4f(queries[at.x + channel], queries[at.y + channel], queries[at.z + channel], queries[at.w + channel]);
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

// s2 of one token.
fn secondNorm(odd: bool, s2: u32, token: u32) -> f32 {
  return fromHalf(pageWord(odd, s2 + token / 2) >> (16 * (token & 1)));
}

// o of one channel.
fn mean(odd: bool, scales: u32, o: u32, channel: u32) -> f32 {
  let group = halves(pageWord(odd, scales + 1 + channel / 32));
  return f32((pageWord(odd, o + channel / 8) >> (4 * (channel & 7))) & 15) * group.x + group.y;
}

fn halves(word: u32) -> vec2f {
  return vec2f(fromHalf(word), fromHalf(word >> 16));
}

// The value of the low half of a word. In integers: WGSL does not promise subnormals.
fn fromHalf(bits: u32) -> f32 {
  var magnitude = f32(bits & 0x3ff) * 0x1p-24f;
  if ((bits & 0x7c00) != 0) { magnitude = bitcast<f32>(((bits & 0x7fff) << 13) + 0x38000000); }
  return select(magnitude, -magnitude, (bits & 0x8000) != 0);
}
