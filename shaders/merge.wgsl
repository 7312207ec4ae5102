// The second half of attend: partial results of a block's spans into its output rows. One workgroup per block and KV head.
//
//   work      as attend.wgsl reads it
//   partials  f32 × 4 rows [spans, chunk groups, KV_HEADS, blocks, 2 + HEAD_DIM]: largest logit, sum of p, Σ p·v
//   output    f32 [tokens, KV_HEADS · GROUP, HEAD_DIM]

override HEAD_DIM: u32;
override KV_HEADS: u32;
override GROUP: u32;         // query heads that share a KV head

@group(0) @binding(0) var<storage, read> work: array<vec4u>;
@group(0) @binding(1) var<storage, read> partials: array<vec4f>;
@group(0) @binding(2) var<storage, read_write> output: array<f32>;

const WG = 64u;
override SLOT: u32 = 2 + HEAD_DIM;

@compute @workgroup_size(WG)
fn merge(
  @builtin(workgroup_id) group: vec3u,
  @builtin(num_workgroups) groups: vec3u,
  @builtin(local_invocation_index) thread: u32
) {
  let index = group.x + group.y * groups.x;
  if (index >= work[1].x) { return; }
  let head = group.z;
  let block = work[work[1].y + index];               // item, first row, first span, spans
  let item = work[work[0].w + block.x];
  let chunkGroups = work[2].x;                       // dispatches of attend, each with its own partial results
  let blocks = work[2].z;                            // of four rows, in every workgroup of attend
  let begin = block.z * chunkGroups;
  let end = begin + block.w * chunkGroups;

  for (var b = 0u; b < blocks; b++) {
    let first = block.y + 4 * b;
    if (first >= item.y * GROUP) { break; }
    var largest = vec4f(-3e38);
    for (var part = begin; part < end; part++) { largest = max(largest, partials[slotOf(part, head, b, blocks)]); }
    var total = vec4f();
    for (var part = begin; part < end; part++) {
      let at = slotOf(part, head, b, blocks);
      total += partials[at + 1] * exp2(partials[at] - largest);
    }
    let rows = min(item.y * GROUP - first, 4);
    for (var i = thread; i < HEAD_DIM; i += WG) {
      var sum = vec4f();
      for (var part = begin; part < end; part++) {
        let at = slotOf(part, head, b, blocks);
        sum += partials[at + 2 + i] * exp2(partials[at] - largest);
      }
      let mixed = sum / total;
      for (var r = 0u; r < rows; r++) {
        let row = first + r;
        output[(((item.x + row / GROUP) * KV_HEADS + head) * GROUP + row % GROUP) * HEAD_DIM + i] = mixed[r];
      }
    }
  }
}

fn slotOf(part: u32, head: u32, block: u32, blocks: u32) -> u32 {
  return ((part * KV_HEADS + head) * blocks + block) * SLOT;
}
