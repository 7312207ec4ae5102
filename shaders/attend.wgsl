// Attend: four query rows of one KV head over a span of a sequence's windows, coded or raw, read without decoding them.
// Writes partial results that merge.wgsl combines. Specification: `scores`, `mix` and `attend` in src/reference.ts.
//
//   pages0, pages1  two chunks of a layer's pages;  raw0, raw1  two chunks of raw places
//   constants       codebooks f16 [128, channels] · cos, sin f32 [PAIRS, 64] of ω·(t − 31.5)
//   work            header · items · blocks · spans · raw windows · page numbers, four to a vec4u
//   queries         f32 [tokens, KV_HEADS · GROUP, HEAD_DIM]
//   partials        f32 × 4 rows [spans, CHUNK_GROUPS, KV_HEADS, 2 + HEAD_DIM]: largest logit, sum of p, Σ p·v
//
// A row is a query token and a head of the group; rows lie in the lanes of a vec4f. For scores a thread is a token, for
// values it is a pair of channels. Logits are in base 2: the scale brings log₂ e.

override HEAD_DIM: u32;
override KV_HEADS: u32;
override GROUP: u32;             // query heads that share a KV head
override SINKS: u32;             // position of the first coded token
override PAGE_WORDS: u32;
override PAGES_PER_CHUNK: u32;
override CHUNK_GROUPS: u32;
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

var<workgroup> rows: array<vec4f, PADDED>;              // q, or H·q where windows are coded; H's input at the end
var<workgroup> keyBook: array<u32, 64 * KEY_CHANNELS>;  // f16 pairs; codeword c + 128 is the negation of c
var<workgroup> valueBook: array<u32, 64 * VALUE_CHANNELS>;
var<workgroup> turn: array<vec4f, 128>;                 // coefficients of cos and of sin for 64 pairs; then s2 of values in x
var<workgroup> logits: array<vec4f, WINDOW>;
var<workgroup> weights: array<vec4f, WINDOW>;           // p, or p·s1 where windows are coded

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
  let coded = (span.w >> 31) == 1;
  let to = span.w & 0x7fffffff;
  let scale = bitcast<f32>(work[0].x);

  // Where each row's query lies, and how many tokens it sees; a row beyond the last sees none.
  var queryAt: vec4u;
  var visible: vec4u;
  for (var r = 0u; r < 4; r++) {
    let row = min(span.y + r, item.y * GROUP - 1);
    queryAt[r] = (((item.x + row / GROUP) * KV_HEADS + head) * GROUP + row % GROUP) * HEAD_DIM;
    visible[r] = select(0, item.z + row / GROUP + 1, span.y + r < item.y * GROUP);
  }

  for (var i = thread; i < PADDED; i += WG) {
    var q = vec4f();
    if (i < HEAD_DIM) { q = queryChannel(queryAt, i) * scale; }
    rows[i] = q;
  }
  if (coded) {
    for (var i = thread; i < 64 * KEY_CHANNELS; i += WG) { keyBook[i] = constants[KEY_BOOK + i]; }
    for (var i = thread; i < 64 * VALUE_CHANNELS; i += WG) { valueBook[i] = constants[VALUE_BOOK + i]; }
    // Hadamard. Butterfly, stride h = 1, 2, 4 … N/2:   (x[j], x[j+h]) ← (x[j] + x[j+h], x[j] − x[j+h])
    for (var h = 1u; h < N; h <<= 1) {
      workgroupBarrier();
      for (var i = thread; i < HEAD_DIM / 2; i += WG) {
        let j = (i & ~(h - 1)) * 2 + (i & (h - 1));   // i-th pair: insert a zero at bit log2(h)
        let a = rows[j];
        let b = rows[j + h];
        rows[j] = a + b;
        rows[j + h] = a - b;
      }
    }
    workgroupBarrier();
    for (var i = thread; i < HEAD_DIM; i += WG) { rows[i] *= SCALE; }
  }
  workgroupBarrier();

  // Sums over values, two channels a slot: in the Hadamard domain, and plain (raw values, means of coded windows).
  var hidden: array<vec4f, 8>;
  var plain: array<vec4f, 8>;
  var largest = vec4f(LOWEST);
  var sum = vec4f();   // this thread's tokens only

  for (var window = span.z; window < to; window++) {
    var logit = vec4f();
    var chunk = 0u;
    var first = 0u;    // position of the window's first token
    var count = WINDOW;
    var keys = 0u;     // word offsets
    var values = 0u;
    if (coded) {
      let number = item.w + window;
      let page = work[work[1].w + number / 4][number & 3];
      chunk = page / PAGES_PER_CHUNK;
      first = SINKS + window * WINDOW;
      keys = page % PAGES_PER_CHUNK * PAGE_WORDS + KEY_BLOCK + head * HEAD_WORDS;
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

    if (coded) {
      // ⟨q, RoPEᵤ(o)⟩ = Σ over pairs of A·cos ωu + B·sin ωu; A and B are the window's.
      for (var pair = 0u; pair < PAIRS; pair += WG) {
        workgroupBarrier();
        if (pair + thread < PAIRS) {
          let a = (pair + thread) * PAIR_STEP;
          let b = a + PAIR_OFFSET;
          let qa = queryChannel(queryAt, a) * scale;
          let qb = queryChannel(queryAt, b) * scale;
          let oa = mean(odd, keys + KEY_SCALES, keys + KEY_O, a);
          let ob = mean(odd, keys + KEY_SCALES, keys + KEY_O, b);
          turn[thread] = qa * oa + qb * ob;
          turn[64 + thread] = qb * oa - qa * ob;
        }
        workgroupBarrier();
        for (var i = 0u; i < min(WG, PAIRS - pair); i++) {
          let at = TABLES + (pair + i) * WINDOW + thread;
          logit += turn[i] * bitcast<f32>(constants[at]) + turn[64 + i] * bitcast<f32>(constants[at + PAIRS * WINDOW]);
        }
      }
      if (2 * PAIRS < HEAD_DIM) {
        // Channels that do not turn: one number for the window.
        workgroupBarrier();
        var part = vec4f();
        for (var i = 2 * PAIRS + thread; i < HEAD_DIM; i += WG) {
          part += queryChannel(queryAt, i) * scale * mean(odd, keys + KEY_SCALES, keys + KEY_O, i);
        }
        turn[thread] = part;
        workgroupBarrier();
        if (thread < 8) {
          var eight = vec4f();
          for (var i = 0u; i < 8; i++) { eight += turn[thread * 8 + i]; }
          turn[64 + thread] = eight;
        }
        workgroupBarrier();
        for (var i = 0u; i < 8; i++) { logit += turn[64 + i]; }
      }
      var inCodes = vec4f();
      for (var w = 0u; w < KEY_ROW_WORDS; w++) {
        let word = pageWord(odd, keys + thread * KEY_ROW_WORDS + w);
        for (var n = 0u; n < 4; n++) {
          let code = (word >> (8 * n)) & 255;
          let flip = (code >> 7) * 0x80008000;
          let channel = (w * 4 + n) * KEY_CHANNELS;
          for (var k = 0u; k < KEY_CHANNELS; k += 2) {
            let two = unpack2x16float(keyBook[((code & 127) * KEY_CHANNELS + k) / 2] ^ flip);
            inCodes += two.x * rows[channel + k] + two.y * rows[channel + k + 1];
          }
        }
      }
      logit = norm(odd, keys + KEY_SCALES, keys + KEY_S1, thread) * (secondNorm(odd, keys + KEY_S2, thread) * inCodes + logit);
    } else if (thread < count) {
      for (var i = 0u; i < HEAD_DIM / 2; i++) {
        let two = unpack2x16float(rawWord(odd, keys + thread * (HEAD_DIM / 2) + i));
        logit += two.x * rows[2 * i] + two.y * rows[2 * i + 1];
      }
    }

    // Online softmax.
    let seen = vec4<bool>(
      first + thread < visible.x, first + thread < visible.y, first + thread < visible.z, first + thread < visible.w
    ) & vec4<bool>(thread < count);
    logit = select(vec4f(LOWEST), logit, seen);
    logits[thread] = logit;
    workgroupBarrier();
    var peak = largest;
    for (var t = 0u; t < count; t++) { peak = max(peak, logits[t]); }
    let fade = exp2(largest - peak);
    largest = peak;
    let p = select(vec4f(), exp2(logit - peak), seen);
    sum = sum * fade + p;
    if (coded) {
      weights[thread] = p * norm(odd, values + VALUE_SCALES, values + VALUE_S1, thread);
      turn[thread].x = secondNorm(odd, values + VALUE_S2, thread);
    } else {
      weights[thread] = p;
    }
    workgroupBarrier();

    var slot = 0u;
    for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
      var x = vec4f();
      var y = vec4f();
      if (coded) {
        var total = vec4f();
        let column = 2 * pair / VALUE_CHANNELS;
        let within = 2 * pair % VALUE_CHANNELS;
        for (var t = 0u; t < WINDOW; t++) {
          let code = (pageWord(odd, values + t * VALUE_ROW_WORDS + column / 4) >> (8 * (column & 3))) & 255;
          let two = unpack2x16float(valueBook[((code & 127) * VALUE_CHANNELS + within) / 2] ^ ((code >> 7) * 0x80008000));
          let weight = weights[t];
          let scaled = weight * turn[t].x;
          total += weight;
          x += scaled * two.x;
          y += scaled * two.y;
        }
        hidden[slot] = hidden[slot] * fade + x;
        hidden[slot + 1] = hidden[slot + 1] * fade + y;
        x = total * mean(odd, values + VALUE_SCALES, values + VALUE_O, 2 * pair);
        y = total * mean(odd, values + VALUE_SCALES, values + VALUE_O, 2 * pair + 1);
      } else {
        for (var t = 0u; t < count; t++) {
          let two = unpack2x16float(rawWord(odd, values + t * (HEAD_DIM / 2) + pair));
          x += weights[t] * two.x;
          y += weights[t] * two.y;
        }
      }
      plain[slot] = plain[slot] * fade + x;
      plain[slot + 1] = plain[slot + 1] * fade + y;
      slot += 2;
    }
  }

  // H once for the whole span.
  workgroupBarrier();
  logits[thread] = sum;
  if (coded) {
    var slot = 0u;
    for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
      rows[2 * pair] = hidden[slot];
      rows[2 * pair + 1] = hidden[slot + 1];
      slot += 2;
    }
    for (var h = 1u; h < N; h <<= 1) {
      workgroupBarrier();
      for (var i = thread; i < HEAD_DIM / 2; i += WG) {
        let j = (i & ~(h - 1)) * 2 + (i & (h - 1));
        let a = rows[j];
        let b = rows[j + h];
        rows[j] = a + b;
        rows[j + h] = a - b;
      }
    }
  }
  workgroupBarrier();
  let at = ((spanIndex * CHUNK_GROUPS + params.group) * KV_HEADS + head) * (2 + HEAD_DIM);
  if (thread == 0) {
    var total = vec4f();
    for (var t = 0u; t < WG; t++) { total += logits[t]; }
    partials[at] = largest;
    partials[at + 1] = total;
  }
  var slot = 0u;
  for (var pair = thread; pair < HEAD_DIM / 2; pair += WG) {
    var x = plain[slot];
    var y = plain[slot + 1];
    if (coded) {
      x += rows[2 * pair] * SCALE;
      y += rows[2 * pair + 1] * SCALE;
    }
    partials[at + 2 + 2 * pair] = x;
    partials[at + 3 + 2 * pair] = y;
    slot += 2;
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
  let group = unpack2x16float(pageWord(odd, scales));
  return f32((pageWord(odd, s1 + token / 8) >> (4 * (token & 7))) & 15) * group.x + group.y;
}

// s2 of one token.
fn secondNorm(odd: bool, s2: u32, token: u32) -> f32 {
  return unpack2x16float(pageWord(odd, s2 + token / 2))[token & 1];
}

// o of one channel.
fn mean(odd: bool, scales: u32, o: u32, channel: u32) -> f32 {
  let group = unpack2x16float(pageWord(odd, scales + 1 + channel / 32));
  return f32((pageWord(odd, o + channel / 8) >> (4 * (channel & 7))) & 15) * group.x + group.y;
}
