// Candidate lists for the exact search of the nearest codeword in 2 and 4 dimensions (quantize.ts reads them). Space is cut into
// cells; a cell lists each codeword that no other beats everywhere in it. Those of one half are enough, as a codebook is its own mirror
// image. Built once for every codebook, in f64: every build of the kernels makes the same bytes.
//
// 1.4 ms at D = 2, 11 at D = 4. Unrealized speed-ups: f64x2 in SIMD builds, 4 %; candidates sorted once, where the best is now
// looked for in every round, are 10 % slower.

/** Beyond any channel: |y| ≤ √576 = 24. The cells at the rim reach as far. */
const LIMIT: f64 = 25;
/** Covers f32 rounding of a position, and of the difference of two scores: 8 · 2⁻²⁴ · ‖C‖ · ‖y − C/2‖, 6e-5 at most. */
const POSITION_SLACK: f64 = 1e-5;
const SCORE_SLACK: f64 = 1e-4;
/** Codewords that the others in a box are compared with, at most: its best. */
const RIVALS: u32 = 8;
/** Candidates that are scored at once. */
const LANES: u32 = 4;
/** Entries of the table by which equal lists are found; there are 6,133 lists at D = 4. */
const SEEN: u32 = 0x4000;
/** Bytes of one box's list of candidates. */
const LIST: usize = 256;

/** What stays the same while a grid is built, at the beginning of the scratch memory; its tables follow. */
@unmanaged
class Build {
  channels: u32;      // D: 2 or 4
  cells: u32;         // along one channel, even
  groupBytes: usize;  // of a list
  reach: f64;         // cells lie from −reach to reach
  grid: usize;        // u32 [cells^D / 2]
  end: usize;         // of the lists so far
}

// Scratch, from `build` on.
const BOOK: usize = 64;                           // f64 [256, 4]: codewords, zeros beyond D
const HALF_NORMS: usize = BOOK + 256 * 32;        // f64 [256]: ‖C‖²/2
const SCORES: usize = HALF_NORMS + 256 * 8;       // f64 [256]: of one box's candidates at its middle
const BOX: usize = SCORES + 256 * 8;              // f64 [2, 4]: middle, half of the width
const SEEN_HEADS: usize = BOX + 64;               // u32 [SEEN]: entries of the grid by the hash of their lists; 0 is none
const LISTS: usize = SEEN_HEADS + <usize>SEEN * 4; // u8 [levels, 256]: a box's candidates behind those of the box that it is in

/**
 * The grid of a codebook whose row c + 128 is the negation of row c. Returns its bytes.
 *
 *   book    f32 [256, channels]
 *   grid    u32 [cells^channels / 2]: offset of the list << 8 | its groups; then the lists, as quantize.ts draws them
 *   build   scratch: 80 KiB of zeros
 */
export function buildGrid(book: usize, channels: u32, cells: u32, reach: f64, grid: usize, build: Build): usize {
  build.channels = channels;
  build.cells = cells;
  build.groupBytes = channels == 2 ? 48 : 4;
  build.reach = reach;
  build.grid = grid;
  const count = power(cells, channels);
  build.end = grid + <usize>count * 2;

  const scratch = changetype<usize>(build);
  for (let c: usize = 0; c < 256; c++) {
    let norm: f64 = 0;
    for (let k: u32 = 0; k < channels; k++, book += 4) {
      const x = <f64>load<f32>(book);
      store<f64>(scratch + (c << 5) + (k << 3), x, BOOK);
      norm += x * x;
    }
    store<f64>(scratch + (c << 3), norm * 0.5, HALF_NORMS);
    store<u8>(scratch + c, <u8>c, LISTS);
  }

  // The largest boxes have a power of two of cells a side: they are halved down to single cells.
  const width = cells & -cells, perSide = cells / width;
  for (let n: u32 = 0, boxes = count / power(width, channels); n < boxes; n++) {
    let from: u32 = 0;
    for (let k: u32 = 0, rest = n; k < channels; k++, rest /= perSide) from |= rest % perSide * width << (k << 3);
    visit(build, scratch + LISTS, 256, width, from);
  }
  return build.end - grid;
}

/**
 * Fills the cells of a box that lie in the upper half of the last channel. What is nearest nowhere in a box is so in none of its parts.
 *
 *   list    u8 [count] candidates; this box's go behind it
 *   from    its first cell: a byte a channel, the first lowest
 */
function visit(build: Build, list: usize, count: u32, width: u32, from: u32): void {
  const cells = build.cells, channels = build.channels;
  if (((from >> (channels - 1 << 3)) + width) * 2 <= cells) return;
  let cell: u32 = 0;
  for (let k = channels; k-- > 0;) {
    const at = from >> (k << 3) & 255;
    setSide(build, k, at, width);
    cell = cell * cells + at;
  }
  count = nearestSomewhere(build, list, count, list + LIST);
  list += LIST;

  if (width > 1) {
    width >>= 1;
    for (let part: u32 = 0; part < 1 << channels; part++) {
      let at = from;
      for (let k: u32 = 0; k < channels; k++) at += (part >> k & 1) * width << (k << 3);
      visit(build, list, count, width, at);
    }
    return;
  }
  store<u32>(build.grid + (<usize>(cell - power(cells, channels) / 2) << 2), headOf(build, list, count));
}

function power(x: u32, exponent: u32): u32 {
  let product: u32 = 1;
  for (; exponent > 0; exponent--) product *= x;
  return product;
}

function setSide(build: Build, channel: usize, from: u32, width: u32): void {
  const step = 2 * build.reach / <f64>build.cells;
  const low = from == 0 ? -LIMIT : <f64>from * step - build.reach - POSITION_SLACK;
  const high = from + width == build.cells ? LIMIT : <f64>(from + width) * step - build.reach + POSITION_SLACK;
  const box = changetype<usize>(build) + (channel << 3);
  store<f64>(box, (low + high) * 0.5, BOX);
  store<f64>(box, (high - low) * 0.5, BOX + 32);
}

/** Those of a list that no other beats everywhere in the box, in the same order: `kept`, u8 [256]. Returns how many. */
function nearestSomewhere(build: Build, list: usize, count: u32, kept: usize): u32 {
  const scratch = changetype<usize>(build), scores = scratch + SCORES;
  for (let i: u32 = 0; i < count; i++) {
    const c = <usize>load<u8>(list + i), word = scratch + (c << 5);
    store<u8>(kept + i, <u8>c);
    store<f64>(scores + (i << 3), load<f64>(word, BOOK) * load<f64>(scratch, BOX) + load<f64>(word, BOOK + 8) * load<f64>(scratch, BOX + 8)
      + load<f64>(word, BOOK + 16) * load<f64>(scratch, BOX + 16) + load<f64>(word, BOOK + 24) * load<f64>(scratch, BOX + 24)
      - load<f64>(scratch + (c << 3), HALF_NORMS));
  }
  // The best of those left is beaten by none of them. It drops whom it beats, and keeps a score below any.
  for (let rivals: u32 = 0; rivals < RIVALS; rivals++) {
    let best: u32 = 0, most: f64 = -Infinity;
    for (let i: u32 = 0; i < count; i++) {
      const score = load<f64>(scores + (i << 3));
      if (score > most) {
        most = score;
        best = i;
      }
    }
    if (most == -Infinity) break;
    const rival = scratch + (<usize>load<u8>(kept + best) << 5);
    store<f64>(scores + (best << 3), -Infinity);
    let left: u32 = 0;
    for (let i: u32 = 0; i < count; i++) {
      const score = load<f64>(scores + (i << 3)), c = load<u8>(kept + i);
      if (score > -Infinity && most - score - moves(scratch, rival, scratch + (<usize>c << 5)) > SCORE_SLACK) continue;
      store<f64>(scores + (left << 3), score);
      store<u8>(kept + left, c);
      left++;
    }
    count = left;
  }
  return count;
}

/** What the difference of two codewords' scores changes by at most between a box's middle and its corners. */
@inline function moves(scratch: usize, a: usize, b: usize): f64 {
  return abs(load<f64>(a, BOOK) - load<f64>(b, BOOK)) * load<f64>(scratch, BOX + 32)
    + abs(load<f64>(a, BOOK + 8) - load<f64>(b, BOOK + 8)) * load<f64>(scratch, BOX + 40)
    + abs(load<f64>(a, BOOK + 16) - load<f64>(b, BOOK + 16)) * load<f64>(scratch, BOX + 48)
    + abs(load<f64>(a, BOOK + 24) - load<f64>(b, BOOK + 24)) * load<f64>(scratch, BOX + 56);
}

/** The grid's entry for a list, which is written where it is new: in groups of four, the last codeword repeated to fill them. */
function headOf(build: Build, list: usize, count: u32): u32 {
  const groups = (count + LANES - 1) / LANES, seen = changetype<usize>(build) + SEEN_HEADS;
  for (let i = count; i < groups * LANES; i++) store<u8>(list + i, load<u8>(list + count - 1));
  let hash: u32 = 2166136261;
  for (let i: u32 = 0; i < groups; i++) hash = (hash ^ load<u32>(list + (i << 2))) * 16777619;
  hash ^= hash >> 15;
  while (true) {
    const slot = seen + (<usize>(hash & (SEEN - 1)) << 2), head = load<u32>(slot);
    if (head == 0) {
      const added = <u32>(build.end - build.grid) << 8 | groups;
      store<u32>(slot, added);
      append(build, list, groups);
      return added;
    }
    if ((head & 255) == groups && sameList(build, build.grid + <usize>(head >> 8), list, groups)) return head;
    hash++;
  }
}

function sameList(build: Build, at: usize, list: usize, groups: u32): bool {
  for (let i: u32 = 0; i < groups; i++, at += build.groupBytes, list += LANES) {
    if (load<u32>(at + build.groupBytes - (build.channels == 2 ? 16 : 4)) != load<u32>(list)) return false;
  }
  return true;
}

function append(build: Build, list: usize, groups: u32): void {
  const book = changetype<usize>(build) + BOOK;
  for (let i: u32 = 0; i < groups; i++, list += LANES) {
    let at = build.end;
    build.end += build.groupBytes;
    if (build.channels == 2) {
      for (let k: usize = 0; k < 2; k++) {
        for (let lane: u32 = 0; lane < LANES; lane++, at += 4) {
          store<f32>(at, <f32>load<f64>(book + (<usize>load<u8>(list + lane) << 5) + (k << 3)));
        }
      }
    }
    store<u32>(at, load<u32>(list));
  }
}
